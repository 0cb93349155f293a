//! The bcrypt string: `$2b$`, two digits of cost, `$`, 22 characters of salt, 31 characters of digest.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;

use crate::{Cost, Digest, Error};

/// The alphabet of bcrypt's base 64, which has no padding.
const ALPHABET: &[u8; 64] = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const SALT_CHARACTERS: usize = 22;
const DIGEST_CHARACTERS: usize = 31;

/// The parts of a bcrypt string. Parses versions `2a`, `2b` and `2y`, which differ only by defects of old
/// implementations; prints `2b`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ParsedHash {
    /// The cost.
    pub cost: Cost,
    /// The salt.
    pub salt: [u8; 16],
    /// The digest.
    pub digest: Digest,
}

impl ParsedHash {
    /// Compares the digest with another one, in constant time.
    pub fn matches(&self, digest: &Digest) -> bool {
        let difference = self.digest.iter().zip(digest).fold(0, |all, (a, b)| all | (a ^ b));
        // Keeps the optimizer from leaving the loop at the first difference.
        black_box(difference) == 0
    }
}

impl fmt::Display for ParsedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("$2b${:02}$", self.cost.log2());
        push_base64(&mut text, &self.salt);
        push_base64(&mut text, &self.digest);
        f.write_str(&text)
    }
}

/// Shows the cost only: salt and digest stay out of logs.
impl fmt::Debug for ParsedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParsedHash").field("cost", &self.cost).finish_non_exhaustive()
    }
}

impl FromStr for ParsedHash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text.as_bytes()).ok_or(Error::MalformedHash)
    }
}

fn parse(text: &[u8]) -> Option<ParsedHash> {
    let text = ["$2a$", "$2b$", "$2y$"].iter().find_map(|v| text.strip_prefix(v.as_bytes()))?;
    let (cost, text) = text.split_at_checked(2)?;
    let text = text.strip_prefix(b"$")?;
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u32::from(byte - b'0'));
    let cost = Cost::new(digit(cost[0])? * 10 + digit(cost[1])?).ok()?;
    let (salt, digest) = text.split_at_checked(SALT_CHARACTERS)?;
    (digest.len() == DIGEST_CHARACTERS).then_some(())?;
    Some(ParsedHash { cost, salt: decode(salt)?, digest: decode(digest)? })
}

fn push_base64(text: &mut String, bytes: &[u8]) {
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

/// Decodes bcrypt's base 64. Ignores bits beyond the last byte, like other implementations.
fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (mut bits, mut length, mut at) = (0_u32, 0, 0);
    for character in text {
        let value = ALPHABET.iter().position(|symbol| symbol == character)?;
        bits = bits << 6 | value as u32;
        length += 6;
        if length >= 8 && at < N {
            length -= 8;
            bytes[at] = (bits >> length) as u8;
            at += 1;
        }
    }
    (at == N).then_some(bytes)
}
