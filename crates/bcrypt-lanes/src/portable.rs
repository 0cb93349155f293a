//! The kernel in safe Rust, for every processor.

use std::sync::atomic::{Ordering::SeqCst, compiler_fence};

use crate::blowfish::{BOXES, Cipher, WORDS};

/// One block per lane, in halves.
pub(crate) type Block<const N: usize> = ([u32; N], [u32; N]);

/// Blowfish's key schedule: each cipher encrypts zeros repeatedly, and every block replaces the next
/// two of its words.
//
// Never inlined: one copy per N, which has all registers.
#[inline(never)]
pub(crate) fn schedule<const N: usize>(ciphers: &mut [Cipher; N]) {
    let (mut left, mut right) = ([0; N], [0; N]);
    for pair in 0..WORDS / 2 {
        (left, right) = encrypt(ciphers, (left, right));
        for lane in 0..N {
            ciphers[lane][2 * pair] = left[lane];
            ciphers[lane][2 * pair + 1] = right[lane];
        }
    }
}

/// Encrypts one block per lane.
//
// Sixteen lines, not a loop: a loop that the compiler does not unroll costs a tenth of the speed. The
// halves change roles from line to line, and places only at the end.
#[inline(always)]
pub(crate) fn encrypt<const N: usize>(ciphers: &[Cipher; N], (mut l, mut r): Block<N>) -> Block<N> {
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

/// One round of every lane: XORs the round's word and F of the `other` half into one half.
//
// The fence emits no instruction. It keeps the compiler from vectorising across lanes (gathers are
// slower than these scalar loads) and from reordering them.
//
// Halves are passed by value and lanes are counted: built by `array::from_fn` they stay in memory in
// some builds (no LTO, or one codegen unit), at a third of the speed; passed by reference they lose a
// tenth.
#[inline(always)]
fn round<const N: usize>(
    number: usize,
    ciphers: &[Cipher; N],
    mut half: [u32; N],
    other: [u32; N],
) -> [u32; N] {
    for lane in 0..N {
        half[lane] ^= ciphers[lane][number];
        half[lane] ^= f(&ciphers[lane], other[lane]);
        compiler_fence(SeqCst);
    }
    half
}

/// Blowfish's F: each byte selects a word of its box. A byte cannot be out of range, so the look-ups need no
/// bounds checks.
//
// Shifts, not `to_be_bytes`, which swaps the word first and costs a tenth of the speed.
#[inline(always)]
fn f(cipher: &Cipher, half: u32) -> u32 {
    let byte = |shift: u32| usize::from((half >> shift) as u8);
    let [a, b, c, d] = [byte(24), byte(16), byte(8), byte(0)];
    (cipher[BOXES + a].wrapping_add(cipher[BOXES + 256 + b]) ^ cipher[BOXES + 512 + c])
        .wrapping_add(cipher[BOXES + 768 + d])
}
