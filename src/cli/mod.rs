//! The command line: its parser, and one module per command.

mod bench;
mod cert;
mod config;
mod dead_letters;
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

/// Success.
pub const EXIT_OK: u8 = 0;
/// The command failed.
pub const EXIT_FAILED: u8 = 1;
/// The command line or the settings are invalid, or a resource that they name is not usable.
pub const EXIT_CONFIGURATION: u8 = 2;
/// Only a part was done.
pub const EXIT_INCOMPLETE: u8 = 3;
/// A check reports problems.
pub const EXIT_FINDINGS: u8 = 3;
/// A bug in muster: a panic (`EX_SOFTWARE` of sysexits.h).
pub const EXIT_CRASHED: u8 = 70;

/// Help heading of the settings, after the options of the command.
const SETTINGS: &str = "Settings";
/// Exit codes in the manual pages of commands that list none of their own.
const EXIT_CODES: &str = "0 success, 1 failed, 2 command line or settings are invalid, 3 partly done or problems found, \
    70 a bug in muster.";

/// User registration through a queue: five documented signup endpoints, one pipeline, no lost users.
#[derive(Parser)]
#[command(version, arg_required_else_help = false, args_conflicts_with_subcommands = true)]
#[command(after_help = "Without a command, muster runs front and worker in one process on \
    http://127.0.0.1:3000, with users in ./muster.redb.\n\n\
    Examples:\n  \
    muster\n  \
    muster serve --role worker --queue amqp://broker --store mongodb://database\n  \
    muster doctor\n\n\
    Exit codes: 0 success, 1 failed, 2 command line or settings are invalid, 3 partly done or problems found, 70 a bug \
    in muster.")]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: SettingFlags,
}

#[derive(Subcommand)]
enum Command {
    /// Serve signups: front, worker, or both.
    #[command(after_help = "Examples:\n  \
        muster serve --listen 0.0.0.0:3000\n  \
        MUSTER_QUEUE=amqp://user:password@broker/%2f muster serve --role front\n  \
        muster serve --config muster.toml\n\n\
        SIGTERM stops gracefully, a second one immediately. SIGHUP reloads the certificate and the public \
        keys.")]
    Serve(SettingFlags),
    /// Print the effective settings, secrets redacted.
    Config(config::ConfigArgs),
    /// Check whether a running muster with the same settings is ready; exit code 0 if it is.
    #[command(after_help = "Examples:\n  \
        muster healthcheck\n  \
        MUSTER_ADMIN_LISTEN=127.0.0.1:9090 muster healthcheck")]
    Healthcheck(SettingFlags),
    /// Check settings, machine, broker and database, and report problems.
    Doctor(doctor::DoctorArgs),
    /// Register one user; prompts for the password.
    Signup(signup::SignupArgs),
    /// Generate the key pair that seals passwords on RabbitMQ, printed as settings.
    Keygen(keygen::KeygenArgs),
    /// Generate and list the keys that sign tokens, and print their public halves.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Generate a TLS certificate for development.
    Cert(cert::CertArgs),
    /// List, show, requeue, discard or export dead letters.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Print the OpenAPI or AsyncAPI description.
    #[command(subcommand)]
    Spec(spec::SpecCommand),
    /// Recompute the unique keys of email addresses after their rule has changed.
    Reindex(reindex::ReindexArgs),
    /// Register the users of a file, and report the outcome of each row.
    Import(import::ImportArgs),
    /// Measure the registration capacity of this machine with the configured queue and store.
    Bench(bench::BenchArgs),
    /// Print shell completions.
    Completions(manual::CompletionsArgs),
    /// Print the manual page.
    Man(manual::ManArgs),
}

/// Flags for the settings file and for frequent settings.
#[derive(Clone, Args)]
struct SettingFlags {
    /// Settings file; overrides the defaults, and the environment overrides it.
    #[arg(long, value_name = "FILE", help_heading = SETTINGS)]
    config: Option<PathBuf>,
    /// Role of the process: front, worker or all.
    #[arg(long, value_name = "ROLE", help_heading = SETTINGS)]
    role: Option<String>,
    /// Address of the HTTP server.
    #[arg(long, value_name = "ADDRESS", help_heading = SETTINGS)]
    listen: Option<String>,
    /// URL of the queue: local: or amqp://…
    #[arg(long, value_name = "URL", help_heading = SETTINGS)]
    queue: Option<String>,
    /// URL of the store: file:PATH or mongodb://…
    #[arg(long, value_name = "URL", help_heading = SETTINGS)]
    store: Option<String>,
}

impl SettingFlags {
    fn load(self) -> anyhow::Result<Settings> {
        Ok(Settings::load(&self.sources(Vec::new()))?)
    }

    /// Loads settings for a command that does not serve, which needs fewer of them.
    fn load_for_client(self) -> anyhow::Result<Settings> {
        Ok(Settings::load_for_client(&self.sources(Vec::new()))?)
    }

    /// Returns the sources of settings. `extra` are overrides by the command.
    fn sources(self, extra: Vec<Flag>) -> Sources {
        let flags = [
            ("--role", "role", self.role),
            ("--listen", "front.listen", self.listen),
            ("--queue", "queue.url", self.queue),
            ("--store", "store.url", self.store),
        ];
        // A command may load settings more than once.
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
                // The settings reader rejects a value that is not UTF-8, with the name of the setting.
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
                })
                .collect(),
            flags: flags
                .into_iter()
                .filter_map(|(name, key, value)| Some(Flag { name, key, value: value? }))
                .chain(extra)
                .collect(),
        }
    }
}

/// Prints help, or the error of an invalid command line, and returns the exit code.
pub fn print_parse_error(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        stderr::line(error.to_string().trim_end());
        ExitCode::from(EXIT_CONFIGURATION)
    } else {
        ExitCode::from(stdout::print_or_fail(&error.to_string()))
    }
}

/// Runs the command.
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
        Some(Command::DeadLetters(command)) => dead_letters::run(command),
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

fn exit_after_panic() -> ! {
    stderr::flush();
    std::process::exit(EXIT_CRASHED.into())
}

/// Warns of a password on the command line.
fn warn_of_credentials(name: &str, url: &str, instead: &str) {
    if has_credentials(url) {
        stderr::line(&format!(
            "muster: warning: {name} holds a password, and all users of this machine can see it with `ps`; {instead}"
        ));
    }
}

/// A usage error that the argument parser does not detect.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Prints the error of a command and returns its exit code.
fn print_failure(error: &anyhow::Error) -> u8 {
    print_error(error);
    if error.is::<UsageError>() { EXIT_CONFIGURATION } else { EXIT_FAILED }
}

/// Parses the URL of an HTTP server.
fn http_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or("expected http://HOST:PORT or https://HOST:PORT")
}

/// Prints an error, on one line if possible.
fn print_error(error: &anyhow::Error) {
    stderr::line(&format!("muster: {error:#}"));
}

/// Sets up log and runtime of a command. `filter` replaces the setting `log.filter`. On an error, prints it and
/// returns the exit code.
fn start_runtime(
    settings: anyhow::Result<Settings>,
    filter: Option<&str>,
) -> Result<(tokio::runtime::Runtime, Settings), u8> {
    let started = settings.and_then(|settings| {
        let filter = filter.unwrap_or(&settings.log.filter);
        logs::init(filter, settings.log.as_text, &NEVER_LOGGED)?;
        end_on_panic(stderr::line, exit_after_panic);
        Ok((runtime()?, settings))
    });
    started.map_err(|error| {
        print_error(&error);
        EXIT_CONFIGURATION
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Replaces an unspecified IP address, on which a server may listen, by loopback, to which a client can connect.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
