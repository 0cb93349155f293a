//! Settings: `config.default.toml`, then a file, then the environment, then flags.
//!
//! The default file is the list of keys and their types, so that a key exists exactly when it is
//! documented. All problems of all sources are reported together. Only `app` and `cli` call this.

pub mod file;
mod hosts;
mod layers;
mod problems;
mod reader;
mod redact;
mod cross_checks;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{SecretSlice, SecretString};

pub use file::secret_file;
pub use hosts::each_host;
pub use layers::{Flag, Sources};
pub use problems::Problems;
pub use reader::{RootSampler, Sampler};
pub use redact::{has_credentials, without_credentials};

use crate::domain::ContractId;
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

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::Worker => "worker",
            Self::All => "all",
        }
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
    pub front: FrontSettings,
    /// Who may register.
    pub admission: AdmissionSettings,
    /// How often a client may ask.
    pub limits: LimitSettings,
    /// Where probes are answered besides the front; none if unset.
    pub admin: Option<SocketAddr>,
    /// The queue.
    pub queue: QueueSettings,
    /// The store.
    pub store: StoreSettings,
    /// Hashing.
    pub password: PasswordSettings,
    /// What is asked of passwords.
    pub policy: PasswordPolicy,
    /// Tokens.
    pub token: TokenSettings,
    /// Logs.
    pub log: LogSettings,
    /// Where spans go; none: no spans are made.
    pub trace: Option<TraceSettings>,
    shown: String,
    described: serde_json::Value,
}

/// `[front]`
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// Which contracts stand where.
    pub mounts: Vec<Mount>,
    /// Whether pages for people are served.
    pub ui: bool,
    /// The files that make it https; none: http.
    pub tls: Option<CertificateFiles>,
    /// The file with the public keys of tokens.
    pub jwks_file: Option<PathBuf>,
    /// Origins whose scripts may read answers.
    pub cors_origins: Vec<String>,
    /// From a request's last byte to its answer.
    pub request_timeout: Duration,
    /// How long a signup that is sent again without a key counts as the first one; none: not at all.
    pub replay_window: Option<Duration>,
    /// Bytes.
    pub body_limit: usize,
    /// For the headers of a request.
    pub header_timeout: Duration,
    /// For the body of a request.
    pub body_timeout: Duration,
    /// For a client to take each part of a response.
    pub write_timeout: Duration,
    /// For a connection of HTTP/2 without a request.
    pub idle_timeout: Duration,
    /// Open connections, and requests besides one on each.
    pub max_connections: usize,
    /// Open connections of one client address.
    pub max_connections_per_address: usize,
    /// Registrations waiting for an answer, and as many profile look-ups.
    pub max_in_flight: usize,
    /// Between a stop signal and the end of accepting; may be zero.
    pub stop_delay: Duration,
    /// For requests under way after a stop.
    pub shutdown_timeout: Duration,
    /// Opens `POST /registrations`; none: it is not there.
    pub bulk_api_key: Option<SecretString>,
}

/// Who one is over TLS: a certificate and its private key, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those between it and an authority.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
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
    /// Where clients of this mount get the owner of a token; none if nowhere near it.
    pub profile: Option<PathPattern>,
}

/// A path that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// The path, or what the path ends in when `any_prefix`.
    pub path: String,
    /// Whether anything may come before it.
    pub any_prefix: bool,
}

/// `[admission]`
#[derive(Clone, Copy, Debug)]
pub struct AdmissionSettings {
    /// Whether a user name and the local part of an address must keep to one script.
    pub single_script: bool,
}

/// `[limits]`
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Registrations of one client address.
    pub per_address: Option<RateLimit>,
    /// Registrations for one e-mail address.
    pub per_email: Option<RateLimit>,
    /// Requests for a profile of one client address.
    pub profile_per_address: Option<RateLimit>,
    /// Who is believed about client addresses.
    pub trusted_proxies: Vec<IpNet>,
    /// Where they say it.
    pub proxy_header: ProxyHeader,
}

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// So often at once.
    pub burst: NonZeroU32,
    /// And once more each time this has passed; at least a microsecond.
    pub every: Duration,
}

/// In which header a proxy says for whom it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// `[queue]`
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// Which queue, by its URL's scheme.
    pub url: QueueUrl,
    /// More authorities to trust over amqps.
    pub ca_file: Option<PathBuf>,
    /// Who one is over amqps, if that is to be shown.
    pub certificate: Option<CertificateFiles>,
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
    pub dead_letter_ttl: Duration,
    /// Names of foreign reply queues begin so, then with their account; empty allows none.
    pub allowed_reply_prefix: String,
    /// Accounts of the broker, besides this process's own, that only other processes of muster use.
    pub trusted_accounts: Vec<String>,
    /// Whose outcomes are announced as events.
    pub events: EventScope,
    /// The public key to seal passwords with; none: they travel in clear.
    pub seal_public_key: Option<[u8; 32]>,
    /// Private keys to open sealed passwords with, 32 bytes each.
    pub seal_private_keys: Vec<SecretSlice<u8>>,
    /// Whether a clear password that comes from the broker is refused.
    pub require_sealed: bool,
}

/// Whose outcomes are announced as events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventScope {
    /// Every user who was registered, and bulk registrations that were refused and told to nobody.
    All,
    /// The same, of the bulk door alone.
    Bulk,
    /// Nobody's.
    None,
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
pub struct StoreSettings {
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
pub struct PasswordSettings {
    /// bcrypt cost.
    pub cost: u32,
    /// Threads that hash; never 0.
    pub threads: usize,
    /// Passwords a thread hashes at once; none: measured at start.
    pub lanes: Option<usize>,
}

/// `[password]`: what is asked of new ones.
#[derive(Clone, Debug)]
pub struct PasswordPolicy {
    /// Fewest code points, if a contract does not want more.
    pub min_length: u64,
    /// Which passwords are refused as too common.
    pub blocklist: Blocklist,
}

/// Passwords that are refused as too common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocklist {
    /// None is.
    None,
    /// Those that come with muster.
    Common,
    /// Those in a file, one a line.
    File(PathBuf),
}

/// `[token]`
#[derive(Clone, Debug)]
pub struct TokenSettings {
    /// The signing secret, if given.
    pub secret: Option<SecretString>,
    /// Files with private keys, the one that signs first.
    pub key_files: Vec<PathBuf>,
    /// Who says so.
    pub issuer: Option<String>,
    /// For whom.
    pub audience: Option<String>,
    /// How long a token is valid.
    pub lifetime: Duration,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Whether as text; left open: text on a terminal, JSON otherwise.
    pub as_text: Option<bool>,
    /// As in `RUST_LOG`.
    pub filter: String,
}

/// `[trace]`
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// Where batches of spans are posted: a whole URL of http or https.
    pub endpoint: String,
    /// More authorities to trust over https.
    pub ca_file: Option<PathBuf>,
    /// Headers sent along.
    pub headers: Vec<(String, SecretString)>,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// The part of traces that is recorded, 0 to 1, where the sampler goes by it.
    pub sample_ratio: f64,
    /// Whose spans they are.
    pub service_name: String,
}

impl Settings {
    /// Reads all sources. The error lists everything that is wrong with them.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let settings = Self::read(sources, &mut problems);
        if let Some(settings) = &settings {
            cross_checks::check(settings, &mut problems);
        }
        settings.filter(|_| problems.is_empty()).ok_or(problems)
    }

    /// Reads all sources for somebody who only asks where a muster is, and need not be able to run
    /// as one: a container's health check has no role and no secret.
    pub fn load_for_client(sources: &Sources) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let settings = Self::read(sources, &mut problems);
        settings.filter(|_| problems.is_empty()).ok_or(problems)
    }

    fn read(sources: &Sources, problems: &mut Problems) -> Option<Self> {
        let layers = Layers::merge(sources, problems);
        reader::read(&layers, problems)
    }

    /// The effective settings as TOML, secrets redacted.
    pub fn to_toml(&self) -> &str {
        &self.shown
    }

    /// Each setting by its key: value, secrets redacted, environment variables, and where the value comes from.
    pub fn to_json(&self) -> &serde_json::Value {
        &self.described
    }

    /// Whether everything stays in this process and its data file.
    pub fn is_embedded(&self) -> bool {
        matches!((&self.queue.url, &self.store.url), (QueueUrl::Local, StoreUrl::File(_)))
    }
}
