//! The checked values of each section of the settings. `config.default.toml` documents the keys.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{SecretSlice, SecretString};

use crate::domain::ContractId;

/// `[front]`
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// The address on which HTTP is served.
    pub listen: SocketAddr,
    /// The paths of the contracts; never empty.
    pub mounts: Vec<Mount>,
    /// Whether the built-in pages are served.
    pub ui: bool,
    /// Certificate and key for https; `None` serves plain http.
    pub tls: Option<CertificateFiles>,
    /// The file with the public token keys.
    pub jwks_file: Option<PathBuf>,
    /// The origins whose pages may read responses (CORS).
    pub cors_origins: Vec<String>,
    /// Maximum time from the last byte of a request to its response.
    pub request_timeout: Duration,
    /// For how long the same signup without an idempotency key counts as a repetition; `None`: never.
    pub replay_window: Option<Duration>,
    /// Maximum size of a request body, in bytes.
    pub body_limit: usize,
    /// Maximum time for the headers of a request to arrive.
    pub header_timeout: Duration,
    /// Maximum time for the body of a request to arrive.
    pub body_timeout: Duration,
    /// Maximum time for a client to read each part of a response.
    pub write_timeout: Duration,
    /// Maximum time that an HTTP/2 connection stays open without a request.
    pub idle_timeout: Duration,
    /// Maximum number of open connections, and of HTTP/2 requests in addition to one per connection.
    pub max_connections: usize,
    /// Maximum number of open connections of one client address.
    pub max_connections_per_address: usize,
    /// Maximum number of signups that wait for an outcome, and of profile requests that do.
    pub max_in_flight: usize,
    /// Time between a stop signal and the end of accepting connections. May be zero.
    pub stop_delay: Duration,
    /// Maximum time for requests in progress to finish after that.
    pub shutdown_timeout: Duration,
    /// The API key of `POST /registrations`; `None` disables the path.
    pub bulk_api_key: Option<SecretString>,
}

/// The PEM files of a TLS certificate and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// One entry of `front.mounts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The path, or its end if `any_prefix` is set.
    pub path: String,
    /// Whether any prefix may precede the path.
    pub any_prefix: bool,
    /// The contracts at this path, in order of preference; never empty.
    pub contracts: Vec<ContractId>,
    /// The path of the profile. `None`: only `/users/profile` serves it.
    pub profile: Option<PathPattern>,
}

/// A path, or the end of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// The path, or its end if `any_prefix` is set.
    pub path: String,
    /// Whether any prefix may precede the path.
    pub any_prefix: bool,
}

/// `[admission]`
#[derive(Clone, Copy, Debug)]
pub struct AdmissionSettings {
    /// Whether user names and local parts of addresses must use a single script.
    pub single_script: bool,
}

/// `[limits]`
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Limit of signups per client address.
    pub per_address: Option<RateLimit>,
    /// Limit of signups per email address.
    pub per_email: Option<RateLimit>,
    /// Limit of profile requests per client address.
    pub profile_per_address: Option<RateLimit>,
    /// The proxies whose forwarding header is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The forwarding header that these proxies set.
    pub proxy_header: ProxyHeader,
}

/// A rate limit, as a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Maximum number of requests at once.
    pub burst: NonZeroU32,
    /// Time after which one more request is allowed; at least one microsecond.
    pub every: Duration,
}

/// The header in which a proxy names the client.
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
    /// The URL, which selects the adapter.
    pub url: QueueUrl,
    /// A file of certificate authorities to trust for amqps, in addition to Mozilla's (webpki-roots).
    pub ca_file: Option<PathBuf>,
    /// The client certificate for amqps.
    pub certificate: Option<CertificateFiles>,
    /// The prefix of all exchange and queue names.
    pub namespace: String,
    /// Maximum length of the interactive and of the profile queue, in messages.
    pub max_length: u32,
    /// Maximum length of the bulk queue, in messages.
    pub bulk_max_length: u32,
    /// Maximum size of the bulk queue, in bytes.
    pub bulk_max_bytes: u64,
    /// Prefetch of a worker, per queue. 0: derived from the hashing capacity.
    pub prefetch: u16,
    /// Delays before the retries of a bulk message.
    pub retry_delays: Vec<Duration>,
    /// How long a dead letter is kept.
    pub dead_letter_ttl: Duration,
    /// The prefix of the reply queues of other systems; their account follows. Empty: none is allowed.
    pub allowed_reply_prefix: String,
    /// Broker accounts, in addition to the one in `url`, that only muster's processes use.
    pub trusted_accounts: Vec<String>,
    /// The registrations that are published as events.
    pub events: EventScope,
    /// The public key with which passwords are sealed; `None`: they are published in clear.
    pub seal_public_key: Option<[u8; 32]>,
    /// The private keys that open sealed passwords, 32 bytes each.
    pub seal_private_keys: Vec<SecretSlice<u8>>,
    /// Whether workers dead-letter messages with a clear password.
    pub require_sealed: bool,
}

/// The registrations that are published as events (`queue.events`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventScope {
    /// Every registered user, and rejected bulk registrations that asked for no reply.
    All,
    /// As `All`, but only for registrations from the bulk queue.
    Bulk,
    /// No events.
    None,
}

/// The URL of a queue.
#[derive(Clone, Debug)]
pub enum QueueUrl {
    /// The in-process queue.
    Local,
    /// RabbitMQ.
    Amqp(SecretString),
}

/// `[store]`
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The URL, which selects the adapter.
    pub url: StoreUrl,
    /// The database name, if a MongoDB URL has none.
    pub database: String,
    /// Maximum time for one call.
    pub timeout: Duration,
}

/// The URL of a store.
#[derive(Clone, Debug)]
pub enum StoreUrl {
    /// The embedded store, in this file.
    File(PathBuf),
    /// MongoDB.
    Mongo(SecretString),
}

/// `[password]`: hashing.
#[derive(Clone, Debug)]
pub struct PasswordSettings {
    /// The bcrypt cost.
    pub cost: u32,
    /// The number of hashing threads; at least 1.
    pub threads: usize,
    /// The number of passwords that a thread hashes in parallel; `None`: measured after the start.
    pub lanes: Option<usize>,
}

/// `[password]`: requirements for new passwords, in addition to the contract's.
#[derive(Clone, Debug)]
pub struct PasswordPolicy {
    /// Minimum length, in code points. A larger minimum of the contract applies.
    pub min_length: u64,
    /// The list of common passwords, which are rejected.
    pub blocklist: Blocklist,
}

/// The list of common passwords (`password.blocklist`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocklist {
    /// No list.
    None,
    /// The list that is compiled into muster.
    Common,
    /// A file with one password per line.
    File(PathBuf),
}

/// `[token]`
#[derive(Clone, Debug)]
pub struct TokenSettings {
    /// The HS256 secret.
    pub secret: Option<SecretString>,
    /// The files of the private keys. The first key signs.
    pub key_files: Vec<PathBuf>,
    /// The `iss` claim of new tokens, required in presented ones.
    pub issuer: Option<String>,
    /// The `aud` claim of new tokens, required in presented ones.
    pub audience: Option<String>,
    /// How long a token is valid.
    pub lifetime: Duration,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Whether logs are text (or JSON). `None`: text on a terminal, JSON otherwise.
    pub as_text: Option<bool>,
    /// The filter, in the syntax of `RUST_LOG`.
    pub filter: String,
}

/// `[trace]`
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// The complete http or https URL to which spans are posted.
    pub endpoint: String,
    /// A file of certificate authorities to trust for https, in addition to Mozilla's (webpki-roots).
    pub ca_file: Option<PathBuf>,
    /// Request headers for the collector.
    pub headers: Vec<(String, SecretString)>,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// The proportion of traces that a ratio sampler records, 0 to 1.
    pub sample_ratio: f64,
    /// The service name in the spans.
    pub service_name: String,
}

/// Which traces are recorded, as OpenTelemetry's `OTEL_TRACES_SAMPLER` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Whether the sampled flag of a `traceparent` decides, if there is one.
    pub parent_based: bool,
    /// The sampler of all other traces.
    pub root: RootSampler,
}

/// The sampler of traces that begin at muster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootSampler {
    /// Records all traces.
    AlwaysOn,
    /// Records no traces.
    AlwaysOff,
    /// Records the proportion `trace.sample_ratio`.
    Ratio,
}
