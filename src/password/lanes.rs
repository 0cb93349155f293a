//! bcrypt for several passwords at once, on one core.
//!
//! bcrypt spends its time waiting: every Blowfish round looks up four words whose places the round
//! before has just computed. A core can keep several such chains in flight, so this file advances
//! up to [`MAX`] hashes, one *lane* each, in lock-step: round by round over all lanes. On an AMD Zen 4
//! six passwords take as long as one and two thirds. The result is the ordinary `$2b$` string, the
//! same to the bit as anyone's bcrypt.
//!
//! A lane whose hash is done takes the next password while the others go on: nobody waits for the
//! end of a batch.
//!
//! Not here: threads, queues, choosing the number of lanes, salts, checking a password against a
//! hash. The hashing pool of `password` is the caller; each of its threads owns one [`Lanes`].

use std::array;
use std::ops::RangeInclusive;
use std::sync::atomic::{Ordering::SeqCst, compiler_fence};

use zeroize::Zeroize;

use super::blowfish_init::PI;

mod self_test;

pub use self_test::{Miscomputed, self_test};

/// The sizes a kernel exists for. A number of jobs in between runs on the next larger one and takes
/// that one's time. What a lane adds to the first-level cache is 4 KiB, and that bounds the useful size:
/// 7 lanes for 32 KiB, 11 for 48.
pub const LANES: &[usize] = &[1, 2, 4, 6, 8];

/// As many lanes as there can be.
pub const MAX: usize = 8;

/// bcrypt's costs.
pub const COSTS: RangeInclusive<u32> = 4..=31;

/// The longest password bcrypt can tell from a longer one, in bytes.
pub const LONGEST: usize = 72;

/// What bcrypt computes and its string ends with.
pub type Digest = [u8; 23];

/// One password to hash.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// At most [`LONGEST`] bytes, of any value; callers refuse longer ones, since bcrypt would
    /// silently drop the rest.
    pub password: &'a [u8],
    /// Fresh random bytes.
    pub salt: [u8; 16],
}

/// Blowfish's words: 18 for the rounds, four boxes of 256.
const WORDS: usize = PI.len();
/// Where the boxes begin.
const BOXES: usize = 18;

/// One lane's cipher: round words and boxes in a row, the order in which a key schedule
/// replaces them.
type Cipher = [u32; WORDS];

/// A block per lane, in halves.
type Block<const N: usize> = ([u32; N], [u32; N]);

/// What a key schedule mixes into a cipher's round words: a password or a salt, repeated.
type Key = [u32; BOXES];

/// One thread's lanes, allocated once.
///
/// The jobs are in the first ones, side by side. A lane without a job is zero: beside the others it
/// computes zeros from zeros.
//
// Everything hangs on one pointer, with constant distances: that leaves the registers to the
// lanes. The alignment keeps them within one stretch of memory; some placements of an unaligned
// one are 10 to 20 per cent slower.
#[repr(C, align(65536))]
pub struct Lanes {
    ciphers: [Cipher; MAX],
    passwords: [Key; MAX],
    salts: [Key; MAX],
    /// Iterations that each job has still before it.
    left: [u32; MAX],
    /// How many lanes have a job.
    taken: usize,
}

impl Lanes {
    /// Empty lanes. Boxed, since they are 64 KiB and must not move while they hold a secret.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            ciphers: [[0; _]; _],
            passwords: [[0; _]; _],
            salts: [[0; _]; _],
            left: [0; _],
            taken: 0,
        })
    }

    /// How many lanes have a job.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Begins a job in the next lane, of 2^`cost` iterations.
    ///
    /// # Panics
    /// If all [`MAX`] lanes are taken, or with a cost outside bcrypt's 4 to 31.
    pub fn begin(&mut self, cost: u32, job: &Job<'_>) {
        assert!(COSTS.contains(&cost), "bcrypt has no cost {cost}");
        assert!(self.taken < MAX, "a job more than the {MAX} lanes hold");
        debug_assert!(job.password.len() <= LONGEST);
        let lane = self.taken;
        // to bcrypt a password is a C string, and its NUL takes part
        let period = job.password.len() + 1;
        fill(&mut self.passwords[lane], |at| *job.password.get(at % period).unwrap_or(&0));
        fill(&mut self.salts[lane], |at| job.salt[at % job.salt.len()]);
        start(&mut self.ciphers[lane], &self.passwords[lane], &self.salts[lane]);
        self.left[lane] = 1 << cost;
        self.taken += 1;
    }

    /// Brings every job forward by so many iterations, or fewer: up to the end of the first.
    /// Returns how many it were.
    pub fn advance(&mut self, iterations: u32) -> u32 {
        let jobs = &mut self.left[..self.taken];
        let iterations = jobs.iter().copied().min().unwrap_or(0).min(iterations);
        jobs.iter_mut().for_each(|left| *left -= iterations);
        match self.taken {
            0 => {}
            1 => self.iterate::<1>(iterations),
            2 => self.iterate::<2>(iterations),
            3..=4 => self.iterate::<4>(iterations),
            5..=6 => self.iterate::<6>(iterations),
            _ => self.iterate::<8>(iterations),
        }
        iterations
    }

    /// Ends a job that is done, and says in which lane it was. The last job moves there, as with
    /// [`Vec::swap_remove`].
    pub fn end(&mut self) -> Option<(usize, Digest)> {
        let lane = self.left[..self.taken].iter().position(|left| *left == 0)?;
        let digest = finish(&self.ciphers[lane]);
        self.taken -= 1;
        let last = self.taken;
        self.left[lane] = self.left[last];
        for keys in [&mut self.passwords, &mut self.salts] {
            keys.copy_within(last..=last, lane);
            keys[last].zeroize();
        }
        self.ciphers.copy_within(last..=last, lane);
        self.ciphers[last].zeroize();
        Some((lane, digest))
    }

    /// Hashes some passwords from beginning to end, all at 2^`cost` iterations; digests come in the
    /// order of the jobs.
    ///
    /// # Panics
    /// As [`Lanes::begin`], and if a lane has a job already.
    pub fn hash(&mut self, cost: u32, jobs: &[Job<'_>]) -> Vec<Digest> {
        assert_eq!(self.taken, 0, "lanes in use");
        for job in jobs {
            self.begin(cost, job);
        }
        self.advance(u32::MAX);
        let digests = self.ciphers[..jobs.len()].iter().map(finish).collect();
        self.wipe();
        digests
    }

    /// The costly part: from cost 10 on, all but a few thousandths of the time go by in here.
    fn iterate<const N: usize>(&mut self, iterations: u32) {
        let ciphers = self.ciphers.first_chunk_mut::<N>().expect("kernels have at most MAX lanes");
        for _ in 0..iterations {
            for keys in [&self.passwords, &self.salts] {
                for (cipher, key) in ciphers.iter_mut().zip(keys) {
                    mix(cipher, key);
                }
                schedule(ciphers);
            }
        }
    }

    fn wipe(&mut self) {
        self.ciphers.zeroize();
        self.passwords.zeroize();
        self.salts.zeroize();
        self.taken = 0;
    }
}

/// For jobs that are dropped half-way.
impl Drop for Lanes {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Writes a key whose bytes are known by their place, in place: no copy of it is left elsewhere.
fn fill(key: &mut Key, byte: impl Fn(usize) -> u8) {
    for (at, word) in key.iter_mut().enumerate() {
        *word = u32::from_be_bytes(array::from_fn(|i| byte(4 * at + i)));
    }
}

fn mix(cipher: &mut Cipher, key: &Key) {
    for (word, key) in cipher.iter_mut().zip(key) {
        *word ^= key;
    }
}

/// The first key schedule of a hash, the only one that stirs the salt into every block. Once in
/// thousands, so each lane does it for itself.
fn start(cipher: &mut Cipher, password: &Key, salt: &Key) {
    *cipher = PI;
    mix(cipher, password);
    let (mut left, mut right) = ([0], [0]);
    for word in (0..WORDS).step_by(2) {
        left[0] ^= salt[word % 4];
        right[0] ^= salt[(word + 1) % 4];
        (left, right) = encrypt(array::from_ref(cipher), (left, right));
        [cipher[word], cipher[word + 1]] = [left[0], right[0]];
    }
}

/// The digest: a fixed text, encrypted 64 times by what the password made of the cipher.
fn finish(cipher: &Cipher) -> Digest {
    let mut bytes = [0; 24];
    for (block, text) in bytes.chunks_exact_mut(8).zip(b"OrpheanBeholderScryDoubt".chunks_exact(8))
    {
        let word = |at: usize| [u32::from_be_bytes(array::from_fn(|i| text[at + i]))];
        let (mut left, mut right) = (word(0), word(4));
        for _ in 0..64 {
            (left, right) = encrypt(array::from_ref(cipher), (left, right));
        }
        block[..4].copy_from_slice(&left[0].to_be_bytes());
        block[4..].copy_from_slice(&right[0].to_be_bytes());
    }
    // the last byte was lost in the first bcrypt, and is left out ever since
    array::from_fn(|i| bytes[i])
}

/// Blowfish's key schedule: each cipher encrypts zeros again and again, and every block replaces
/// the next two of its words.
//
// Never inlined: one copy per N, with all registers to itself.
#[inline(never)]
fn schedule<const N: usize>(ciphers: &mut [Cipher; N]) {
    let (mut left, mut right) = ([0; N], [0; N]);
    for pair in 0..WORDS / 2 {
        (left, right) = encrypt(ciphers, (left, right));
        for lane in 0..N {
            ciphers[lane][2 * pair] = left[lane];
            ciphers[lane][2 * pair + 1] = right[lane];
        }
    }
}

/// Blowfish on one block per lane.
//
// Sixteen lines, not a loop: a loop the compiler leaves standing costs a tenth of the speed. The
// halves change roles from line to line, and places only at the end.
#[inline(always)]
fn encrypt<const N: usize>(ciphers: &[Cipher; N], (mut l, mut r): Block<N>) -> Block<N> {
    for lane in 0..N {
        l[lane] ^= ciphers[lane][0];
    }
    r = round(1, ciphers, r, l);
    l = round(2, ciphers, l, r);
    r = round(3, ciphers, r, l);
    l = round(4, ciphers, l, r);
    r = round(5, ciphers, r, l);
    l = round(6, ciphers, l, r);
    r = round(7, ciphers, r, l);
    l = round(8, ciphers, l, r);
    r = round(9, ciphers, r, l);
    l = round(10, ciphers, l, r);
    r = round(11, ciphers, r, l);
    l = round(12, ciphers, l, r);
    r = round(13, ciphers, r, l);
    l = round(14, ciphers, l, r);
    r = round(15, ciphers, r, l);
    l = round(16, ciphers, l, r);
    for lane in 0..N {
        r[lane] ^= ciphers[lane][17];
    }
    (r, l)
}

/// One round of every lane: into one half goes the round's word, and what the boxes make of the
/// `other` half.
//
// The fence makes no code. It keeps the compiler from doing several lanes in one vector register,
// whose gathered loads are slower than these, and from reordering the lanes.
//
// Halves go in and out by value, and lanes are counted. Made by `array::from_fn`, they stay in memory
// in some builds (without LTO, or with one codegen unit), at a third of the speed; passed by
// reference, they lose a tenth. `examples/rate.rs` tells.
#[inline(always)]
fn round<const N: usize>(
    number: usize,
    ciphers: &[Cipher; N],
    mut half: [u32; N],
    other: [u32; N],
) -> [u32; N] {
    for lane in 0..N {
        half[lane] ^= ciphers[lane][number];
        half[lane] ^= substitute(&ciphers[lane], other[lane]);
        compiler_fence(SeqCst);
    }
    half
}

/// Blowfish's F: each byte picks a word from its own box. A byte cannot point outside, so none of
/// the look-ups is checked.
//
// Shifts, not `to_be_bytes`: that one turns the word round first, a tenth of the speed.
#[inline(always)]
fn substitute(cipher: &Cipher, half: u32) -> u32 {
    let byte = |shift: u32| usize::from((half >> shift) as u8);
    let [a, b, c, d] = [byte(24), byte(16), byte(8), byte(0)];
    (cipher[BOXES + a].wrapping_add(cipher[BOXES + 256 + b]) ^ cipher[BOXES + 512 + c])
        .wrapping_add(cipher[BOXES + 768 + d])
}

/// The string to store and to verify against: `$2b$`, the cost, 22 letters of salt, 31 of digest.
pub fn encode(cost: u32, salt: &[u8; 16], digest: &Digest) -> String {
    let mut text = format!("$2b${cost:02}$");
    push_base64(&mut text, salt);
    push_base64(&mut text, digest);
    text
}

/// Base 64 as bcrypt has it: an alphabet of its own, and nothing to fill up the end.
fn push_base64(text: &mut String, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .zip([16, 8, 0])
            .fold(0, |bits, (&byte, by)| bits | usize::from(byte) << by);
        for by in [18, 12, 6, 0].into_iter().take(group.len() + 1) {
            text.push(char::from(ALPHABET[bits >> by & 63]));
        }
    }
}

#[cfg(test)]
mod tests;
