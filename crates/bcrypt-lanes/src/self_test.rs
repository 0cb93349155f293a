//! The self-test of a backend with every number of lanes, for the start of a process.

use std::array;
use std::fmt;

use crate::{Backend, Cost, Job, Lanes, MAX_LANES, MAX_PASSWORD_BYTES, ParsedHash};

/// A kernel that computes a wrong bcrypt hash. The process must not use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscomputed {
    /// The backend.
    pub backend: Backend,
    /// The number of lanes in use.
    pub lanes: usize,
    /// The first lane with a wrong hash.
    pub lane: usize,
}

impl std::error::Error for Miscomputed {}

impl fmt::Display for Miscomputed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, lanes, lane } = self;
        write!(f, "the {backend} kernel of {lanes} lanes computes a wrong bcrypt in lane {lane}")
    }
}

/// Checks every kernel of this backend with passwords of known hashes. Takes 5 to 15 ms.
///
/// # Errors
/// Returns the first kernel that computes a wrong hash, because of a defect of the compiler or of the processor.
pub fn self_test(backend: Backend) -> Result<(), Miscomputed> {
    let salts: [[u8; 16]; MAX_LANES] =
        array::from_fn(|lane| array::from_fn(|i| (16 * lane + i) as u8));
    let jobs: [(Cost, Job<'_>); MAX_LANES] = array::from_fn(|lane| {
        let password = &KNOWN_PASSWORD[..MAX_PASSWORD_BYTES >> lane];
        (Cost::MIN, Job { password, salt: salts[lane] })
    });
    for lanes in 1..=MAX_LANES {
        let wrong = |lane| Miscomputed { backend, lanes, lane };
        let hashed =
            Lanes::new(backend, lanes).and_then(|mut state| state.hash_many(&jobs[..lanes]));
        for (lane, digest) in hashed.map_err(|_| wrong(0))?.into_iter().enumerate() {
            let hash = ParsedHash { cost: Cost::MIN, salt: salts[lane], digest };
            if hash.to_string() != KNOWN[lane] {
                return Err(wrong(lane));
            }
        }
    }
    Ok(())
}

/// Each lane hashes a prefix of this password, half as long as that of the previous lane: 72 bytes, 36, down to one
/// and none.
pub(crate) const KNOWN_PASSWORD: &[u8; MAX_PASSWORD_BYTES] =
    b"seventy-two bytes are what bcrypt takes at most, and this is so many: 72";

/// The hashes of these prefixes. A test verifies them with the `bcrypt` crate.
pub(crate) const KNOWN: [&str; MAX_LANES] = [
    "$2b$04$..CA.uOD/eaGAOmJB.yMBu3UY9.sHQmUHEZBEkv1E0.GnVchPxJ0q",
    "$2b$04$C/CQCvOTDfaWEPmZF/ycFuRSN1T9Gi.dKA7shmqlS0hpoCMfIoo2.",
    "$2b$04$GACgGwOjHgamIQmpJAysJueQ3jnPYQTx9RYY7En0XNsoeYI5.rzae",
    "$2b$04$KBCwKxOzLha2MRm5NBy8NuV3eokOIn2XMGM2nbDiK3ZaWqhYZCleW",
    "$2b$04$OCDAOyPDPibGQSnJRCzMRuxfmXyxxf4jpGl0Yt7lFIN2Qe8xKO82e",
    "$2b$04$SDDQSzPTTjbWUTnZVDzcVuJOHh8L.P43ALGgzHQKUXl4YA1OwYkOy",
    "$2b$04$WEDgW0PjXkbmYUnpZEzsZuTNVvUDM/RNYJ87OddkMHKYaKkt7j6ry",
    "$2b$04$aFDwa1Pzblb2cVn5dFz8duromlss57y4v7REqD2ugHK.B7A2tjlv.",
];
