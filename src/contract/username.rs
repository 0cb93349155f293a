//! The contract `username`: `POST /signup` with a user name and an optional email address.
//!
//! Its responses hold one message, so only the first violation is reported.

use serde_json::{Value, json};

use super::document::TextValue;
use super::rules::{self, Violation};
use super::{ApiResponse, Contract, Document, Policy, RenderedResponse, schema};
use crate::domain::{ContractId, Email, FieldError, User, ValidSignup};

pub(super) struct Username;

/// Minimum password length, in code points. The published document sets none, so that a password of
/// one character would be valid.
const PASSWORD_MIN: u64 = 6;

impl Contract for Username {
    fn id(&self) -> ContractId {
        ContractId::Username
    }

    fn check(
        &self,
        document: &Document<'_>,
        policy: &Policy,
    ) -> Result<ValidSignup, Vec<FieldError>> {
        let username = rules::username(&document.text("username"), policy)
            .map_err(|violation| vec![error("username", "Username", violation)])?;
        let email = match document.text("email") {
            TextValue::Absent => None,
            given => Some(
                rules::email(&given, policy)
                    .map_err(|violation| vec![error("email", "Email", violation)])?,
            ),
        };
        let password = required_password(&document.text("password"), policy)
            .map_err(|violation| vec![error("password", "Password", violation)])?;
        Ok(ValidSignup {
            contract: self.id(),
            username: Some(username),
            email,
            fullname: None,
            password: password.into(),
        })
    }

    fn schema(&self) -> Value {
        let fields = json!({
            "username": schema::username(),
            "email": schema::optional_email(),
            "password": schema::password(PASSWORD_MIN, ""),
        });
        schema::document(self.id().as_str(), fields, &["username", "password"])
    }

    fn example(&self) -> Value {
        json!({ "username": "John Doe", "email": "john.doe@example.com", "password": "securePassword123" })
    }

    fn write(&self, signup: &ValidSignup) -> Value {
        let (key, password) = signup.password.in_document();
        json!({
            "username": signup.username,
            "email": signup.email.as_ref().map(Email::address),
            (key): password,
        })
    }

    fn render(&self, response: &ApiResponse<'_>) -> RenderedResponse {
        match response {
            ApiResponse::Created { user, token } => {
                let mut body = self.profile(user);
                if let Some(token) = token {
                    body["token"] = json!(token);
                }
                RenderedResponse::new(201, body)
            }
            ApiResponse::Invalid(errors) => RenderedResponse::new(
                400,
                message_body(errors.first().map_or("", |error| &error.message)),
            ),
            ApiResponse::Duplicate(_) => {
                let field = if response.is_duplicate_of("username") { "username" } else { "email" };
                RenderedResponse::new(403, message_body(&format!("That {field} is already taken")))
            }
            ApiResponse::Error(error) => {
                RenderedResponse::new(error.status(), message_body(error.text()))
            }
        }
    }

    fn profile(&self, user: &User) -> Value {
        let mut shown = json!({ "_id": user.id, "username": user.username });
        if let Some(email) = &user.email {
            shown["email"] = json!(email);
        }
        json!({ "user": shown })
    }
}

/// Validates the password. An empty one counts as missing.
fn required_password(
    field: &TextValue,
    policy: &Policy,
) -> Result<secrecy::SecretString, Violation> {
    if rules::text(field)?.is_empty() {
        return Err(Violation::Empty);
    }
    rules::password(field, PASSWORD_MIN, policy)
}

fn message_body(text: &str) -> Value {
    json!({ "message": text, "errMsg": text })
}

fn error(field: &'static str, label: &str, violation: Violation) -> FieldError {
    let (code, message) = match violation {
        // The email is optional, so "is required" would be wrong.
        Violation::WrongType if field == "email" => ("INVALID_TYPE", "Invalid email".into()),
        Violation::NotAnAddress => ("INVALID_EMAIL_FORMAT", "Invalid email".into()),
        Violation::Missing | Violation::Empty => ("EMPTY_FIELD", format!("{label} is required")),
        Violation::WrongType => ("INVALID_TYPE", format!("{label} is required")),
        Violation::TooShort => {
            ("INVALID_LENGTH", format!("{label} must be at least {PASSWORD_MIN} characters long"))
        }
        Violation::BelowPolicyMinimum(least) => {
            ("INVALID_LENGTH", format!("{label} must be at least {least} characters long"))
        }
        Violation::CommonPassword => ("COMMON_PASSWORD", format!("{label} is too common")),
        Violation::TooLong => (
            "INVALID_LENGTH",
            format!("{label} must be at most {} characters long", rules::USERNAME_MAX),
        ),
        Violation::ForbiddenCharacter => {
            ("INVALID_CHARACTER", format!("{label} contains invalid characters"))
        }
        Violation::TooManyBytes => (
            "INVALID_LENGTH",
            format!("{label} must be at most {} bytes long", rules::PASSWORD_MAX_BYTES),
        ),
    };
    FieldError { field: field.into(), code: code.into(), message: message.into() }
}
