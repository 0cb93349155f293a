//! Turns texts and numbers into settings that make sense, each alone and together.

mod limits;
mod mounts;
mod origins;
mod password;
mod token;
mod trace;

pub use trace::{RootSampler, Sampler};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::SecretString;
use toml::Value;
use zeroize::Zeroizing;

use super::layers::{Layers, is_secret, long_name};
use super::{
    AdmissionSettings, CertificateFiles, EventScope, FrontSettings, LogSettings, Problems, QueueSettings, QueueUrl, Role, Settings,
    StoreSettings, StoreUrl,
};
use crate::config::hosts::each_host;
use crate::config::redact::{HIDDEN, splits_login, without_credentials};

/// Shortest key of the bulk path, in bytes: nobody guesses 192 random bits, and nobody types them.
const BULK_KEY_MIN: usize = 32;
/// Longest window in which a signup may be sent again: as long as an idempotency key counts.
const REPLAY_WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);
/// The queue in this process.
const LOCAL: &str = "local:";
/// How the embedded store's URL begins; a path follows.
const FILE: &str = "file:";

/// Reads all settings. `None` where one could not be read at all; problems tell which.
pub(super) fn read(layers: &Layers, problems: &mut Problems) -> Option<Settings> {
    let mut reader = SettingsReader { layers, problems, is_worker: true };
    let role = reader
        .choice("role", &[("front", Role::Front), ("worker", Role::Worker), ("all", Role::All)]);
    reader.is_worker = role.is_none_or(Role::has_worker);
    let front = reader.front();
    let admission = reader.admission();
    let limits = reader.limits();
    let admin = reader.optional_address("admin.listen");
    let queue = reader.queue();
    let store = reader.store();
    let password = reader.password();
    let policy = reader.password_policy();
    let token = reader.token();
    let log = reader.log();
    let trace = reader.trace();
    Some(Settings {
        role: role?,
        front: front?,
        admission: admission?,
        limits: limits?,
        admin: admin?,
        queue: queue?,
        store: store?,
        password: password?,
        policy: policy?,
        token: token?,
        log: log?,
        trace: trace?,
        shown: layers.to_toml(redacted),
        described: layers.to_json(redacted),
    })
}

/// How a value looks in `muster config`.
fn redacted(key: &str, value: &Value) -> Value {
    match value {
        Value::Array(items) if is_secret(key) => {
            Value::Array(items.iter().map(|_| Value::String(HIDDEN.to_owned())).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| redacted(key, item)).collect()),
        Value::String(text) if is_secret(key) && !text.is_empty() => {
            let is_url = key.ends_with(".url");
            Value::String(if is_url { without_credentials(text) } else { HIDDEN.to_owned() })
        }
        Value::String(text) if text.contains("://") => Value::String(without_credentials(text)),
        other => other.clone(),
    }
}

struct SettingsReader<'a> {
    layers: &'a Layers,
    problems: &'a mut Problems,
    /// Whether it matters if a secret or a cost is too weak: a front neither signs nor hashes.
    is_worker: bool,
}

impl SettingsReader<'_> {
    fn admission(&mut self) -> Option<AdmissionSettings> {
        let choices = [("any", false), ("single-script", true)];
        Some(AdmissionSettings { single_script: self.choice("admission.usernames", &choices)? })
    }

    fn front(&mut self) -> Option<FrontSettings> {
        let listen = self.address("front.listen");
        let mounts = self.mounts();
        let pages = self.pages();
        let tls = self.certificate("front.tls_cert", "front.tls_key");
        let cors_origins = self.origins();
        let deadline = self.duration("front.request_timeout");
        let replay_window = self.replay_window();
        // With its password sealed it still is what a worker takes from the queue.
        let body_limit = self.number("front.body_limit", 1..=128 << 10);
        let header_timeout = self.duration("front.header_timeout");
        let body_timeout = self.duration("front.body_timeout");
        let write_timeout = self.duration("front.write_timeout");
        let idle_timeout = self.duration("front.idle_timeout");
        let max_connections = self.number("front.max_connections", 1..=1_000_000);
        let max_connections_per_address =
            self.number("front.max_connections_per_address", 1..=1_000_000);
        let max_in_flight = self.number("front.max_in_flight", 1..=1_000_000);
        let stop_delay = self.duration_or_zero("front.stop_delay");
        let drain = self.duration("front.shutdown_timeout");
        let bulk_api_key = self.text("front.bulk_api_key");
        let good_key =
            bulk_api_key.len() >= BULK_KEY_MIN && bulk_api_key.bytes().all(|b| b.is_ascii_graphic());
        if !bulk_api_key.is_empty() && !good_key {
            self.problem::<()>(
                "front.bulk_api_key",
                &format!(
                    "at least {BULK_KEY_MIN} visible ASCII characters wanted; make one with: openssl \
                     rand -base64 32"
                ),
            );
        }
        Some(FrontSettings {
            listen: listen?,
            mounts: mounts?,
            ui: pages?,
            tls: tls?,
            jwks_file: self.path("front.jwks_file"),
            cors_origins: cors_origins?,
            request_timeout: deadline?,
            replay_window: replay_window?,
            body_limit: body_limit? as usize,
            header_timeout: header_timeout?,
            body_timeout: body_timeout?,
            write_timeout: write_timeout?,
            idle_timeout: idle_timeout?,
            max_connections: max_connections? as usize,
            max_connections_per_address: max_connections_per_address? as usize,
            max_in_flight: max_in_flight? as usize,
            stop_delay: stop_delay?,
            shutdown_timeout: drain?,
            bulk_api_key: (!bulk_api_key.is_empty()).then(|| SecretString::from(bulk_api_key)),
        })
    }

    /// Outside: could it be read. Inside: is there one.
    fn replay_window(&mut self) -> Option<Option<Duration>> {
        const KEY: &str = "front.replay_window";
        match humantime::parse_duration(&self.text(KEY)) {
            Ok(window) if window <= REPLAY_WINDOW_MAX => {
                Some(Some(window).filter(|it| !it.is_zero()))
            }
            _ => self.problem(KEY, "expected a duration such as 5m, at most 24h; 0s turns it off"),
        }
    }

    /// Left open, there are pages where muster is being tried out: nothing leaves this process.
    fn pages(&mut self) -> Option<bool> {
        let choices = [("auto", None), ("on", Some(true)), ("off", Some(false))];
        let chosen = self.choice("front.ui", &choices)?;
        let embedded = self.text("queue.url") == LOCAL && self.text("store.url").starts_with(FILE);
        Some(chosen.unwrap_or(embedded))
    }

    fn queue(&mut self) -> Option<QueueSettings> {
        let text = self.text("queue.url");
        let url = if text == LOCAL {
            Some(QueueUrl::Local)
        } else if text.starts_with("amqp://") || text.starts_with("amqps://") {
            self.parsed_url("queue.url").map(QueueUrl::Amqp)
        } else {
            self.problem("queue.url", "local:, amqp://… or amqps://… wanted")
        };
        let certificate = self.certificate("queue.cert_file", "queue.key_file");
        let max_length = self.number("queue.max_length", 1..=i64::from(i32::MAX));
        let bulk_max_length = self.number("queue.bulk_max_length", 1..=i64::from(i32::MAX));
        let bulk_max_bytes = self.number("queue.bulk_max_bytes", 1..=i64::MAX);
        // Quorum queues take a prefetch of at most 2000.
        let prefetch = self.number("queue.prefetch", 0..=2000);
        let retry_delays = self.durations("queue.retry_delays");
        let dead_letter_ttl = self.duration("queue.dead_letter_ttl");
        let namespace = self.text("queue.namespace");
        // Names are at most 255 bytes, and the longest ending is a reply queue's.
        if !(1..=200).contains(&namespace.len()) || namespace.starts_with("amq.") {
            self.problem::<()>("queue.namespace", "1 to 200 bytes wanted, not beginning with amq.");
        }
        let allowed_reply_prefix = self.text("queue.allowed_reply_prefix");
        let own = format!("{namespace}.");
        if !allowed_reply_prefix.is_empty()
            && (own.starts_with(&allowed_reply_prefix) || allowed_reply_prefix.starts_with(&own))
        {
            self.problem::<()>(
                "queue.allowed_reply_prefix",
                "a prefix that matches no name of muster's own wanted",
            );
        }
        let events = self.choice(
            "queue.events",
            &[("all", EventScope::All), ("bulk", EventScope::Bulk), ("none", EventScope::None)],
        );
        let seal_public_key = self.text("queue.seal_public_key");
        let seal_public_key = if seal_public_key.is_empty() {
            Some(None)
        } else {
            self.key("queue.seal_public_key", &seal_public_key).map(Some)
        };
        let seal_private_keys = Zeroizing::new(self.list("queue.seal_private_keys"));
        let seal_private_keys: Option<Vec<_>> =
            seal_private_keys.iter().map(|text| self.key("queue.seal_private_keys", text)).collect();
        let require_sealed = self.flag("queue.require_sealed");
        Some(QueueSettings {
            url: url?,
            ca_file: self.path("queue.ca_file"),
            certificate: certificate?,
            namespace,
            max_length: max_length? as u32,
            bulk_max_length: bulk_max_length? as u32,
            bulk_max_bytes: bulk_max_bytes? as u64,
            prefetch: prefetch? as u16,
            retry_delays: retry_delays?,
            dead_letter_ttl: dead_letter_ttl?,
            allowed_reply_prefix: allowed_reply_prefix,
            trusted_accounts: self.list("queue.trusted_accounts"),
            events: events?,
            seal_public_key: seal_public_key?.map(|key| *key),
            seal_private_keys: seal_private_keys?.iter().map(|key| key.to_vec().into()).collect(),
            require_sealed,
        })
    }

    fn store(&mut self) -> Option<StoreSettings> {
        let text = self.text("store.url");
        let url = match text.strip_prefix(FILE) {
            Some("") => self.problem("store.url", "file: wants a path, such as file:./muster.redb"),
            Some(path) => Some(StoreUrl::File(PathBuf::from(path))),
            None if text.starts_with("mongodb://") || text.starts_with("mongodb+srv://") => self
                .check_login("store.url", &text)
                .map(|()| StoreUrl::Mongo(SecretString::from(text))),
            None => self.problem("store.url", "file:PATH, mongodb://… or mongodb+srv://… wanted"),
        };
        let database = self.text("store.database");
        let timeout = self.duration("store.timeout");
        Some(StoreSettings { url: url?, database, timeout: timeout? })
    }

    fn log(&mut self) -> Option<LogSettings> {
        let as_text = self
            .choice("log.format", &[("auto", None), ("text", Some(true)), ("json", Some(false))]);
        Some(LogSettings { as_text: as_text?, filter: self.text("log.filter") })
    }

    fn text(&self, key: &str) -> String {
        self.layers.get(key).value.as_str().unwrap_or_default().to_owned()
    }

    /// A text, unless it is empty.
    fn non_empty_text(&self, key: &str) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.non_empty_text(key).map(PathBuf::from)
    }

    /// Outside: could it be read. Inside: is it set.
    fn certificate(&mut self, certificate: &str, key: &str) -> Option<Option<CertificateFiles>> {
        match (self.path(certificate), self.path(key)) {
            (None, None) => Some(None),
            (Some(certificate), Some(key)) => Some(Some(CertificateFiles { certificate, key })),
            (None, Some(_)) => self.problem(certificate, &format!("wanted too, beside {key}")),
            (Some(_), None) => self.problem(key, &format!("wanted too, beside {certificate}")),
        }
    }

    fn list(&self, key: &str) -> Vec<String> {
        let items = self.layers.get(key).value.as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    fn flag(&self, key: &str) -> bool {
        self.layers.get(key).value.as_bool() == Some(true)
    }

    /// A key of 32 bytes, public or private.
    fn key(&mut self, key: &str, text: &str) -> Option<Zeroizing<[u8; 32]>> {
        let bytes = BASE64.decode(text).ok().map(Zeroizing::new);
        let bytes = bytes.and_then(|bytes| bytes.as_slice().try_into().ok());
        bytes.map(Zeroizing::new).or_else(|| {
            self.problem(key, "32 bytes in base64 wanted; `muster keygen` makes a pair")
        })
    }

    fn number(&mut self, key: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let number = self.layers.get(key).value.as_integer().unwrap_or_default();
        if range.contains(&number) {
            return Some(number);
        }
        self.problem(key, &format!("{} to {} wanted", range.start(), range.end()))
    }

    fn duration(&mut self, key: &str) -> Option<Duration> {
        let text = self.text(key);
        self.parse_duration(key, &text)
    }

    fn duration_or_zero(&mut self, key: &str) -> Option<Duration> {
        let text = self.text(key);
        let zero = humantime::parse_duration(&text).ok().filter(Duration::is_zero);
        zero.or_else(|| self.parse_duration(key, &text))
    }

    fn durations(&mut self, key: &str) -> Option<Vec<Duration>> {
        let texts = self.list(key);
        texts.iter().map(|text| self.parse_duration(key, text)).collect()
    }

    fn parse_duration(&mut self, key: &str, text: &str) -> Option<Duration> {
        match humantime::parse_duration(text) {
            Ok(duration) if !duration.is_zero() => Some(duration),
            _ => self.problem(key, "a duration such as 500ms, 10s or 24h wanted"),
        }
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        let parsed = self.text(key).parse().ok();
        parsed.or_else(|| self.problem(key, "an address and port such as 127.0.0.1:3000 wanted"))
    }

    /// Outside: could it be read. Inside: is it set.
    fn optional_address(&mut self, key: &str) -> Option<Option<SocketAddr>> {
        if self.text(key).is_empty() { Some(None) } else { self.address(key).map(Some) }
    }

    fn parsed_url(&mut self, key: &str) -> Option<SecretString> {
        let text = self.text(key);
        self.check_login(key, &text)?;
        for url in each_host(&text) {
            match url::Url::parse(&url) {
                Ok(url) if url.has_host() => {}
                Ok(_) => return self.problem(key, "the URL names no host"),
                // The parser's text does not repeat the URL, which may hold a password.
                Err(error) => return self.problem(key, &format!("not a URL: {error}")),
            }
        }
        Some(SecretString::from(text))
    }

    /// Refuses a URL of which a part of the password would be taken for the host, and shown as that.
    fn check_login(&mut self, key: &str, url: &str) -> Option<()> {
        if splits_login(url) {
            return self.problem(
                key,
                "the URL has an @ after its host; in user and password write / ? # @ as %2F %3F %23 %40",
            );
        }
        Some(())
    }

    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key);
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        chosen.or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.problem(key, &format!("one of {} wanted", names.join(", ")))
        })
    }

    fn problem<T>(&mut self, key: &str, wrong: &str) -> Option<T> {
        let origin = match &self.layers.get(key).origin {
            Some(origin) => format!(" (from {origin})"),
            None => format!(" (set {})", long_name(key)),
        };
        self.problems.add(format!("{key}: {wrong}{origin}"));
        None
    }
}

#[cfg(test)]
mod tests;
