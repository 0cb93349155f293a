//! The operator's rules for passwords and user names, in addition to the contracts' own rules.
//!
//! The default policy adds no rule. [`rules`](super::rules) applies the policy, and each contract has
//! its own texts for it. This module does no I/O; `app` reads the list of passwords.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

use super::characters::mixes_scripts;

/// The 5,000 most common passwords, one per line. `policy/LICENSE` names the source.
const COMMON: &str = include_str!("policy/common-passwords.txt");

/// The operator's rules. The default adds no rule. Clones share the list of common passwords.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    min_length: u64,
    common: CommonPasswords,
    single_script: bool,
}

impl Policy {
    /// Requires passwords of at least `min_length` code points that are not in `common`.
    pub fn new(min_length: u64, common: CommonPasswords) -> Self {
        Self { min_length, common, single_script: false }
    }

    /// Sets whether user names and the local parts of addresses must use a single script.
    pub fn with_single_script(self, single_script: bool) -> Self {
        Self { single_script, ..self }
    }

    /// Returns the policy without its password rules.
    pub(super) fn without_passwords(&self) -> Self {
        Self { single_script: self.single_script, ..Self::default() }
    }

    /// Whether a name's combination of scripts is allowed.
    pub(super) fn allows_scripts(&self, name: &str) -> bool {
        !(self.single_script && mixes_scripts(name))
    }

    /// Returns the larger of the policy's minimum password length and the contract's.
    pub(super) fn min_length(&self, contract: u64) -> u64 {
        self.min_length.max(contract)
    }

    /// Whether a password is in the list of common passwords.
    pub(super) fn is_common(&self, password: &str) -> bool {
        self.common.0.binary_search(&digest(password)).is_ok()
    }
}

/// A set of forbidden passwords. Case, width and Unicode composition are ignored.
///
/// It stores 8 bytes of a digest per password, so a list of a million takes 8 MB. The probability
/// that an unlisted password matches such a list is below one in a million million.
#[derive(Clone, Debug, Default)]
pub struct CommonPasswords(Arc<[u64]>);

impl CommonPasswords {
    /// Returns the list that is compiled into muster.
    pub fn bundled() -> Self {
        COMMON.lines().collect()
    }

    /// The number of distinct passwords.
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

/// Returns the first 8 bytes of the SHA-256 of a password in NFKC and lower case. Characters are
/// hashed one by one, so that no copy of the password stays in memory.
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
    use crate::domain::ContractId;

    #[test]
    fn default_policy_adds_no_rule() {
        let policy = Policy::default();
        assert_eq!(policy.min_length(6), 6);
        assert!(!policy.is_common("password"));
    }

    #[test]
    fn larger_minimum_of_a_contract_applies() {
        let policy = Policy::new(8, CommonPasswords::default());
        assert_eq!((policy.min_length(6), policy.min_length(10)), (8, 10));
    }

    #[test]
    fn common_passwords_match_in_any_case_and_composition() {
        let policy = Policy::new(0, ["Stra\u{df}e", "caf\u{e9}-ole"].iter().collect());
        for common in ["stra\u{df}e", "STRA\u{1e9e}E", "cafe\u{301}-OLE", "\u{ff43}af\u{c9}-ole"] {
            assert!(policy.is_common(common), "{common}");
        }
        for other in ["strasse", "cafe-ole", "caf\u{e9}-ole ", ""] {
            assert!(!policy.is_common(other), "{other}");
        }
    }

    #[test]
    fn bundled_list_has_5000_passwords() {
        let bundled = CommonPasswords::bundled();
        assert_eq!(bundled.count(), 5000, "no duplicate and no empty line");
        let policy = Policy::new(0, bundled);
        for common in ["123456", "Password", "QWERTY", "iloveyou"] {
            assert!(policy.is_common(common), "{common}");
        }
        assert!(!policy.is_common("correct horse battery staple"));
    }

    /// For each contract, the code and message of each error of a password.
    fn password_errors(password: &str) -> Vec<(ContractId, Vec<(String, String)>)> {
        let policy = Policy::new(12, ["Correct-Horse-1"].iter().collect());
        let document = serde_json::json!({
            "username": "ann", "email": "a@b.co", "firstname": "Ann",
            "fullname": { "firstname": "Ann" }, "password": password,
        })
        .to_string();
        let document = Document::parse(document.as_bytes()).unwrap();
        let all = ContractId::ALL.into_iter().map(|id| {
            let errors = contract(id).check(&document, &policy).err().unwrap_or_default();
            let errors = errors.into_iter().map(|error| {
                assert_eq!(error.field, "password");
                (error.code.into_owned(), error.message.into_owned())
            });
            (id, errors.collect())
        });
        all.collect()
    }

    #[test]
    fn every_contract_reports_the_policy_minimum_once() {
        for (id, errors) in password_errors("Short-pw-1!") {
            let text = match id {
                ContractId::ErrorCode => "Password must be at least 12 characters",
                _ => "Password must be at least 12 characters long",
            };
            assert_eq!(errors, [("INVALID_LENGTH".into(), text.into())], "{id}");
        }
    }

    #[test]
    fn every_contract_reports_a_common_password() {
        for (id, errors) in password_errors("correct-horse-1") {
            let last = errors.last().unwrap();
            let expected = ("COMMON_PASSWORD".to_owned(), "Password is too common".to_owned());
            assert_eq!(*last, expected, "{id}");
        }
        for (id, errors) in password_errors("Correct-Horse-2") {
            assert!(errors.is_empty(), "{id}: {errors:?}");
        }
    }
}
