//! What `doctor` sees without asking anybody: this machine and the settings.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::app;
use crate::config::{QueueUrl, Settings, StoreUrl};
use crate::front::jwks::PublicKeys;
use crate::front::tls::Tls;
use crate::password::lanes;
use crate::telemetry::finding::Finding;
use crate::token::{Key, public_keys};

/// Files a process needs besides its clients' connections: broker, database, logs.
const OTHER_FILES: u64 = 128;
/// Least randomness of a signing secret in bits, estimated from how its characters are spread. Random
/// text of 32 characters has some 150; a repeated word far less than 100.
const SECRET_BITS: f64 = 100.0;
/// Lowest bcrypt cost that is safe today.
const COST_MIN: u32 = 10;

/// Why settings that are right one by one would not start.
pub(super) fn refused(problems: &anyhow::Error) -> Finding {
    let remedy = "set what is named; serve refuses to start";
    Finding::error("settings", format!("{problems:#}"), remedy)
}

pub(super) fn look(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = app::policy(settings) {
        let remedy = "one password a line is wanted in that file";
        findings.push(Finding::error("password list", format!("{error:#}"), remedy));
    }
    if settings.role.has_front() {
        findings.push(files(settings.front.max_connections));
        findings.extend(certificate(settings));
        findings.extend(sealing(settings));
        findings.extend(limits(settings));
    }
    if settings.role.has_worker() {
        findings.extend(secret(settings));
        findings.extend(settings.token.keys.iter().map(|path| key(path)));
        findings.push(cost(settings.password.cost));
        findings.push(hashing());
    }
    findings.extend(published(settings));
    findings
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

fn certificate(settings: &Settings) -> Option<Finding> {
    let files = settings.front.tls.as_ref()?;
    let check = "certificate";
    Some(match Tls::read(files) {
        Err(error) => Finding::error(
            check,
            format!("{error:#}"),
            "give the certificate and the private key that belongs to it; `muster cert` makes a pair",
        ),
        Ok(_) if others_can_read(&files.key) => open_key(check, &files.key),
        Ok(_) => Finding::ok(check, format!("{} fits its key", files.certificate.display())),
    })
}

fn sealing(settings: &Settings) -> Option<Finding> {
    let check = "sealed passwords";
    match (&settings.queue.url, settings.queue.seal_to) {
        (QueueUrl::Local, _) => None,
        (QueueUrl::Amqp(_), Some(_)) => Some(Finding::ok(check, "yes")),
        (QueueUrl::Amqp(_), None) => Some(Finding::warning(
            check,
            "passwords travel through RabbitMQ and rest on its disk in clear",
            "set queue.seal_to (MUSTER_QUEUE_SEAL_TO); `muster keygen` makes the keys",
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
    if !settings.token.keys.is_empty() {
        return None;
    }
    Some(match settings.store.url {
        StoreUrl::File(_) => Finding::ok(check, "made by muster, beside the data file"),
        StoreUrl::Mongo(_) => Finding::error(
            check,
            "there is none, so a worker would not start",
            "set JWT_SECRET or token.keys, the same on all workers",
        ),
    })
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

fn key(path: &Path) -> Finding {
    let check = "signing key";
    match Key::read(path) {
        Err(error) => Finding::error(
            check,
            format!("{error:#}"),
            "give a file that this user can read; `muster keys make` makes one",
        ),
        Ok(_) if others_can_read(path) => open_key(check, path),
        Ok(key) => Finding::ok(
            check,
            format!("{}, {}", key.algorithm().as_str(), key.id().unwrap_or_default()),
        ),
    }
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
    match lanes::self_test() {
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
    let file = settings.front.jwks.as_ref().filter(|_| settings.role.has_front())?;
    if let Err(error) = PublicKeys::read(file) {
        return Some(Finding::error(
            check,
            format!("{error:#}"),
            format!("muster keys jwks > {}", file.display()),
        ));
    }
    let set: Value = serde_json::from_str(&crate::config::file::read_text(file).ok()?).ok()?;
    let known: Vec<&Value> = set["keys"].as_array()?.iter().map(|key| &key["kid"]).collect();
    let own: Vec<Key> =
        settings.token.keys.iter().filter_map(|path| Key::read(path).ok()).collect();
    let own = public_keys(own.iter()).unwrap_or_default();
    let missing =
        own["keys"].as_array().into_iter().flatten().find(|key| !known.contains(&&key["kid"]));
    Some(match missing {
        Some(key) => Finding::error(
            check,
            format!("{} lacks {}: nobody can verify what it signs", file.display(), key["kid"]),
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
