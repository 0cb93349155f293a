//! `muster bench`: what this machine can register, to size a deployment by.
//!
//! Measures how fast it hashes, then drives signups over HTTP through the configured queue and
//! store, in a database and queues of its own that are removed at the end.

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

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, complain, runtime};
use crate::app::App;
use crate::config::{Flag, Settings, StoreUrl};
use crate::password::Kernel;
use crate::domain::{Clock, id::random_hex};
use crate::{queue, store};
use load::Load;
use report::{Hashing, Isolation, Report, Signups};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster bench\n  \
    muster bench --cost 12 --connections 64 --duration 30s --json\n  \
    muster bench --queue amqp://localhost --store mongodb://localhost --with-bulk 100000")]
pub(super) struct Flags {
    #[command(flatten)]
    settings: SettingFlags,
    /// bcrypt cost; below 10 is allowed here.
    #[arg(long, value_name = "COST")]
    cost: Option<u32>,
    /// Connections that sign up at once.
    #[arg(long, default_value_t = 32, value_name = "N")]
    connections: usize,
    /// How long to sign up.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Measure too what so many bulk rows in the queue do to signups at half of that rate.
    #[arg(long, value_name = "ROWS", conflicts_with = "address")]
    with_bulk: Option<usize>,
    /// Drive the muster at this address instead; the users it makes stay there.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<SocketAddr>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: Flags) -> u8 {
    let settings = match Settings::load(&flags.settings.clone().sources(own(flags.cost))) {
        Ok(settings) => settings,
        Err(problems) => {
            complain(&problems.into());
            return EXIT_CONFIGURATION;
        }
    };
    let measured = measure(&flags, settings);
    match measured.and_then(|report| report.print(flags.json).map(|()| report.other())) {
        Ok(0) => EXIT_OK,
        Ok(_) => EXIT_FAILED,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}

/// What is set whatever the operator says: the role, the addresses and the path that is asked are this
/// command's own business, a secret is one that nobody needs, and nothing refuses its users.
fn own(cost: Option<u32>) -> Vec<Flag> {
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

fn measure(flags: &Flags, mut settings: Settings) -> anyhow::Result<Report> {
    let (mut kernel, _) = Kernel::initial(settings.password.lanes);
    if settings.password.lanes.is_none() {
        kernel = Kernel::fastest(kernel, || true).map_or(kernel, |(fastest, _)| fastest);
        // The muster that is driven would measure again.
        settings.password.lanes = Some(kernel.width());
    }
    let bar = bar();
    bar.set_prefix("hashing");
    let before = hashing::measure(kernel, &settings.password, &bar);
    bar.set_prefix("signing up");
    let (signups, isolation) = match flags.address {
        Some(address) => (load::drive(address, flags.load(), &bar)?, None),
        None => with_own_muster(flags, settings.clone(), &bar)?,
    };
    bar.set_prefix("hashing again");
    bar.set_message("");
    let after = hashing::measure(kernel, &settings.password, &bar);
    bar.finish_and_clear();
    let hashing = Hashing::mean(kernel, &settings.password, &before, &after);
    Ok(Report::new(flags, &settings, hashing, signups, isolation))
}

impl Flags {
    fn load(&self) -> Load {
        Load { connections: self.connections, duration: self.duration, pace: None }
    }
}

/// Drives from a thread of its own, without keeping this one from its other work.
async fn drive_apart(
    address: SocketAddr,
    load: Load,
    bar: &ProgressBar,
) -> anyhow::Result<Signups> {
    let shown = bar.clone();
    let driving = std::thread::Builder::new()
        .name(cpu::LOAD.into())
        .spawn(move || load::drive(address, load, &shown))?;
    while !driving.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    driving.join().map_err(|_| anyhow::anyhow!("the load generator crashed"))?
}

/// Starts a muster on a database and queues of its own, drives it, and removes all of it.
fn with_own_muster(
    flags: &Flags,
    mut settings: Settings,
    bar: &ProgressBar,
) -> anyhow::Result<(Signups, Option<Isolation>)> {
    let name = format!("muster-bench-{}", &random_hex()[..12]);
    let scratch = std::env::temp_dir().join(&name);
    std::fs::create_dir(&scratch)
        .with_context(|| format!("{}: cannot be made", scratch.display()))?;
    settings.queue.namespace.clone_from(&name);
    settings.store.url = match settings.store.url {
        StoreUrl::File(_) => StoreUrl::File(scratch.join("users.redb")),
        StoreUrl::Mongo(url) => StoreUrl::Mongo(store::mongo::with_database(&url, &name)),
    };
    let runtime = runtime()?;
    let signups = runtime.block_on(async {
        let app = App::start(&settings, Clock::system()).await?;
        let address = app.addresses().front.context("a front that listens")?;
        let slots = app.hash_pool().cloned().context("a worker that hashes")?;
        let queue = app.queue().clone();
        let stop = tokio_util::sync::CancellationToken::new();
        let running = tokio::spawn(app.run_until(stop.clone().cancelled_owned()));
        load::wait_until_ready(address).await?;
        let (before, cpu) = (slots.usage(), cpu::own_time());
        let driven = drive_apart(address, flags.load(), bar).await;
        let (after, cpu_after) = (slots.usage(), cpu::own_time());
        let measured = async {
            let mut signups = driven?;
            signups.measured_inside(before, after, cpu_after.saturating_sub(cpu));
            let isolation = match flags.with_bulk {
                Some(rows) => {
                    let capacity = signups.per_second;
                    anyhow::ensure!(
                        capacity > 0.0,
                        "nobody was signed up, so there is no half of it"
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
    removed
        .with_context(|| format!("measured, but {name} is left on the broker or the database"))?;
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
    fn nothing_an_operator_asks_of_users_refuses_its_own() {
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
        let sources = Sources { environment, flags: own(Some(4)), ..Sources::default() };
        let settings = Settings::load(&sources).unwrap();
        assert_eq!((settings.policy.min_length, settings.policy.blocklist), (0, Blocklist::None));
        assert_eq!((settings.limits.per_address, settings.admin), (None, None));
        assert_eq!(settings.front.mounts[0].path, load::PATH);
        assert_eq!(settings.password.cost, 4);
    }
}
