//! Output formats of dead letters: table, page and JSON line. The dead letters are redacted already. Texts of
//! producers are escaped, so that they cannot control the terminal.

use std::io::{self, Write};
use std::time::Duration;

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use super::selection::age;
use crate::domain::{ContractId, Millis};
use crate::queue::QueueKind;
use crate::queue::dead_letters::DeadLetter;

/// Shortest id prefix in a table.
const ID_MIN: usize = 12;
const COLUMNS: [&str; 7] = ["AGE", "REASON", "QUEUE", "CONTRACT", "ATTEMPT", "ADDRESS", "ID"];

/// Writes a dead letter as one line of JSON.
pub(super) fn json_line(output: &mut impl Write, dead_letter: &DeadLetter) -> io::Result<()> {
    serde_json::to_writer(&mut *output, dead_letter)?;
    output.write_all(b"\n")
}

/// Formats a count: `1 dead letter`, `2 dead letters`.
pub(super) fn dead_letter_count(count: usize) -> String {
    format!("{count} dead letter{}", if count == 1 { "" } else { "s" })
}

/// Returns the full id.
pub(super) fn id(dead_letter: &DeadLetter) -> String {
    printable(if dead_letter.id.is_empty() { "(no id)" } else { &dead_letter.id })
}

/// Formats a table with a header and one line per dead letter.
pub(super) fn table(rows: &[DeadLetter], now: Millis) -> String {
    let length = id_length(rows);
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    lines.extend(rows.iter().map(|dead_letter| {
        [
            age_text(age(dead_letter, now)),
            dead_letter.reason.to_owned(),
            dead_letter.queue.map_or("-", QueueKind::as_str).to_owned(),
            dead_letter.contract.map_or("-", ContractId::as_str).to_owned(),
            dead_letter.attempt.to_string(),
            printable(dead_letter.address().unwrap_or("-")),
            short_id(dead_letter, length),
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

/// Formats all fields of one dead letter, one per line.
pub(super) fn page(dead_letter: &DeadLetter, now: Millis) -> String {
    let dead_lettered_at = match dead_letter.dead_lettered_at {
        Some(time) => format!("{} ({} ago)", time.to_rfc3339(), age_text(age(dead_letter, now))),
        None => "unknown".to_owned(),
    };
    let lines = [
        ("id", id(dead_letter)),
        ("reason", dead_letter.reason.to_owned()),
        ("parse error", dead_letter.parse_error.as_deref().map_or("-".to_owned(), printable)),
        ("time", dead_lettered_at),
        ("queue", dead_letter.queue.map_or("-", QueueKind::as_str).to_owned()),
        ("contract", dead_letter.contract.map_or("-", ContractId::as_str).to_owned()),
        ("attempt", dead_letter.attempt.to_string()),
        (
            "producer",
            if dead_letter.producer.is_empty() {
                "-".to_owned()
            } else {
                printable(&dead_letter.producer)
            },
        ),
        ("body", printable(&dead_letter.body.to_string())),
        ("requeue", dead_letter.obstacle.map_or("possible", |obstacle| obstacle.text()).to_owned()),
    ];
    lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}

/// Returns the prefix length at which different ids differ.
fn id_length(rows: &[DeadLetter]) -> usize {
    let mut ids: Vec<&str> = rows.iter().map(|dead_letter| dead_letter.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    let common = |pair: &[&str]| {
        pair[0].chars().zip(pair[1].chars()).take_while(|(one, other)| one == other).count()
    };
    ids.windows(2).map(common).max().map_or(ID_MIN, |common| ID_MIN.max(common + 1))
}

/// Returns a prefix that selects the dead letter. It has no ellipsis, so that it can be copied.
fn short_id(dead_letter: &DeadLetter, length: usize) -> String {
    if dead_letter.id.is_empty() {
        "-".to_owned()
    } else {
        printable(&dead_letter.id).chars().take(length).collect()
    }
}

/// Formats an age in its largest unit: `5s`, `3m`, `2h`, `4d`.
fn age_text(age: Option<Duration>) -> String {
    let Some(seconds) = age.map(|age| age.as_secs()) else { return "-".to_owned() };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Replaces characters that control a terminal or the direction of writing.
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

    pub(in crate::cli::dead_letters) fn sample() -> DeadLetter {
        DeadLetter {
            id: "0123456789abcdef".into(),
            reason: "expired",
            parse_error: None,
            dead_lettered_at: Some(Millis(0)),
            queue: Some(QueueKind::Bulk),
            contract: Some(ContractId::Register),
            producer: String::new(),
            attempt: 2,
            body: json!({ "email": "j***@example.com" }),
            obstacle: None,
        }
    }

    #[test]
    fn table_has_aligned_columns() {
        let other = DeadLetter {
            id: String::new(),
            dead_lettered_at: None,
            queue: None,
            contract: None,
            body: json!(null),
            ..sample()
        };
        let expected = "\
AGE  REASON   QUEUE  CONTRACT  ATTEMPT  ADDRESS           ID
2h   expired  bulk   register  2        j***@example.com  0123456789ab
-    expired  -      -         2        -                 -
";
        assert_eq!(table(&[sample(), other], Millis(7_200_000)), expected);
    }

    #[test]
    fn id_prefixes_are_long_enough_to_differ() {
        let of = |id: &str| DeadLetter { id: id.into(), ..sample() };
        let rows = [of("import-2024-0001"), of("import-2024-0002"), of("x")];
        assert!(table(&rows, Millis(0)).contains("import-2024-0001\n"));
        assert_eq!(id_length(&[of("a"), of("a")]), ID_MIN);
    }

    #[test]
    fn dead_letter_cannot_control_the_terminal() {
        let hostile = DeadLetter { id: "\u{1b}[2J\u{9b}m\u{202e}\n".into(), ..sample() };
        for text in [table(std::slice::from_ref(&hostile), Millis(0)), page(&hostile, Millis(0))] {
            let is_control = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            assert!(!text.contains(is_control), "{text:?}");
        }
    }
}
