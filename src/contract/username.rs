//! `username`: `POST /signup`, a user known by name whose address is optional. Its document orders
//! one text an answer, so only the first broken rule is told.

use serde_json::{Value, json};

use super::document::Field;
use super::rules::{self, Broken};
use super::{Answer, Contract, Document, Policy, Rendered, schema};
use crate::signup::{Candidate, ContractId, Email, FieldError, User};

pub(super) struct Username;

/// Shortest password, in code points. The document names none; an empty floor helps nobody.
const PASSWORD_MIN: u64 = 6;

impl Contract for Username {
    fn id(&self) -> ContractId {
        ContractId::Username
    }

    fn check(
        &self,
        document: &Document<'_>,
        policy: &Policy,
    ) -> Result<Candidate, Vec<FieldError>> {
        let username = rules::username(&document.text("username"), policy)
            .map_err(|broken| vec![error("username", "Username", broken)])?;
        let email = match document.text("email") {
            Field::Absent => None,
            given => Some(
                rules::email(&given, policy)
                    .map_err(|broken| vec![error("email", "Email", broken)])?,
            ),
        };
        let password = required_password(&document.text("password"), policy)
            .map_err(|broken| vec![error("password", "Password", broken)])?;
        Ok(Candidate {
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
            Answer::Created { user, token } => {
                let mut body = self.profile(user);
                if let Some(token) = token {
                    body["token"] = json!(token);
                }
                Rendered::new(201, body)
            }
            Answer::Invalid(errors) => {
                Rendered::new(400, told(errors.first().map_or("", |error| &error.message)))
            }
            Answer::Duplicate(_) => {
                let taken = if answer.names("username") { "username" } else { "email" };
                Rendered::new(403, told(&format!("That {taken} is already taken")))
            }
            Answer::Fault(fault) => Rendered::new(fault.status(), told(fault.text())),
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

/// An empty password is a missing one.
fn required_password(field: &Field, policy: &Policy) -> Result<secrecy::SecretString, Broken> {
    if rules::text(field)?.is_empty() {
        return Err(Broken::Empty);
    }
    rules::password(field, PASSWORD_MIN, policy)
}

fn told(text: &str) -> Value {
    json!({ "message": text, "errMsg": text })
}

fn error(field: &'static str, label: &str, broken: Broken) -> FieldError {
    let (code, message) = match broken {
        // An address that is there but no text is no address.
        Broken::Type if field == "email" => ("INVALID_TYPE", "Invalid email".into()),
        Broken::Format => ("INVALID_EMAIL_FORMAT", "Invalid email".into()),
        Broken::Missing | Broken::Empty => ("EMPTY_FIELD", format!("{label} is required")),
        Broken::Type => ("INVALID_TYPE", format!("{label} is required")),
        Broken::Short => {
            ("INVALID_LENGTH", format!("{label} must be at least {PASSWORD_MIN} characters long"))
        }
        Broken::Policy(least) => {
            ("INVALID_LENGTH", format!("{label} must be at least {least} characters long"))
        }
        Broken::Common => ("COMMON_PASSWORD", format!("{label} is too common")),
        Broken::Long => (
            "INVALID_LENGTH",
            format!("{label} must be at most {} characters long", rules::USERNAME_MAX),
        ),
        Broken::Characters => ("INVALID_CHARACTER", format!("{label} contains invalid characters")),
        Broken::Bytes => (
            "INVALID_LENGTH",
            format!("{label} must be at most {} bytes long", rules::PASSWORD_MAX_BYTES),
        ),
    };
    FieldError { field: field.into(), code: code.into(), message: message.into() }
}
