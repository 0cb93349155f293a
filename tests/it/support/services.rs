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

/// What a variable names, which `./tests/run` always provides.
pub fn service(name: &str) -> Option<String> {
    let url = env::var(name).ok().filter(|url| !url.is_empty());
    if url.is_none() {
        assert!(env::var("TEST_SERVICES").as_deref() != Ok("required"), "{name} is not set");
        tell_left_out(name);
    }
    url
}

/// What a variable names, which `./tests/run` provides where it can.
pub fn provided(name: &str) -> Option<String> {
    let value = env::var(name).ok();
    if value.is_none() {
        tell_left_out(name);
    }
    value
}

/// Says what a test leaves out, and where. Written past the test runner, which keeps what passing
/// tests print to itself.
fn tell_left_out(name: &str) {
    let current = std::thread::current();
    let test = current.name().unwrap_or("a test");
    let told = format!("left out of {test}: {name} is not set; ./tests/run starts the services\n");
    let _ = std::io::stderr().write_all(told.as_bytes());
}

/// Runs the program that a variable names, on a private service, and gives what it printed; nothing
/// where the service is not ours to command.
pub async fn command(variable: &str, arguments: &[&str]) -> Option<String> {
    let Some(program) = env::var_os(variable) else {
        tell_left_out(variable);
        return None;
    };
    let mut command = Command::new(program);
    // A service that it starts keeps what it inherits open, so nothing is read from a pipe that
    // would then never end.
    let printed = tempfile::NamedTempFile::new().unwrap();
    command.args(arguments).stdin(Stdio::null()).stdout(printed.reopen().unwrap());
    // Elsewhere, because the wires of this test run on this thread.
    let (done, status) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(command.status().unwrap()));
    let status = status.await.unwrap();
    assert!(status.success(), "{variable} {arguments:?}");
    Some(std::fs::read_to_string(printed.path()).unwrap())
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
