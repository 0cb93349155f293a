//! A registration that has passed its contract's rules. It is the only thing the hasher and the
//! store accept, so an unchecked request cannot reach them.

use secrecy::{ExposeSecret, SecretString};

use super::id::digest;
use super::{ContractId, Email, FullName};

/// A checked registration.
pub struct ValidSignup {
    /// The contract whose rules it passed.
    pub contract: ContractId,
    /// Trimmed and in NFC; unique exactly as written.
    pub username: Option<String>,
    /// Unique over all contracts by its key.
    pub email: Option<Email>,
    /// Trimmed.
    pub fullname: Option<FullName>,
    /// What its user will be known by.
    pub password: Password,
}

/// A password, or what is left of one.
#[derive(Clone, Debug)]
pub enum Password {
    /// To be hashed: at most 72 bytes, without U+0000.
    Clear(SecretString),
    /// A bcrypt string made elsewhere. Comes through the bulk door alone.
    Hashed(SecretString),
}

impl Password {
    /// The key under which it stands in a document, and the text there.
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
    /// A digest of everything but the password. Beside its bcrypt hash, a fast digest over the
    /// password would undo the bcrypt.
    pub fn fingerprint(&self) -> String {
        let name = self.fullname.as_ref();
        let parts = [
            Some(self.contract.as_str()),
            self.username.as_deref(),
            self.email.as_ref().map(Email::address),
            name.map(|name| name.firstname.as_str()),
            name.and_then(|name| name.lastname.as_deref()),
        ];
        // An absent field and an empty one differ by the leading mark.
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
    fn the_fingerprint_never_covers_the_password() {
        let one = signup(Some("ann"), "secret-one").fingerprint();
        assert_eq!(one, signup(Some("ann"), "secret-two").fingerprint());
        assert_ne!(one, signup(Some("bob"), "secret-one").fingerprint());
        assert_ne!(signup(None, "x").fingerprint(), signup(Some(""), "x").fingerprint());
    }
}
