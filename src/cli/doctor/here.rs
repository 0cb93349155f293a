//! What `doctor` sees without a service: this machine and the settings. What would keep `serve` from
//! starting is refused by the same checks, in `app`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use humantime::format_duration;
use rustix::process::{Resource, getrlimit};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::counted;
use crate::app::{self, DEFAULT_REQUEST_TIMEOUT};
use crate::cli::reachable;
use crate::config::{self, CertificateFiles, QueueUrl, Role, Settings, StoreUrl};
use crate::front;
use crate::front::tls::Tls;
use crate::front::validity::Validity;
use crate::http_client::probe;
use crate::password::kernel;
use crate::domain::Clock;
use crate::telemetry::finding::Finding;
use crate::token::{TokenKey, public_keys};

/// Files a process needs besides its clients' connections: broker, database, logs.
const OTHER_FILES: u64 = 128;
/// Least randomness of a signing secret in bits, estimated from how its characters are spread. Random
/// text of 32 characters has some 150; a repeated word far less than 100.
const SECRET_BITS: f64 = 100.0;
/// Days before its end from which a certificate is worth a warning.
const EXPIRES_SOON: i64 = 14;
/// Seconds.
const DAY: i64 = 86_400;
/// Lowest bcrypt cost that is safe today.
const COST_MIN: u32 = 10;

/// Why settings that are right one by one would not start.
pub(super) fn refused(problems: &anyhow::Error) -> Finding {
    let remedy = "set what is named; serve refuses to start";
    Finding::error("settings", format!("{problems:#}"), remedy)
}

pub(super) async fn look(settings: &Settings) -> Vec<Finding> {
    let refusals = app::refusals(settings).into_iter();
    let mut findings: Vec<Finding> = refusals
        .map(|refusal| {
            Finding::error(refusal.check, format!("{:#}", refusal.error), refusal.remedy)
        })
        .collect();
    findings.extend(addresses(settings).await);
    if settings.role.has_front() {
        findings.push(files(settings.front.max_connections));
        findings.extend(settings.front.tls.as_ref().and_then(front_certificate));
        findings.extend(sealing(settings));
        findings.extend(limits(settings));
    }
    findings.extend(settings.queue.certificate.as_ref().and_then(broker_certificate));
    if settings.role.has_worker() {
        findings.extend(secret(settings));
        findings.extend(settings.token.key_files.iter().filter_map(|path| key(path)));
        findings.push(cost(settings.password.cost));
        findings.push(hashing());
    }
    if settings.role == Role::Worker {
        findings.extend(store_timeout(settings.store.timeout));
    }
    findings.extend(published(settings));
    findings
}

/// Whether the addresses can be bound, as a start does. All at the same time, because two of them may be
/// equal.
async fn addresses(settings: &Settings) -> Vec<Finding> {
    let check = "addresses";
    let (mut findings, mut bound) = (Vec::new(), Vec::new());
    for (address, setting, https) in app::addresses(settings) {
        findings.push(match front::bind(address, setting).await {
            Ok(listener) => {
                bound.push(listener);
                Finding::ok(check, format!("{address} is free"))
            }
            Err(_) if is_muster(reachable(address), https).await => Finding::note(
                check,
                format!("{setting}: a muster runs at {address} already"),
                "nothing, or stop that one before another starts",
            ),
            Err(error) => {
                let remedy = "stop what listens there, or set another address";
                Finding::error(check, format!("{error:#}"), remedy)
            }
        });
    }
    findings
}

/// Whether a muster answers at an address, ready or not.
async fn is_muster(address: SocketAddr, https: bool) -> bool {
    let Ok((_, answer)) = probe::ready(address, https).await else { return false };
    serde_json::from_str::<Value>(&answer).is_ok_and(|answer| answer["ready"].is_boolean())
}

/// Each connection is a file.
fn files(connections: usize) -> Finding {
    let check = "file limit";
    let wanted = connections as u64 + OTHER_FILES;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < wanted => Finding::warning(
            check,
            format!(
                "{limit} files may be open, and front.max_connections is {connections}: under load \
                 connections are refused by the system instead of waiting"
            ),
            format!(
                "raise it to {wanted} (ulimit -n, or LimitNOFILE= in the unit), or lower \
                 front.max_connections"
            ),
        ),
        Some(limit) => Finding::ok(check, format!("{limit} for {connections} connections")),
        None => Finding::ok(check, "none"),
    }
}

fn front_certificate(files: &CertificateFiles) -> Option<Finding> {
    Tls::read(files).ok()?;
    Some(certificate("certificate", files))
}

/// muster's own certificate for amqps://; whether it fits its key is seen when the broker is asked.
fn broker_certificate(files: &CertificateFiles) -> Option<Finding> {
    files.certificate.exists().then(|| certificate("client certificate", files))
}

fn certificate(check: &'static str, files: &CertificateFiles) -> Finding {
    let shown = files.certificate.display();
    let valid = match Validity::read(&files.certificate) {
        Ok(valid) => valid,
        Err(error) => {
            let remedy = "give a file with certificates in PEM";
            return Finding::error(check, format!("{shown}: {error:#}"), remedy);
        }
    };
    let now = Clock::system().now().seconds();
    let renew = "renew it, and send SIGHUP to the fronts";
    if now > valid.until {
        let ago = counted((now - valid.until) / DAY, "day");
        return Finding::error(
            check,
            format!("{shown} expired {ago} ago: no client connects"),
            renew,
        );
    }
    if now < valid.from {
        let left = counted((valid.from - now) / DAY, "day");
        let reason = format!("{shown} is not valid yet, but in {left}: no client connects");
        return Finding::error(check, reason, "check this machine's clock and the certificate");
    }
    let left = (valid.until - now) / DAY;
    if left < EXPIRES_SOON {
        let left = counted(left, "day");
        return Finding::warning(check, format!("{shown} expires in {left}"), renew);
    }
    if others_can_read(&files.key) {
        return open_key(check, &files.key);
    }
    Finding::ok(check, format!("{shown} fits its key and is valid for {}", counted(left, "day")))
}

/// Fronts elsewhere answer 504 instead of 500 to a store outage if they wait no longer than this.
fn store_timeout(timeout: Duration) -> Option<Finding> {
    let least = timeout * 2;
    (least >= DEFAULT_REQUEST_TIMEOUT).then(|| {
        Finding::warning(
            "store timeout",
            format!(
                "store.timeout is {}: a front whose front.request_timeout is {} or less answers a store outage \
                 as a timeout",
                format_duration(timeout),
                format_duration(least)
            ),
            "lower store.timeout, or raise front.request_timeout at every front",
        )
    })
}

fn sealing(settings: &Settings) -> Option<Finding> {
    let check = "sealed passwords";
    match (&settings.queue.url, settings.queue.seal_public_key) {
        (QueueUrl::Local, _) => None,
        (QueueUrl::Amqp(_), Some(_)) => Some(Finding::ok(check, "yes")),
        (QueueUrl::Amqp(_), None) => Some(Finding::warning(
            check,
            "passwords travel through RabbitMQ and rest on its disk in clear",
            "set queue.seal_public_key (MUSTER_QUEUE_SEAL_PUBLIC_KEY); `muster keygen` makes the keys",
        )),
    }
}

/// Behind a proxy, or in a network of one's own, somebody else may see to it.
fn limits(settings: &Settings) -> Option<Finding> {
    let check = "rate limits";
    let listen = settings.front.listen;
    if settings.limits.per_address.is_some() {
        return Some(Finding::ok(check, "each client address has one"));
    }
    (!listen.ip().is_loopback()).then(|| {
        Finding::note(
            check,
            format!("{listen} can be asked from elsewhere, by anybody as often as they like"),
            "set limits.per_address, unless a proxy in front of it has limits",
        )
    })
}

fn secret(settings: &Settings) -> Option<Finding> {
    let check = "signing secret";
    if let Some(secret) = &settings.token.secret {
        return Some(strength(check, secret));
    }
    if !settings.token.key_files.is_empty() {
        return None;
    }
    // Without one elsewhere the settings have been refused.
    matches!(settings.store.url, StoreUrl::File(_))
        .then(|| Finding::ok(check, "made by muster, next to the data file"))
}

fn strength(check: &'static str, secret: &SecretString) -> Finding {
    if bits(secret.expose_secret()) < SECRET_BITS {
        Finding::warning(
            check,
            "long enough, but it repeats itself: whoever guesses it makes tokens for anybody",
            "make one with: openssl rand -base64 48",
        )
    } else {
        Finding::ok(check, "long and varied")
    }
}

/// Shannon's estimate over the characters. Generous: a sentence counts as if it were random.
fn bits(text: &str) -> f64 {
    let mut counts = BTreeMap::new();
    for character in text.chars() {
        *counts.entry(character).or_insert(0.0) += 1.0;
    }
    let length: f64 = counts.values().sum();
    counts.values().map(|count: &f64| count * (length / count).log2()).sum()
}

/// A key that can be read; any other has been refused.
fn key(path: &Path) -> Option<Finding> {
    let check = "signing key";
    let key = TokenKey::read(path).ok()?;
    if others_can_read(path) {
        return Some(open_key(check, path));
    }
    let reason = format!("{}, {}", key.algorithm().as_str(), key.id().unwrap_or_default());
    Some(Finding::ok(check, reason))
}

fn open_key(check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    Finding::warning(
        check,
        format!("{shown} can be read by other users of this machine"),
        format!("chmod 600 {shown}"),
    )
}

fn others_can_read(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0)
}

fn cost(cost: u32) -> Finding {
    let check = "bcrypt cost";
    if cost < COST_MIN {
        let reason = format!("{cost}: whoever gets the hashes finds most passwords");
        return Finding::warning(check, reason, "12, or at least 10; higher costs time alone");
    }
    Finding::ok(check, cost.to_string())
}

fn hashing() -> Finding {
    let check = "hashing";
    match kernel::self_test() {
        Ok(()) => Finding::ok(check, "several at once agree with bcrypt one by one"),
        Err(wrong) => Finding::error(
            check,
            format!("{wrong}; muster hashes one by one instead, which is slower"),
            "test its memory and processor",
        ),
    }
}

/// Whether those who verify are given every key that signs.
fn published(settings: &Settings) -> Option<Finding> {
    let check = "public keys";
    let file = settings.front.jwks_file.as_ref().filter(|_| settings.role.has_front())?;
    let set: Value = serde_json::from_str(&config::file::read_text(file).ok()?).ok()?;
    let known: Vec<&Value> = set["keys"].as_array()?.iter().map(|key| &key["kid"]).collect();
    let own: Vec<TokenKey> =
        settings.token.key_files.iter().filter_map(|path| TokenKey::read(path).ok()).collect();
    let own = public_keys(own.iter()).unwrap_or_default();
    let missing =
        own["keys"].as_array().into_iter().flatten().find(|key| !known.contains(&&key["kid"]));
    Some(match missing {
        Some(key) => Finding::error(
            check,
            format!(
                "{} lacks {}: what it signs cannot be verified",
                file.display(),
                key["kid"].as_str().unwrap_or_default()
            ),
            format!("muster keys jwks > {}, then SIGHUP to the fronts", file.display()),
        ),
        None => Finding::ok(check, format!("{} in {}", known.len(), file.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_repeats_itself_is_weak() {
        for weak in ["a".repeat(64), "password".repeat(4), "0123".repeat(10)] {
            assert!(bits(&weak) < SECRET_BITS, "{weak}");
        }
        for strong in ["Zk4vT0m1Yt3x8Q2cLw9aPd7RbU5nHs6E", "9f86d081884c7d659a2feaa0c55ad015"] {
            assert!(bits(strong) >= SECRET_BITS, "{strong}");
        }
    }
}
