//! Checks of the settings and of this machine, without any service. `app::start_problems` is the same check that the
//! start makes.

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
use crate::domain::Clock;
use crate::front;
use crate::front::tls::Tls;
use crate::front::validity::Validity;
use crate::http_client::probe;
use crate::password::kernel;
use crate::telemetry::finding::Finding;
use crate::token::{TokenKey, public_keys};

/// Open files that a process needs in addition to client connections: broker, database, logs.
const OTHER_FILES: u64 = 128;
/// Minimum entropy of a signing secret in bits, estimated from its character frequencies. A random text of 32
/// characters has about 150, a repeated word far less than 100.
const SECRET_BITS: f64 = 100.0;
/// Days before expiry from which a certificate causes a warning.
const EXPIRY_WARNING_DAYS: i64 = 14;
/// One day in seconds.
const DAY: i64 = 86_400;
/// Lowest bcrypt cost that is considered safe.
const COST_MIN: u32 = 10;

/// The finding for settings with which the start fails although each value is valid.
pub(super) fn startup_problem(problems: &anyhow::Error) -> Finding {
    let remedy = "fix the named settings; muster serve does not start with them";
    Finding::error("settings", format!("{problems:#}"), remedy)
}

pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    let problems = app::start_problems(settings).into_iter();
    let mut findings: Vec<Finding> = problems
        .map(|refusal| {
            Finding::error(refusal.check, format!("{:#}", refusal.error), refusal.remedy)
        })
        .collect();
    findings.extend(addresses(settings).await);
    if settings.role.has_front() {
        findings.push(file_limit(settings.front.max_connections));
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
    findings.extend(public_keys_file(settings));
    findings
}

/// Binds all addresses at the same time, as the start does, because two of them may be equal.
async fn addresses(settings: &Settings) -> Vec<Finding> {
    let check = "addresses";
    let (mut findings, mut listeners) = (Vec::new(), Vec::new());
    for (address, setting, https) in app::addresses(settings) {
        findings.push(match front::bind(address, setting).await {
            Ok(listener) => {
                listeners.push(listener);
                Finding::ok(check, format!("{address} is free"))
            }
            Err(_) if is_muster(reachable(address), https).await => Finding::note(
                check,
                format!("{setting}: a muster runs at {address}"),
                "none, or stop it before you start another instance",
            ),
            Err(error) => {
                let remedy = "stop the process that listens there, or set another address";
                Finding::error(check, format!("{error:#}"), remedy)
            }
        });
    }
    findings
}

/// Returns whether a muster, ready or not, responds at an address.
async fn is_muster(address: SocketAddr, https: bool) -> bool {
    let Ok((_, body)) = probe::ready(address, https).await else { return false };
    serde_json::from_str::<Value>(&body).is_ok_and(|body| body["ready"].is_boolean())
}

/// Checks the limit of open files: each connection needs one.
fn file_limit(connections: usize) -> Finding {
    let check = "file limit";
    let required = connections as u64 + OTHER_FILES;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < required => Finding::warning(
            check,
            format!(
                "the limit is {limit} open files, and front.max_connections is {connections}: under \
                 load the operating system refuses connections instead of queueing them"
            ),
            format!(
                "raise the limit to {required} (ulimit -n, or LimitNOFILE= in the unit), or lower \
                 front.max_connections"
            ),
        ),
        Some(limit) => Finding::ok(check, format!("{limit} for {connections} connections")),
        None => Finding::ok(check, "unlimited"),
    }
}

fn front_certificate(files: &CertificateFiles) -> Option<Finding> {
    Tls::read(files).ok()?;
    Some(certificate("certificate", files))
}

/// Checks the client certificate for amqps://. The connection to the broker shows whether it matches its key.
fn broker_certificate(files: &CertificateFiles) -> Option<Finding> {
    files.certificate.exists().then(|| certificate("client certificate", files))
}

fn certificate(check: &'static str, files: &CertificateFiles) -> Finding {
    let shown = files.certificate.display();
    let valid = match Validity::read(&files.certificate) {
        Ok(valid) => valid,
        Err(error) => {
            let remedy = "name a file with certificates in PEM format";
            return Finding::error(check, format!("{shown}: {error:#}"), remedy);
        }
    };
    let now = Clock::system().now().seconds();
    let renew = "renew the certificate and send SIGHUP to the fronts";
    if now > valid.until {
        let ago = counted((now - valid.until) / DAY, "day");
        return Finding::error(
            check,
            format!("{shown} expired {ago} ago: clients cannot connect"),
            renew,
        );
    }
    if now < valid.from {
        let left = counted((valid.from - now) / DAY, "day");
        let reason =
            format!("{shown} is not valid yet and becomes valid in {left}: clients cannot connect");
        return Finding::error(
            check,
            reason,
            "check the clock of this machine and the certificate",
        );
    }
    let left = (valid.until - now) / DAY;
    if left < EXPIRY_WARNING_DAYS {
        let left = counted(left, "day");
        return Finding::warning(check, format!("{shown} expires in {left}"), renew);
    }
    if is_readable_by_others(&files.key) {
        return exposed_key(check, &files.key);
    }
    Finding::ok(check, format!("{shown} matches its key and is valid for {}", counted(left, "day")))
}

/// Checks that a worker reports a store outage before the fronts time out: otherwise they respond 504 instead of 500.
fn store_timeout(timeout: Duration) -> Option<Finding> {
    let worst = timeout * 2;
    (worst >= DEFAULT_REQUEST_TIMEOUT).then(|| {
        Finding::warning(
            "store timeout",
            format!(
                "store.timeout is {}: a front with a front.request_timeout of {} or less responds to a store \
                 outage with a timeout",
                format_duration(timeout),
                format_duration(worst)
            ),
            "lower store.timeout, or raise front.request_timeout at all fronts",
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
            "passwords are sent through RabbitMQ and stored on its disk in clear text",
            "set queue.seal_public_key (MUSTER_QUEUE_SEAL_PUBLIC_KEY); `muster keygen` generates the keys",
        )),
    }
}

/// Checks for a rate limit. Only a note, because a proxy or a private network may limit clients instead.
fn limits(settings: &Settings) -> Option<Finding> {
    let check = "rate limits";
    let listen = settings.front.listen;
    if settings.limits.per_address.is_some() {
        return Some(Finding::ok(check, "each client address has a limit"));
    }
    (!listen.ip().is_loopback()).then(|| {
        Finding::note(
            check,
            format!("{listen} accepts connections from other machines, without a rate limit"),
            "set limits.per_address, unless a proxy limits clients",
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
    // With another store, settings without a secret or key are refused at the start.
    matches!(settings.store.url, StoreUrl::File(_))
        .then(|| Finding::ok(check, "generated by muster, next to the data file"))
}

fn strength(check: &'static str, secret: &SecretString) -> Finding {
    if entropy_bits(secret.expose_secret()) < SECRET_BITS {
        Finding::warning(
            check,
            "long enough, but repetitive: an attacker who guesses it can forge tokens for every user",
            "generate one with: openssl rand -base64 48",
        )
    } else {
        Finding::ok(check, "long and random enough")
    }
}

/// Estimates the Shannon entropy of a text in bits from its character frequencies. An upper bound: words count as
/// random characters.
fn entropy_bits(text: &str) -> f64 {
    let mut counts = BTreeMap::new();
    for character in text.chars() {
        *counts.entry(character).or_insert(0.0) += 1.0;
    }
    let length: f64 = counts.values().sum();
    counts.values().map(|count: &f64| count * (length / count).log2()).sum()
}

/// Checks a readable signing key. The start refuses unreadable ones.
fn key(path: &Path) -> Option<Finding> {
    let check = "signing key";
    let key = TokenKey::read(path).ok()?;
    if is_readable_by_others(path) {
        return Some(exposed_key(check, path));
    }
    let reason = format!("{}, {}", key.algorithm().as_str(), key.id().unwrap_or_default());
    Some(Finding::ok(check, reason))
}

fn exposed_key(check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    Finding::warning(
        check,
        format!("{shown} is readable by other users of this machine"),
        format!("chmod 600 {shown}"),
    )
}

fn is_readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0)
}

fn cost(cost: u32) -> Finding {
    let check = "bcrypt cost";
    if cost < COST_MIN {
        let reason = format!("{cost}: an attacker with the hashes finds most passwords");
        return Finding::warning(
            check,
            reason,
            "set password.cost (MUSTER_BCRYPT_COST) to 12, or at least to 10",
        );
    }
    Finding::ok(check, cost.to_string())
}

fn hashing() -> Finding {
    let check = "hashing";
    match kernel::self_test() {
        Ok(()) => Finding::ok(check, "the parallel kernels agree with the bcrypt crate"),
        Err(error) => Finding::error(
            check,
            format!("{error}; muster hashes with the bcrypt crate instead, which is slower"),
            "test the memory and the processor of this machine",
        ),
    }
}

/// Checks that `front.jwks_file` contains the public half of every signing key.
fn public_keys_file(settings: &Settings) -> Option<Finding> {
    let check = "public keys";
    let file = settings.front.jwks_file.as_ref().filter(|_| settings.role.has_front())?;
    let set: Value = serde_json::from_str(&config::file::read_text(file).ok()?).ok()?;
    let listed: Vec<&Value> = set["keys"].as_array()?.iter().map(|key| &key["kid"]).collect();
    let own: Vec<TokenKey> =
        settings.token.key_files.iter().filter_map(|path| TokenKey::read(path).ok()).collect();
    let own = public_keys(own.iter()).unwrap_or_default();
    let missing =
        own["keys"].as_array().into_iter().flatten().find(|key| !listed.contains(&&key["kid"]));
    Some(match missing {
        Some(key) => Finding::error(
            check,
            format!(
                "{} lacks {}: its tokens cannot be verified",
                file.display(),
                key["kid"].as_str().unwrap_or_default()
            ),
            format!("muster keys jwks > {}, then SIGHUP to the fronts", file.display()),
        ),
        None => Finding::ok(check, format!("{} in {}", listed.len(), file.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitive_secret_is_weak() {
        for weak in ["a".repeat(64), "password".repeat(4), "0123".repeat(10)] {
            assert!(entropy_bits(&weak) < SECRET_BITS, "{weak}");
        }
        for strong in ["Zk4vT0m1Yt3x8Q2cLw9aPd7RbU5nHs6E", "9f86d081884c7d659a2feaa0c55ad015"] {
            assert!(entropy_bits(strong) >= SECRET_BITS, "{strong}");
        }
    }
}
