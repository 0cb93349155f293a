//! A registered user: what others may see of one, and the whole record as the store keeps it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ValidSignup, ContractId, Email, Millis, RegistrationId};

/// A user's id: an ObjectId, generated here and not by the database, so that an insert whose
/// answer was lost can be recognised.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserId(pub bson::oid::ObjectId);

impl UserId {
    /// A new, unique id.
    pub fn generate() -> Self {
        Self(bson::oid::ObjectId::new())
    }

    /// Reads 24 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        bson::oid::ObjectId::parse_str(text).ok().map(Self)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// In replies an id is its 24 digits, whatever BSON would make of it.
impl Serialize for UserId {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UserId {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a user id"))
    }
}

/// First and last name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullName {
    /// Always there where a contract has names.
    pub firstname: String,
    /// Absent, never empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lastname: Option<String>,
}

/// What may be shown of a user. Holds neither the password nor its hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The user's id.
    #[serde(rename = "_id")]
    pub id: UserId,
    /// The contract that created it, in whose shape it is shown.
    pub contract: ContractId,
    /// As registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// As returned at registration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Where the contract has names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fullname: Option<FullName>,
    /// When the user was registered, in milliseconds since 1970.
    pub created_at: Millis,
    /// When the user was last changed, in milliseconds since 1970.
    pub updated_at: Millis,
}

impl User {
    /// What may be shown of a new user.
    pub fn new(id: UserId, signup: &ValidSignup, now: Millis) -> Self {
        Self {
            id,
            contract: signup.contract,
            username: signup.username.clone(),
            email: signup.email.as_ref().map(|email| email.address().to_owned()),
            fullname: signup.fullname.clone(),
            created_at: now,
            updated_at: now,
        }
    }
}

impl fmt::Debug for User {
    // A user in a log line is an id, never a name or an address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A user as the store keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredUser {
    /// The part that may be shown.
    pub user: User,
    /// The address in the form in which it is unique.
    pub email_key: Option<String>,
    /// A bcrypt string.
    pub password_hash: String,
    /// The registration that made it.
    pub registration_id: RegistrationId,
    /// [`Candidate::fingerprint`] of that registration.
    pub fingerprint: String,
}

impl StoredUser {
    /// The record of a new user.
    pub fn new(
        signup: &ValidSignup,
        registration_id: RegistrationId,
        password_hash: String,
        now: Millis,
    ) -> Self {
        Self {
            user: User::new(UserId::generate(), signup, now),
            email_key: signup.email.as_ref().map(Email::key).map(str::to_owned),
            password_hash,
            registration_id,
            fingerprint: signup.fingerprint(),
        }
    }
}

impl fmt::Debug for StoredUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("id", &self.user.id).finish_non_exhaustive()
    }
}
