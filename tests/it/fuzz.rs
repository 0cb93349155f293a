//! Fuzz tests: mutated valid input for the document parser, the reply codec, the address rules and idempotency keys.
//! `properties` has the checks. Duration and seed are configurable:
//!
//! `FUZZ_SECONDS=60 FUZZ_SEED=1 cargo test --test it fuzz:: -- --nocapture`

use std::time::{Duration, Instant};

use muster::contract::{Document, rules};
use muster::domain::{Email, IdempotencyKey, Outcome};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::Value;

use crate::properties::{assert_same, assert_survives_the_queue, check_every_contract};
use crate::support::generate;
use crate::support::random::{Random, env_number};

/// Default duration of each target in seconds.
const SECONDS: u64 = 2;
/// Number of valid inputs in a corpus, and of mutations before the corpus is replaced.
const CORPUS: usize = 64;
const ROUNDS: usize = 2_000;

/// Tokens to insert: JSON, AMQP and address syntax, and special Unicode characters.
const TOKENS: [&[u8]; 32] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00",
    b"null",
    b"true",
    b"1e999",
    b"-0",
    b"{}",
    b"[[]]",
    b"@",
    b".",
    b"..",
    b"xn--",
    b" ",
    b"\t",
    b"\0",
    b"\x7f",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    "\u{feff}".as_bytes(),
    "\u{200b}".as_bytes(),
    "\u{301}".as_bytes(),
    "\u{10ffff}".as_bytes(),
];

/// Moves, repeats, cuts and replaces parts of an input.
fn mutate(random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = |random: &mut Random, bytes: &[u8]| random.below(bytes.len() as u64 + 1) as usize;
        let (a, b) = (at(random, &bytes), at(random, &bytes));
        let (from, to) = (a.min(b), a.max(b).min(a.min(b) + 40));
        match random.below(8) {
            0 => drop(bytes.drain(from..to)),
            1 => {
                let piece = bytes[from..to].to_vec();
                drop(bytes.splice(b..b, piece));
            }
            2 => drop(bytes.splice(from..to, TOKENS[random.below(32) as usize].to_vec())),
            3 | 4 => drop(bytes.splice(a..a, TOKENS[random.below(32) as usize].to_vec())),
            5 => bytes.truncate(a),
            6 => {
                let (c, d) = (at(random, other), at(random, other));
                drop(bytes.splice(from..to, other[c.min(d)..c.max(d)].to_vec()));
            }
            _ => {
                if let Some(byte) = bytes.get_mut(a) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    bytes
}

/// Checks mutated inputs until the time is over.
fn fuzz<T>(
    name: &str,
    valid: impl Strategy<Value = T>,
    write: impl Fn(&T) -> Vec<u8>,
    check: impl Fn(&[u8]),
) {
    let seconds = env_number("FUZZ_SECONDS", SECONDS);
    let seed = env_number("FUZZ_SEED", u64::from(std::process::id()));
    println!("{name}: FUZZ_SECONDS={seconds} FUZZ_SEED={seed}");
    let mut random = Random(seed);
    let words: Vec<u8> = (0..4).flat_map(|_| random.next().to_le_bytes()).collect();
    let source = TestRng::from_seed(RngAlgorithm::ChaCha, &words);
    let mut runner = TestRunner::new_with_rng(Config::default(), source);
    let (started, mut count) = (Instant::now(), 0u64);
    while count == 0 || started.elapsed() < Duration::from_secs(seconds) {
        let one = |_| write(&valid.new_tree(&mut runner).unwrap().current());
        let mut corpus: Vec<Vec<u8>> = (0..CORPUS).map(one).collect();
        for _ in 0..ROUNDS {
            let (n, m) =
                (random.below(CORPUS as u64) as usize, random.below(CORPUS as u64) as usize);
            let mutated = mutate(&mut random, &corpus[n], &corpus[m]);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mutated)));
            assert!(
                result.is_ok(),
                "{name}: seed {seed}, {:?}",
                mutated.escape_ascii().to_string()
            );
            count += 1;
            // Mutates a mutated input further.
            if random.below(4) == 0 && mutated.len() < 4096 {
                corpus[n] = mutated;
            }
        }
    }
    println!("{name}: {count} inputs");
}

#[test]
fn documents() {
    fuzz(
        "documents",
        generate::valid_document(),
        |document| document.to_string().into_bytes(),
        |bytes| {
            check_every_contract(bytes);
            let Ok(document) = Document::parse(bytes) else { return };
            assert_survives_the_queue(&document).unwrap();
            // serde_json has its own limits for numbers and depth.
            if let Ok(value @ Value::Object(_)) = serde_json::from_slice(bytes) {
                assert_same(&document, &value).unwrap();
            }
        },
    );
}

#[test]
fn documents_with_random_keys() {
    let write = |document: &generate::Json| {
        let mut text = String::new();
        document.write(&mut text);
        text.into_bytes()
    };
    fuzz("documents with random keys", generate::object(), write, |bytes| {
        check_every_contract(bytes);
        let read = Document::parse(bytes);
        match (serde_json::from_slice(bytes), &read) {
            (Ok(value @ Value::Object(_)), Ok(document)) => assert_same(document, &value).unwrap(),
            (Ok(value), read) => assert!(!value.is_object() && read.is_err()),
            (Err(_), _) => {}
        }
    });
}

#[test]
fn replies() {
    let write = |outcome: &Outcome| serde_json::to_vec(outcome).unwrap();
    fuzz("replies", generate::outcome(), write, |bytes| {
        let Ok(outcome) = serde_json::from_slice::<Outcome>(bytes) else { return };
        let again = serde_json::to_vec(&outcome).unwrap();
        assert_eq!(serde_json::from_slice::<Outcome>(&again).unwrap(), outcome);
    });
}

#[test]
fn addresses() {
    fuzz(
        "addresses",
        generate::address(),
        |address| address.clone().into_bytes(),
        |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if !rules::is_address(text) {
                return;
            }
            assert!(text.len() <= rules::EMAIL_MAX_BYTES);
            let (local, domain) = text.split_once('@').unwrap();
            assert!((1..=rules::LOCAL_MAX_BYTES).contains(&local.len()) && !domain.contains('@'));
            assert!(domain.split('.').count() > 1);
            for label in domain.split('.') {
                assert!((1..=rules::LABEL_MAX_BYTES).contains(&label.len()), "{text}");
                assert!(!label.starts_with('-') && !label.ends_with('-'), "{text}");
            }
            let is_forbidden =
                |c: char| c.is_control() || c.is_whitespace() || "<>()[]\\,;:\"".contains(c);
            assert!(!text.contains(is_forbidden), "{text}");
            // The key of a key is itself.
            let key = Email::new(text.to_owned()).unwrap().key().to_owned();
            assert_eq!(Email::new(key.clone()).unwrap().key(), key, "{text}");
        },
    );
}

#[test]
fn idempotency_keys() {
    let keys = "\"?[!-~&&[^\"]]{16,128}\"?";
    fuzz(
        "keys",
        keys,
        |key: &String| key.clone().into_bytes(),
        |bytes| {
            let Some(key) = IdempotencyKey::parse(bytes) else { return };
            assert!((IdempotencyKey::MIN..=IdempotencyKey::MAX).contains(&key.as_str().len()));
            assert_eq!(IdempotencyKey::parse(key.as_str().as_bytes()), Some(key));
        },
    );
}
