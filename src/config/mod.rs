//! Settings: `config.default.toml`, then a file, then the environment, then flags.
//!
//! The default file is the list of keys and their types, so that a key exists exactly when it is
//! documented. All problems of all sources are reported together. Only `app` and `cli` call this.

mod layers;
mod problems;
mod reader;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

pub use layers::Sources;
pub use problems::Problems;

use crate::signup::ContractId;
use layers::Layers;

/// The part a process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// HTTP, and nothing that could touch a user.
    Front,
    /// The queue's consumer.
    Worker,
    /// Both in one process.
    All,
}

impl Role {
    /// Whether it serves HTTP.
    pub fn has_front(self) -> bool {
        self != Self::Worker
    }

    /// Whether it consumes.
    pub fn has_worker(self) -> bool {
        self != Self::Front
    }
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The part this process plays.
    pub role: Role,
    /// HTTP.
    pub front: Front,
    /// Where probes are answered besides the front; none if unset.
    pub admin: Option<SocketAddr>,
    /// The queue.
    pub queue: Queue,
    /// The store.
    pub store: Store,
    /// Hashing.
    pub password: Password,
    /// Tokens.
    pub token: Token,
    /// Logs.
    pub log: Log,
    shown: String,
}

/// `[front]`
#[derive(Clone, Debug)]
pub struct Front {
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// Which contracts stand where.
    pub mounts: Vec<Mount>,
    /// Origins whose scripts may read answers.
    pub cors_origins: Vec<String>,
    /// From a request's last byte to its answer.
    pub deadline: Duration,
    /// Bytes.
    pub body_limit: usize,
    /// For the headers of a request.
    pub header_timeout: Duration,
    /// For the body of a request.
    pub body_timeout: Duration,
    /// Open connections.
    pub max_connections: usize,
    /// Requests waiting for an answer.
    pub max_in_flight: usize,
    /// For requests under way after a stop.
    pub drain: Duration,
}

/// One line of `front.mounts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The path, or what the path ends in when `any_prefix`.
    pub path: String,
    /// Whether anything may stand before it.
    pub any_prefix: bool,
    /// The contracts served there, in order of preference; never empty.
    pub contracts: Vec<ContractId>,
}

/// `[queue]`
#[derive(Clone, Debug)]
pub struct Queue {
    /// Which queue, by its URL's scheme.
    pub url: QueueUrl,
    /// How the names of all exchanges and queues begin.
    pub namespace: String,
    /// Messages waiting, interactive and profile each.
    pub max_length: u32,
    /// Messages waiting, bulk.
    pub bulk_max_length: u32,
    /// Bytes waiting, bulk.
    pub bulk_max_bytes: u64,
    /// Messages held by a worker, per queue; 0 follows the hash slots.
    pub prefetch: u16,
    /// Pauses between attempts at a bulk message.
    pub retry_delays: Vec<Duration>,
    /// How long a dead letter is kept.
    pub dead_retention: Duration,
    /// Names of foreign reply queues begin so; empty allows none.
    pub reply_prefix: String,
}

/// Which queue.
#[derive(Clone, Debug)]
pub enum QueueUrl {
    /// In this process.
    Local,
    /// RabbitMQ.
    Amqp(SecretString),
}

/// `[store]`
#[derive(Clone, Debug)]
pub struct Store {
    /// Which store, by its URL's scheme.
    pub url: StoreUrl,
    /// Database name where the URL has none.
    pub database: String,
    /// Longest wait for one call.
    pub timeout: Duration,
}

/// Which store.
#[derive(Clone, Debug)]
pub enum StoreUrl {
    /// The embedded store's file.
    File(PathBuf),
    /// MongoDB.
    Mongo(SecretString),
}

/// `[password]`
#[derive(Clone, Debug)]
pub struct Password {
    /// bcrypt cost.
    pub cost: u32,
    /// Threads that hash; never 0.
    pub threads: usize,
    /// Passwords a thread hashes at once; none: measured at start.
    pub lanes: Option<usize>,
}

/// `[token]`
#[derive(Clone, Debug)]
pub struct Token {
    /// The signing secret, if given.
    pub secret: Option<SecretString>,
    /// How long a token is valid.
    pub lifetime: Duration,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// `text`, `json` or `auto`.
    pub format: LogFormat,
    /// As in `RUST_LOG`.
    pub filter: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Settings {
    /// Reads all sources. The error lists everything that is wrong with them.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let layers = Layers::merge(sources, &mut problems);
        let settings = reader::read(&layers, &mut problems);
        settings.filter(|_| problems.is_empty()).ok_or(problems)
    }

    /// The effective settings as TOML, secrets redacted.
    pub fn to_toml(&self) -> &str {
        &self.shown
    }

    /// Whether everything stays in this process and its data file.
    pub fn is_embedded(&self) -> bool {
        matches!((&self.queue.url, &self.store.url), (QueueUrl::Local, StoreUrl::File(_)))
    }
}

/// A URL without its password, for people to read.
pub fn without_password(url: &SecretString) -> String {
    match url::Url::parse(url.expose_secret()) {
        Ok(mut url) if url.password().is_some() => {
            // Fails only for URLs that cannot have a password.
            let _ = url.set_password(Some("***"));
            url.to_string()
        }
        Ok(url) => url.to_string(),
        Err(_) => "***".to_owned(),
    }
}
