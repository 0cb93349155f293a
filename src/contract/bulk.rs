//! What only bulk documents may hold: a password that was hashed elsewhere, as `passwordHash` in the
//! place of `password`. Everything else about them is their contract's.

use secrecy::SecretString;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::document::Field;
use super::{Contract, Document, Policy, rules, schema};
use crate::signup::{Candidate, FieldError, Password};

/// Where the hash stands.
pub const PASSWORD_HASH: &str = "passwordHash";
const PASSWORD: &str = "password";

/// A password, quoted, that every contract takes. It stands in for the one nobody knows while the
/// contract judges the rest, and goes no further.
const STAND_IN: &str = "\"Stand-in-1\"";

/// Applies a contract's rules to a bulk document, and the policy to a clear password: of what was hashed
/// elsewhere nobody knows how long or common it was. An error of the hash comes last.
pub fn check_bulk(
    contract: &dyn Contract,
    document: &Document<'_>,
    policy: &Policy,
) -> Result<Candidate, Vec<FieldError>> {
    let hash = match document.text(PASSWORD_HASH) {
        Field::Absent => return contract.check(document, policy),
        _ if !matches!(document.text(PASSWORD), Field::Absent) => {
            Err(error("CONFLICTING_FIELDS", "Give either password or passwordHash, not both"))
        }
        given => password_hash(&given),
    };
    let stand_in: &RawValue = serde_json::from_str(STAND_IN).expect("a JSON text");
    let mut rest = document.clone();
    rest.put(PASSWORD, stand_in);
    match (contract.check(&rest, &Policy::default()), hash) {
        (Ok(candidate), Ok(hash)) => {
            Ok(Candidate { password: Password::Hashed(hash), ..candidate })
        }
        (checked, hash) => {
            let errors = checked.err().unwrap_or_default();
            Err(errors.into_iter().chain(hash.err()).collect())
        }
    }
}

/// The JSON Schema of a contract's bulk document, its password in clear or as a hash.
pub fn bulk_schema(contract: &dyn Contract) -> Value {
    let mut schema = contract.schema();
    schema["properties"][PASSWORD_HASH] = schema::password_hash();
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|field| field != PASSWORD);
    }
    schema["oneOf"] = json!([{ "required": [PASSWORD] }, { "required": [PASSWORD_HASH] }]);
    schema
}

fn password_hash(field: &Field) -> Result<SecretString, FieldError> {
    let text = match field {
        Field::Text(text) => text.as_str(),
        _ => return Err(error("INVALID_TYPE", "passwordHash must be a text")),
    };
    if rules::is_bcrypt(text) {
        Ok(SecretString::from(text))
    } else if text.starts_with("$argon2") {
        Err(error("UNSUPPORTED_HASH", "passwordHash is argon2; only bcrypt is taken for now"))
    } else {
        let (least, most) = (rules::HASH_COSTS.start(), rules::HASH_COSTS.end());
        let text = format!(
            "passwordHash must be a bcrypt string ($2a$, $2b$ or $2y$) of a cost from {least} to {most}"
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
    use crate::signup::ContractId;

    const HASH: &str = "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u";

    fn codes(contract_id: ContractId, document: &str) -> Vec<String> {
        // Longer than the one that stands in for a hash.
        let policy = Policy::new(11, ["Secret-1234"].iter().collect());
        let document = Document::parse(document.as_bytes()).unwrap();
        match check_bulk(contract(contract_id), &document, &policy) {
            Ok(candidate) => vec![candidate.password.in_document().0.to_owned()],
            Err(errors) => errors.into_iter().map(|error| error.code.into_owned()).collect(),
        }
    }

    #[test]
    fn every_contract_takes_a_hash_in_the_place_of_a_password() {
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
    fn the_contracts_own_errors_are_told_as_well() {
        let bad = r#"{"email":"a","passwordHash":"x"}"#;
        let told = codes(ContractId::ErrorCode, bad);
        assert_eq!(told.last().map(String::as_str), Some("INVALID_HASH"));
        assert!(told.len() > 1, "{told:?}");
    }
}
