//! What no program may write: passwords, hashes, tokens, addresses. Every program that a test starts is held
//! to it at its end, and every command.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::Value;

use super::generate::MARK;
use super::ledger::PASSWORD;
use super::muster::SECRET;

/// How hashes and tokens look, and what is in every password of many.
const MARKS: [&str; 6] = [PASSWORD, SECRET, "$2a$", "$2b$", "$2y$", "eyJ"];
/// Shorter passwords are made to be refused, and stand in ordinary words.
const LENGTH_MIN: usize = 8;
/// So long is no ordinary word.
const NO_WORD: usize = 12;

/// The other passwords that were sent in this run.
static SENT: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);

/// Learns the passwords in what is sent, JSON in whatever wrapping.
pub fn learn(sent: &[u8]) {
    for line in String::from_utf8_lossy(sent).lines() {
        let Some(object) = line.find('{').map(|start| &line[start..]) else { continue };
        let document = serde_json::Deserializer::from_str(object).into_iter::<Value>().next();
        if let Some(Ok(document)) = document
            && let Some(password) = document["password"].as_str()
            && is_telling(password)
        {
            let mut sent = SENT.lock().unwrap_or_else(PoisonError::into_inner);
            sent.insert(password.to_owned());
        }
    }
}

/// Whether a text can only be the password, and is not found by its mark already.
fn is_telling(password: &str) -> bool {
    let is_plain = password.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b' ');
    let may_be_words = is_plain && (password.len() < NO_WORD || password.contains(' '));
    let is_marked = password.starts_with(PASSWORD) || password.contains(MARK);
    password.len() >= LENGTH_MIN && !may_be_words && !is_marked
}

/// The lines that hold a password, a hash or a token.
pub fn secrets_in(written: &str) -> Vec<String> {
    let sent = SENT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let secrets = || MARKS.into_iter().chain(sent.iter().map(String::as_str));
    let tells = |text: &str| text.contains(MARK) || secrets().any(|secret| text.contains(secret));
    // All of it at once is the usual case, and fast.
    let lines = written.lines().filter(|line| tells(line));
    if tells(written) { lines.map(str::to_owned).collect() } else { Vec::new() }
}

/// The same, and those that hold an address: what serves has no reason to write an `@`.
pub fn secrets_and_addresses_in(written: &str) -> Vec<String> {
    let addresses = written.lines().filter(|line| line.contains('@'));
    secrets_in(written).into_iter().chain(addresses.map(str::to_owned)).collect()
}

#[test]
fn this_check_can_see() {
    learn(b"POST / HTTP/1.1\r\n\r\n{\"password\":\"Seen-by-the-check-1\"} and more");
    learn(b"{\"password\":\"short-1\"}\n{\"x\":1,\"password\":\"only small letters\"}");
    for secret in ["Seen-by-the-check-1", "$2b$04$abc", "a.eyJhbGciOi.b", SECRET] {
        let line = format!("a line with {secret} in it");
        assert_eq!(secrets_in(&format!("one\n{line}\nanother")), [line]);
    }
    let written = "short-1\nonly small letters\nann@example.com";
    assert_eq!(secrets_in(written), Vec::<String>::new());
    assert_eq!(secrets_and_addresses_in(written), ["ann@example.com"]);
}
