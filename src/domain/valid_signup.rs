//! A validated signup. The hash pool and the store accept no other type, so an unvalidated request
//! cannot reach them.

use secrecy::{ExposeSecret, SecretString};

use super::id::digest;
use super::{ContractId, Email, FullName};

/// A signup that passed its contract's rules.
pub struct ValidSignup {
    /// The contract that validated it.
    pub contract: ContractId,
    /// The user name, trimmed and in NFC. Unique across all contracts; case matters.
    pub username: Option<String>,
    /// The email address. Unique across all contracts by its key.
    pub email: Option<Email>,
    /// First and last name, trimmed.
    pub fullname: Option<FullName>,
    /// The password, or its hash.
    pub password: Password,
}

/// A password, in clear or hashed.
#[derive(Clone, Debug)]
pub enum Password {
    /// A clear password of at most 72 bytes, without U+0000.
    Clear(SecretString),
    /// A bcrypt hash that another system made. Only bulk registrations may have one.
    Hashed(SecretString),
}

impl Password {
    /// Returns the document field that holds it, and the field's value.
    pub fn in_document(&self) -> (&'static str, &str) {
        match self {
            Self::Clear(password) => ("password", password.expose_secret()),
            Self::Hashed(hash) => ("passwordHash", hash.expose_secret()),
        }
    }
}

impl From<SecretString> for Password {
    fn from(password: SecretString) -> Self {
        Self::Clear(password)
    }
}

impl ValidSignup {
    /// Returns a digest of all fields except the password. A fast digest of the password would defeat
    /// bcrypt, because both are stored.
    pub fn fingerprint(&self) -> String {
        let name = self.fullname.as_ref();
        let parts = [
            Some(self.contract.as_str()),
            self.username.as_deref(),
            self.email.as_ref().map(Email::address),
            name.map(|name| name.firstname.as_str()),
            name.and_then(|name| name.lastname.as_deref()),
        ];
        // The leading character distinguishes an absent field from an empty one.
        let marked: Vec<String> =
            parts.iter().map(|part| part.map_or("-".into(), |text| format!("+{text}"))).collect();
        digest(&marked.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signup(username: Option<&str>, password: &str) -> ValidSignup {
        ValidSignup {
            contract: ContractId::Username,
            username: username.map(str::to_owned),
            email: Email::new("A@B.CO".into()),
            fullname: None,
            password: SecretString::from(password).into(),
        }
    }

    #[test]
    fn fingerprint_covers_all_fields_except_the_password() {
        let one = signup(Some("ann"), "secret-one").fingerprint();
        assert_eq!(one, signup(Some("ann"), "secret-two").fingerprint());
        assert_ne!(one, signup(Some("bob"), "secret-one").fingerprint());
        assert_ne!(signup(None, "x").fingerprint(), signup(Some(""), "x").fingerprint());
    }
}
