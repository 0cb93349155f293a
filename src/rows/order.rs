//! Keeps rows with the same identity in order while others are in flight in parallel.
//!
//! A row is held until all earlier rows of its identity have an outcome, so that the first of two
//! equal rows is registered. The caller bounds the memory: it stops adding rows while
//! [`RowOrder::held`] is too large.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Identity;

/// Rows in flight and the rows held behind them. Each row has a tag that the caller chooses.
pub struct RowOrder<R> {
    /// For each key of an identity, the tags of its rows in the order of their arrival.
    queues: HashMap<u64, VecDeque<u64>>,
    /// The identities of the rows without an outcome, by tag.
    identities: HashMap<u64, Identity>,
    /// The held rows, by tag.
    held: BTreeMap<u64, R>,
}

impl<R> Default for RowOrder<R> {
    fn default() -> Self {
        Self { queues: HashMap::new(), identities: HashMap::new(), held: BTreeMap::new() }
    }
}

impl<R> RowOrder<R> {
    /// Adds a row. Returns it if it can be sent now; otherwise it is held behind an earlier row.
    pub fn add(&mut self, tag: u64, identity: Identity, row: R) -> Option<R> {
        for key in identity.keys() {
            self.queues.entry(key).or_default().push_back(tag);
        }
        self.identities.insert(tag, identity);
        if self.is_first(tag) {
            return Some(row);
        }
        self.held.insert(tag, row);
        None
    }

    /// Removes a row that has its outcome. Returns the held rows that can be sent now.
    pub fn finish(&mut self, tag: u64) -> Vec<(u64, R)> {
        let Some(identity) = self.identities.remove(&tag) else { return Vec::new() };
        let mut released = Vec::new();
        for key in identity.keys() {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            queue.retain(|other| *other != tag);
            match queue.front().copied() {
                None => drop(self.queues.remove(&key)),
                Some(next) if self.is_first(next) => {
                    released.extend(self.held.remove(&next).map(|row| (next, row)));
                }
                Some(_) => {}
            }
        }
        released
    }

    /// Removes a row that failed with an unknown outcome, and all rows held behind it. They must not be
    /// registered in its place. Returns the tags of the held rows.
    pub fn fail(&mut self, tag: u64) -> Vec<u64> {
        let mut failed = Vec::new();
        let mut released = self.finish(tag);
        while let Some((tag, _)) = released.pop() {
            failed.push(tag);
            released.extend(self.finish(tag));
        }
        failed
    }

    /// The number of held rows.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Drops the held rows.
    pub fn clear_held(&mut self) {
        self.held.clear();
    }

    fn is_first(&self, tag: u64) -> bool {
        let mut keys = self.identities.get(&tag).into_iter().flat_map(Identity::keys);
        keys.all(|key| self.queues.get(&key).and_then(VecDeque::front) == Some(&tag))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rows::validate::tests::identity;

    proptest! {
        #[test]
        fn equal_rows_keep_their_order_and_every_row_is_sent(
            rows in prop::collection::vec((0u64..6, 0u64..6), 1..40),
            choices in prop::collection::vec(0usize..1000, 80),
        ) {
            let mut order = RowOrder::default();
            let (mut in_flight, mut sent) = (Vec::new(), Vec::new());
            let (mut next, mut choices) = (0, choices.into_iter().cycle());
            while next < rows.len() || !in_flight.is_empty() {
                let choice = choices.next().unwrap();
                let released: Vec<u64> = if next < rows.len() && (choice % 3 > 0 || in_flight.is_empty()) {
                    let (name, email) = rows[next];
                    let tag = next as u64;
                    next += 1;
                    order.add(tag, identity(name, email), tag).into_iter().collect()
                } else {
                    let tag = in_flight.swap_remove(choice % in_flight.len());
                    order.finish(tag).into_iter().map(|(_, row)| row).collect()
                };
                for tag in released {
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
            prop_assert!(order.queues.is_empty() && order.identities.is_empty() && order.held() == 0);
        }
    }
}
