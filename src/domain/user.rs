//! A registered user: the public part, and the complete record in the store.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ContractId, Email, Millis, RegistrationId, ValidSignup};

/// A user's id: an ObjectId. muster generates it, not the database, so that an insert whose response
/// was lost can be identified.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserId(pub bson::oid::ObjectId);

impl UserId {
    /// Returns a new, unique id.
    pub fn generate() -> Self {
        Self(bson::oid::ObjectId::new())
    }

    /// Parses 24 hexadecimal digits.
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

// In JSON an id is a string of 24 digits, unlike in BSON's own serialization.
impl Serialize for UserId {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UserId {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("expected a user id of 24 hexadecimal digits"))
    }
}

/// First and last name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullName {
    /// The first name.
    pub firstname: String,
    /// The last name; never empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lastname: Option<String>,
}

/// The public part of a user, without the password hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The user's id.
    #[serde(rename = "_id")]
    pub id: UserId,
    /// The contract that created the user, and that renders it.
    pub contract: ContractId,
    /// The user name, if the contract has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The email address as the client sent it, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// First and last name, if the contract has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fullname: Option<FullName>,
    /// When the user was registered, in milliseconds since 1970.
    pub created_at: Millis,
    /// When the user was last changed, in milliseconds since 1970.
    pub updated_at: Millis,
}

impl User {
    /// Returns the public part of a new user.
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
    // Logs must not contain names or addresses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A user's complete record in the store.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredUser {
    /// The public part.
    pub user: User,
    /// The uniqueness key of the address ([`Email::key`]).
    pub email_key: Option<String>,
    /// The bcrypt hash.
    pub password_hash: String,
    /// The registration that created the user.
    pub registration_id: RegistrationId,
    /// [`ValidSignup::fingerprint`] of that registration.
    pub fingerprint: String,
}

impl StoredUser {
    /// Returns the record of a new user with a generated id.
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
        f.debug_struct("StoredUser").field("id", &self.user.id).finish_non_exhaustive()
    }
}
