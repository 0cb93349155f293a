//! A user as BSON: the same document in MongoDB and in the embedded file.

use bson::oid::ObjectId;
use serde::{Deserialize, Serialize};

use crate::signup::{ContractId, Email, FullName, Millis, Record, RegistrationId, User, UserId};

/// The stored form of a [`Record`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(rename = "_id")]
    id: ObjectId,
    contract: ContractId,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email_key: Option<String>,
    /// Version of the rule by which the key was made; absent in documents of version 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    email_key_version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fullname: Option<FullName>,
    /// The bcrypt string.
    password: String,
    /// Null until the user connects somewhere; the documents show it so.
    socket_id: Option<String>,
    created_at: bson::DateTime,
    updated_at: bson::DateTime,
    registration_id: RegistrationId,
    fingerprint: String,
}

impl Document {
    /// Version of the rule by which its address key was made.
    pub(super) fn key_version(&self) -> i32 {
        self.email_key_version.unwrap_or(1)
    }
}

impl From<Record> for Document {
    fn from(record: Record) -> Self {
        let Record { user, email_key, password_hash, registration_id, fingerprint } = record;
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

impl From<Document> for Record {
    fn from(document: Document) -> Self {
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
    use crate::signup::{Candidate, MessageId, Origin};

    #[test]
    fn a_record_survives_the_trip() {
        let contract = ContractId::NestedName;
        let candidate = Candidate {
            contract,
            username: None,
            email: Email::new("Ann@Example.com".into()),
            fullname: Some(FullName { firstname: "Ann".into(), lastname: None }),
            password: SecretString::from("never stored").into(),
        };
        let id = RegistrationId::of(&Origin::Http, contract, &MessageId::random());
        let record = Record::new(&candidate, id, "$2b$04$...".into(), Millis(1_700_000_000_123));
        let bytes = bson::serialize_to_vec(&Document::from(record.clone())).unwrap();
        let document: bson::Document = bson::deserialize_from_slice(&bytes).unwrap();
        assert_eq!(document.get_str("emailKey").unwrap(), "ann@example.com");
        assert_eq!(document.get_i32("emailKeyVersion").unwrap(), Email::KEY_VERSION);
        assert_eq!(document.get("socketId"), Some(&bson::Bson::Null));
        assert!(!document.contains_key("username") && document.get_datetime("createdAt").is_ok());
        let back: Document = bson::deserialize_from_slice(&bytes).unwrap();
        assert_eq!(Record::from(back), record);
    }
}
