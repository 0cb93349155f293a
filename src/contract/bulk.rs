//! Bulk documents: a contract's document that may have two more fields. `passwordHash` replaces
//! `password` with a hash made elsewhere; `allowHashLikePassword` permits a clear password that looks
//! like a hash.

use secrecy::SecretString;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::document::TextValue;
use super::hash_detection::{HashLike, detect_hash};
use super::{Contract, Document, Policy, rules, schema};
use crate::domain::{FieldError, Password, ValidSignup};

/// The field that holds a bcrypt hash.
pub const PASSWORD_HASH: &str = "passwordHash";
/// The field that permits a clear password that looks like a hash, if it is `true`.
pub const ALLOW_HASH_LIKE: &str = "allowHashLikePassword";
const PASSWORD: &str = "password";

/// A JSON string that every contract accepts as a password. It replaces the unknown password while
/// the contract checks the other fields, and is discarded afterwards.
const PLACEHOLDER_PASSWORD: &str = "\"Pass-word1\"";

/// Validates a bulk document against its contract's rules and the policy. If it has a hash, the
/// password rules do not apply, because the password is unknown.
///
/// # Errors
/// The contract's errors in its field order, then the error of the hash.
pub fn check_bulk(
    contract: &dyn Contract,
    document: &Document<'_>,
    policy: &Policy,
) -> Result<ValidSignup, Vec<FieldError>> {
    let hash = match document.text(PASSWORD_HASH) {
        TextValue::Absent => return check_clear_password(contract, document, policy),
        _ if !matches!(document.text(PASSWORD), TextValue::Absent) => {
            Err(error("CONFLICTING_FIELDS", "Give either password or passwordHash, not both"))
        }
        given => password_hash(&given),
    };
    let placeholder: &RawValue = serde_json::from_str(PLACEHOLDER_PASSWORD).expect("valid JSON");
    let mut rest = document.clone();
    rest.put(PASSWORD, placeholder);
    match (contract.check(&rest, &policy.without_passwords()), hash) {
        (Ok(signup), Ok(hash)) => Ok(ValidSignup { password: Password::Hashed(hash), ..signup }),
        (checked, hash) => {
            let errors = checked.err().unwrap_or_default();
            Err(errors.into_iter().chain(hash.err()).collect())
        }
    }
}

fn check_clear_password(
    contract: &dyn Contract,
    document: &Document<'_>,
    policy: &Policy,
) -> Result<ValidSignup, Vec<FieldError>> {
    let checked = contract.check(document, policy);
    let is_hash = match document.text(PASSWORD) {
        TextValue::Text(text) => detect_hash(&text) == HashLike::Format,
        _ => false,
    };
    if !is_hash || allows_hash_like(document) {
        return checked;
    }
    // The contract's other password errors are dropped: they would describe a hash.
    let mut errors = checked.err().unwrap_or_default();
    errors.retain(|error| error.field != PASSWORD);
    errors.push(hash_like_error());
    Err(errors)
}

/// Whether a document permits that its clear password looks like a hash.
pub fn allows_hash_like(document: &Document<'_>) -> bool {
    document.raw(ALLOW_HASH_LIKE).is_some_and(|raw| raw.get() == "true")
}

/// Returns the error for a clear password that looks like a hash.
pub fn hash_like_error() -> FieldError {
    FieldError {
        field: PASSWORD.into(),
        code: "LOOKS_LIKE_HASH".into(),
        message: "The password looks like a hash; send a hash as passwordHash".into(),
    }
}

/// Returns the JSON Schema of a contract's bulk document, with a clear password or a hash.
pub fn bulk_schema(contract: &dyn Contract) -> Value {
    let mut schema = contract.schema();
    schema["properties"][PASSWORD_HASH] = schema::password_hash();
    schema["properties"][ALLOW_HASH_LIKE] = json!({
        "description": "If true, a clear password that looks like a hash is accepted. Otherwise the \
                        row is rejected with LOOKS_LIKE_HASH.",
    });
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|field| field != PASSWORD);
    }
    schema["oneOf"] = json!([{ "required": [PASSWORD] }, { "required": [PASSWORD_HASH] }]);
    schema
}

/// A field that a bulk document may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkField {
    /// The path of the field, such as `fullname.firstname`.
    pub name: String,
    /// Whether every document must have it. False for `password` and `passwordHash`, of which a
    /// document has exactly one.
    pub is_required: bool,
}

/// Returns the string fields of a contract's bulk document.
pub fn bulk_fields(contract: &dyn Contract) -> Vec<BulkField> {
    let mut fields = Vec::new();
    collect_fields(&bulk_schema(contract), "", true, &mut fields);
    fields.retain(|field| field.name != ALLOW_HASH_LIKE);
    fields
}

fn collect_fields(schema: &Value, prefix: &str, is_required: bool, fields: &mut Vec<BulkField>) {
    let required = schema["required"].as_array();
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let is_required =
            is_required && required.is_some_and(|required| required.iter().any(|r| r == key));
        let name = format!("{prefix}{key}");
        if inner["properties"].is_object() {
            collect_fields(inner, &format!("{name}."), is_required, fields);
        } else {
            fields.push(BulkField { name, is_required });
        }
    }
}

fn password_hash(field: &TextValue) -> Result<SecretString, FieldError> {
    let text = match field {
        TextValue::Text(text) => text.as_str(),
        _ => return Err(error("INVALID_TYPE", "passwordHash must be a string")),
    };
    if rules::is_bcrypt(text) {
        Ok(SecretString::from(text))
    } else if text.starts_with("$argon2") {
        Err(error("UNSUPPORTED_HASH", "passwordHash is argon2; only bcrypt is supported"))
    } else {
        let (min, max) = (rules::HASH_COSTS.start(), rules::HASH_COSTS.end());
        let text = format!(
            "passwordHash must be a bcrypt hash ($2a$, $2b$ or $2y$) with a cost from {min} to {max}"
        );
        Err(FieldError { message: text.into(), ..error("INVALID_HASH", "") })
    }
}

fn error(code: &'static str, message: &'static str) -> FieldError {
    FieldError { field: PASSWORD_HASH.into(), code: code.into(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::contract;
    use crate::domain::ContractId;

    const HASH: &str = "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u";

    fn codes(contract_id: ContractId, document: &str) -> Vec<String> {
        // The minimum exceeds the length of the placeholder password, to which it must not apply.
        let policy = Policy::new(11, ["Secret-1234"].iter().collect());
        let document = Document::parse(document.as_bytes()).unwrap();
        match check_bulk(contract(contract_id), &document, &policy) {
            Ok(signup) => vec![signup.password.in_document().0.to_owned()],
            Err(errors) => errors.into_iter().map(|error| error.code.into_owned()).collect(),
        }
    }

    #[test]
    fn every_contract_accepts_a_hash_instead_of_a_password() {
        let fields =
            r#""username":"ann","email":"a@b.co","firstname":"Ann","fullname":{"firstname":"Ann"}"#;
        for id in ContractId::ALL {
            let with = |more: &str| codes(id, &format!("{{{fields},{more}}}"));
            assert_eq!(with(&format!(r#""passwordHash":"{HASH}""#)), [PASSWORD_HASH], "{id}");
            assert_eq!(with(r#""password":"Secret-12345""#), [PASSWORD], "{id}");
            assert_eq!(with(r#""password":"Secret-123""#), ["INVALID_LENGTH"], "{id}");
            assert_eq!(with(r#""password":"Secret-1234""#), ["COMMON_PASSWORD"], "{id}");
            let both = format!(r#""password":"Secret-123","passwordHash":"{HASH}""#);
            assert_eq!(with(&both), ["CONFLICTING_FIELDS"], "{id}");
            assert_eq!(with(r#""passwordHash":7"#), ["INVALID_TYPE"], "{id}");
            assert_eq!(
                with(r#""passwordHash":"$argon2id$v=19$m=1""#),
                ["UNSUPPORTED_HASH"],
                "{id}"
            );
            assert_eq!(with(r#""passwordHash":"secret""#), ["INVALID_HASH"], "{id}");
        }
    }

    #[test]
    fn bulk_fields_match_the_schema() {
        let fields = |id| {
            let all = bulk_fields(contract(id)).into_iter();
            all.map(|field| (field.name, field.is_required)).collect::<Vec<_>>()
        };
        let field = |name: &str, is_required| (name.to_owned(), is_required);
        let mut register = fields(ContractId::Register);
        register.sort();
        let expected = [
            field("email", true),
            field("fullname.firstname", true),
            field("fullname.lastname", false),
            field("password", false),
            field("passwordHash", false),
        ];
        assert_eq!(register, expected);
        assert!(fields(ContractId::Username).contains(&field("username", true)));
    }

    fn schema_accepts(document: &Value) -> bool {
        let schema = bulk_schema(contract(ContractId::Username));
        jsonschema::validator_for(&schema).unwrap().is_valid(document)
    }

    #[test]
    fn schema_accepts_only_bcrypt_hashes() {
        // A hash that begins with `start`, padded to the right length.
        let hash = |start: &str| format!("{start:.<width$}", width = rules::HASH_LENGTH);
        let accepts =
            |hash: &str| schema_accepts(&json!({ "username": "ann", "passwordHash": hash }));
        for start in ["$2a$08$", "$2b$10$", "$2y$14$"] {
            assert!(accepts(&hash(start)), "{start}");
        }
        for bad in ["$2x$10$", "$2b$07$", "$2b$15$", "$2b$9$", "$argon2id$v=19$", "$2b$10$-"] {
            assert!(!accepts(&hash(bad)), "{bad}");
        }
        assert!(!accepts(&hash("$2b$10$")[1..]));
        assert!(!accepts(&format!("{}.", hash("$2b$10$"))));
    }

    #[test]
    fn schema_requires_either_a_password_or_a_hash() {
        assert!(schema_accepts(&json!({ "username": "ann", "password": "secret-1" })));
        assert!(schema_accepts(&json!({ "username": "ann", "passwordHash": HASH })));
        let both = json!({ "username": "ann", "password": "secret-1", "passwordHash": HASH });
        assert!(!schema_accepts(&both));
        assert!(!schema_accepts(&json!({ "username": "ann" })));
    }

    #[test]
    fn hash_as_clear_password_is_rejected_unless_allowed() {
        let fields =
            r#""username":"ann","email":"a@b.co","firstname":"Ann","fullname":{"firstname":"Ann"}"#;
        for id in ContractId::ALL {
            let with = |more: &str| codes(id, &format!("{{{fields},{more}}}"));
            for hash in
                [HASH, "pbkdf2_sha256$260000$salt$hash=", "{SSHA}x", &"$6$salt$0".repeat(12)]
            {
                let hash = serde_json::to_string(hash).unwrap();
                assert_eq!(with(&format!(r#""password":{hash}"#)), ["LOOKS_LIKE_HASH"], "{id}");
            }
            let allowed = format!(r#""password":"{HASH}","allowHashLikePassword":true"#);
            assert_eq!(with(&allowed), [PASSWORD], "{id}");
            let other = allowed.replace("true", "false");
            assert_eq!(with(&other), ["LOOKS_LIKE_HASH"], "{id}");
        }
    }

    #[test]
    fn hash_error_follows_the_contracts_errors() {
        let bad = r#"{"email":"a","passwordHash":"x"}"#;
        let found = codes(ContractId::ErrorCode, bad);
        assert_eq!(found.last().map(String::as_str), Some("INVALID_HASH"));
        assert!(found.len() > 1, "{found:?}");
    }
}
