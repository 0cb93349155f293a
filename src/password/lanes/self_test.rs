//! The kernels against passwords whose hashes are known, once at the start of a process. Called by
//! `kernel`, which chooses among them, and by `muster doctor`.

use std::array;
use std::fmt;

use super::{Job, LANES, LONGEST, Lanes, MAX, encode};

/// A kernel that does not compute bcrypt: nothing may be hashed with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Miscomputed {
    /// The kernel's size, one of [`LANES`].
    pub lanes: usize,
    /// The first lane that went wrong.
    pub lane: usize,
}

impl std::error::Error for Miscomputed {}

impl fmt::Display for Miscomputed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "the hash kernel of {} lanes gives a wrong bcrypt in lane {}",
            self.lanes, self.lane
        )
    }
}

/// Has every kernel hash passwords whose hashes are known; the start of the process waits for it.
/// A few milliseconds, in a release build.
///
/// # Errors
/// Names the first kernel that is wrong, be it by a compiler's fault or a processor's.
pub fn self_test() -> Result<(), Miscomputed> {
    let salts: [[u8; 16]; MAX] = array::from_fn(|lane| array::from_fn(|i| (16 * lane + i) as u8));
    let jobs: [Job<'_>; MAX] = array::from_fn(|lane| Job {
        password: &KNOWN_PASSWORD[..LONGEST >> lane],
        salt: salts[lane],
    });
    let mut state = Lanes::new();
    for &lanes in LANES {
        let digests = state.hash(4, &jobs[..lanes]);
        for (lane, digest) in digests.iter().enumerate() {
            if encode(4, &salts[lane], digest) != KNOWN[lane] {
                return Err(Miscomputed { lanes, lane });
            }
        }
    }
    Ok(())
}

/// Every lane takes a beginning of it, half as long as the lane before: 72 bytes, 36, and so on to
/// one and none.
pub(super) const KNOWN_PASSWORD: &[u8; LONGEST] =
    b"seventy-two bytes are what bcrypt takes at most, and this is so many: 72";

/// The hashes of these, as the `bcrypt` crate has them (a test compares).
pub(super) const KNOWN: [&str; MAX] = [
    "$2b$04$..CA.uOD/eaGAOmJB.yMBu3UY9.sHQmUHEZBEkv1E0.GnVchPxJ0q",
    "$2b$04$C/CQCvOTDfaWEPmZF/ycFuRSN1T9Gi.dKA7shmqlS0hpoCMfIoo2.",
    "$2b$04$GACgGwOjHgamIQmpJAysJueQ3jnPYQTx9RYY7En0XNsoeYI5.rzae",
    "$2b$04$KBCwKxOzLha2MRm5NBy8NuV3eokOIn2XMGM2nbDiK3ZaWqhYZCleW",
    "$2b$04$OCDAOyPDPibGQSnJRCzMRuxfmXyxxf4jpGl0Yt7lFIN2Qe8xKO82e",
    "$2b$04$SDDQSzPTTjbWUTnZVDzcVuJOHh8L.P43ALGgzHQKUXl4YA1OwYkOy",
    "$2b$04$WEDgW0PjXkbmYUnpZEzsZuTNVvUDM/RNYJ87OddkMHKYaKkt7j6ry",
    "$2b$04$aFDwa1Pzblb2cVn5dFz8duromlss57y4v7REqD2ugHK.B7A2tjlv.",
];
