//! What an operator requires of passwords and user names beyond the contracts' own rules. Off by default:
//! the contracts then apply as they are published. Passed to every `check`; the rules apply it, and each
//! contract words it.
//!
//! Pure, so it reads no file: `app` does, for the front, the worker and the import.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

use super::characters::mixes_scripts;

/// The 5,000 most common ones; where they are from stands in the `LICENSE` beside them.
const COMMON: &str = include_str!("policy/common-passwords.txt");

/// Beyond the contract's own rules. The default asks for nothing. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    minimum: u64,
    common: CommonPasswords,
    single_script: bool,
}

impl Policy {
    /// At least `minimum` code points, and none of these passwords.
    pub fn new(minimum: u64, common: CommonPasswords) -> Self {
        Self { minimum, common, single_script: false }
    }

    /// The same, and whether a user name and the local part of an address must keep to one script.
    pub fn with_single_script(self, single_script: bool) -> Self {
        Self { single_script, ..self }
    }

    /// The same without its rules for passwords.
    pub(super) fn without_passwords(&self) -> Self {
        Self { single_script: self.single_script, ..Self::default() }
    }

    /// Whether the scripts of a name may stand together.
    pub(super) fn allows_scripts(&self, name: &str) -> bool {
        !(self.single_script && mixes_scripts(name))
    }

    /// The fewest code points, where a contract wants at least `own`.
    pub(super) fn minimum(&self, own: u64) -> u64 {
        self.minimum.max(own)
    }

    /// Whether a password is one of those that are tried first.
    pub(super) fn is_common(&self, password: &str) -> bool {
        self.common.0.binary_search(&digest(password)).is_ok()
    }
}

/// Passwords that nobody may choose, however their letters are written: upper or lower case, wide or
/// composed. Eight bytes each, so that a list of a million takes 8 MB; that two passwords share them
/// is less likely than one in a million million.
#[derive(Clone, Debug, Default)]
pub struct CommonPasswords(Arc<[u64]>);

impl CommonPasswords {
    /// Those that come with muster.
    pub fn bundled() -> Self {
        COMMON.lines().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl<T: AsRef<str>> FromIterator<T> for CommonPasswords {
    fn from_iter<I: IntoIterator<Item = T>>(passwords: I) -> Self {
        let mut digests: Vec<u64> =
            passwords.into_iter().map(|password| digest(password.as_ref())).collect();
        digests.sort_unstable();
        digests.dedup();
        Self(digests.into())
    }
}

/// Of a password in compatible composition (NFKC) and lower case. Made character by character, so that
/// no copy of a password is left in memory.
fn digest(password: &str) -> u64 {
    let mut hash = Sha256::new();
    let mut utf8 = [0; 4];
    for character in password.nfkc().flat_map(char::to_lowercase) {
        hash.update(character.encode_utf8(&mut utf8));
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Document, contract};
    use crate::signup::ContractId;

    #[test]
    fn by_default_nothing_is_asked() {
        let policy = Policy::default();
        assert_eq!(policy.minimum(6), 6);
        assert!(!policy.is_common("password"));
    }

    #[test]
    fn a_contract_that_wants_more_keeps_its_minimum() {
        let policy = Policy::new(8, CommonPasswords::default());
        assert_eq!((policy.minimum(6), policy.minimum(10)), (8, 10));
    }

    #[test]
    fn what_is_common_is_so_however_it_is_written() {
        let policy = Policy::new(0, ["Stra\u{df}e", "caf\u{e9}-ole"].iter().collect());
        for common in ["stra\u{df}e", "STRA\u{1e9e}E", "cafe\u{301}-OLE", "\u{ff43}af\u{c9}-ole"] {
            assert!(policy.is_common(common), "{common}");
        }
        for other in ["strasse", "cafe-ole", "caf\u{e9}-ole ", ""] {
            assert!(!policy.is_common(other), "{other}");
        }
    }

    #[test]
    fn the_bundled_list_is_read_whole() {
        let bundled = CommonPasswords::bundled();
        assert_eq!(bundled.count(), 5000, "every line another one, none empty");
        let policy = Policy::new(0, bundled);
        for common in ["123456", "Password", "QWERTY", "iloveyou"] {
            assert!(policy.is_common(common), "{common}");
        }
        assert!(!policy.is_common("correct horse battery staple"));
    }

    /// Of each contract, what is wrong with a password by its code and text.
    fn told(password: &str) -> Vec<(ContractId, Vec<(String, String)>)> {
        let policy = Policy::new(12, ["Correct-Horse-1"].iter().collect());
        let document = serde_json::json!({
            "username": "ann", "email": "a@b.co", "firstname": "Ann",
            "fullname": { "firstname": "Ann" }, "password": password,
        })
        .to_string();
        let document = Document::parse(document.as_bytes()).unwrap();
        let told = ContractId::ALL.into_iter().map(|id| {
            let errors = contract(id).check(&document, &policy).err().unwrap_or_default();
            let errors = errors.into_iter().map(|error| {
                assert_eq!(error.field, "password");
                (error.code.into_owned(), error.message.into_owned())
            });
            (id, errors.collect())
        });
        told.collect()
    }

    #[test]
    fn every_contract_tells_the_policys_minimum_once() {
        for (id, errors) in told("Short-pw-1!") {
            let text = match id {
                ContractId::ErrorCode => "Password must be at least 12 characters",
                _ => "Password must be at least 12 characters long",
            };
            assert_eq!(errors, [("INVALID_LENGTH".into(), text.into())], "{id}");
        }
    }

    #[test]
    fn every_contract_tells_what_is_common() {
        for (id, errors) in told("correct-horse-1") {
            let last = errors.last().unwrap();
            let expected = ("COMMON_PASSWORD".to_owned(), "Password is too common".to_owned());
            assert_eq!(*last, expected, "{id}");
        }
        for (id, errors) in told("Correct-Horse-2") {
            assert!(errors.is_empty(), "{id}: {errors:?}");
        }
    }
}
