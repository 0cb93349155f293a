//! One row: read, checked by its contract's rules and written anew with the contract's own fields, so
//! that nothing else a producer sent travels on.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::RowError;
use crate::contract::document::Field;
use crate::contract::{Document, Policy, check_bulk, contract};
use crate::signup::{ContractId, MessageId};

/// A row that passed.
#[derive(Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its own id, if it names one.
    pub id: Option<MessageId>,
    /// The contract's document.
    pub body: Bytes,
    /// Fields of it that nobody else may have.
    pub unique: usize,
}

/// Checks a row: a contract's document, in which the field `id_field` may name the row. Errors stand
/// in the order of the contract's own.
pub fn check(
    id: ContractId,
    row: &[u8],
    id_field: Option<&str>,
    policy: &Policy,
) -> Result<Checked, Vec<RowError>> {
    let document = Document::parse(row).map_err(|_| vec![unreadable(row)])?;
    match document.text("contract") {
        Field::Absent => {}
        Field::Text(named) if named.as_str() == id.as_str() => {}
        _ => {
            let text = "a row cannot name another contract than its import";
            return Err(vec![RowError::of("contract", "OTHER_CONTRACT", text)]);
        }
    }
    let own = match id_field {
        Some(field) => Some(own_id(&document, field).map_err(|error| vec![error])?),
        None => None,
    };
    let contract = contract(id);
    let candidate = check_bulk(contract, &document, policy)
        .map_err(|errors| errors.into_iter().map(RowError::from).collect::<Vec<_>>())?;
    let unique = usize::from(candidate.username.is_some()) + usize::from(candidate.email.is_some());
    let body = Bytes::from(contract.write(&candidate).to_string());
    Ok(Checked { id: own, body, unique })
}

/// The row's own id: a text, or a number as it is written.
fn own_id(document: &Document<'_>, field: &str) -> Result<MessageId, RowError> {
    let text = match document.text(field) {
        Field::Text(text) => Some(text.to_string()),
        Field::Wrong => {
            document.raw(field).map(RawValue::get).filter(|raw| is_number(raw)).map(str::to_owned)
        }
        Field::Absent => None,
    };
    let id = text.and_then(|text| MessageId::parse(&text));
    id.ok_or_else(|| RowError {
        field: field.to_owned().into(),
        code: "INVALID_ID".into(),
        message: "an id of 1 to 128 bytes wanted".into(),
        column: None,
    })
}

fn is_number(raw: &str) -> bool {
    raw.bytes().all(|byte| byte.is_ascii_digit())
}

/// What is wrong with a row that is no document, and at which byte.
fn unreadable(row: &[u8]) -> RowError {
    let text = match std::str::from_utf8(row) {
        Ok(text) => text,
        Err(error) => {
            return RowError::unreadable("NOT_UTF8", "not UTF-8", Some(error.valid_up_to() + 1));
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
mod tests {
    use super::*;

    const GOOD: &str = r#"{"email":"a@b.co","fullname":{"firstname":"Ann"},"password":"secret-1","roles":["admin"],"nr":17,"x":"=1+1"}"#;

    fn errors(row: &[u8]) -> Vec<(String, String, Option<usize>)> {
        let errors = check(ContractId::Register, row, None, &Policy::default()).err();
        let told = errors.unwrap().into_iter();
        told.map(|e| (e.field.into_owned(), e.code.into_owned(), e.column)).collect()
    }

    #[test]
    fn a_row_is_written_anew() {
        let checked =
            check(ContractId::Register, GOOD.as_bytes(), None, &Policy::default()).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&checked.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
        assert_eq!((checked.id, checked.unique), (None, 1));
    }

    #[test]
    fn a_row_may_name_itself() {
        let id = |field| {
            check(ContractId::Register, GOOD.as_bytes(), Some(field), &Policy::default())
                .map(|row| row.id)
        };
        assert_eq!(id("nr").unwrap(), MessageId::parse("17"));
        assert_eq!(id("email").unwrap(), MessageId::parse("a@b.co"));
        assert_eq!(id("missing").unwrap_err()[0].code, "INVALID_ID");
        assert_eq!(id("fullname").unwrap_err()[0].code, "INVALID_ID");
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
        assert!(check(ContractId::Register, row.as_bytes(), None, &Policy::default()).is_ok());
    }
}
