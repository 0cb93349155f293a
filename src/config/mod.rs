//! The settings, read from `config.default.toml`, a file, the environment and command-line flags.
//!
//! The compiled-in `config.default.toml` defines the keys and their types, so every key is
//! documented. All problems of all sources are reported together. Only `app` and `cli` load settings.

mod cross_checks;
pub mod file;
mod hosts;
mod layers;
mod problems;
mod reader;
mod redact;
mod sections;

use std::net::SocketAddr;

pub use file::secret_file;
pub use hosts::each_host;
pub use layers::{Flag, Sources};
pub use problems::Problems;
pub use redact::{has_credentials, without_credentials};
pub use sections::{
    AdmissionSettings, Blocklist, CertificateFiles, EventScope, FrontSettings, LimitSettings,
    LogSettings, Mount, PasswordPolicy, PasswordSettings, PathPattern, ProxyHeader, QueueSettings,
    QueueUrl, RateLimit, RootSampler, Sampler, StoreSettings, StoreUrl, TokenSettings,
    TraceSettings,
};

use layers::Layers;

/// The role of a process (`role`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves HTTP and publishes to the queue. Has no access to the store.
    Front,
    /// Consumes from the queue.
    Worker,
    /// Front end and worker in one process.
    All,
}

impl Role {
    /// Whether the process serves HTTP.
    pub fn has_front(self) -> bool {
        self != Self::Worker
    }

    /// Whether the process consumes from the queue.
    pub fn has_worker(self) -> bool {
        self != Self::Front
    }

    /// Returns the name used in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::Worker => "worker",
            Self::All => "all",
        }
    }
}

/// The checked settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `role`
    pub role: Role,
    /// `[front]`
    pub front: FrontSettings,
    /// `[admission]`
    pub admission: AdmissionSettings,
    /// `[limits]`
    pub limits: LimitSettings,
    /// `admin.listen`: the address of a separate listener for probes and metrics.
    pub admin: Option<SocketAddr>,
    /// `[queue]`
    pub queue: QueueSettings,
    /// `[store]`
    pub store: StoreSettings,
    /// `[password]`: hashing.
    pub password: PasswordSettings,
    /// `[password]`: requirements for new passwords.
    pub policy: PasswordPolicy,
    /// `[token]`
    pub token: TokenSettings,
    /// `[log]`
    pub log: LogSettings,
    /// `[trace]`; `None` if no spans are sent.
    pub trace: Option<TraceSettings>,
    toml: String,
    json: serde_json::Value,
}

impl Settings {
    /// Loads the settings for a process that serves or works.
    ///
    /// # Errors
    /// All problems of all sources, and combinations that cannot work.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let settings = Self::read(sources, &mut problems);
        if let Some(settings) = &settings {
            cross_checks::check(settings, &mut problems);
        }
        settings.filter(|_| problems.is_empty()).ok_or(problems)
    }

    /// Loads the settings for a command that connects to a running muster. Combinations are not
    /// checked, because such a command need not have, for example, the token secret.
    ///
    /// # Errors
    /// All problems of all sources.
    pub fn load_for_client(sources: &Sources) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let settings = Self::read(sources, &mut problems);
        settings.filter(|_| problems.is_empty()).ok_or(problems)
    }

    fn read(sources: &Sources, problems: &mut Problems) -> Option<Self> {
        let layers = Layers::merge(sources, problems);
        reader::read(&layers, problems)
    }

    /// Returns the effective settings as TOML, with secrets redacted.
    pub fn to_toml(&self) -> &str {
        &self.toml
    }

    /// Returns, for each key, the value (secrets redacted), the environment variables, and the origin of
    /// the value.
    pub fn to_json(&self) -> &serde_json::Value {
        &self.json
    }

    /// Whether queue and store are both embedded: nothing leaves this process and its data file.
    pub fn is_embedded(&self) -> bool {
        matches!((&self.queue.url, &self.store.url), (QueueUrl::Local, StoreUrl::File(_)))
    }
}
