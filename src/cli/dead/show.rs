//! How dead letters look: a table and a page for people, a line of JSON for programs. What is given
//! here is redacted already; what is left to do is to keep a producer's texts from playing with the
//! terminal.

use std::io::{self, Write};
use std::time::Duration;

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use super::choice::age;
use crate::queue::QueueKind;
use crate::queue::dead_letters::DeadLetter;
use crate::domain::{ContractId, Millis};

/// Shortest beginning of an id that a table shows.
const ID_MIN: usize = 12;
const COLUMNS: [&str; 7] = ["AGE", "REASON", "DOOR", "CONTRACT", "ATTEMPT", "ADDRESS", "ID"];

/// One JSON object on a line of its own.
pub(super) fn json_line(output: &mut impl Write, letter: &DeadLetter) -> io::Result<()> {
    serde_json::to_writer(&mut *output, letter)?;
    output.write_all(b"\n")
}

/// `1 letter`, `2 letters`.
pub(super) fn letters(count: usize) -> String {
    format!("{count} letter{}", if count == 1 { "" } else { "s" })
}

/// The whole id.
pub(super) fn id(letter: &DeadLetter) -> String {
    printable(if letter.id.is_empty() { "(no id)" } else { &letter.id })
}

/// One line a letter under a heading.
pub(super) fn table(rows: &[DeadLetter], now: Millis) -> String {
    let length = id_length(rows);
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    lines.extend(rows.iter().map(|letter| {
        [
            age_text(age(letter, now)),
            letter.reason.to_owned(),
            letter.door.map_or("-", QueueKind::as_str).to_owned(),
            letter.contract.map_or("-", ContractId::as_str).to_owned(),
            letter.attempt.to_string(),
            printable(letter.address().unwrap_or("-")),
            short_id(letter, length),
        ]
    }));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Everything, a line each.
pub(super) fn whole(letter: &DeadLetter, now: Millis) -> String {
    let died = match letter.died {
        Some(died) => format!("{} ({} ago)", died.to_rfc3339(), age_text(age(letter, now))),
        None => "unknown".to_owned(),
    };
    let lines = [
        ("id", id(letter)),
        ("reason", letter.reason.to_owned()),
        ("parse error", letter.detail.as_deref().map_or("-".to_owned(), printable)),
        ("died", died),
        ("queue", letter.door.map_or("-", QueueKind::as_str).to_owned()),
        ("contract", letter.contract.map_or("-", ContractId::as_str).to_owned()),
        ("attempt", letter.attempt.to_string()),
        (
            "producer",
            if letter.producer.is_empty() { "-".to_owned() } else { printable(&letter.producer) },
        ),
        ("body", printable(&letter.body.to_string())),
        ("requeue", letter.obstacle.map_or("possible", |obstacle| obstacle.text()).to_owned()),
    ];
    lines.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect()
}

/// As many characters as it takes for different ids to look different.
fn id_length(rows: &[DeadLetter]) -> usize {
    let mut ids: Vec<&str> = rows.iter().map(|letter| letter.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    let common = |pair: &[&str]| {
        pair[0].chars().zip(pair[1].chars()).take_while(|(one, other)| one == other).count()
    };
    ids.windows(2).map(common).max().map_or(ID_MIN, |common| ID_MIN.max(common + 1))
}

/// A beginning by which the letter can be chosen; nothing marks the cut, so that it can be copied.
fn short_id(letter: &DeadLetter, length: usize) -> String {
    if letter.id.is_empty() {
        "-".to_owned()
    } else {
        printable(&letter.id).chars().take(length).collect()
    }
}

/// The largest unit alone: `5s`, `3m`, `2h`, `4d`.
fn age_text(age: Option<Duration>) -> String {
    let Some(seconds) = age.map(|age| age.as_secs()) else { return "-".to_owned() };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Nothing that a terminal obeys: no control characters, and none that turn the direction of writing.
fn printable(text: &str) -> String {
    let shown = |c: char| match c.general_category_group() {
        GeneralCategoryGroup::Other => char::REPLACEMENT_CHARACTER,
        GeneralCategoryGroup::Separator => ' ',
        _ => c,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::cli::dead) fn letter() -> DeadLetter {
        DeadLetter {
            id: "0123456789abcdef".into(),
            reason: "expired",
            detail: None,
            died: Some(Millis(0)),
            door: Some(QueueKind::Bulk),
            contract: Some(ContractId::Register),
            producer: String::new(),
            attempt: 2,
            body: json!({ "email": "j***@example.com" }),
            obstacle: None,
        }
    }

    #[test]
    fn a_table_for_people() {
        let other = DeadLetter {
            id: String::new(),
            died: None,
            door: None,
            contract: None,
            body: json!(null),
            ..letter()
        };
        let expected = "\
AGE  REASON   DOOR  CONTRACT  ATTEMPT  ADDRESS           ID
2h   expired  bulk  register  2        j***@example.com  0123456789ab
-    expired  -     -         2        -                 -
";
        assert_eq!(table(&[letter(), other], Millis(7_200_000)), expected);
    }

    #[test]
    fn ids_are_as_long_as_they_differ() {
        let of = |id: &str| DeadLetter { id: id.into(), ..letter() };
        let rows = [of("import-2024-0001"), of("import-2024-0002"), of("x")];
        assert!(table(&rows, Millis(0)).contains("import-2024-0001\n"));
        assert_eq!(id_length(&[of("a"), of("a")]), ID_MIN);
    }

    #[test]
    fn a_terminal_obeys_no_letter() {
        let hostile = DeadLetter { id: "\u{1b}[2J\u{9b}m\u{202e}\n".into(), ..letter() };
        for text in [table(std::slice::from_ref(&hostile), Millis(0)), whole(&hostile, Millis(0))] {
            let obeyed = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            assert!(!text.contains(obeyed), "{text:?}");
        }
    }
}
