//! The contract `error-code`: `POST /<uri>/auth/signup`.
//!
//! Errors have a code and a message, all violated password rules are reported together, and a
//! successful response has no token.

use secrecy::SecretString;
use serde_json::{Value, json};

use super::document::TextValue;
use super::rules::{self, Violation};
use super::{ApiError, ApiResponse, Contract, Document, Policy, RenderedResponse, schema};
use crate::domain::{ContractId, Email, FieldError, User, ValidSignup};

pub(super) struct ErrorCode;

/// Minimum password length, in code points.
const PASSWORD_MIN: u64 = 10;

impl Contract for ErrorCode {
    fn id(&self) -> ContractId {
        ContractId::ErrorCode
    }

    fn check(
        &self,
        document: &Document<'_>,
        policy: &Policy,
    ) -> Result<ValidSignup, Vec<FieldError>> {
        let username = check_username(&document.text("username"), policy);
        let email = check_email(&document.text("email"), policy);
        let password = check_password(&document.text("password"), policy);
        match (username, email, password) {
            (Ok(username), Ok(email), Ok(password)) => Ok(ValidSignup {
                contract: self.id(),
                username: Some(username),
                email: Some(email),
                fullname: None,
                password: password.into(),
            }),
            (username, email, password) => {
                let single = [username.err(), email.err()].into_iter().flatten();
                Err(single.chain(password.err().into_iter().flatten()).collect())
            }
        }
    }

    fn schema(&self) -> Value {
        let classes = " At least one upper-case letter, one digit and one symbol.";
        let fields = json!({
            "username": schema::username(),
            "email": schema::email(),
            "password": schema::password(PASSWORD_MIN, classes),
        });
        schema::document(self.id().as_str(), fields, &["username", "email", "password"])
    }

    fn example(&self) -> Value {
        json!({ "username": "test", "email": "email@vigilo.com", "password": "Pas$_w0rds" })
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
            ApiResponse::Created { user, .. } => RenderedResponse::new(201, self.profile(user)),
            ApiResponse::Invalid(errors) => {
                let errors: Vec<Value> = errors
                    .iter()
                    .map(|error| {
                        json!({
                            "error_code": error.code,
                            "message": error.message,
                            "field": error.field,
                        })
                    })
                    .collect();
                RenderedResponse::new(
                    400,
                    validation_error("One or more validation errors occurred.", errors),
                )
            }
            ApiResponse::Duplicate(_) => {
                let identifier =
                    if response.is_duplicate_of("email") { "email" } else { "username" };
                let text = format!("User already exists with identifier: {identifier}");
                let body =
                    json!({ "error_code": "DUPLICATE_USER", "description": text, "error": text });
                RenderedResponse::new(409, body)
            }
            ApiResponse::Error(error) => RenderedResponse::new(error.status(), error_body(*error)),
        }
    }

    fn profile(&self, user: &User) -> Value {
        json!({ "username": user.username, "email": user.email })
    }
}

fn error_body(error: ApiError) -> Value {
    let code = match error {
        ApiError::InvalidJson | ApiError::InvalidIdempotencyKey => {
            return validation_error(error.text(), Vec::new());
        }
        ApiError::BodyTooLarge => "PAYLOAD_TOO_LARGE",
        ApiError::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
        ApiError::KeyReused => "KEY_REUSED",
        ApiError::RateLimited => "TOO_MANY_REQUESTS",
        ApiError::Internal => "INTERNAL_SERVER_ERROR",
        ApiError::Unavailable => "SERVICE_UNAVAILABLE",
        ApiError::Timeout => "GATEWAY_TIMEOUT",
    };
    json!({ "error_code": code, "description": error.text() })
}

fn validation_error(description: &str, errors: Vec<Value>) -> Value {
    json!({ "error_code": "VALIDATION_ERROR", "description": description, "errors": errors })
}

fn check_username(field: &TextValue, policy: &Policy) -> Result<String, FieldError> {
    required("username", field)?;
    rules::username(field, policy).map_err(|violation| match violation {
        Violation::TooLong => error(
            "username",
            "INVALID_LENGTH",
            format!("username must be at most {} characters long", rules::USERNAME_MAX),
        ),
        Violation::Empty => empty("username"),
        _ => error("username", "INVALID_CHARACTER", "username contains invalid characters".into()),
    })
}

fn check_email(field: &TextValue, policy: &Policy) -> Result<Email, FieldError> {
    let address = required("email", field)?;
    rules::email(field, policy).map_err(|violation| match violation {
        Violation::ForbiddenCharacter => {
            error("email", "INVALID_CHARACTER", "email contains invalid characters".into())
        }
        _ => error("email", "INVALID_EMAIL_FORMAT", format!("Invalid email format: {address}")),
    })
}

/// Checks all password rules, in the order of the published document.
fn check_password(field: &TextValue, policy: &Policy) -> Result<SecretString, Vec<FieldError>> {
    let password = match rules::text(field) {
        // Unlike a name, a password of only spaces is not empty.
        Ok(password) if !password.is_empty() => password,
        Ok(_) | Err(Violation::Missing) => return Err(vec![empty("password")]),
        Err(_) => return Err(vec![not_a_string("password")]),
    };
    let least = policy.min_length(PASSWORD_MIN);
    let too_short = format!("Password must be at least {least} characters");
    let checks = [
        (password.chars().count() as u64 >= least, "INVALID_LENGTH", too_short.as_str()),
        (
            rules::has_uppercase(password),
            "MISSING_UPPERCASE",
            "Password must contain at least one uppercase letter",
        ),
        (
            rules::has_digit(password),
            "MISSING_NUMBER",
            "Password must contain at least one numeric digit",
        ),
        (
            rules::has_symbol(password),
            "MISSING_SYMBOL",
            "Password must contain at least one symbol",
        ),
        (!password.contains('\0'), "INVALID_CHARACTER", "Password contains invalid characters"),
        (
            password.len() <= rules::PASSWORD_MAX_BYTES,
            "INVALID_LENGTH",
            "Password must be at most 72 bytes long",
        ),
        (!policy.is_common(password), "COMMON_PASSWORD", "Password is too common"),
    ];
    let errors: Vec<FieldError> = checks
        .into_iter()
        .filter(|(is_met, ..)| !is_met)
        .map(|(_, code, text)| error("password", code, text.into()))
        .collect();
    if errors.is_empty() { Ok(SecretString::from(password)) } else { Err(errors) }
}

/// Returns the text of a required field. White space alone counts as empty.
fn required<'a>(name: &'static str, field: &'a TextValue) -> Result<&'a str, FieldError> {
    match rules::text(field) {
        Ok(text) if !text.trim().is_empty() => Ok(text),
        Ok(_) | Err(Violation::Missing) => Err(empty(name)),
        Err(_) => Err(not_a_string(name)),
    }
}

fn empty(name: &'static str) -> FieldError {
    error(name, "EMPTY_FIELD", format!("{name} cannot be empty"))
}

fn not_a_string(name: &'static str) -> FieldError {
    error(name, "INVALID_TYPE", format!("{name} must be a string"))
}

fn error(field: &'static str, code: &'static str, message: String) -> FieldError {
    FieldError { field: field.into(), code: code.into(), message: message.into() }
}
