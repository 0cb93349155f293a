//! Sample responses of a contract, rendered by the contract itself, so that they match what the
//! server sends. The OpenAPI document is generated from them.

use serde_json::{Map, Value, json};

use super::policy::{CommonPasswords, Policy};
use super::{ApiError, ApiResponse, Contract, Document};
use crate::domain::{FieldError, Millis, User, UserId, ValidSignup};

/// The user id in every sample, taken from a published document.
pub const USER_ID: &str = "64b7f9c2e4b0f5a1d8c9e123";
/// The token in every sample, as the published documents show it.
pub const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...";
/// The registration time in every sample: 2023-10-01T12:00:00.000Z.
pub const CREATED_AT: Millis = Millis(1_696_161_600_000);

/// One sample response.
#[derive(Clone, Debug)]
pub struct ResponseSample {
    /// The HTTP status.
    pub status: u16,
    /// A name that is unique within the contract, such as `duplicate-email`.
    pub name: String,
    /// One sentence about the case, without a full stop.
    pub summary: String,
    /// The response body.
    pub body: Value,
}

/// Returns the distinct responses of a contract to a signup.
pub fn response_samples(contract: &dyn Contract) -> Vec<ResponseSample> {
    let example = contract.example();
    let minimal = without_optional(&example, &contract.schema());
    let mut all = SampleCollector { contract, found: Vec::new() };
    for (name, summary, document, token) in [
        ("registered", "The user is registered", &example, Some(TOKEN)),
        (
            "without-optional",
            "The user is registered without the optional fields",
            &minimal,
            Some(TOKEN),
        ),
        (
            "old-replay",
            "The signup repeats one that is more than a day old; there is no new token",
            &example,
            None,
        ),
    ] {
        if let Ok(signup) = check(contract, document) {
            let user = user(&signup);
            all.add(name, summary, &ApiResponse::Created { user: &user, token });
        }
    }
    for (name, summary, document) in [
        ("invalid", "Every field is invalid", violating_document()),
        ("missing", "No field is sent", json!({})),
    ] {
        if let Err(errors) = check(contract, &document) {
            all.add(name, summary, &ApiResponse::Invalid(&errors));
        }
    }
    let common: CommonPasswords = example["password"].as_str().into_iter().collect();
    if let Err(errors) = check_with(contract, &example, &Policy::new(0, common)) {
        let summary = "The password is on the operator's list of common passwords (off by default)";
        all.add("common-password", summary, &ApiResponse::Invalid(&errors));
    }
    for field in ["email", "username"] {
        if example.get(field).is_some() {
            let summary = format!("The {field} belongs to another user");
            all.add(
                &format!("duplicate-{field}"),
                &summary,
                &ApiResponse::Duplicate(&[duplicate_error(field)]),
            );
        }
    }
    for error in ApiError::ALL {
        all.add(name_of(error), error.text(), &ApiResponse::Error(error));
    }
    all.found
}

/// Returns the bodies of `GET /users/profile` for a contract's example user, with and without the
/// optional fields.
pub fn profile_samples(contract: &dyn Contract) -> Vec<Value> {
    let example = contract.example();
    let minimal = without_optional(&example, &contract.schema());
    let documents = [example, minimal];
    let signups = documents.iter().filter_map(|document| check(contract, document).ok());
    signups.map(|signup| contract.profile(&user(&signup))).collect()
}

fn user(signup: &ValidSignup) -> User {
    // The constant is a valid id, so no id is generated.
    let id = UserId::parse(USER_ID).unwrap_or_else(UserId::generate);
    User::new(id, signup, CREATED_AT)
}

struct SampleCollector<'a> {
    contract: &'a dyn Contract,
    found: Vec<ResponseSample>,
}

impl SampleCollector<'_> {
    fn add(&mut self, name: &str, summary: &str, response: &ApiResponse<'_>) {
        let rendered = self.contract.render(response);
        let (status, body) = (rendered.status, rendered.body);
        if !self.found.iter().any(|other| (other.status, &other.body) == (status, &body)) {
            let (name, summary) = (name.to_owned(), summary.to_owned());
            self.found.push(ResponseSample { status, name, summary, body });
        }
    }
}

fn check(contract: &dyn Contract, document: &Value) -> Result<ValidSignup, Vec<FieldError>> {
    check_with(contract, document, &Policy::default())
}

fn check_with(
    contract: &dyn Contract,
    document: &Value,
    policy: &Policy,
) -> Result<ValidSignup, Vec<FieldError>> {
    let text = document.to_string();
    let document = Document::parse(text.as_bytes()).map_err(|_| Vec::new())?;
    contract.check(&document, policy)
}

/// Returns a document that violates a rule for each field of each contract.
fn violating_document() -> Value {
    json!({
        "username": "J".repeat(65),
        "fullname": { "firstname": "J", "lastname": "D" },
        "firstname": "J",
        "lastname": "D",
        "email": "emailil.com",
        "password": "short",
    })
}

/// Returns a document with only the fields that its schema requires.
fn without_optional(document: &Value, schema: &Value) -> Value {
    let Value::Object(fields) = document else { return document.clone() };
    let is_required = |field: &str| {
        let required = schema["required"].as_array().into_iter().flatten();
        required.into_iter().any(|required| required == field)
    };
    let kept: Map<String, Value> = fields
        .iter()
        .filter(|(field, _)| is_required(field))
        .map(|(field, value)| {
            (field.clone(), without_optional(value, &schema["properties"][field]))
        })
        .collect();
    Value::Object(kept)
}

fn duplicate_error(field: &'static str) -> FieldError {
    FieldError { field: field.into(), code: "DUPLICATE".into(), message: "".into() }
}

fn name_of(error: ApiError) -> &'static str {
    match error {
        ApiError::InvalidJson => "invalid-json",
        ApiError::InvalidIdempotencyKey => "invalid-idempotency-key",
        ApiError::BodyTooLarge => "body-too-large",
        ApiError::UnsupportedMediaType => "unsupported-media-type",
        ApiError::KeyReused => "key-reused",
        ApiError::RateLimited => "rate-limited",
        ApiError::Internal => "internal",
        ApiError::Unavailable => "unavailable",
        ApiError::Timeout => "timeout",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::contract;
    use crate::domain::ContractId;

    #[test]
    fn samples_cover_every_status() {
        for id in ContractId::ALL {
            let samples = response_samples(contract(id));
            let has = |status: u16| samples.iter().any(|sample| sample.status == status);
            for status in [201, 400, 413, 415, 422, 429, 500, 503, 504] {
                assert!(has(status), "{id}: {status}");
            }
            let names: Vec<&str> = samples.iter().map(|sample| sample.name.as_str()).collect();
            for name in ["registered", "invalid", "missing"] {
                assert!(names.contains(&name), "{id}: {names:?}");
            }
            assert!(names.iter().any(|name| name.starts_with("duplicate-")), "{id}: {names:?}");
        }
    }

    #[test]
    fn examples_are_valid() {
        for id in ContractId::ALL {
            let contract = contract(id);
            assert!(check(contract, &contract.example()).is_ok(), "{id}");
            assert!(jsonschema::is_valid(&contract.schema(), &contract.example()), "{id}");
        }
    }
}
