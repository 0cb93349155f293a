//! Finds passwords, hashes, tokens and addresses in output. The output of every program and command that a
//! test runs is searched.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::Value;

use super::generate::MARK;
use super::ledger::PASSWORD;
use super::muster::SECRET;

/// Prefixes of hashes, tokens and marked passwords, and the token secret.
const MARKS: [&str; 6] = [PASSWORD, SECRET, "$2a$", "$2b$", "$2y$", "eyJ"];
/// Shorter passwords are rejected by muster and occur in ordinary words.
const MIN_LENGTH: usize = 8;
/// Minimum length of lower-case text that is not taken for an ordinary word.
const MIN_UNCOMMON_LENGTH: usize = 12;

/// Passwords without a mark that were sent in this run.
static SENT: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);

/// Remembers the passwords in sent bytes. The JSON documents may have other text before them.
pub fn learn(sent: &[u8]) {
    for line in String::from_utf8_lossy(sent).lines() {
        let Some(object) = line.find('{').map(|start| &line[start..]) else { continue };
        let document = serde_json::Deserializer::from_str(object).into_iter::<Value>().next();
        if let Some(Ok(document)) = document
            && let Some(password) = document["password"].as_str()
            && is_searchable(password)
        {
            let mut sent = SENT.lock().unwrap_or_else(PoisonError::into_inner);
            sent.insert(password.to_owned());
        }
    }
}

/// Whether a password is specific enough to search for, and has no mark.
fn is_searchable(password: &str) -> bool {
    let is_plain = password.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b' ');
    let may_be_words = is_plain && (password.len() < MIN_UNCOMMON_LENGTH || password.contains(' '));
    let is_marked = password.starts_with(PASSWORD) || password.contains(MARK);
    password.len() >= MIN_LENGTH && !may_be_words && !is_marked
}

/// Lines with a password, a hash or a token.
pub fn lines_with_secrets(written: &str) -> Vec<String> {
    let sent = SENT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let secrets = || MARKS.into_iter().chain(sent.iter().map(String::as_str));
    let has_secret =
        |text: &str| text.contains(MARK) || secrets().any(|secret| text.contains(secret));
    // Searches the whole text first, because that is fast and usually finds nothing.
    let lines = written.lines().filter(|line| has_secret(line));
    if has_secret(written) { lines.map(str::to_owned).collect() } else { Vec::new() }
}

/// Lines with a secret or an email address (any `@`).
pub fn lines_with_secrets_or_addresses(written: &str) -> Vec<String> {
    let addresses = written.lines().filter(|line| line.contains('@'));
    lines_with_secrets(written).into_iter().chain(addresses.map(str::to_owned)).collect()
}

#[test]
fn lines_with_secrets_finds_sent_passwords() {
    learn(b"POST / HTTP/1.1\r\n\r\n{\"password\":\"Seen-by-the-check-1\"} and more");
    learn(b"{\"password\":\"short-1\"}\n{\"x\":1,\"password\":\"only small letters\"}");
    for secret in ["Seen-by-the-check-1", "$2b$04$abc", "a.eyJhbGciOi.b", SECRET] {
        let line = format!("a line with {secret} in it");
        assert_eq!(lines_with_secrets(&format!("one\n{line}\nanother")), [line]);
    }
    let written = "short-1\nonly small letters\nann@example.com";
    assert_eq!(lines_with_secrets(written), Vec::<String>::new());
    assert_eq!(lines_with_secrets_or_addresses(written), ["ann@example.com"]);
}
