//! One row: read, checked by its contract's rules and written again with the contract's own fields, so
//! that nothing else a producer sent travels on.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use secrecy::ExposeSecret;
use serde_json::value::RawValue;

use super::RowError;
use crate::contract::document::TextValue;
use crate::contract::{
    ALLOW_HASH_LIKE, Document, HashLike, Policy, allows_hash_like, check_bulk, contract, detect_hash,
    hash_like_error,
};
use crate::domain::{ValidSignup, ContractId, Email, MessageId, Password};

/// A row that passed.
#[derive(Clone, PartialEq, Eq)]
pub struct ValidRow {
    /// Its own id, if it names one.
    pub id: Option<MessageId>,
    /// The contract's document.
    pub body: Bytes,
    /// What no other row may share.
    pub identity: Identity,
    /// How much its clear password looks like a hash; `None` if it has none, or it is allowed to.
    pub hash_like: Option<HashLike>,
}

impl ValidRow {
    /// The error of a row whose bare digest turned out to be a hash.
    pub fn as_hash(&self) -> Vec<RowError> {
        vec![hash_like_error().into()]
    }
}

/// A row's user name, address and own id, each as a hash. Equal ones are equal or, rarely, not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    user: [Option<u64>; 2],
    id: Option<u64>,
}

impl Identity {
    fn from_candidate(signup: &ValidSignup, id: Option<&MessageId>) -> Self {
        let username = signup.username.as_deref().map(|name| hash(0, name));
        let email = signup.email.as_ref().map(|email| hash(1, Email::key(email)));
        Self { user: [username, email], id: id.map(|id| hash(2, id.as_str())) }
    }

    /// How many fields no other user may have.
    pub fn unique(&self) -> usize {
        self.user.iter().flatten().count()
    }

    /// Everything that makes two rows one.
    pub(super) fn keys(&self) -> impl Iterator<Item = u64> + use<> {
        self.user.into_iter().chain([self.id]).flatten()
    }
}

fn hash(kind: u8, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (kind, text).hash(&mut hasher);
    hasher.finish()
}

/// How rows are checked.
#[derive(Clone, Debug)]
pub struct RowRules {
    /// Whose documents they are.
    pub contract: ContractId,
    /// The field that holds a row's own id.
    pub id_field: Option<String>,
    /// What is asked of passwords beyond the contract.
    pub policy: Policy,
    /// Whether every clear password may look like a hash.
    pub allow_hash_like: bool,
}

/// Checks a row: a contract's document, in which the field `id_field` may name the row. Errors stand
/// in the order of the contract's own.
pub fn validate(rules: &RowRules, row: &[u8]) -> Result<ValidRow, Vec<RowError>> {
    let mut document = Document::parse(row).map_err(|_| vec![unreadable(row)])?;
    match document.text("contract") {
        TextValue::Absent => {}
        TextValue::Text(named) if named.as_str() == rules.contract.as_str() => {}
        _ => {
            let text = "a row cannot name another contract than its import";
            return Err(vec![RowError::new("contract", "OTHER_CONTRACT", text)]);
        }
    }
    let own = match &rules.id_field {
        Some(field) => Some(own_id(&document, field).map_err(|error| vec![error])?),
        None => None,
    };
    let yes: &RawValue = serde_json::from_str("true").expect("a JSON text");
    if rules.allow_hash_like {
        document.put(ALLOW_HASH_LIKE, yes);
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
    let identity = Identity::from_candidate(&signup, own.as_ref());
    Ok(ValidRow { id: own, body: Bytes::from(body.to_string()), identity, hash_like })
}

/// The row's own id: a text, or a number as it is written.
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
        message: "an id of 1 to 128 bytes wanted".into(),
        column: None,
    })
}

/// A row that is not UTF-8, and what it looks like instead.
pub fn not_utf8(bytes: &[u8], column: usize) -> RowError {
    // Bytes that windows-1252 leaves undefined.
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

/// What is wrong with a row that is no document, and at which byte.
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
        Ok(_) => RowError::unreadable("INVALID_JSON", "a JSON object wanted", Some(1)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The identity of a row with this user name and address.
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
    fn a_row_is_written_again() {
        let checked = validate(&rules(None), GOOD.as_bytes()).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&checked.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
        assert_eq!((checked.id, checked.identity.unique()), (None, 1));
    }

    #[test]
    fn a_row_may_name_itself() {
        let id = |field| validate(&rules(Some(field)), GOOD.as_bytes()).map(|row| row.id);
        assert_eq!(id("nr").unwrap(), MessageId::parse("17"));
        assert_eq!(id("email").unwrap(), MessageId::parse("a@b.co"));
        assert_eq!(id("missing").unwrap_err()[0].code, "INVALID_ID");
        assert_eq!(id("fullname").unwrap_err()[0].code, "INVALID_ID");
    }

    #[test]
    fn equal_addresses_are_one_identity() {
        let identity = |row: &str| validate(&rules(None), row.as_bytes()).unwrap().identity;
        let other = GOOD.replace("a@b.co", "A@B.co").replace("Ann", "Bob");
        assert_eq!(identity(GOOD), identity(&other));
        assert_ne!(identity(GOOD), identity(&GOOD.replace("a@b.co", "c@b.co")));
    }

    #[test]
    fn a_hash_is_admitted_only_if_that_is_allowed_and_the_worker_is_shown_it() {
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
    fn what_cannot_be_read_is_told_with_its_column() {
        let one = |code: &str, column| vec![(String::new(), code.to_owned(), column)];
        assert_eq!(errors(br#"{"a":1,,}"#), one("INVALID_JSON", Some(8)));
        assert_eq!(errors(b"[1]"), one("INVALID_JSON", Some(1)));
        assert_eq!(errors(b"{\"a\":\"\xff\"}"), one("NOT_UTF8", Some(7)));
    }

    #[test]
    fn a_row_names_no_other_contract() {
        let row = GOOD.replacen('{', r#"{"contract":"username","#, 1);
        assert_eq!(errors(row.as_bytes())[0].1, "OTHER_CONTRACT");
        let row = GOOD.replacen('{', r#"{"contract":"register","#, 1);
        assert!(validate(&rules(None), row.as_bytes()).is_ok());
    }
}
