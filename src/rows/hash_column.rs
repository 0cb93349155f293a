//! Decides whether the passwords of a file or an upload are bare digests. One digest may come from a password
//! generator; where every password is one, the column holds hashes.
//!
//! Rows are held back only while every clear password so far is a digest, so an ordinary file passes without
//! a delay. At most 128 rows are held: then, or at the end, they are judged. The judgement stands
//! for the rest.

use std::mem;

use crate::contract::HashLike;

/// Rows that are held back at most.
const HELD_MAX: usize = 128;

/// Rows in their order, held back until the judgement.
pub struct HashColumnDetector<R> {
    held: Vec<(R, bool)>,
    are_hashes: Option<bool>,
}

/// A row that may go on, and whether it is refused because its password is a hash.
pub type Judged<R> = (R, bool);

impl<R> Default for HashColumnDetector<R> {
    fn default() -> Self {
        Self { held: Vec::new(), are_hashes: None }
    }
}

impl<R> HashColumnDetector<R> {
    /// Takes the next row, with what [`super::ValidRow::hash_like`] says of it, and returns the rows that may
    /// go on.
    pub fn add(&mut self, row: R, password: Option<HashLike>) -> Vec<Judged<R>> {
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

    /// There are no more rows: those that are held were all digests.
    pub fn end(&mut self) -> Vec<Judged<R>> {
        self.decide(true)
    }

    /// Whether the judgement is made, so that later rows need not be shown for it.
    pub fn is_decided(&self) -> bool {
        self.are_hashes.is_some()
    }

    fn decide(&mut self, are_hashes: bool) -> Vec<Judged<R>> {
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

    /// What becomes of each row, in the order in which they go on.
    fn judged(rows: &[Option<HashLike>]) -> Vec<(usize, bool)> {
        let mut column = HashColumnDetector::default();
        let mut judged = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            judged.extend(column.add(n, *row));
            assert!(column.held.len() < HELD_MAX, "bounded");
        }
        judged.extend(column.end());
        judged
    }

    #[test]
    fn digests_in_every_row_are_refused_and_the_rest_is_not() {
        assert_eq!(judged(&[DIGEST]), [(0, true)]);
        assert_eq!(judged(&[DIGEST, None, DIGEST]), [(0, true), (1, false), (2, true)]);
        let many = judged(&vec![DIGEST; 1000]);
        assert!(many.len() == 1000 && many.iter().all(|(_, is_hash)| *is_hash));
    }

    #[test]
    fn one_ordinary_password_admits_the_digests() {
        for rows in [[DIGEST, DIGEST, ORDINARY, DIGEST], [ORDINARY, DIGEST, DIGEST, DIGEST]] {
            assert_eq!(judged(&rows), [(0, false), (1, false), (2, false), (3, false)]);
        }
    }

    #[test]
    fn ordinary_rows_are_not_held() {
        let mut column = HashColumnDetector::default();
        assert_eq!(column.add(1, None), [(1, false)]);
        assert_eq!(column.add(2, ORDINARY), [(2, false)]);
        assert_eq!(column.add(3, DIGEST), [(3, false)]);
    }
}
