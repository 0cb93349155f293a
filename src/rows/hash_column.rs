//! Decides whether the passwords of a file or an upload are hashes.
//!
//! A single bare digest may come from a password generator. If every password is a digest, the column
//! holds hashes. Rows are buffered while every clear password so far is a digest, so ordinary input
//! is not delayed. The decision is made at the first ordinary password, after 128 rows, or at the end
//! of the input, and applies to all later rows.

use std::mem;

use crate::contract::HashLike;

/// Maximum number of buffered rows.
const HELD_MAX: usize = 128;

/// Buffers rows in their order until it is decided whether their passwords are hashes.
pub struct HashColumnDetector<R> {
    /// Rows, and whether the password of each is a digest.
    held: Vec<(R, bool)>,
    /// The decision; `None` until it is made.
    are_hashes: Option<bool>,
}

/// A row that leaves the buffer, and whether to reject it because its password is a hash.
pub type ReleasedRow<R> = (R, bool);

impl<R> Default for HashColumnDetector<R> {
    fn default() -> Self {
        Self { held: Vec::new(), are_hashes: None }
    }
}

impl<R> HashColumnDetector<R> {
    /// Adds the next row, with its [`hash_like`](super::ValidRow::hash_like), and returns the rows that
    /// leave the buffer.
    pub fn add(&mut self, row: R, password: Option<HashLike>) -> Vec<ReleasedRow<R>> {
        let is_digest = password == Some(HashLike::Digest);
        match self.are_hashes {
            Some(are_hashes) => return vec![(row, are_hashes && is_digest)],
            None if password.is_none() && self.held.is_empty() => return vec![(row, false)],
            None => self.held.push((row, is_digest)),
        }
        if password == Some(HashLike::No) {
            self.decide(false)
        } else if self.held.len() >= HELD_MAX {
            self.decide(true)
        } else {
            Vec::new()
        }
    }

    /// Ends the input and returns the buffered rows.
    pub fn end(&mut self) -> Vec<ReleasedRow<R>> {
        self.decide(true)
    }

    /// Whether the decision is made.
    pub fn is_decided(&self) -> bool {
        self.are_hashes.is_some()
    }

    fn decide(&mut self, are_hashes: bool) -> Vec<ReleasedRow<R>> {
        self.are_hashes = Some(are_hashes);
        let held = mem::take(&mut self.held).into_iter();
        held.map(|(row, is_digest)| (row, are_hashes && is_digest)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: Option<HashLike> = Some(HashLike::Digest);
    const ORDINARY: Option<HashLike> = Some(HashLike::No);

    /// Returns each row's number and whether it is rejected, in the order in which they leave the buffer.
    fn released(rows: &[Option<HashLike>]) -> Vec<(usize, bool)> {
        let mut column = HashColumnDetector::default();
        let mut released = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            released.extend(column.add(n, *row));
            assert!(column.held.len() < HELD_MAX, "bounded");
        }
        released.extend(column.end());
        released
    }

    #[test]
    fn digests_are_rejected_if_every_password_is_one() {
        assert_eq!(released(&[DIGEST]), [(0, true)]);
        assert_eq!(released(&[DIGEST, None, DIGEST]), [(0, true), (1, false), (2, true)]);
        let many = released(&vec![DIGEST; 1000]);
        assert!(many.len() == 1000 && many.iter().all(|(_, is_hash)| *is_hash));
    }

    #[test]
    fn digests_are_accepted_if_one_password_is_ordinary() {
        for rows in [[DIGEST, DIGEST, ORDINARY, DIGEST], [ORDINARY, DIGEST, DIGEST, DIGEST]] {
            assert_eq!(released(&rows), [(0, false), (1, false), (2, false), (3, false)]);
        }
    }

    #[test]
    fn ordinary_rows_are_not_buffered() {
        let mut column = HashColumnDetector::default();
        assert_eq!(column.add(1, None), [(1, false)]);
        assert_eq!(column.add(2, ORDINARY), [(2, false)]);
        assert_eq!(column.add(3, DIGEST), [(3, false)]);
    }
}
