//! Text output of findings: most severe first, one block per check, wrapped to the terminal width.

use std::fmt::Write;
use std::io::{self, IsTerminal};

use rustix::termios::tcgetwinsize;

use super::counted;
use crate::telemetry::finding::{Finding, Severity};

/// Width and colours of the output.
#[derive(Clone, Copy)]
pub(super) struct TextStyle {
    /// Columns. `None`: lines are not wrapped.
    width: Option<usize>,
    colours: bool,
}

impl TextStyle {
    /// Returns the style for standard output.
    pub(super) fn for_stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self { width: None, colours: false };
        }
        let columns = tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        Self { width: (columns >= 20).then_some(columns), colours: !no_color }
    }
}

/// Findings of one check with the same remedy, which is printed once.
struct FindingBlock<'a> {
    check: &'a str,
    remedy: Option<&'a str>,
    reasons: Vec<&'a str>,
}

/// Formats all findings, and the number of errors and warnings.
pub(super) fn text(findings: &[Finding], style: TextStyle) -> String {
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

fn blocks(findings: &[Finding], severity: Severity) -> Vec<FindingBlock<'_>> {
    let mut blocks: Vec<FindingBlock<'_>> = Vec::new();
    for finding in findings.iter().filter(|finding| finding.severity == severity) {
        let (check, remedy) = (finding.check, finding.remedy.as_deref());
        let same = |block: &&mut FindingBlock<'_>| block.check == check && block.remedy == remedy;
        match blocks.iter_mut().find(same) {
            Some(block) if block.reasons.contains(&&*finding.reason) => {}
            Some(block) => block.reasons.push(&finding.reason),
            None => blocks.push(FindingBlock { check, remedy, reasons: vec![&finding.reason] }),
        }
    }
    blocks
}

fn print(text: &mut String, severity: Severity, block: &FindingBlock<'_>, style: TextStyle) {
    // Checks without a problem share one paragraph.
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

/// Writes a paragraph after a bullet, with hanging indent. A word wider than the terminal is not split, so that it can
/// be copied.
fn wrap(text: &mut String, mark: &str, paragraph: &str, style: TextStyle) {
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

/// Escapes control characters, which names on a broker and paths may contain.
fn escaped(word: &str) -> String {
    let escape = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    word.chars().map(escape).collect()
}

fn coloured(severity: Severity, text: &str, style: TextStyle) -> String {
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
                format!("q{n} does not exist yet"),
                "none: a worker declares it",
            ));
        }
        findings.push(Finding::error("data file", "not\x1b[31m there", "create it"));
        findings.push(Finding::ok("queue", "a"));
        findings.push(Finding::ok("queue", "b"));
        findings
    }

    #[test]
    fn most_severe_is_first_and_remedies_are_not_repeated() {
        let text = text(&findings(), TextStyle { width: None, colours: false });
        assert!(
            text.starts_with("error\n  data file: not\\u{1b}[31m there\n    -> create it\n"),
            "{text}"
        );
        assert_eq!(text.matches("none: a worker declares it").count(), 1, "{text}");
        assert!(text.contains("note\n  queue:\n    - q1 does not exist yet\n    - q2"), "{text}");
        assert!(
            text.ends_with("ok\n  bcrypt cost: 12\n  queue: a; b\n\n1 error, 0 warnings\n"),
            "{text}"
        );
    }

    #[test]
    fn lines_are_wrapped_to_the_terminal_width() {
        let long =
            Finding::warning("check", "word ".repeat(60), format!("{} and more", "x".repeat(50)));
        let text = text(&[long], TextStyle { width: Some(40), colours: true });
        assert!(text.starts_with("\x1b[1;33mwarning\x1b[0m\n"), "{text:?}");
        let too_long: Vec<&str> = text.lines().filter(|line| line.len() > 40).collect();
        assert!(too_long.iter().all(|line| line.contains("xxxx")), "{too_long:?}");
        assert_eq!(text.matches("word").count(), 60);
    }
}
