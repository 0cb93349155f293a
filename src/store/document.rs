//! The BSON document of a user, the same in MongoDB and in the redb file.

use bson::oid::ObjectId;
use serde::{Deserialize, Serialize};

use crate::domain::{
    ContractId, Email, FullName, Millis, RegistrationId, StoredUser, User, UserId,
};

/// The stored form of a [`Record`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UserDocument {
    #[serde(rename = "_id")]
    id: ObjectId,
    contract: ContractId,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email_key: Option<String>,
    /// Version of the rule that made `emailKey`; absent in documents of version 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    email_key_version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fullname: Option<FullName>,
    /// The bcrypt hash.
    password: String,
    /// Part of the published user document; muster always writes null.
    socket_id: Option<String>,
    created_at: bson::DateTime,
    updated_at: bson::DateTime,
    registration_id: RegistrationId,
    fingerprint: String,
}

impl UserDocument {
    /// Version of the rule that made the address key.
    pub(super) fn key_version(&self) -> i32 {
        self.email_key_version.unwrap_or(1)
    }
}

impl From<StoredUser> for UserDocument {
    fn from(record: StoredUser) -> Self {
        let StoredUser { user, email_key, password_hash, registration_id, fingerprint } = record;
        Self {
            id: user.id.0,
            contract: user.contract,
            username: user.username,
            email: user.email,
            email_key_version: email_key.is_some().then_some(Email::KEY_VERSION),
            email_key,
            fullname: user.fullname,
            password: password_hash,
            socket_id: None,
            created_at: bson::DateTime::from_millis(user.created_at.0),
            updated_at: bson::DateTime::from_millis(user.updated_at.0),
            registration_id,
            fingerprint,
        }
    }
}

impl From<UserDocument> for StoredUser {
    fn from(document: UserDocument) -> Self {
        Self {
            user: User {
                id: UserId(document.id),
                contract: document.contract,
                username: document.username,
                email: document.email,
                fullname: document.fullname,
                created_at: Millis(document.created_at.timestamp_millis()),
                updated_at: Millis(document.updated_at.timestamp_millis()),
            },
            email_key: document.email_key,
            password_hash: document.password,
            registration_id: document.registration_id,
            fingerprint: document.fingerprint,
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::domain::{MessageId, Origin, ValidSignup};

    #[test]
    fn stored_user_survives_serialization() {
        let contract = ContractId::NestedName;
        let candidate = ValidSignup {
            contract,
            username: None,
            email: Email::new("Ann@Example.com".into()),
            fullname: Some(FullName { firstname: "Ann".into(), lastname: None }),
            password: SecretString::from("never stored").into(),
        };
        let id = RegistrationId::derive(&Origin::Http, contract, &MessageId::random());
        let record =
            StoredUser::new(&candidate, id, "$2b$04$...".into(), Millis(1_700_000_000_123));
        let bytes = bson::serialize_to_vec(&UserDocument::from(record.clone())).unwrap();
        let document: bson::Document = bson::deserialize_from_slice(&bytes).unwrap();
        assert_eq!(document.get_str("emailKey").unwrap(), "ann@example.com");
        assert_eq!(document.get_i32("emailKeyVersion").unwrap(), Email::KEY_VERSION);
        assert_eq!(document.get("socketId"), Some(&bson::Bson::Null));
        assert!(!document.contains_key("username") && document.get_datetime("createdAt").is_ok());
        let back: UserDocument = bson::deserialize_from_slice(&bytes).unwrap();
        assert_eq!(StoredUser::from(back), record);
    }
}
