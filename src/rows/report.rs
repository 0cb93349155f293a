//! The report line of one row. It contains no token and no value of the row.

use std::borrow::Cow;

use serde::Serialize;

use crate::domain::{FieldError, Outcome, RegistrationId, RejectionCode, UserId};

/// The code of a row that was not sent because an earlier row of the same identity failed.
pub const EARLIER_ROW_FAILED: &str = "earlier_row_failed";

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RowReport {
    /// The line on which the row begins, from 1.
    pub line: u64,
    /// The registration id. `None` if the row was not sent and its id is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_id: Option<RegistrationId>,
    /// `registered`, `rejected` or `failed`, as in a reply. Imports have further values.
    pub outcome: &'static str,
    /// The reason, if the row was not registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Cow<'static, str>>,
    /// The id of the registered user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Whether the user was created earlier under the same registration id.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    /// The errors of the row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<RowError>,
}

/// An error of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowError {
    /// The field. Empty if the error concerns the whole row.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub field: Cow<'static, str>,
    /// A stable code.
    pub code: Cow<'static, str>,
    /// A message without any value of the row.
    pub message: Cow<'static, str>,
    /// The first byte of the line that is not valid, from 1. `None` if the line could be parsed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

impl RowError {
    pub(super) fn new(field: &'static str, code: &'static str, message: &'static str) -> Self {
        Self { field: field.into(), code: code.into(), message: message.into(), column: None }
    }

    /// Returns the error for a row that cannot be parsed.
    pub fn unreadable(code: &'static str, message: &'static str, column: Option<usize>) -> Self {
        Self { column, ..Self::new("", code, message) }
    }

    /// Returns the error for a row of more than `limit` bytes.
    pub fn too_long(limit: usize) -> Self {
        let message = format!("expected at most {limit} bytes");
        Self { message: message.into(), ..Self::new("", "TOO_LONG", "") }
    }
}

impl From<FieldError> for RowError {
    fn from(FieldError { field, code, message }: FieldError) -> Self {
        // `error-code` repeats the invalid address, which may be a password in the wrong column.
        let message = match &*code {
            "INVALID_EMAIL_FORMAT" => "expected an email address".into(),
            _ => message,
        };
        Self { field, code, message, column: None }
    }
}

impl RowReport {
    /// Reports a row that was rejected before it was sent.
    pub fn invalid(line: u64, id: Option<RegistrationId>, errors: Vec<RowError>) -> Self {
        Self {
            registration_id: id,
            code: Some("invalid".into()),
            errors,
            ..Self::empty(line, "rejected")
        }
    }

    /// Reports a row that was not sent because an earlier row of the same identity failed.
    pub fn earlier_row_failed(line: u64) -> Self {
        Self { code: Some(EARLIER_ROW_FAILED.into()), ..Self::empty(line, "failed") }
    }

    /// Reports the outcome of a row that was sent. `None`: no reply arrived in time.
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
            None => failed("timeout".into()),
        };
        Self { registration_id: Some(id), ..report }
    }

    /// Whether the row was rejected because another user has its user name or address.
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
    fn errors_contain_no_value_of_the_row() {
        let row =
            br#"{"username": "hunter2 and more", "email": "hunter2", "password": "hunter2@b.co",
            "fullname": {"firstname": "hunter2"}, "firstname": "hunter2", "lastname": "hunter2"}"#;
        for id in ContractId::ALL {
            let document = Document::parse(row).unwrap();
            let refused = check_bulk(contract(id), &document, &Policy::default());
            for error in refused.err().into_iter().flatten().map(RowError::from) {
                let report = serde_json::to_string(&error).unwrap();
                assert!(!report.contains("hunter2"), "{id}: {report}");
            }
        }
    }
}
