//! `muster bench`: measures the registration capacity of this machine, for sizing a deployment.
//!
//! It measures hashing, then generates signups over HTTP through the configured queue and store. It uses a temporary
//! database and temporary queues, and removes them at the end.

mod bulk;
mod cpu;
mod hashing;
mod load;
mod report;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, print_error, runtime};
use crate::app::App;
use crate::config::{Flag, Settings, StoreUrl};
use crate::domain::{Clock, id::random_hex};
use crate::password::Kernel;
use crate::{queue, store};
use load::Load;
use report::{BenchReport, BulkIsolation, HashingReport, SignupReport};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster bench\n  \
    muster bench --cost 12 --connections 64 --duration 30s --json\n  \
    muster bench --queue amqp://localhost --store mongodb://localhost --bulk-rows 100000")]
pub(super) struct BenchArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// bcrypt cost of the measurement; values below 10 are allowed.
    #[arg(long, value_name = "COST")]
    cost: Option<u32>,
    /// Number of concurrent connections.
    #[arg(long, default_value_t = 32, value_name = "N")]
    connections: usize,
    /// Duration of the signup load.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Also measure signups at half the capacity while this many rows are in the bulk queue.
    #[arg(long, value_name = "ROWS", conflicts_with = "address")]
    bulk_rows: Option<usize>,
    /// Measure the running instance at this address. The created users are not removed.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<SocketAddr>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: BenchArgs) -> u8 {
    let settings = match Settings::load(&flags.settings.clone().sources(overrides(flags.cost))) {
        Ok(settings) => settings,
        Err(problems) => {
            print_error(&problems.into());
            return EXIT_CONFIGURATION;
        }
    };
    let measured = measure(&flags, settings);
    match measured.and_then(|report| report.print(flags.json).map(|()| report.other())) {
        Ok(0) => EXIT_OK,
        Ok(_) => EXIT_FAILED,
        Err(error) => {
            print_error(&error);
            EXIT_FAILED
        }
    }
}

/// Settings that override those of the operator: role, addresses and path are internal, the secret is temporary, and
/// no policy or limit refuses the generated users.
fn overrides(cost: Option<u32>) -> Vec<Flag> {
    let set = [
        ("password.allow_weak_cost", "1"),
        ("password.min_length", "0"),
        ("password.blocklist", "none"),
        ("role", "all"),
        ("front.listen", "127.0.0.1:0"),
        ("front.mounts", load::MOUNT),
        ("front.tls_cert", ""),
        ("front.tls_key", ""),
        ("front.jwks_file", ""),
        ("admin.listen", ""),
        ("limits.per_address", ""),
        ("limits.per_email", ""),
    ];
    let flag = |(key, value)| Flag { name: "bench", key, value };
    let set = set.map(|(key, value)| (key, value.to_owned()));
    let secret = ("token.secret", random_hex() + &random_hex());
    let cost = cost.map(|cost| ("password.cost", cost.to_string()));
    set.into_iter().chain([secret]).chain(cost).map(flag).collect()
}

fn measure(flags: &BenchArgs, mut settings: Settings) -> anyhow::Result<BenchReport> {
    let (mut kernel, _) = Kernel::initial(settings.password.lanes);
    if settings.password.lanes.is_none() {
        kernel = Kernel::fastest(kernel, || true).map_or(kernel, |(fastest, _)| fastest);
        // Otherwise the tested instance would measure the kernels again.
        settings.password.lanes = Some(kernel.width());
    }
    let bar = bar();
    bar.set_prefix("hashing");
    let before = hashing::measure(kernel, &settings.password, &bar);
    bar.set_prefix("signups");
    let (signups, isolation) = match flags.address {
        Some(address) => (load::drive(address, flags.load(), &bar)?, None),
        None => on_temporary_instance(flags, settings.clone(), &bar)?,
    };
    bar.set_prefix("hashing again");
    bar.set_message("");
    let after = hashing::measure(kernel, &settings.password, &bar);
    bar.finish_and_clear();
    let hashing = HashingReport::mean(kernel, &settings.password, &before, &after);
    Ok(BenchReport::new(flags, &settings, hashing, signups, isolation))
}

impl BenchArgs {
    fn load(&self) -> Load {
        Load { connections: self.connections, duration: self.duration, rate: None }
    }
}

/// Generates the load on a separate thread, whose processor time is not counted as the service's.
async fn drive_on_thread(
    address: SocketAddr,
    load: Load,
    bar: &ProgressBar,
) -> anyhow::Result<SignupReport> {
    let bar = bar.clone();
    let driver = std::thread::Builder::new()
        .name(cpu::LOAD_THREAD.into())
        .spawn(move || load::drive(address, load, &bar))?;
    while !driver.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    driver.join().map_err(|_| anyhow::anyhow!("the load generator crashed"))?
}

/// Starts an instance on a temporary database and temporary queues, measures it, and removes both.
fn on_temporary_instance(
    flags: &BenchArgs,
    mut settings: Settings,
    bar: &ProgressBar,
) -> anyhow::Result<(SignupReport, Option<BulkIsolation>)> {
    let name = format!("muster-bench-{}", &random_hex()[..12]);
    let scratch = std::env::temp_dir().join(&name);
    std::fs::create_dir(&scratch)
        .with_context(|| format!("{}: cannot create the directory", scratch.display()))?;
    settings.queue.namespace.clone_from(&name);
    settings.store.url = match settings.store.url {
        StoreUrl::File(_) => StoreUrl::File(scratch.join("users.redb")),
        StoreUrl::Mongo(url) => StoreUrl::Mongo(store::mongo::with_database(&url, &name)),
    };
    let runtime = runtime()?;
    let signups = runtime.block_on(async {
        let app = App::start(&settings, Clock::system()).await?;
        let address = app.addresses().front.context("the instance has no front")?;
        let slots = app.hash_pool().cloned().context("the instance has no worker")?;
        let queue = app.queue().clone();
        let stop = tokio_util::sync::CancellationToken::new();
        let running = tokio::spawn(app.run_until(stop.clone().cancelled_owned()));
        load::wait_until_ready(address).await?;
        let (before, cpu) = (slots.usage(), cpu::service_time());
        let signups = drive_on_thread(address, flags.load(), bar).await;
        let (after, cpu_after) = (slots.usage(), cpu::service_time());
        let measured = async {
            let mut signups = signups?;
            signups.set_internals(before, after, cpu_after.saturating_sub(cpu));
            let isolation = match flags.bulk_rows {
                Some(rows) => {
                    let capacity = signups.per_second;
                    anyhow::ensure!(
                        capacity > 0.0,
                        "no signup succeeded, so the rows cannot be measured at half the capacity"
                    );
                    Some(bulk::measure(queue, address, flags.load(), rows, capacity, bar).await?)
                }
                None => None,
            };
            anyhow::Ok((signups, isolation))
        };
        let measured = measured.await;
        stop.cancel();
        running.await?;
        measured
    });
    let removed = runtime.block_on(async {
        queue::remove(&settings.queue).await?;
        store::remove(&settings.store).await
    });
    let _ = std::fs::remove_dir_all(&scratch);
    let signups = signups?;
    removed.with_context(|| {
        format!(
            "the measurement finished, but the broker or the database still has {name}; remove it"
        )
    })?;
    Ok(signups)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>10} {bar:30} {elapsed} {msg}");
    ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Blocklist, Sources};

    #[test]
    fn settings_of_the_operator_do_not_refuse_generated_users() {
        let environment = [
            ("MUSTER_ROLE", "front"),
            ("MUSTER_FRONT_MOUNTS", "/people = username"),
            ("MUSTER_PASSWORD_MIN_LENGTH", "64"),
            ("MUSTER_PASSWORD_BLOCKLIST", "file:/nowhere"),
            ("MUSTER_LIMITS_PER_ADDRESS", "1/1h"),
            ("MUSTER_ADMIN_LISTEN", "127.0.0.1:1"),
        ];
        let environment =
            environment.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
        let sources = Sources { environment, flags: overrides(Some(4)), ..Sources::default() };
        let settings = Settings::load(&sources).unwrap();
        assert_eq!((settings.policy.min_length, settings.policy.blocklist), (0, Blocklist::None));
        assert_eq!((settings.limits.per_address, settings.admin), (None, None));
        assert_eq!(settings.front.mounts[0].path, load::PATH);
        assert_eq!(settings.password.cost, 4);
    }
}
