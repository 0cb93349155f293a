//! Selects the code that advances the lanes: a backend, and one copy of it per number of lanes.

use std::fmt;

use crate::blowfish::{Cipher, Key, mix};
#[cfg(target_arch = "x86_64")]
use crate::bmi2;
use crate::portable;

/// An implementation of the key schedule. All of them give the same digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Safe Rust, on every processor.
    Portable,
    /// Assembly for x86-64 processors with BMI2 (Intel Haswell, AMD Excavator, and newer).
    Bmi2,
}

impl Backend {
    /// Every backend there is, the most portable first.
    pub const ALL: [Self; 2] = [Self::Portable, Self::Bmi2];

    /// Whether this processor can run the backend.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bmi2 => bmi2::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Bmi2 => false,
        }
    }

    /// The backend to use without a measurement: the last one that this processor can run.
    pub fn preferred() -> Self {
        if Self::Bmi2.is_available() { Self::Bmi2 } else { Self::Portable }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Bmi2 => "bmi2",
        })
    }
}

/// Advances the first `lanes` ciphers by this many iterations.
pub(crate) fn iterate(
    backend: Backend,
    lanes: usize,
    ciphers: &mut [Cipher],
    keys: [&[Key]; 2],
    iterations: u32,
) {
    macro_rules! by_lanes {
        ($($n:literal $bmi2:ident),+) => {
            match lanes {
                $($n => run::<$n>(select(backend, portable::schedule::<$n>, bmi2_or!($bmi2, $n)),
                    ciphers, keys, iterations),)+
                // No lane has a job.
                _ => {}
            }
        };
    }
    #[cfg(target_arch = "x86_64")]
    macro_rules! bmi2_or {
        ($bmi2:ident, $n:literal) => {
            bmi2::$bmi2
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    macro_rules! bmi2_or {
        ($bmi2:ident, $n:literal) => {
            portable::schedule::<$n>
        };
    }
    by_lanes!(
        1 schedule_1, 2 schedule_2, 3 schedule_3, 4 schedule_4,
        5 schedule_5, 6 schedule_6, 7 schedule_7, 8 schedule_8
    );
}

fn select<T>(backend: Backend, portable: T, bmi2: T) -> T {
    match backend {
        Backend::Portable => portable,
        Backend::Bmi2 => bmi2,
    }
}

fn run<const N: usize>(
    schedule: fn(&mut [Cipher; N]),
    ciphers: &mut [Cipher],
    keys: [&[Key]; 2],
    iterations: u32,
) {
    let Some(ciphers) = ciphers.first_chunk_mut::<N>() else { return };
    for _ in 0..iterations {
        for keys in keys {
            for (cipher, key) in ciphers.iter_mut().zip(keys) {
                mix(cipher, key);
            }
            schedule(ciphers);
        }
    }
}
