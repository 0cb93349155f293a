//! What `nested-name` and `register` share: the document with a `fullname` object and the
//! express-validator style of its errors. Their texts and their idea of "required" differ and stay
//! with them.

use serde_json::{Value, json};

use super::document::{Document, Field, Nested};
use super::rules::Broken;
use super::{Answer, Fault, Policy, Rendered, rules, schema};
use crate::signup::{Candidate, ContractId, Email, FieldError, FullName, User};

/// Shortest name, in code points.
const NAME_MIN: u64 = 3;
/// Shortest password, in code points.
pub(super) const PASSWORD_MIN: u64 = 6;

/// How a contract spells its fields.
pub(super) struct Texts {
    pub(super) firstname: Spelling,
    pub(super) lastname: Spelling,
    pub(super) email: Spelling,
    pub(super) password: Spelling,
}

/// One field: its name in texts, and the text of its minimum or format.
pub(super) struct Spelling {
    pub(super) field: &'static str,
    pub(super) label: &'static str,
    pub(super) minimum: &'static str,
}

impl Spelling {
    /// The error of a broken rule. What is missing or of another type is told as too short.
    pub(super) fn error(&self, broken: Broken) -> FieldError {
        let Self { label, minimum, .. } = self;
        let (code, message) = match broken {
            Broken::Long => (
                "INVALID_LENGTH",
                format!("{label} must be at most {} characters long", rules::NAME_MAX).into(),
            ),
            Broken::Characters => {
                ("INVALID_CHARACTER", format!("{label} contains invalid characters").into())
            }
            Broken::Bytes => (
                "INVALID_LENGTH",
                format!("{label} must be at most {} bytes long", rules::PASSWORD_MAX_BYTES).into(),
            ),
            Broken::Policy(least) => (
                "INVALID_LENGTH",
                format!("{label} must be at least {least} characters long").into(),
            ),
            Broken::Common => ("COMMON_PASSWORD", format!("{label} is too common").into()),
            Broken::Missing | Broken::Empty => ("EMPTY_FIELD", (*minimum).into()),
            Broken::Type => ("INVALID_TYPE", (*minimum).into()),
            Broken::Short => ("INVALID_LENGTH", (*minimum).into()),
            Broken::Format => ("INVALID_EMAIL_FORMAT", (*minimum).into()),
        };
        FieldError { field: self.field.into(), code: code.into(), message }
    }
}

/// The four fields as they stand in a document.
pub(super) struct Fields {
    pub(super) email: Field,
    pub(super) firstname: Field,
    pub(super) lastname: Field,
    pub(super) password: Field,
}

impl Fields {
    /// Reads the nested form. A `fullname` that is no object is an error of its first name alone.
    pub(super) fn nested(document: &Document<'_>) -> Self {
        let (firstname, lastname) = match document.object("fullname") {
            Nested::Absent => (Field::Absent, Field::Absent),
            Nested::Wrong => (Field::Wrong, Field::Absent),
            Nested::Object(name) => (name.text("firstname"), name.text("lastname")),
        };
        Self {
            email: document.text("email"),
            firstname,
            lastname,
            password: document.text("password"),
        }
    }

    /// Applies the rules in the order email, firstname, lastname, password.
    pub(super) fn check(
        &self,
        contract: ContractId,
        name_min: u64,
        texts: &Texts,
        policy: &Policy,
    ) -> Result<Candidate, Vec<FieldError>> {
        let email = rules::email(&self.email, policy).map_err(|broken| texts.email.error(broken));
        let firstname =
            rules::name(&self.firstname, name_min).map_err(|broken| texts.firstname.error(broken));
        let lastname = rules::optional_name(&self.lastname, name_min)
            .map_err(|broken| texts.lastname.error(broken));
        let password = rules::password(&self.password, PASSWORD_MIN, policy)
            .map_err(|broken| texts.password.error(broken));
        match (email, firstname, lastname, password) {
            (Ok(email), Ok(firstname), Ok(lastname), Ok(password)) => Ok(Candidate {
                contract,
                username: None,
                email: Some(email),
                fullname: Some(FullName { firstname, lastname }),
                password: password.into(),
            }),
            (email, firstname, lastname, password) => {
                let errors = [email.err(), firstname.err(), lastname.err(), password.err()];
                Err(errors.into_iter().flatten().collect())
            }
        }
    }
}

/// Reads and checks the nested form.
pub(super) fn check_nested(
    fields: &Fields,
    contract: ContractId,
    texts: &Texts,
    policy: &Policy,
) -> Result<Candidate, Vec<FieldError>> {
    fields.check(contract, NAME_MIN, texts, policy)
}

/// Describes the nested form.
pub(super) fn nested_schema(contract: ContractId) -> Value {
    let name = json!({
        "firstname": schema::name(NAME_MIN),
        "lastname": schema::optional_name(NAME_MIN),
    });
    let fields = json!({
        "fullname": { "type": "object", "properties": name, "required": ["firstname"] },
        "email": schema::email(),
        "password": schema::password(PASSWORD_MIN, ""),
    });
    schema::document(contract.as_str(), fields, &["fullname", "email", "password"])
}

/// A document of the nested form.
pub(super) fn nested_example(password: &str) -> Value {
    json!({
        "fullname": { "firstname": "John", "lastname": "Doe" },
        "email": "john.doe@example.com",
        "password": password,
    })
}

/// Writes the nested form.
pub(super) fn write_nested(candidate: &Candidate) -> Value {
    let (key, password) = candidate.password.in_document();
    json!({
        "fullname": candidate.fullname,
        "email": candidate.email.as_ref().map(Email::address),
        (key): password,
    })
}

/// The answers that `nested-name` and `register` give alike; `user` is how each shows a user.
pub(super) fn render(answer: &Answer<'_>, user: impl Fn(&User) -> Value) -> Rendered {
    match answer {
        Answer::Created { user: created, token } => {
            let mut body = json!({ "user": user(created) });
            if let Some(token) = token {
                body["token"] = json!(token);
            }
            Rendered::new(201, body)
        }
        Answer::Invalid(errors) => {
            let errors: Vec<Value> = errors.iter().map(located).collect();
            Rendered::new(400, json!({ "errors": errors }))
        }
        Answer::Duplicate(_) => {
            const TEXT: &str = "User already exist";
            let error = json!({ "msg": TEXT, "param": "email", "location": "body" });
            Rendered::new(400, json!({ "message": TEXT, "errors": [error] }))
        }
        Answer::Fault(fault) => {
            let mut body = json!({ "message": fault.text() });
            // Clients read the one or the other.
            if !matches!(fault, Fault::TooLarge | Fault::MediaType | Fault::KeyReused) {
                body["errors"] = json!([{ "msg": fault.text() }]);
            }
            Rendered::new(fault.status(), body)
        }
    }
}

/// An error in express-validator's form. One that belongs to no field is its text alone.
fn located(error: &FieldError) -> Value {
    if error.field.is_empty() {
        return json!({ "msg": error.message });
    }
    json!({ "msg": error.message, "param": error.field, "location": "body" })
}
