//! Checks that code and documents use the terms of AMQP, HTTP and MongoDB instead of words that a reader would have to
//! translate.
//!
//! A word matches whole, in any case, and also as a part of an identifier: `is_suspect`, `SuspectRow`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A word or phrase that is not used, and its replacement.
const FORBIDDEN: [(&[&str], &str); 18] = [
    (&["door", "doors", "doorway", "doorways"], "queue; of HTTP, AMQP and import: entry point"),
    (&["told", "tell", "tells", "telling"], "log, report, reply, return, warn, show"),
    (&["somebody", "someone", "nobody"], "the component or role: client, consumer, no producer"),
    (&["whoever", "anybody", "everybody"], "the component or role: caller, operator, every user"),
    (&["wanted"], "expected, required"),
    (&["anew"], "again, new"),
    (&["beside", "besides"], "next to, in addition to"),
    (&["mend", "mends", "mended", "mending"], "fix, repair"),
    (&["perhaps"], "leave it out, or: may"),
    (&["all the same"], "still"),
    (&["stranger", "strangers"], "untrusted peer"),
    (&["suspect", "suspects", "suspected"], "possible poison message, first redelivery"),
    (&["bury", "buries", "buried", "burying"], "dead-letter (verb)"),
    (&["aside"], "put aside: dead-letter; else: apart from"),
    (&["hand back", "hands back", "handed back", "handing back", "hand it back"], "requeue"),
    (&["patience"], "timeout"),
    (&["away"], "unavailable, unreachable; go away: disconnect; throw away: discard"),
    (&["unfit"], "misconfigured, incompatible"),
];

/// Where a word stays: the beginning of a path, the word, and the reason.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    ("docs/deploy/systemd/muster@.service", "wanted", "the key WantedBy of systemd"),
    ("src/contract/policy/common-passwords.txt", "stranger", "a password of the list"),
];

/// Folders and files that are read. What is not UTF-8, such as a picture, is skipped.
const READ: [&str; 18] = [
    ".ci",
    ".env.sample",
    ".github",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.toml",
    "Dockerfile",
    "README.md",
    "SECURITY.md",
    "benches",
    "clippy.toml",
    "config.default.toml",
    "crates",
    "deny.toml",
    "docker-compose.yml",
    "docs",
    "src",
    "tests",
];

/// It lists the words.
const THIS_FILE: &str = "tests/it/words.rs";

/// A word of a text: where it begins and ends, and its line.
#[derive(Clone, Copy)]
struct Word<'a> {
    text: &'a str,
    start: usize,
    line: usize,
}

/// Splits a text into words. `_`, digits, punctuation and a capital letter after a small one end a word, and in
/// `HTTPQueue` the last capital letter begins the next.
fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut line = 1;
    let mut start = None;
    let characters: Vec<(usize, char)> = text.char_indices().collect();
    let is_lower = |at: usize| characters.get(at).is_some_and(|(_, c)| c.is_lowercase());
    for (at, &(offset, character)) in characters.iter().enumerate() {
        let begins = character.is_uppercase() && at > 0 && (is_lower(at - 1) || is_lower(at + 1));
        if let Some(from) = start
            && (begins || !character.is_alphabetic())
        {
            words.push(Word { text: &text[from..offset], start: from, line });
            start = None;
        }
        if character.is_alphabetic() {
            start.get_or_insert(offset);
        }
        line += usize::from(character == '\n');
    }
    if let Some(from) = start {
        words.push(Word { text: &text[from..], start: from, line });
    }
    words
}

/// Whether the words at the beginning are a phrase, with nothing between them but space, `_` or the signs that begin the
/// next line of a comment.
fn begins_with(text: &str, words: &[Word<'_>], phrase: &str) -> bool {
    let mut end = None;
    let mut count = 0;
    for (part, word) in phrase.split(' ').zip(words) {
        let gap = end.map_or("", |end| &text[end..word.start]);
        if !word.text.eq_ignore_ascii_case(part)
            || !gap.chars().all(|c| c.is_whitespace() || "_/!#\\".contains(c))
        {
            return false;
        }
        end = Some(word.start + word.text.len());
        count += 1;
    }
    count == phrase.split(' ').count()
}

/// Every forbidden word of a text: its line, the word and the replacement.
fn forbidden(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let all = words(text);
    let mut found = Vec::new();
    for at in 0..all.len() {
        for (phrases, replacement) in FORBIDDEN {
            let phrase = phrases.iter().find(|phrase| begins_with(text, &all[at..], phrase));
            found.extend(phrase.map(|phrase| (all[at].line, *phrase, replacement)));
        }
    }
    found
}

/// Paths below the package, and the text of each.
fn texts(path: &Path, found: &mut BTreeMap<String, String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            texts(&entry.unwrap().path(), found);
        }
    } else if let Ok(text) = fs::read_to_string(path) {
        let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
        found.insert(path.to_str().unwrap().to_owned(), text);
    }
}

/// The first two folders of a path, by which the hits are counted.
fn folder(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    parts[..parts.len().min(3) - usize::from(parts.len() > 1)].join("/")
}

#[test]
fn forbidden_words_are_not_used() {
    let mut all = BTreeMap::new();
    for path in READ {
        texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path), &mut all);
    }
    assert!(all.len() > 300, "only {} files were read", all.len());
    let mut hits = Vec::new();
    let mut unused: BTreeSet<_> = EXCEPTIONS.into_iter().collect();
    let (mut by_folder, mut by_word) = (BTreeMap::new(), BTreeMap::new());
    for (path, text) in all.iter().filter(|(path, _)| *path != THIS_FILE) {
        for (line, word, replacement) in forbidden(text) {
            let exception = EXCEPTIONS
                .iter()
                .find(|(start, excepted, _)| path.starts_with(start) && *excepted == word);
            if let Some(exception) = exception {
                unused.remove(exception);
                continue;
            }
            hits.push(format!("{path}:{line}: {word} -> {replacement}"));
            *by_folder.entry(folder(path)).or_insert(0) += 1;
            *by_word.entry(word).or_insert(0) += 1;
        }
    }
    let list = |counts: Vec<(String, i32)>| {
        counts.iter().map(|(name, count)| format!("{count:6} {name}\n")).collect::<String>()
    };
    assert!(
        hits.is_empty(),
        "{}\n\nby word:\n{}\nby folder:\n{}\n{} forbidden words",
        hits.join("\n"),
        list(by_word.into_iter().map(|(word, count)| (word.to_owned(), count)).collect()),
        list(by_folder.into_iter().collect()),
        hits.len(),
    );
    assert!(unused.is_empty(), "exceptions for words that are not there: {unused:?}");
}

#[test]
fn forbidden_words_are_found_in_prose_and_identifiers() {
    let found = |text| forbidden(text).into_iter().map(|(line, word, _)| (line, word)).collect();
    let cases: [(&str, &[(usize, &str)]); 8] = [
        ("Perhaps it is.", &[(1, "perhaps")]),
        ("fn is_suspect() {}\nstruct SuspectRow;", &[(1, "suspect"), (2, "suspect")]),
        ("the HTTPDoor, DOOR_1", &[(1, "door"), (1, "door")]),
        ("/// It is all\n/// the same.", &[(1, "all the same")]),
        ("hand_back(HandBack)", &[(1, "hand back"), (1, "hand back")]),
        ("all, the same", &[]),
        ("outdoors, unwanted, foretell, recommend", &[]),
        ("nobody\n\nwhoever", &[(1, "nobody"), (3, "whoever")]),
    ];
    for (text, expected) in cases {
        let found: Vec<(usize, &str)> = found(text);
        assert_eq!(found, expected, "{text}");
    }
}
