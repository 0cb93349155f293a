//! Which lines are done, as ranges: as small as the rows that are not done are few, however many the
//! file has.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A set of line numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lines(BTreeMap<u64, u64>);

impl Lines {
    /// Adds a range, both ends included.
    pub(super) fn add(&mut self, mut first: u64, mut last: u64) {
        // One that begins before and reaches up to it.
        if let Some((&start, &end)) = self.0.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            (first, last) = (start, last.max(end));
        }
        // Those that begin in it, or right behind it.
        while let Some((&start, &end)) = self.0.range(first..=last.saturating_add(1)).next() {
            last = last.max(end);
            self.0.remove(&start);
        }
        self.0.insert(first, last);
    }

    /// Whether a line is in it.
    pub fn has(&self, line: u64) -> bool {
        self.0.range(..=line).next_back().is_some_and(|(_, last)| *last >= line)
    }

    /// Adds what [`written`] wrote. `None` if it is not readable.
    pub(super) fn read(&mut self, text: &str) -> Option<()> {
        for range in text.split_whitespace() {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            if first > last {
                return None;
            }
            self.add(first, last);
        }
        Some(())
    }
}

/// Lines in any order as ranges: `1-512 514`. Sorts them.
pub(super) fn written(lines: &mut [u64]) -> String {
    lines.sort_unstable();
    let mut text = String::new();
    for range in lines.chunk_by(|one, next| one + 1 == *next) {
        let (first, last) = (range[0], range[range.len() - 1]);
        let gap = if text.is_empty() { "" } else { " " };
        // Writing to a text does not fail.
        let _ = match first == last {
            true => write!(text, "{gap}{first}"),
            false => write!(text, "{gap}{first}-{last}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_grow_together() {
        let mut lines = Lines::default();
        for text in ["5-7 1", "9", "8", "2-3", "4", "11-12"] {
            lines.read(text).unwrap();
        }
        assert_eq!(lines.0.into_iter().collect::<Vec<_>>(), [(1, 9), (11, 12)]);
        assert_eq!(written(&mut [3, 1, 2, 9, 5, 6]), "1-3 5-6 9");
        assert_eq!(Lines::default().read("7-3"), None);
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(groups in prop::collection::vec(prop::collection::btree_set(1u64..60, 0..12), 0..12)) {
            let mut lines = Lines::default();
            for group in &groups {
                lines.read(&written(&mut group.iter().copied().collect::<Vec<_>>())).unwrap();
            }
            for line in 0..62 {
                prop_assert_eq!(lines.has(line), groups.iter().any(|group| group.contains(&line)));
            }
            let ends: Vec<(u64, u64)> = lines.0.into_iter().collect();
            prop_assert!(ends.windows(2).all(|two| two[0].1 + 1 < two[1].0));
        }
    }
}
