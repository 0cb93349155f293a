//! A set of line numbers, stored as ranges. Its size depends on the number of gaps, not on the number of lines.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A set of line numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LineSet(BTreeMap<u64, u64>);

impl LineSet {
    /// Adds an inclusive range.
    pub(super) fn add(&mut self, mut first: u64, mut last: u64) {
        // Merges a range that begins before it and touches or overlaps it.
        if let Some((&start, &end)) = self.0.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            (first, last) = (start, last.max(end));
        }
        // Merges ranges that begin within it or right after it.
        while let Some((&start, &end)) = self.0.range(first..=last.saturating_add(1)).next() {
            last = last.max(end);
            self.0.remove(&start);
        }
        self.0.insert(first, last);
    }

    /// Returns whether the set contains a line.
    pub fn contains(&self, line: u64) -> bool {
        self.0.range(..=line).next_back().is_some_and(|(_, last)| *last >= line)
    }

    /// Adds ranges in the format of [`format`]. Returns `None` if the text is invalid.
    pub(super) fn add_parsed(&mut self, text: &str) -> Option<()> {
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

/// Formats lines, in any order, as ranges: `1-512 514`. Sorts the slice.
pub(super) fn format(lines: &mut [u64]) -> String {
    lines.sort_unstable();
    let mut text = String::new();
    for range in lines.chunk_by(|one, next| one + 1 == *next) {
        let (first, last) = (range[0], range[range.len() - 1]);
        let gap = if text.is_empty() { "" } else { " " };
        // Writing to a `String` does not fail.
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
    fn adjacent_ranges_are_merged() {
        let mut lines = LineSet::default();
        for text in ["5-7 1", "9", "8", "2-3", "4", "11-12"] {
            lines.add_parsed(text).unwrap();
        }
        assert_eq!(lines.0.into_iter().collect::<Vec<_>>(), [(1, 9), (11, 12)]);
        assert_eq!(format(&mut [3, 1, 2, 9, 5, 6]), "1-3 5-6 9");
        assert_eq!(LineSet::default().add_parsed("7-3"), None);
    }

    proptest! {
        #[test]
        fn set_contains_exactly_the_added_lines(groups in prop::collection::vec(prop::collection::btree_set(1u64..60, 0..12), 0..12)) {
            let mut lines = LineSet::default();
            for group in &groups {
                lines.add_parsed(&format(&mut group.iter().copied().collect::<Vec<_>>())).unwrap();
            }
            for line in 0..62 {
                prop_assert_eq!(lines.contains(line), groups.iter().any(|group| group.contains(&line)));
            }
            let ends: Vec<(u64, u64)> = lines.0.into_iter().collect();
            prop_assert!(ends.windows(2).all(|two| two[0].1 + 1 < two[1].0));
        }
    }
}
