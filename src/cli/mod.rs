//! The command line: one file per command.

mod bench;
mod cert;
mod config;
mod dead;
mod doctor;
mod healthcheck;
mod import;
mod keygen;
mod keys;
mod manual;
mod reindex;
mod serve;
mod signup;
mod spec;
mod stdout;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Once;

use clap::{Args, Parser, Subcommand};
use url::Url;

use crate::config::{Flag, Settings, Sources, has_credentials};
use crate::queue::rabbit::NEVER_LOGGED;
use crate::shutdown::end_on_panic;
use crate::telemetry::{logs, stderr};

/// Everything went as asked.
pub const EXIT_OK: u8 = 0;
/// It could not be done.
pub const EXIT_FAILED: u8 = 1;
/// The settings, or what they name, will not do.
pub const EXIT_CONFIGURATION: u8 = 2;
/// Some of what was asked could not be done; the rest was.
pub const EXIT_INCOMPLETE: u8 = 3;
/// It looked, and found what a person should see to.
pub const EXIT_FINDINGS: u8 = 3;
/// A fault in muster itself (`EX_SOFTWARE` of sysexits.h).
pub const EXIT_CRASHED: u8 = 70;

/// Heading of the settings in the help of a command, after its own options.
const SETTINGS: &str = "Settings";
/// Exit codes of commands that name none of their own, as the manual lists them.
const EXIT_CODES: &str = "0 done, 1 failed, 2 usage or settings are wrong, 3 done in part or something found, \
    70 a fault in muster.";

/// Registration through a queue: five documented signup endpoints, one pipeline, nobody lost.
#[derive(Parser)]
#[command(version, arg_required_else_help = false, args_conflicts_with_subcommands = true)]
#[command(after_help = "Without a command, muster serves everything in one process on \
    http://127.0.0.1:3000, with users in ./muster.redb.\n\n\
    Examples:\n  \
    muster\n  \
    muster serve --role worker --queue amqp://broker --store mongodb://database\n  \
    muster doctor\n\n\
    Exit codes: 0 done, 1 failed, 2 usage or settings are wrong, 3 done in part or something found, 70 a fault in \
    muster.")]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: SettingFlags,
}

#[derive(Subcommand)]
enum Command {
    /// Serve signups: the front end, a worker, or both.
    #[command(after_help = "Examples:\n  \
        muster serve --listen 0.0.0.0:3000\n  \
        MUSTER_QUEUE=amqp://user:password@broker/%2f muster serve --role front\n  \
        muster serve --config muster.toml\n\n\
        SIGTERM stops softly, a second one at once. SIGHUP reads the certificate and the public keys \
        again.")]
    Serve(SettingFlags),
    /// Print the effective settings, secrets redacted.
    Config(config::Flags),
    /// Ask a running muster with the same settings whether it is ready; exit 0 if it is.
    #[command(after_help = "Examples:\n  \
        muster healthcheck\n  \
        MUSTER_ADMIN_LISTEN=127.0.0.1:9090 muster healthcheck")]
    Healthcheck(SettingFlags),
    /// Look at everything a muster with these settings would use, and say what is wrong with it.
    Doctor(doctor::Flags),
    /// Register one user, asking for the password.
    Signup(signup::Flags),
    /// Make a pair of keys that seals passwords on RabbitMQ, ready to paste as settings.
    Keygen(keygen::Flags),
    /// Make and list the keys that sign tokens, and print their public halves.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Make a certificate for development.
    Cert(cert::Flags),
    /// Look at dead letters, send them once more, or discard them.
    #[command(subcommand)]
    Dead(dead::Command),
    /// Print what other systems have to know: OpenAPI and AsyncAPI.
    #[command(subcommand)]
    Spec(spec::Command),
    /// Recompute the keys by which addresses are unique, after their rule has changed.
    Reindex(reindex::Flags),
    /// Register the users of a file, and tell what became of each.
    Import(import::Flags),
    /// Measure what this machine can register, on the configured queue and store.
    Bench(bench::Flags),
    /// Print a shell's completions.
    Completions(manual::Completions),
    /// Print the manual page.
    Man(manual::Man),
}

/// Flags that say where settings come from, and override the common ones.
#[derive(Clone, Args)]
struct SettingFlags {
    /// A file of settings, over the defaults and under the environment.
    #[arg(long, value_name = "FILE", help_heading = SETTINGS)]
    config: Option<PathBuf>,
    /// Which part to play: front, worker or all.
    #[arg(long, value_name = "ROLE", help_heading = SETTINGS)]
    role: Option<String>,
    /// Where to serve HTTP.
    #[arg(long, value_name = "ADDRESS", help_heading = SETTINGS)]
    listen: Option<String>,
    /// Where the queue is: local: or amqp://…
    #[arg(long, value_name = "URL", help_heading = SETTINGS)]
    queue: Option<String>,
    /// Where users are kept: file:PATH or mongodb://…
    #[arg(long, value_name = "URL", help_heading = SETTINGS)]
    store: Option<String>,
}

impl SettingFlags {
    fn load(self) -> anyhow::Result<Settings> {
        Ok(Settings::load(&self.sources(Vec::new()))?)
    }

    /// Loads the settings of somebody who only asks.
    fn load_for_client(self) -> anyhow::Result<Settings> {
        Ok(Settings::load_for_client(&self.sources(Vec::new()))?)
    }

    /// Where settings come from; `set` are those the command itself makes.
    fn sources(self, set: Vec<Flag>) -> Sources {
        let flags = [
            ("--role", "role", self.role),
            ("--listen", "front.listen", self.listen),
            ("--queue", "queue.url", self.queue),
            ("--store", "store.url", self.store),
        ];
        // A command may load its settings more than once.
        static WARNED: Once = Once::new();
        WARNED.call_once(|| {
            for (name, _, url) in &flags {
                let instead =
                    format!("set MUSTER_{0}, or MUSTER_{0}_FILE", name[2..].to_uppercase());
                warn_of_credentials(name, url.as_deref().unwrap_or_default(), &instead);
            }
        });
        Sources {
            file: self.config,
            environment: std::env::vars_os()
                // What is not UTF-8 is refused by the setting's name.
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
                })
                .collect(),
            flags: flags
                .into_iter()
                .filter_map(|(name, key, value)| Some(Flag { name, key, value: value? }))
                .chain(set)
                .collect(),
        }
    }
}

/// Shows help, or why a command line cannot be read.
pub fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        stderr::line(error.to_string().trim_end());
        ExitCode::from(EXIT_CONFIGURATION)
    } else {
        ExitCode::from(stdout::printed(&error.to_string()))
    }
}

/// Runs what the command line asks for.
pub fn run(cli: Cli) -> ExitCode {
    let code = match cli.command {
        None => serve::run(cli.settings),
        Some(Command::Serve(flags)) => serve::run(flags),
        Some(Command::Config(flags)) => config::run(flags),
        Some(Command::Healthcheck(flags)) => healthcheck::run(flags),
        Some(Command::Doctor(flags)) => doctor::run(flags),
        Some(Command::Signup(flags)) => signup::run(&flags),
        Some(Command::Keygen(flags)) => keygen::run(flags),
        Some(Command::Keys(command)) => keys::run(command),
        Some(Command::Cert(flags)) => cert::run(&flags),
        Some(Command::Dead(command)) => dead::run(command),
        Some(Command::Spec(command)) => spec::run(command),
        Some(Command::Reindex(flags)) => reindex::run(flags),
        Some(Command::Import(flags)) => import::run(flags),
        Some(Command::Bench(flags)) => bench::run(flags),
        Some(Command::Completions(flags)) => manual::completions(&flags),
        Some(Command::Man(flags)) => manual::man(&flags),
    };
    stderr::flush();
    ExitCode::from(code)
}

fn crashed() -> ! {
    stderr::flush();
    std::process::exit(EXIT_CRASHED.into())
}

/// Warns of a credential on the command line.
fn warn_of_credentials(name: &str, url: &str, instead: &str) {
    if has_credentials(url) {
        stderr::line(&format!(
            "muster: warning: {name} holds a password, and every user of this machine sees the command line in \
             `ps`; {instead}"
        ));
    }
}

/// A usage error that the argument parser does not detect.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Reports why a command failed, and returns its exit code.
fn failed(error: &anyhow::Error) -> u8 {
    complain(error);
    if error.is::<UsageError>() { EXIT_CONFIGURATION } else { EXIT_FAILED }
}

/// Reads the URL of an HTTP server.
fn http_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or("expected http://HOST:PORT or https://HOST:PORT")
}

/// Tells a person what went wrong, on one line where that is possible.
fn complain(error: &anyhow::Error) {
    stderr::line(&format!("muster: {error:#}"));
}

/// What a command that logs works with, its log begun: all that `settings` say is logged, or what
/// `filter` says. Otherwise the exit code, after telling why.
fn begin(
    settings: anyhow::Result<Settings>,
    filter: Option<&str>,
) -> Result<(tokio::runtime::Runtime, Settings), u8> {
    let begun = settings.and_then(|settings| {
        let filter = filter.unwrap_or(&settings.log.filter);
        logs::init(filter, settings.log.as_text, &NEVER_LOGGED)?;
        end_on_panic(stderr::line, crashed);
        Ok((runtime()?, settings))
    });
    begun.map_err(|error| {
        complain(&error);
        EXIT_CONFIGURATION
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// "Every address" is where one listens; from here it is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
