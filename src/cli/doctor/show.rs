//! How findings are printed for people: the worst first, one block a check, wrapped to the terminal.

use std::fmt::Write;
use std::io::{self, IsTerminal};

use rustix::termios::tcgetwinsize;

use super::counted;
use crate::telemetry::finding::{Finding, Severity};

/// How the output looks.
#[derive(Clone, Copy)]
pub(super) struct Style {
    /// Columns; none: lines are not wrapped.
    width: Option<usize>,
    colours: bool,
}

impl Style {
    /// As standard output takes it.
    pub(super) fn of_stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self { width: None, colours: false };
        }
        let columns = tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        Self { width: (columns >= 20).then_some(columns), colours: !wants_none }
    }
}

/// Findings of one check with one remedy, which is printed once.
struct Block<'a> {
    check: &'a str,
    remedy: Option<&'a str>,
    reasons: Vec<&'a str>,
}

/// All findings, and how many of them matter.
pub(super) fn text(findings: &[Finding], style: Style) -> String {
    let mut text = String::new();
    for severity in [Severity::Error, Severity::Warning, Severity::Note, Severity::Ok] {
        let blocks = blocks(findings, severity);
        if blocks.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{}", coloured(severity, severity.as_str(), style));
        for block in blocks {
            print(&mut text, severity, &block, style);
        }
        text.push('\n');
    }
    let count =
        |severity| findings.iter().filter(|found| found.severity == severity).count() as i64;
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    text + &format!("{}, {}\n", counted(errors, "error"), counted(warnings, "warning"))
}

fn blocks(findings: &[Finding], severity: Severity) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for finding in findings.iter().filter(|finding| finding.severity == severity) {
        let (check, remedy) = (finding.check, finding.remedy.as_deref());
        let same = |block: &&mut Block<'_>| block.check == check && block.remedy == remedy;
        match blocks.iter_mut().find(same) {
            Some(block) if block.reasons.contains(&&*finding.reason) => {}
            Some(block) => block.reasons.push(&finding.reason),
            None => blocks.push(Block { check, remedy, reasons: vec![&finding.reason] }),
        }
    }
    blocks
}

fn print(text: &mut String, severity: Severity, block: &Block<'_>, style: Style) {
    // What is as it should be takes as little room as possible.
    let reasons = match severity {
        Severity::Ok => vec![block.reasons.join("; ")],
        _ => block.reasons.iter().map(|reason| (*reason).to_owned()).collect(),
    };
    match &*reasons {
        [only] => wrap(text, "  ", &format!("{}: {only}", block.check), style),
        several => {
            wrap(text, "  ", &format!("{}:", block.check), style);
            several.iter().for_each(|reason| wrap(text, "    - ", reason, style));
        }
    }
    if let Some(remedy) = block.remedy {
        wrap(text, "    -> ", remedy, style);
    }
}

/// Writes a paragraph behind a mark, its further lines below its first word. A word that is wider than the
/// terminal stays whole, so that it can be copied.
fn wrap(text: &mut String, mark: &str, paragraph: &str, style: Style) {
    text.push_str(mark);
    let (indent, width) = (mark.len(), style.width.unwrap_or(usize::MAX));
    let mut column = indent;
    for (at, word) in paragraph.split_whitespace().enumerate() {
        let word = escaped(word);
        let length = word.chars().count();
        if at > 0 {
            if column + 1 + length > width {
                let _ = write!(text, "\n{:indent$}", "");
                column = indent;
            } else {
                text.push(' ');
                column += 1;
            }
        }
        text.push_str(&word);
        column += length;
    }
    text.push('\n');
}

/// A name on a broker or a path may hold what a terminal obeys.
fn escaped(word: &str) -> String {
    let escape = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    word.chars().map(escape).collect()
}

fn coloured(severity: Severity, text: &str, style: Style) -> String {
    let colour = match severity {
        Severity::Error => "1;31",
        Severity::Warning => "1;33",
        Severity::Note => "1;36",
        Severity::Ok => "1;32",
    };
    if style.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        let mut findings = vec![Finding::ok("bcrypt cost", "12")];
        for n in 1..=8 {
            findings.push(Finding::note(
                "queue",
                format!("q{n} is not there yet"),
                "nothing: a worker makes it",
            ));
        }
        findings.push(Finding::error("data file", "not\x1b[31m there", "make it"));
        findings.push(Finding::ok("queue", "a"));
        findings.push(Finding::ok("queue", "b"));
        findings
    }

    #[test]
    fn worst_is_first_and_nothing_is_repeated() {
        let text = text(&findings(), Style { width: None, colours: false });
        assert!(
            text.starts_with("error\n  data file: not\\u{1b}[31m there\n    -> make it\n"),
            "{text}"
        );
        assert_eq!(text.matches("nothing: a worker makes it").count(), 1, "{text}");
        assert!(text.contains("note\n  queue:\n    - q1 is not there yet\n    - q2"), "{text}");
        assert!(
            text.ends_with("ok\n  bcrypt cost: 12\n  queue: a; b\n\n1 error, 0 warnings\n"),
            "{text}"
        );
    }

    #[test]
    fn lines_fit_the_terminal() {
        let long =
            Finding::warning("check", "word ".repeat(60), format!("{} and more", "x".repeat(50)));
        let text = text(&[long], Style { width: Some(40), colours: true });
        assert!(text.starts_with("\x1b[1;33mwarning\x1b[0m\n"), "{text:?}");
        let too_long: Vec<&str> = text.lines().filter(|line| line.len() > 40).collect();
        assert!(too_long.iter().all(|line| line.contains("xxxx")), "{too_long:?}");
        assert_eq!(text.matches("word").count(), 60);
    }
}
