//! Parses and checks the merged values, one section at a time.

mod limits;
mod mounts;
mod origins;
mod password;
mod token;
mod trace;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::layers::{Layers, got, variable_name};
use super::{
    AdmissionSettings, CertificateFiles, EventScope, FrontSettings, LogSettings, Problems,
    QueueSettings, QueueUrl, Role, Settings, StoreSettings, StoreUrl,
};
use crate::config::hosts::each_host;
use crate::config::redact::{has_unescaped_login, redacted};

/// Minimum length of `front.bulk_api_key`, in characters. In base64 these are 192 bits.
const BULK_KEY_MIN: usize = 32;
/// Maximum of `front.replay_window`: the time for which an idempotency key is valid.
const REPLAY_WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);
/// The URL of the in-process queue.
const LOCAL: &str = "local:";
/// The scheme of the embedded store's URL; a path follows.
const FILE: &str = "file:";

/// Reads all settings. Returns `None` if a setting could not be read; each error is in `problems`.
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
        toml: layers.to_toml(redacted),
        json: layers.to_json(redacted),
    })
}

struct SettingsReader<'a> {
    layers: &'a Layers,
    problems: &'a mut Problems,
    /// Whether this process has a worker. Only then are weak secrets and costs errors, because a front
    /// end neither signs nor hashes.
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
        let ui = self.ui();
        let tls = self.certificate("front.tls_cert", "front.tls_key");
        let cors_origins = self.origins();
        let request_timeout = self.duration("front.request_timeout");
        let replay_window = self.replay_window();
        // With a sealed password, a body of this size is still within the worker's limit.
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
        let shutdown_timeout = self.duration("front.shutdown_timeout");
        let bulk_api_key = self.text("front.bulk_api_key");
        let is_valid_key = bulk_api_key.len() >= BULK_KEY_MIN
            && bulk_api_key.bytes().all(|b| b.is_ascii_graphic());
        if !bulk_api_key.is_empty() && !is_valid_key {
            self.problem::<()>(
                "front.bulk_api_key",
                &format!(
                    "expected at least {BULK_KEY_MIN} visible ASCII characters; make a key with: \
                     openssl rand -base64 32"
                ),
            );
        }
        Some(FrontSettings {
            listen: listen?,
            mounts: mounts?,
            ui: ui?,
            tls: tls?,
            jwks_file: self.path("front.jwks_file"),
            cors_origins: cors_origins?,
            request_timeout: request_timeout?,
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
            shutdown_timeout: shutdown_timeout?,
            bulk_api_key: (!bulk_api_key.is_empty()).then(|| SecretString::from(bulk_api_key)),
        })
    }

    /// Returns `None` after an error, and `Some(None)` for `0s`.
    fn replay_window(&mut self) -> Option<Option<Duration>> {
        const KEY: &str = "front.replay_window";
        match humantime::parse_duration(&self.text(KEY)) {
            Ok(window) if window <= REPLAY_WINDOW_MAX => {
                Some(Some(window).filter(|it| !it.is_zero()))
            }
            _ => self.expected(KEY, "a duration of at most 24h, such as 5m, or 0s to turn it off"),
        }
    }

    /// `auto` serves the pages only with the embedded default, where muster is being tried out.
    fn ui(&mut self) -> Option<bool> {
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
            self.expected("queue.url", "local:, amqp://… or amqps://…")
        };
        let certificate = self.certificate("queue.cert_file", "queue.key_file");
        let max_length = self.number("queue.max_length", 1..=i64::from(i32::MAX));
        let bulk_max_length = self.number("queue.bulk_max_length", 1..=i64::from(i32::MAX));
        let bulk_max_bytes = self.number("queue.bulk_max_bytes", 1..=i64::MAX);
        // RabbitMQ limits the prefetch of quorum queues to 2000.
        let prefetch = self.number("queue.prefetch", 0..=2000);
        let retry_delays = self.durations("queue.retry_delays");
        let dead_letter_ttl = self.duration("queue.dead_letter_ttl");
        let namespace = self.text("queue.namespace");
        // AMQP names have at most 255 bytes, and the longest suffix is that of a reply queue.
        if !(1..=200).contains(&namespace.len()) || namespace.starts_with("amq.") {
            self.expected::<()>("queue.namespace", "1 to 200 bytes that do not begin with amq.");
        }
        let allowed_reply_prefix = self.text("queue.allowed_reply_prefix");
        let own = format!("{namespace}.");
        if !allowed_reply_prefix.is_empty()
            && (own.starts_with(&allowed_reply_prefix) || allowed_reply_prefix.starts_with(&own))
        {
            self.expected::<()>(
                "queue.allowed_reply_prefix",
                "a prefix that matches none of muster's own queues",
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
            self.decode_key("queue.seal_public_key", &seal_public_key).map(Some)
        };
        let seal_private_keys = Zeroizing::new(self.list("queue.seal_private_keys"));
        let seal_private_keys: Option<Vec<_>> = seal_private_keys
            .iter()
            .map(|text| self.decode_key("queue.seal_private_keys", text))
            .collect();
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
            allowed_reply_prefix,
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
            Some("") => self
                .problem("store.url", "file: has no path; expected file:./muster.redb or similar"),
            Some(path) => Some(StoreUrl::File(PathBuf::from(path))),
            None if text.starts_with("mongodb://") || text.starts_with("mongodb+srv://") => self
                .check_login("store.url", &text)
                .map(|()| StoreUrl::Mongo(SecretString::from(text))),
            None => self.expected("store.url", "file:PATH, mongodb://… or mongodb+srv://…"),
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

    /// Returns a string, or `None` if it is empty.
    fn non_empty_text(&self, key: &str) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.non_empty_text(key).map(PathBuf::from)
    }

    /// Returns `None` after an error, and `Some(None)` if neither file is set.
    fn certificate(&mut self, certificate: &str, key: &str) -> Option<Option<CertificateFiles>> {
        match (self.path(certificate), self.path(key)) {
            (None, None) => Some(None),
            (Some(certificate), Some(key)) => Some(Some(CertificateFiles { certificate, key })),
            (None, Some(_)) => self.problem(certificate, &format!("required because {key} is set")),
            (Some(_), None) => self.problem(key, &format!("required because {certificate} is set")),
        }
    }

    fn list(&self, key: &str) -> Vec<String> {
        let items = self.layers.get(key).value.as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    fn flag(&self, key: &str) -> bool {
        self.layers.get(key).value.as_bool() == Some(true)
    }

    /// Decodes a public or private key of 32 bytes.
    fn decode_key(&mut self, key: &str, text: &str) -> Option<Zeroizing<[u8; 32]>> {
        let bytes = BASE64.decode(text).ok().map(Zeroizing::new);
        let bytes = bytes.and_then(|bytes| bytes.as_slice().try_into().ok());
        bytes.map(Zeroizing::new).or_else(|| {
            // Without the value: it may be a private key, set by mistake.
            self.problem(key, "expected 32 bytes in base64; `muster keygen` makes a key pair")
        })
    }

    fn number(&mut self, key: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let number = self.layers.get(key).value.as_integer().unwrap_or_default();
        if range.contains(&number) {
            return Some(number);
        }
        self.expected(key, &format!("{} to {}", range.start(), range.end()))
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
            _ => self.expected(key, "a duration such as 500ms, 10s or 24h"),
        }
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        let parsed = self.text(key).parse().ok();
        parsed.or_else(|| self.expected(key, "an address and port such as 127.0.0.1:3000"))
    }

    /// Returns `None` after an error, and `Some(None)` if the setting is empty.
    fn optional_address(&mut self, key: &str) -> Option<Option<SocketAddr>> {
        if self.text(key).is_empty() { Some(None) } else { self.address(key).map(Some) }
    }

    fn parsed_url(&mut self, key: &str) -> Option<SecretString> {
        let text = self.text(key);
        self.check_login(key, &text)?;
        for url in each_host(&text) {
            match url::Url::parse(&url) {
                Ok(url) if url.has_host() => {}
                Ok(_) => return self.problem(key, "the URL has no host"),
                // The parser's message does not contain the URL, which may include a password.
                Err(error) => return self.problem(key, &format!("not a URL: {error}")),
            }
        }
        Some(SecretString::from(text))
    }

    /// Rejects a URL with an unescaped password: a part of it would be used, and shown, as the host.
    fn check_login(&mut self, key: &str, url: &str) -> Option<()> {
        if has_unescaped_login(url) {
            return self.problem(
                key,
                "the URL has an @ after the host; escape / ? # @ in user and password as %2F %3F %23 %40",
            );
        }
        Some(())
    }

    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key);
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        chosen.or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.expected(key, &format!("one of {}", names.join(", ")))
        })
    }

    /// Reports that a value is not as expected, with the value unless it is secret.
    fn expected<T>(&mut self, key: &str, expected: &str) -> Option<T> {
        let got = got(key, &self.layers.get(key).value);
        self.problem(key, &format!("expected {expected}{got}"))
    }

    /// Reports a problem of a key, with the origin of its value.
    fn problem<T>(&mut self, key: &str, problem: &str) -> Option<T> {
        let origin = match &self.layers.get(key).origin {
            Some(origin) => format!(" (from {origin})"),
            None => format!(" (set {})", variable_name(key)),
        };
        self.problems.add(format!("{key}: {problem}{origin}"));
        None
    }
}

#[cfg(test)]
mod tests;
