//! The parts of a hash that each lane computes alone: the key, the first key schedule and the digest.
//!
//! From cost 10 on, they take a few thousandths of the time of a hash. The kernels take the rest.

use std::array;

use crate::pi::PI;
use crate::{Digest, portable};

/// Words of a cipher's state: 18 for the rounds, four boxes of 256.
pub(crate) const WORDS: usize = PI.len();
/// Index of the first box.
pub(crate) const BOXES: usize = 18;

/// The state of one lane's cipher: the round words, then the boxes, in the order in which a key schedule replaces
/// them.
pub(crate) type Cipher = [u32; WORDS];

/// A password or a salt, repeated to the length of the round words, into which a key schedule mixes it.
pub(crate) type Key = [u32; BOXES];

/// Writes the key of a password in place, so that no copy of it remains elsewhere. For bcrypt a password
/// is a C string, including its terminating NUL.
pub(crate) fn fill_password(key: &mut Key, password: &[u8]) {
    let period = password.len() + 1;
    fill(key, |at| *password.get(at % period).unwrap_or(&0));
}

/// Writes the key of a salt.
pub(crate) fn fill_salt(key: &mut Key, salt: &[u8; 16]) {
    fill(key, |at| salt[at % salt.len()]);
}

fn fill(key: &mut Key, byte: impl Fn(usize) -> u8) {
    for (at, word) in key.iter_mut().enumerate() {
        *word = u32::from_be_bytes(array::from_fn(|i| byte(4 * at + i)));
    }
}

pub(crate) fn mix(cipher: &mut Cipher, key: &Key) {
    for (word, key) in cipher.iter_mut().zip(key) {
        *word ^= key;
    }
}

/// The first key schedule of a hash, the only one that mixes the salt into every block.
pub(crate) fn start(cipher: &mut Cipher, password: &Key, salt: &Key) {
    *cipher = PI;
    mix(cipher, password);
    let (mut left, mut right) = ([0], [0]);
    for word in (0..WORDS).step_by(2) {
        left[0] ^= salt[word % 4];
        right[0] ^= salt[(word + 1) % 4];
        (left, right) = portable::encrypt(array::from_ref(cipher), (left, right));
        [cipher[word], cipher[word + 1]] = [left[0], right[0]];
    }
}

/// Computes the digest: a fixed text, encrypted 64 times with the cipher.
pub(crate) fn digest(cipher: &Cipher) -> Digest {
    let mut bytes = [0; 24];
    for (block, text) in bytes.chunks_exact_mut(8).zip(b"OrpheanBeholderScryDoubt".chunks_exact(8))
    {
        let word = |at: usize| [u32::from_be_bytes(array::from_fn(|i| text[at + i]))];
        let (mut left, mut right) = (word(0), word(4));
        for _ in 0..64 {
            (left, right) = portable::encrypt(array::from_ref(cipher), (left, right));
        }
        block[..4].copy_from_slice(&left[0].to_be_bytes());
        block[4..].copy_from_slice(&right[0].to_be_bytes());
    }
    // A bcrypt string does not contain the 24th byte.
    array::from_fn(|i| bytes[i])
}
