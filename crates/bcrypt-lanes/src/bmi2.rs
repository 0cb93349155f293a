//! The kernel for x86-64 with BMI2, in inline assembly. Only this file of the crate has `unsafe` code.
//!
//! A round of a lane takes eleven instructions. The compiler's code takes four to five more, and spills
//! registers. `rorx` rotates the upper bytes of a half to where `al` and `ah` can be read, so that all four
//! indices take five instructions and three scratch registers. With two registers for the halves of each
//! lane and one for the base address, five lanes fit into the fifteen registers of x86-64.
//!
//! # Safety
//!
//! - The assembly reads memory and writes three scratch registers and one half. It reads at
//!   `base + 4 * (lane * WORDS + i)` with constant `lane < N`, where `i` is a round number (at most 16) or
//!   `BOXES + 256 * box + byte`. A byte is at most 255, so `i < WORDS` and every address lies within
//!   the `N` ciphers behind the reference.
//! - `rorx` needs BMI2. The functions with `target_feature` are called only if [`is_available`] returns true.
#![allow(unsafe_code, reason = "inline assembly, and calls of functions with target features")]

use std::arch::asm;

use crate::blowfish::{BOXES, Cipher, WORDS};
use crate::portable;

/// Whether this processor has BMI2.
pub(crate) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("bmi2")
}

/// One round of one lane: `$half ^= P[$round] ^ F($other)`.
macro_rules! round {
    ($base:ident, $lane:literal, $round:literal, $half:ident, $other:ident) => {
        // SAFETY: see the module documentation. The block only reads memory and does not use the stack. It is
        // not `pure`, so that the compiler keeps the order of the lanes.
        unsafe {
            asm!(
                "rorx eax, {other:e}, 16",
                "xor {half:e}, dword ptr [{base} + {p}]",
                "movzx ecx, ah",
                "movzx edx, al",
                "shr eax, 24",
                "mov ecx, dword ptr [{base} + 4*rcx + {s0}]",
                "add ecx, dword ptr [{base} + 4*rdx + {s1}]",
                "movzx edx, {other:l}",
                "xor ecx, dword ptr [{base} + 4*rax + {s2}]",
                "add ecx, dword ptr [{base} + 4*rdx + {s3}]",
                "xor {half:e}, ecx",
                base = in(reg) $base,
                other = in(reg) $other,
                half = inout(reg) $half,
                out("eax") _,
                out("ecx") _,
                out("edx") _,
                p = const 4 * ($lane * WORDS + $round),
                s0 = const 4 * ($lane * WORDS + BOXES),
                s1 = const 4 * ($lane * WORDS + BOXES + 256),
                s2 = const 4 * ($lane * WORDS + BOXES + 512),
                s3 = const 4 * ($lane * WORDS + BOXES + 768),
                options(nostack, readonly),
            );
        }
    };
}

/// A key schedule for a fixed number of lanes, and its safe entry.
macro_rules! kernel {
    ($entry:ident, $kernel:ident, $lanes:literal, $($lane:literal $l:ident $r:ident),+) => {
        /// [`portable::schedule`] for this many lanes.
        pub(crate) fn $entry(ciphers: &mut [Cipher; $lanes]) {
            if is_available() {
                // SAFETY: the processor has BMI2.
                unsafe { $kernel(ciphers) }
            } else {
                portable::schedule(ciphers);
            }
        }

        #[inline(never)]
        #[target_feature(enable = "bmi2")]
        fn $kernel(ciphers: &mut [Cipher; $lanes]) {
            $(let (mut $l, mut $r) = (0_u32, 0_u32);)+
            for pair in 0..WORDS / 2 {
                let base = ciphers.as_ptr();
                $($l ^= ciphers[$lane][0];)+
                $(round!(base, $lane, 1, $r, $l);)+
                $(round!(base, $lane, 2, $l, $r);)+
                $(round!(base, $lane, 3, $r, $l);)+
                $(round!(base, $lane, 4, $l, $r);)+
                $(round!(base, $lane, 5, $r, $l);)+
                $(round!(base, $lane, 6, $l, $r);)+
                $(round!(base, $lane, 7, $r, $l);)+
                $(round!(base, $lane, 8, $l, $r);)+
                $(round!(base, $lane, 9, $r, $l);)+
                $(round!(base, $lane, 10, $l, $r);)+
                $(round!(base, $lane, 11, $r, $l);)+
                $(round!(base, $lane, 12, $l, $r);)+
                $(round!(base, $lane, 13, $r, $l);)+
                $(round!(base, $lane, 14, $l, $r);)+
                $(round!(base, $lane, 15, $r, $l);)+
                $(round!(base, $lane, 16, $l, $r);)+
                $(
                    $r ^= ciphers[$lane][17];
                    ($l, $r) = ($r, $l);
                    ciphers[$lane][2 * pair] = $l;
                    ciphers[$lane][2 * pair + 1] = $r;
                )+
            }
        }
    };
}

kernel!(schedule_1, kernel_1, 1, 0 l0 r0);
kernel!(schedule_2, kernel_2, 2, 0 l0 r0, 1 l1 r1);
kernel!(schedule_3, kernel_3, 3, 0 l0 r0, 1 l1 r1, 2 l2 r2);
kernel!(schedule_4, kernel_4, 4, 0 l0 r0, 1 l1 r1, 2 l2 r2, 3 l3 r3);
kernel!(schedule_5, kernel_5, 5, 0 l0 r0, 1 l1 r1, 2 l2 r2, 3 l3 r3, 4 l4 r4);
kernel!(schedule_6, kernel_6, 6, 0 l0 r0, 1 l1 r1, 2 l2 r2, 3 l3 r3, 4 l4 r4, 5 l5 r5);
kernel!(schedule_7, kernel_7, 7, 0 l0 r0, 1 l1 r1, 2 l2 r2, 3 l3 r3, 4 l4 r4, 5 l5 r5, 6 l6 r6);
kernel!(schedule_8, kernel_8, 8, 0 l0 r0, 1 l1 r1, 2 l2 r2, 3 l3 r3, 4 l4 r4, 5 l5 r5, 6 l6 r6, 7 l7 r7);
