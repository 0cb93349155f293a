//! Every answer a contract gives to a registration, given by the contract itself: what is printed of
//! them is what is answered. The specification is made from these.

use serde_json::{Map, Value, json};

use super::policy::{CommonPasswords, Policy};
use super::{Answer, Contract, Document, Fault};
use crate::signup::{Candidate, FieldError, Millis, User, UserId};

/// The id of the user in every sample: one that a document shows.
pub const USER_ID: &str = "64b7f9c2e4b0f5a1d8c9e123";
/// The token, as the documents show it.
pub const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9...";
/// When the user was registered: 2023-10-01T12:00:00.000Z.
pub const CREATED_AT: Millis = Millis(1_696_161_600_000);

/// One answer.
#[derive(Clone, Debug)]
pub struct Sample {
    /// HTTP status.
    pub status: u16,
    /// A word for it, of its own among those of the contract.
    pub name: String,
    /// What it says.
    pub summary: String,
    /// The body.
    pub body: Value,
}

/// The answers of a contract, none of them twice.
pub fn of(contract: &dyn Contract) -> Vec<Sample> {
    let example = contract.example();
    let least = without_optional(&example, &contract.schema());
    let mut all = Samples { contract, found: Vec::new() };
    for (name, summary, document, token) in [
        ("registered", "The user is registered", &example, Some(TOKEN)),
        ("without-optional", "Registered without what is optional", &least, Some(TOKEN)),
        ("old-replay", "Registered more than a day ago, under the same key", &example, None),
    ] {
        if let Ok(candidate) = check(contract, document) {
            let user = user(&candidate);
            all.add(name, summary, &Answer::Created { user: &user, token });
        }
    }
    for (name, summary, document) in
        [("invalid", "Rules are broken", broken()), ("missing", "Nothing is given", json!({}))]
    {
        if let Err(errors) = check(contract, &document) {
            all.add(name, summary, &Answer::Invalid(&errors));
        }
    }
    let common: CommonPasswords = example["password"].as_str().into_iter().collect();
    if let Err(errors) = checked(contract, &example, &Policy::new(0, common)) {
        let summary = "The password is on the operator's list of common ones (off by default)";
        all.add("common-password", summary, &Answer::Invalid(&errors));
    }
    for field in ["email", "username"] {
        if example.get(field).is_some() {
            let summary = format!("The {field} belongs to another user");
            all.add(&format!("taken-{field}"), &summary, &Answer::Duplicate(&[taken(field)]));
        }
    }
    for fault in Fault::ALL {
        all.add(name_of(fault), fault.text(), &Answer::Fault(fault));
    }
    all.found
}

/// What `GET /users/profile` shows of the user of a contract's example, with and without what is
/// optional.
pub fn profiles(contract: &dyn Contract) -> Vec<Value> {
    let example = contract.example();
    let least = without_optional(&example, &contract.schema());
    let documents = [example, least];
    let candidates = documents.iter().filter_map(|document| check(contract, document).ok());
    candidates.map(|candidate| contract.profile(&user(&candidate))).collect()
}

fn user(candidate: &Candidate) -> User {
    // The id is a constant of 24 digits.
    let id = UserId::parse(USER_ID).unwrap_or_else(UserId::generate);
    User::new(id, candidate, CREATED_AT)
}

struct Samples<'a> {
    contract: &'a dyn Contract,
    found: Vec<Sample>,
}

impl Samples<'_> {
    fn add(&mut self, name: &str, summary: &str, answer: &Answer<'_>) {
        let rendered = self.contract.render(answer);
        let (status, body) = (rendered.status, rendered.body);
        if !self.found.iter().any(|other| (other.status, &other.body) == (status, &body)) {
            let (name, summary) = (name.to_owned(), summary.to_owned());
            self.found.push(Sample { status, name, summary, body });
        }
    }
}

fn check(contract: &dyn Contract, document: &Value) -> Result<Candidate, Vec<FieldError>> {
    checked(contract, document, &Policy::default())
}

fn checked(
    contract: &dyn Contract,
    document: &Value,
    policy: &Policy,
) -> Result<Candidate, Vec<FieldError>> {
    let text = document.to_string();
    let document = Document::parse(text.as_bytes()).map_err(|_| Vec::new())?;
    contract.check(&document, policy)
}

/// Breaks a rule of every field there is in any contract.
fn broken() -> Value {
    json!({
        "username": "J".repeat(65),
        "fullname": { "firstname": "J", "lastname": "D" },
        "firstname": "J",
        "lastname": "D",
        "email": "emailil.com",
        "password": "short",
    })
}

/// A document with nothing but what its schema requires.
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

fn taken(field: &'static str) -> FieldError {
    FieldError { field: field.into(), code: "DUPLICATE".into(), message: "".into() }
}

fn name_of(fault: Fault) -> &'static str {
    match fault {
        Fault::Unreadable => "unreadable",
        Fault::BadKey => "bad-key",
        Fault::TooLarge => "too-large",
        Fault::MediaType => "media-type",
        Fault::KeyReused => "key-reused",
        Fault::TooMany => "too-many",
        Fault::Internal => "internal",
        Fault::NotAccepted => "not-accepted",
        Fault::NoAnswer => "no-answer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::contract;
    use crate::signup::ContractId;

    #[test]
    fn every_kind_of_answer_is_among_them() {
        for id in ContractId::ALL {
            let samples = of(contract(id));
            let has = |status: u16| samples.iter().any(|sample| sample.status == status);
            for status in [201, 400, 413, 415, 422, 429, 500, 503, 504] {
                assert!(has(status), "{id}: {status}");
            }
            let names: Vec<&str> = samples.iter().map(|sample| sample.name.as_str()).collect();
            for name in ["registered", "invalid", "missing"] {
                assert!(names.contains(&name), "{id}: {names:?}");
            }
            assert!(names.iter().any(|name| name.starts_with("taken-")), "{id}: {names:?}");
        }
    }

    #[test]
    fn examples_are_accepted_and_are_what_they_should_be() {
        for id in ContractId::ALL {
            let contract = contract(id);
            assert!(check(contract, &contract.example()).is_ok(), "{id}");
            assert!(jsonschema::is_valid(&contract.schema(), &contract.example()), "{id}");
        }
    }
}
