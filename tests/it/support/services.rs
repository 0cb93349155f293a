//! Where the services are, and names of their own for every test.

use std::env;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Which queue a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    Local,
    Rabbit,
}

/// Which store a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    File,
    Mongo,
}

/// A queue and a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(pub QueueKind, pub StoreKind);

pub const EMBEDDED: Pair = Pair(QueueKind::Local, StoreKind::File);
pub const PRODUCTION: Pair = Pair(QueueKind::Rabbit, StoreKind::Mongo);

/// Every queue with every store.
pub const PAIRS: [Pair; 4] = [
    EMBEDDED,
    Pair(QueueKind::Local, StoreKind::Mongo),
    Pair(QueueKind::Rabbit, StoreKind::File),
    PRODUCTION,
];

impl Pair {
    /// Whether its services are there. Under `./tests/run` they must be.
    pub fn is_there(self) -> bool {
        (self.0 == QueueKind::Local || amqp_url().is_some())
            && (self.1 == StoreKind::File || mongodb_url().is_some())
    }
}

/// The broker's URL.
pub fn amqp_url() -> Option<String> {
    service("AMQP_URL")
}

/// The database server's URL.
pub fn mongodb_url() -> Option<String> {
    service("MONGODB_URL")
}

/// The value of a variable that `./tests/run` always sets; without it a test leaves itself out.
pub fn service(name: &str) -> Option<String> {
    let url = env::var(name).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        assert!(env::var_os("TEST_SERVICES").is_none(), "{name} is not set");
        left_out(&format!("{name} is not set; ./tests/run starts the services"));
    }
    url
}

/// The value of a variable that `./tests/run` sets where it can.
pub fn provided(name: &str) -> Option<String> {
    let value = env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        left_out(&format!("{name} is not set"));
    }
    value
}

/// Reports that the current test does not test something, or fails where everything is required.
pub fn left_out(reason: &str) {
    assert!(env::var("TEST_SERVICES").as_deref() != Ok("required"), "left out: {reason}");
    lacking(reason);
}

/// Reports that this machine cannot run a test: it lacks a program or a permission.
pub fn lacking(reason: &str) {
    let current = std::thread::current();
    let line = format!("{}: {reason}\n", current.name().unwrap_or("a test"));
    // Past the test runner, which keeps the output of passing tests to itself.
    let _ = std::io::stderr().write_all(format!("left out of {line}").as_bytes());
    append("TEST_LEFT_OUT", &line);
}

/// Reports a figure that the current test measured; `./tests/run` lists them at its end.
pub fn report(line: &str) {
    println!("{line}");
    append("TEST_REPORT", &format!("{line}\n"));
}

/// Appends a line to the file that a variable names, if it does.
fn append(variable: &str, line: &str) {
    let Some(path) = env::var_os(variable) else { return };
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// Runs the program that a variable names, on a private service, and gives what it printed; nothing
/// where the service is not ours to command.
pub async fn command(variable: &str, arguments: &[&str]) -> Option<String> {
    provided(variable)?;
    let printed = try_command(variable, arguments).await;
    Some(printed.unwrap_or_else(|| panic!("{variable} {arguments:?}")))
}

/// As [`command`]; nothing where the program fails.
pub async fn try_command(variable: &str, arguments: &[&str]) -> Option<String> {
    let program = env::var_os(variable)?;
    let mut command = Command::new(program);
    // A service that it starts keeps what it inherits open, so nothing is read from a pipe that
    // would then never end.
    let printed = tempfile::NamedTempFile::new().unwrap();
    command.args(arguments).stdin(Stdio::null()).stdout(printed.reopen().unwrap());
    // Elsewhere, because the wires of this test run on this thread.
    let (done, status) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(command.status().unwrap()));
    let status = status.await.unwrap();
    status.success().then(|| std::fs::read_to_string(printed.path()).unwrap())
}

/// The URL of one database of the server.
pub fn mongodb_database(url: &str, database: &str) -> String {
    let (hosts, options) =
        url.split_once('?').map_or((url, ""), |(hosts, options)| (hosts, options));
    let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
    let (scheme, rest) = hosts.split_once("://").unwrap();
    let hosts = rest.split('/').next().unwrap();
    format!("{scheme}://{hosts}/{database}?{options}")
}

/// An address of the loopback network that only this process uses, for a program that cannot report which
/// port it was given.
pub fn unique_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (id, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{}:{}", 64 + (id >> 16) % 64, (id >> 8) % 256, id % 256, 4000 + n)
}

/// A name nobody else uses, now or in another run.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let random = muster::signup::id::random_hex();
    format!("{prefix}-{n}-{}", &random[..12])
}
