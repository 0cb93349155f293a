//! Validates one row of a bulk registration and rewrites it with only the contract's own fields, so
//! that other fields do not reach the queue.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use secrecy::ExposeSecret;
use serde_json::value::RawValue;

use super::RowError;
use crate::contract::document::TextValue;
use crate::contract::{
    ALLOW_HASH_LIKE, Document, HashLike, Policy, allows_hash_like, check_bulk, contract,
    detect_hash, hash_like_error,
};
use crate::domain::{ContractId, Email, MessageId, Password, ValidSignup};

/// A row that passed validation.
#[derive(Clone, PartialEq, Eq)]
pub struct ValidRow {
    /// The row's own id, if [`RowRules::id_field`] is set.
    pub id: Option<MessageId>,
    /// The message body: the contract's document in JSON.
    pub body: Bytes,
    /// The unique values of the row.
    pub identity: Identity,
    /// Whether the clear password resembles a hash. `None` without a clear password, or if resembling
    /// a hash is allowed.
    pub hash_like: Option<HashLike>,
}

impl ValidRow {
    /// Returns the error for a row whose bare digest was found to be a hash.
    pub fn hash_like_errors(&self) -> Vec<RowError> {
        vec![hash_like_error().into()]
    }
}

/// The unique values of a row (user name, address, own id), each as a 64-bit hash. Rows whose
/// different values have the same hash are treated as equal, which is rare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    user: [Option<u64>; 2],
    id: Option<u64>,
}

impl Identity {
    fn from_signup(signup: &ValidSignup, id: Option<&MessageId>) -> Self {
        let username = signup.username.as_deref().map(|name| hash(0, name));
        let email = signup.email.as_ref().map(|email| hash(1, Email::key(email)));
        Self { user: [username, email], id: id.map(|id| hash(2, id.as_str())) }
    }

    /// Counts the fields that must be unique among users (user name and address).
    pub fn unique_fields(&self) -> usize {
        self.user.iter().flatten().count()
    }

    /// Returns the hashes. Rows that share one have the same identity.
    pub(super) fn keys(&self) -> impl Iterator<Item = u64> + use<> {
        self.user.into_iter().chain([self.id]).flatten()
    }
}

fn hash(kind: u8, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, text).hash(&mut hasher);
    hasher.finish()
}

/// How rows are validated.
#[derive(Clone, Debug)]
pub struct RowRules {
    /// The contract of the rows.
    pub contract: ContractId,
    /// The field that holds a row's own id. `None`: rows have no ids.
    pub id_field: Option<String>,
    /// The operator's policy.
    pub policy: Policy,
    /// Whether clear passwords may look like hashes.
    pub allow_hash_like: bool,
}

/// Validates a row: a bulk document of the contract in JSON.
///
/// # Errors
/// The errors of the row, in the contract's field order.
pub fn validate(rules: &RowRules, row: &[u8]) -> Result<ValidRow, Vec<RowError>> {
    let mut document = Document::parse(row).map_err(|_| vec![unreadable(row)])?;
    match document.text("contract") {
        TextValue::Absent => {}
        TextValue::Text(named) if named.as_str() == rules.contract.as_str() => {}
        _ => {
            let message = "the row names a contract other than the one of its import or upload";
            return Err(vec![RowError::new("contract", "OTHER_CONTRACT", message)]);
        }
    }
    let id = match &rules.id_field {
        Some(field) => Some(own_id(&document, field).map_err(|error| vec![error])?),
        None => None,
    };
    if rules.allow_hash_like {
        let json_true: &RawValue = serde_json::from_str("true").expect("valid JSON");
        document.put(ALLOW_HASH_LIKE, json_true);
    }
    let contract = contract(rules.contract);
    let signup = check_bulk(contract, &document, &rules.policy)
        .map_err(|errors| errors.into_iter().map(RowError::from).collect::<Vec<_>>())?;
    let mut body = contract.write(&signup);
    let hash_like = match &signup.password {
        Password::Clear(clear) => Some(detect_hash(clear.expose_secret())),
        Password::Hashed(_) => None,
    };
    if hash_like == Some(HashLike::Format) {
        body[ALLOW_HASH_LIKE] = true.into();
    }
    let hash_like = hash_like.filter(|_| !allows_hash_like(&document));
    let identity = Identity::from_signup(&signup, id.as_ref());
    Ok(ValidRow { id, body: Bytes::from(body.to_string()), identity, hash_like })
}

/// Reads the row's own id: a string, or an unsigned integer as it is written.
fn own_id(document: &Document<'_>, field: &str) -> Result<MessageId, RowError> {
    let text = match document.text(field) {
        TextValue::Text(text) => Some(text.to_string()),
        TextValue::WrongType => {
            document.raw(field).map(RawValue::get).filter(|raw| is_number(raw)).map(str::to_owned)
        }
        TextValue::Absent => None,
    };
    let id = text.and_then(|text| MessageId::parse(&text));
    id.ok_or_else(|| RowError {
        field: field.to_owned().into(),
        code: "INVALID_ID".into(),
        message: "expected an id of 1 to 128 bytes".into(),
        column: None,
    })
}

/// Returns the error for a row that is not UTF-8, with a guess at its encoding. `column` is the first
/// invalid byte, counted from 1.
pub fn not_utf8(bytes: &[u8], column: usize) -> RowError {
    // Bytes that windows-1252 does not define.
    let undefined = [0x81, 0x8d, 0x8f, 0x90, 0x9d];
    let message = if bytes.contains(&0) {
        "not UTF-8; it looks like UTF-16 without a byte order mark"
    } else if bytes.iter().any(|byte| undefined.contains(byte)) {
        "not UTF-8, and not windows-1252"
    } else {
        "not UTF-8; it looks like windows-1252"
    };
    RowError::unreadable("NOT_UTF8", message, Some(column))
}

fn is_number(raw: &str) -> bool {
    raw.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the error for a row that is not a JSON object, with the column of the first invalid byte.
fn unreadable(row: &[u8]) -> RowError {
    let text = match std::str::from_utf8(row) {
        Ok(text) => text,
        Err(error) => {
            return not_utf8(row, error.valid_up_to() + 1);
        }
    };
    match serde_json::from_str::<Box<RawValue>>(text) {
        Err(error) => {
            RowError::unreadable("INVALID_JSON", "not valid JSON", Some(error.column().max(1)))
        }
        Ok(_) => RowError::unreadable("INVALID_JSON", "expected a JSON object", Some(1)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns the identity of a row with this user name and address.
    pub(in super::super) fn identity(username: u64, email: u64) -> Identity {
        Identity { user: [Some(username), Some(1000 + email)], id: None }
    }

    const GOOD: &str = r#"{"email":"a@b.co","fullname":{"firstname":"Ann"},"password":"secret-1","roles":["admin"],"nr":17,"x":"=1+1"}"#;

    fn rules(id_field: Option<&str>) -> RowRules {
        RowRules {
            contract: ContractId::Register,
            id_field: id_field.map(str::to_owned),
            policy: Policy::default(),
            allow_hash_like: false,
        }
    }

    fn errors(row: &[u8]) -> Vec<(String, String, Option<usize>)> {
        let errors = validate(&rules(None), row).err();
        let errors = errors.unwrap().into_iter();
        errors.map(|e| (e.field.into_owned(), e.code.into_owned(), e.column)).collect()
    }

    #[test]
    fn row_is_rewritten_with_the_contracts_fields_only() {
        let checked = validate(&rules(None), GOOD.as_bytes()).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&checked.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
        assert_eq!((checked.id, checked.identity.unique_fields()), (None, 1));
    }

    #[test]
    fn id_field_names_the_row() {
        let id = |field| validate(&rules(Some(field)), GOOD.as_bytes()).map(|row| row.id);
        assert_eq!(id("nr").unwrap(), MessageId::parse("17"));
        assert_eq!(id("email").unwrap(), MessageId::parse("a@b.co"));
        assert_eq!(id("missing").unwrap_err()[0].code, "INVALID_ID");
        assert_eq!(id("fullname").unwrap_err()[0].code, "INVALID_ID");
    }

    #[test]
    fn equal_addresses_give_the_same_identity() {
        let identity = |row: &str| validate(&rules(None), row.as_bytes()).unwrap().identity;
        let other = GOOD.replace("a@b.co", "A@B.co").replace("Ann", "Bob");
        assert_eq!(identity(GOOD), identity(&other));
        assert_ne!(identity(GOOD), identity(&GOOD.replace("a@b.co", "c@b.co")));
    }

    #[test]
    fn hash_as_clear_password_is_accepted_only_if_allowed_and_the_body_is_marked() {
        let row = GOOD.replace("secret-1", "pbkdf2_sha256$260000$salt$hash=");
        assert_eq!(errors(row.as_bytes())[0].1, "LOOKS_LIKE_HASH");
        let allowing = RowRules { allow_hash_like: true, ..rules(None) };
        let checked = validate(&allowing, row.as_bytes()).unwrap();
        assert_eq!(checked.hash_like, None);
        let again = validate(&rules(None), &checked.body).unwrap();
        assert_eq!(again.body, checked.body);
        let digest = GOOD.replace("secret-1", "5f4dcc3b5aa765d61d8327deb882cf99");
        let checked = validate(&rules(None), digest.as_bytes()).unwrap();
        assert_eq!(checked.hash_like, Some(HashLike::Digest));
    }

    #[test]
    fn unreadable_row_is_reported_with_its_column() {
        let one = |code: &str, column| vec![(String::new(), code.to_owned(), column)];
        assert_eq!(errors(br#"{"a":1,,}"#), one("INVALID_JSON", Some(8)));
        assert_eq!(errors(b"[1]"), one("INVALID_JSON", Some(1)));
        assert_eq!(errors(b"{\"a\":\"\xff\"}"), one("NOT_UTF8", Some(7)));
    }

    #[test]
    fn row_of_another_contract_is_rejected() {
        let row = GOOD.replacen('{', r#"{"contract":"username","#, 1);
        assert_eq!(errors(row.as_bytes())[0].1, "OTHER_CONTRACT");
        let row = GOOD.replacen('{', r#"{"contract":"register","#, 1);
        assert!(validate(&rules(None), row.as_bytes()).is_ok());
    }
}
