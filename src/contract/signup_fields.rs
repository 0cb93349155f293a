//! Code shared by the contracts with first and last names (`nested-name`, `register`, `flat-name`):
//! the fields of the document, the nested form with a `fullname` object, and responses in the style
//! of express-validator.
//!
//! The texts and the rules for required fields differ and are in the contracts' own files.

use serde_json::{Value, json};

use super::document::{Document, ObjectValue, TextValue};
use super::rules::Violation;
use super::{ApiError, ApiResponse, Policy, RenderedResponse, rules, schema};
use crate::domain::{ContractId, Email, FieldError, FullName, User, ValidSignup};

/// Minimum name length of the nested form, in code points.
const NAME_MIN: u64 = 3;
/// Minimum password length, in code points.
pub(super) const PASSWORD_MIN: u64 = 6;

/// A contract's texts for its fields.
pub(super) struct Wording {
    pub(super) firstname: FieldWording,
    pub(super) lastname: FieldWording,
    pub(super) email: FieldWording,
    pub(super) password: FieldWording,
}

/// A contract's texts for one field.
pub(super) struct FieldWording {
    /// The field's path in errors.
    pub(super) field: &'static str,
    /// The field's name in messages.
    pub(super) label: &'static str,
    /// The message for a value that is missing, of the wrong type, too short or malformed.
    pub(super) minimum: &'static str,
}

impl FieldWording {
    /// Returns the error for a violated rule.
    pub(super) fn error(&self, violation: Violation) -> FieldError {
        let Self { label, minimum, .. } = self;
        let (code, message) = match violation {
            Violation::TooLong => (
                "INVALID_LENGTH",
                format!("{label} must be at most {} characters long", rules::NAME_MAX).into(),
            ),
            Violation::ForbiddenCharacter => {
                ("INVALID_CHARACTER", format!("{label} contains invalid characters").into())
            }
            Violation::TooManyBytes => (
                "INVALID_LENGTH",
                format!("{label} must be at most {} bytes long", rules::PASSWORD_MAX_BYTES).into(),
            ),
            Violation::BelowPolicyMinimum(least) => (
                "INVALID_LENGTH",
                format!("{label} must be at least {least} characters long").into(),
            ),
            Violation::CommonPassword => {
                ("COMMON_PASSWORD", format!("{label} is too common").into())
            }
            Violation::Missing | Violation::Empty => ("EMPTY_FIELD", (*minimum).into()),
            Violation::WrongType => ("INVALID_TYPE", (*minimum).into()),
            Violation::TooShort => ("INVALID_LENGTH", (*minimum).into()),
            Violation::NotAnAddress => ("INVALID_EMAIL_FORMAT", (*minimum).into()),
        };
        FieldError { field: self.field.into(), code: code.into(), message }
    }
}

/// The unchecked fields of a document.
pub(super) struct DocumentFields {
    pub(super) email: TextValue,
    pub(super) firstname: TextValue,
    pub(super) lastname: TextValue,
    pub(super) password: TextValue,
}

impl DocumentFields {
    /// Reads the nested form. A `fullname` that is not an object counts as a first name of the wrong
    /// type, so that it gives one error.
    pub(super) fn nested(document: &Document<'_>) -> Self {
        let (firstname, lastname) = match document.object("fullname") {
            ObjectValue::Absent => (TextValue::Absent, TextValue::Absent),
            ObjectValue::WrongType => (TextValue::WrongType, TextValue::Absent),
            ObjectValue::Object(name) => (name.text("firstname"), name.text("lastname")),
        };
        Self {
            email: document.text("email"),
            firstname,
            lastname,
            password: document.text("password"),
        }
    }

    /// Validates the fields.
    ///
    /// # Errors
    /// The violations, in the order email, first name, last name, password.
    pub(super) fn check(
        &self,
        contract: ContractId,
        name_min: u64,
        wording: &Wording,
        policy: &Policy,
    ) -> Result<ValidSignup, Vec<FieldError>> {
        let email =
            rules::email(&self.email, policy).map_err(|violation| wording.email.error(violation));
        let firstname = rules::name(&self.firstname, name_min)
            .map_err(|violation| wording.firstname.error(violation));
        let lastname = rules::optional_name(&self.lastname, name_min)
            .map_err(|violation| wording.lastname.error(violation));
        let password = rules::password(&self.password, PASSWORD_MIN, policy)
            .map_err(|violation| wording.password.error(violation));
        match (email, firstname, lastname, password) {
            (Ok(email), Ok(firstname), Ok(lastname), Ok(password)) => Ok(ValidSignup {
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

/// Validates fields with the limits of the nested form.
pub(super) fn check_nested(
    fields: &DocumentFields,
    contract: ContractId,
    wording: &Wording,
    policy: &Policy,
) -> Result<ValidSignup, Vec<FieldError>> {
    fields.check(contract, NAME_MIN, wording, policy)
}

/// Returns the JSON Schema of the nested form.
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

/// Returns an example of the nested form.
pub(super) fn nested_example(password: &str) -> Value {
    json!({
        "fullname": { "firstname": "John", "lastname": "Doe" },
        "email": "john.doe@example.com",
        "password": password,
    })
}

/// Writes a signup in the nested form.
pub(super) fn write_nested(signup: &ValidSignup) -> Value {
    let (key, password) = signup.password.in_document();
    json!({
        "fullname": signup.fullname,
        "email": signup.email.as_ref().map(Email::address),
        (key): password,
    })
}

/// Renders a response in the style that `nested-name` and `register` share. `user` renders the user.
pub(super) fn render(
    response: &ApiResponse<'_>,
    user: impl Fn(&User) -> Value,
) -> RenderedResponse {
    match response {
        ApiResponse::Created { user: created, token } => {
            let mut body = json!({ "user": user(created) });
            if let Some(token) = token {
                body["token"] = json!(token);
            }
            RenderedResponse::new(201, body)
        }
        ApiResponse::Invalid(errors) => {
            let errors: Vec<Value> = errors.iter().map(express_validator_error).collect();
            RenderedResponse::new(400, json!({ "errors": errors }))
        }
        ApiResponse::Duplicate(_) => {
            const TEXT: &str = "User already exist";
            let error = json!({ "msg": TEXT, "param": "email", "location": "body" });
            RenderedResponse::new(400, json!({ "message": TEXT, "errors": [error] }))
        }
        ApiResponse::Error(error) => {
            let mut body = json!({ "message": error.text() });
            // Clients read either `message` or `errors`.
            if !matches!(
                error,
                ApiError::BodyTooLarge | ApiError::UnsupportedMediaType | ApiError::KeyReused
            ) {
                body["errors"] = json!([{ "msg": error.text() }]);
            }
            RenderedResponse::new(error.status(), body)
        }
    }
}

/// Renders an error as express-validator does. An error without a field has only its message.
fn express_validator_error(error: &FieldError) -> Value {
    if error.field.is_empty() {
        return json!({ "msg": error.message });
    }
    json!({ "msg": error.message, "param": error.field, "location": "body" })
}
