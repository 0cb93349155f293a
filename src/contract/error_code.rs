//! `error-code`: `POST /<uri>/auth/signup`. Errors are codes with a text, the password may break
//! several rules in one answer, and a success shows no token.

use secrecy::SecretString;
use serde_json::{Value, json};

use super::document::Field;
use super::rules::{self, Broken};
use super::{Answer, Contract, Document, Fault, Policy, Rendered, schema};
use crate::signup::{Candidate, ContractId, Email, FieldError, User};

pub(super) struct ErrorCode;

/// Shortest password, in code points.
const PASSWORD_MIN: u64 = 10;

impl Contract for ErrorCode {
    fn id(&self) -> ContractId {
        ContractId::ErrorCode
    }

    fn check(
        &self,
        document: &Document<'_>,
        policy: &Policy,
    ) -> Result<Candidate, Vec<FieldError>> {
        let username = check_username(&document.text("username"), policy);
        let email = check_email(&document.text("email"), policy);
        let password = check_password(&document.text("password"), policy);
        match (username, email, password) {
            (Ok(username), Ok(email), Ok(password)) => Ok(Candidate {
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
        let classes = " Among them an upper-case letter, a digit and a symbol.";
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

    fn write(&self, candidate: &Candidate) -> Value {
        let (key, password) = candidate.password.in_document();
        json!({
            "username": candidate.username,
            "email": candidate.email.as_ref().map(Email::address),
            (key): password,
        })
    }

    fn render(&self, answer: &Answer<'_>) -> Rendered {
        match answer {
            Answer::Created { user, .. } => Rendered::new(201, self.profile(user)),
            Answer::Invalid(errors) => {
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
                Rendered::new(
                    400,
                    validation_error("One or more validation errors occurred.", errors),
                )
            }
            Answer::Duplicate(_) => {
                let identifier = if answer.names("email") { "email" } else { "username" };
                let text = format!("User already exists with identifier: {identifier}");
                let body =
                    json!({ "error_code": "DUPLICATE_USER", "description": text, "error": text });
                Rendered::new(409, body)
            }
            Answer::Fault(fault) => Rendered::new(fault.status(), told(*fault)),
        }
    }

    fn profile(&self, user: &User) -> Value {
        json!({ "username": user.username, "email": user.email })
    }
}

fn told(fault: Fault) -> Value {
    let code = match fault {
        Fault::Unreadable | Fault::BadKey => return validation_error(fault.text(), Vec::new()),
        Fault::TooLarge => "PAYLOAD_TOO_LARGE",
        Fault::MediaType => "UNSUPPORTED_MEDIA_TYPE",
        Fault::KeyReused => "KEY_REUSED",
        Fault::TooMany => "TOO_MANY_REQUESTS",
        Fault::Internal => "INTERNAL_SERVER_ERROR",
        Fault::NotAccepted => "SERVICE_UNAVAILABLE",
        Fault::NoAnswer => "GATEWAY_TIMEOUT",
    };
    json!({ "error_code": code, "description": fault.text() })
}

fn validation_error(description: &str, errors: Vec<Value>) -> Value {
    json!({ "error_code": "VALIDATION_ERROR", "description": description, "errors": errors })
}

fn check_username(field: &Field, policy: &Policy) -> Result<String, FieldError> {
    filled("username", field)?;
    rules::username(field, policy).map_err(|broken| match broken {
        Broken::Long => error(
            "username",
            "INVALID_LENGTH",
            format!("username must be at most {} characters long", rules::USERNAME_MAX),
        ),
        Broken::Empty => empty("username"),
        _ => error("username", "INVALID_CHARACTER", "username contains invalid characters".into()),
    })
}

fn check_email(field: &Field, policy: &Policy) -> Result<Email, FieldError> {
    let address = filled("email", field)?;
    rules::email(field, policy).map_err(|broken| match broken {
        Broken::Characters => {
            error("email", "INVALID_CHARACTER", "email contains invalid characters".into())
        }
        _ => error("email", "INVALID_EMAIL_FORMAT", format!("Invalid email format: {address}")),
    })
}

/// All rules at once, in the document's order.
fn check_password(field: &Field, policy: &Policy) -> Result<SecretString, Vec<FieldError>> {
    let password = match rules::text(field) {
        // A password of spaces is not empty, unlike a name of them.
        Ok(password) if !password.is_empty() => password,
        Ok(_) | Err(Broken::Missing) => return Err(vec![empty("password")]),
        Err(_) => return Err(vec![not_a_string("password")]),
    };
    let least = policy.minimum(PASSWORD_MIN);
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
    let broken: Vec<FieldError> = checks
        .into_iter()
        .filter(|(holds, ..)| !holds)
        .map(|(_, code, text)| error("password", code, text.into()))
        .collect();
    if broken.is_empty() { Ok(SecretString::from(password)) } else { Err(broken) }
}

/// The text of a field that must say something.
fn filled<'a>(name: &'static str, field: &'a Field) -> Result<&'a str, FieldError> {
    match rules::text(field) {
        Ok(text) if !text.trim().is_empty() => Ok(text),
        Ok(_) | Err(Broken::Missing) => Err(empty(name)),
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
