//! How one row ended, as the line that is reported of it: no token, and nothing of what the row held.

use std::borrow::Cow;

use serde::Serialize;

use crate::domain::{FieldError, Outcome, RegistrationId, RejectionCode, UserId};

/// The code of a row that was not sent, because an earlier one of the same identity failed.
pub const EARLIER_ROW_FAILED: &str = "earlier_row_failed";

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RowReport {
    /// Where the row begins, counted from 1.
    pub line: u64,
    /// The identity under which the user is stored; none for a row that could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id: Option<RegistrationId>,
    /// `registered`, `rejected` or `failed`, as in a reply; an import has some of its own.
    pub outcome: &'static str,
    /// Why not registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Cow<'static, str>>,
    /// The user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Whether the same row had been registered before, under the same id.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<RowError>,
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowError {
    /// The field; empty where it is the whole row.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub field: Cow<'static, str>,
    /// A stable code.
    pub code: Cow<'static, str>,
    /// A text that repeats no value.
    pub message: Cow<'static, str>,
    /// The byte of the line at which it cannot be read, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

impl RowError {
    pub(super) fn new(field: &'static str, code: &'static str, message: &'static str) -> Self {
        Self { field: field.into(), code: code.into(), message: message.into(), column: None }
    }

    /// A row that is no document at all.
    pub fn unreadable(code: &'static str, message: &'static str, column: Option<usize>) -> Self {
        Self { column, ..Self::new("", code, message) }
    }

    /// A row that is longer than may be.
    pub fn too_long(limit: usize) -> Self {
        let message = format!("at most {limit} bytes wanted");
        Self { message: message.into(), ..Self::new("", "TOO_LONG", "") }
    }
}

impl From<FieldError> for RowError {
    fn from(FieldError { field, code, message }: FieldError) -> Self {
        // One contract repeats what is no address, which may be a password in the wrong column.
        let message = match &*code {
            "INVALID_EMAIL_FORMAT" => "an e-mail address wanted".into(),
            _ => message,
        };
        Self { field, code, message, column: None }
    }
}

impl RowReport {
    /// A row that was refused before it was sent.
    pub fn invalid(line: u64, id: Option<RegistrationId>, errors: Vec<RowError>) -> Self {
        Self {
            registration_id: id,
            code: Some("invalid".into()),
            errors,
            ..Self::empty(line, "rejected")
        }
    }

    /// A row that was not sent, because an earlier one of the same identity failed.
    pub fn earlier_row_failed(line: u64) -> Self {
        Self { code: Some(EARLIER_ROW_FAILED.into()), ..Self::empty(line, "failed") }
    }

    /// A row that was answered, or for which nobody answered.
    pub fn from_outcome(line: u64, id: RegistrationId, outcome: Option<Outcome>) -> Self {
        let failed =
            |code: Cow<'static, str>| Self { code: Some(code), ..Self::empty(line, "failed") };
        let report = match outcome {
            Some(Outcome::Registered { user, replayed, .. }) => {
                Self { user_id: Some(user.id), replayed, ..Self::empty(line, "registered") }
            }
            Some(Outcome::Rejected(rejection)) => Self {
                code: Some(Outcome::from(rejection.code).label().into()),
                errors: rejection.errors.into_iter().map(RowError::from).collect(),
                ..Self::empty(line, "rejected")
            },
            Some(Outcome::Profile { .. }) => failed("internal".into()),
            Some(failure @ Outcome::Failed(_)) => failed(failure.label().into()),
            None => failed("no_answer".into()),
        };
        Self { registration_id: Some(id), ..report }
    }

    /// Whether the user name or address belongs to somebody else.
    pub fn is_duplicate(&self) -> bool {
        let duplicate = Outcome::from(RejectionCode::Duplicate).label();
        self.outcome == "rejected" && self.code.as_deref() == Some(duplicate)
    }

    fn empty(line: u64, outcome: &'static str) -> Self {
        Self {
            line,
            registration_id: None,
            outcome,
            code: None,
            user_id: None,
            replayed: false,
            errors: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Document, Policy, check_bulk, contract};
    use crate::domain::ContractId;

    #[test]
    fn no_value_of_a_row_is_repeated() {
        let row =
            br#"{"username": "hunter2 and more", "email": "hunter2", "password": "hunter2@b.co",
            "fullname": {"firstname": "hunter2"}, "firstname": "hunter2", "lastname": "hunter2"}"#;
        for id in ContractId::ALL {
            let document = Document::parse(row).unwrap();
            let refused = check_bulk(contract(id), &document, &Policy::default());
            for error in refused.err().into_iter().flatten().map(RowError::from) {
                let told = serde_json::to_string(&error).unwrap();
                assert!(!told.contains("hunter2"), "{id}: {told}");
            }
        }
    }
}
