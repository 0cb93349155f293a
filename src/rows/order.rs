//! Keeps rows of one identity in order, so that the first of two equal rows wins however many rows are in
//! flight: a later one is held until the earlier ones have their outcome. Memory is bounded by the caller,
//! who stops adding rows while [`RowOrder::held`] is too much.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Identity;

/// Rows in flight and rows held behind them, by tag.
pub struct RowOrder<R> {
    /// Tags of the rows that share a key, first come first.
    lines: HashMap<u64, VecDeque<u64>>,
    rows: HashMap<u64, Identity>,
    held: BTreeMap<u64, R>,
}

impl<R> Default for RowOrder<R> {
    fn default() -> Self {
        Self { lines: HashMap::new(), rows: HashMap::new(), held: BTreeMap::new() }
    }
}

impl<R> RowOrder<R> {
    /// Adds a row behind those of the same identity. Returns it if it may be sent now.
    pub fn add(&mut self, tag: u64, identity: Identity, row: R) -> Option<R> {
        for key in identity.keys() {
            self.lines.entry(key).or_default().push_back(tag);
        }
        self.rows.insert(tag, identity);
        if self.is_first(tag) {
            return Some(row);
        }
        self.held.insert(tag, row);
        None
    }

    /// A row has its outcome. Returns the rows that may be sent now.
    pub fn finish(&mut self, tag: u64) -> Vec<(u64, R)> {
        let Some(identity) = self.rows.remove(&tag) else { return Vec::new() };
        let mut free = Vec::new();
        for key in identity.keys() {
            let Some(line) = self.lines.get_mut(&key) else { continue };
            line.retain(|other| *other != tag);
            match line.front().copied() {
                None => drop(self.lines.remove(&key)),
                Some(next) if self.is_first(next) => {
                    free.extend(self.held.remove(&next).map(|row| (next, row)));
                }
                Some(_) => {}
            }
        }
        free
    }

    /// A row failed, and what became of it is open. Later rows of its identity must not take its place, so
    /// those that are held fail with it. Returns their tags.
    pub fn fail(&mut self, tag: u64) -> Vec<u64> {
        let mut failed = Vec::new();
        let mut free = self.finish(tag);
        while let Some((tag, _)) = free.pop() {
            failed.push(tag);
            free.extend(self.finish(tag));
        }
        failed
    }

    /// How many rows wait for others.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Forgets the rows that wait.
    pub fn clear_held(&mut self) {
        self.held.clear();
    }

    fn is_first(&self, tag: u64) -> bool {
        let mut keys = self.rows.get(&tag).into_iter().flat_map(Identity::keys);
        keys.all(|key| self.lines.get(&key).and_then(VecDeque::front) == Some(&tag))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rows::validate::tests::identity;

    proptest! {
        #[test]
        fn equal_rows_never_overtake_and_every_row_is_sent(
            rows in prop::collection::vec((0u64..6, 0u64..6), 1..40),
            choices in prop::collection::vec(0usize..1000, 80),
        ) {
            let mut order = RowOrder::default();
            let (mut in_flight, mut sent) = (Vec::new(), Vec::new());
            let (mut next, mut choices) = (0, choices.into_iter().cycle());
            while next < rows.len() || !in_flight.is_empty() {
                let choice = choices.next().unwrap();
                let free: Vec<u64> = if next < rows.len() && (choice % 3 > 0 || in_flight.is_empty()) {
                    let (name, email) = rows[next];
                    let tag = next as u64;
                    next += 1;
                    order.add(tag, identity(name, email), tag).into_iter().collect()
                } else {
                    let tag = in_flight.swap_remove(choice % in_flight.len());
                    order.finish(tag).into_iter().map(|(_, row)| row).collect()
                };
                for tag in free {
                    let (name, email) = rows[tag as usize];
                    let shares = |other: &u64| {
                        rows[*other as usize].0 == name || rows[*other as usize].1 == email
                    };
                    prop_assert!(!in_flight.iter().any(shares), "two of one identity in flight");
                    let earlier = (0..tag).filter(shares);
                    prop_assert!(earlier.into_iter().all(|other| sent.contains(&other)), "overtaken");
                    in_flight.push(tag);
                    sent.push(tag);
                }
            }
            prop_assert_eq!(sent.len(), rows.len());
            prop_assert!(order.lines.is_empty() && order.rows.is_empty() && order.held() == 0);
        }
    }
}
