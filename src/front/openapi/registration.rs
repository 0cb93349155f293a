//! The registration paths: a mount with its contracts, as operations of the document.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::responses::{self, by_status};
use super::reference;
use crate::config::{self, Mount};
use crate::contract::samples::{self, Sample};
use crate::contract::{Contract, contract, sole_contract};
use crate::domain::{ContractId, IdempotencyKey};
use crate::front::signup::SLOW_BODY;

pub(super) const TAG: &str = "registration";
/// The header that every answer has where there are pages.
const TIMES: &str = "Server-Timing";

/// A contract at a mount.
pub(super) struct MountedContract {
    pub(super) contract: &'static dyn Contract,
    /// Whether it behaves otherwise than it does where it shares a path.
    alone: bool,
}

impl MountedContract {
    /// The name of its document's schema.
    pub(super) fn name(&self) -> String {
        let id = self.contract.id();
        if self.alone { format!("{id}.alone") } else { id.to_string() }
    }
}

/// The contracts of a mount, as they behave there.
pub(super) fn contracts(mount: &Mount) -> Vec<MountedContract> {
    let served = |contract: &'static dyn Contract| {
        let shared = crate::contract::contract(contract.id());
        MountedContract { contract, alone: contract.schema() != shared.schema() }
    };
    match mount.contracts.as_slice() {
        [only] => vec![served(sole_contract(*only))],
        shared => shared.iter().map(|id| served(contract(*id))).collect(),
    }
}

/// The paths of a mount: one, and a second one for any prefix.
pub(super) fn paths(mount: &Mount, settings: &config::FrontSettings) -> Map<String, Value> {
    let path = if mount.path.is_empty() { "/" } else { &mount.path };
    let mut paths = Map::new();
    paths.insert(path.to_owned(), json!({ "post": operation(path, mount, settings) }));
    if mount.any_prefix {
        let path = prefixed(path);
        let operation = operation(&path, mount, settings);
        paths.insert(path, json!({ "parameters": [prefix()], "post": operation }));
    }
    paths
}

/// A path with the parameter that [`prefix`] describes before it.
pub(in crate::front) fn prefixed(path: &str) -> String {
    format!("/{{prefix}}{path}")
}

/// The parameter that is the beginning of a path which may have any.
pub(super) fn prefix() -> Value {
    json!({
        "name": "prefix",
        "in": "path",
        "required": true,
        "description": "Anything; it may have slashes in it.",
        "schema": { "type": "string", "minLength": 1 },
        "example": "identity",
    })
}

fn operation(path: &str, mount: &Mount, settings: &config::FrontSettings) -> Value {
    let contracts = contracts(mount);
    let names: Vec<String> =
        contracts.iter().map(|served| format!("`{}`", served.contract.id())).collect();
    json!({
        "operationId": operation_id("post", path),
        "tags": [TAG],
        "summary": format!("Register a user: {}", names.join(" or ")),
        "description": about(mount, settings),
        "parameters": [{ "$ref": "#/components/parameters/IdempotencyKey" }],
        "requestBody": {
            "required": true,
            "description": format!("At most {} bytes.", settings.body_limit),
            "content": { "application/json": body(&contracts) },
        },
        "responses": responses(&contracts),
    })
}

/// `post` to `/users/register` is `postUsersRegister`.
pub(super) fn operation_id(verb: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let capital = |word: &str| format!("{}{}", word[..1].to_uppercase(), &word[1..]);
    format!("{verb}{}", words.map(capital).collect::<String>())
}

fn about(mount: &Mount, settings: &config::FrontSettings) -> String {
    let deadline = humantime::format_duration(settings.request_timeout);
    let answered = format!(
        "Answered when the user is stored and the token signed, after {deadline} at the latest. What is \
         not accepted (503) has not happened; after 500 or 504 it is unknown. Repeating the request under \
         the Idempotency-Key of the answer is safe each time."
    );
    match mount.contracts.as_slice() {
        [first, _] => format!("{} {answered}", choice(*first)),
        _ => answered,
    }
}

/// How the body chooses between the two contracts that can share a path; see
/// [`choose`](crate::contract::select_contract).
fn choice(first: ContractId) -> String {
    format!(
        "Two contracts share this path, and the keys of the body choose, whatever stands at them: \
         `fullname` means `{}`, `firstname` or `lastname` means `{}`. With neither or both, and where \
         there is no body to look at, it is `{first}`.",
        ContractId::NestedName,
        ContractId::FlatName
    )
}

fn body(contracts: &[MountedContract]) -> Value {
    match contracts {
        [only] => {
            json!({ "schema": reference(&only.name()), "example": only.contract.example() })
        }
        [first, second] => {
            let examples: Map<String, Value> = contracts
                .iter()
                .map(|served| (served.name(), json!({ "value": served.contract.example() })))
                .collect();
            let mut chosen = reference(&second.name());
            chosen["not"] = match second.contract.id() {
                ContractId::FlatName => json!({ "required": ["fullname"] }),
                _ => {
                    json!({ "anyOf": [{ "required": ["firstname"] }, { "required": ["lastname"] }] })
                }
            };
            let schema = json!({ "oneOf": [reference(&first.name()), chosen] });
            json!({ "schema": schema, "examples": examples })
        }
        // The settings' reader lets no more than two share a path.
        _ => json!({}),
    }
}

fn responses(contracts: &[MountedContract]) -> Map<String, Value> {
    let mut told: BTreeMap<u16, Vec<(ContractId, Sample)>> = BTreeMap::new();
    for served in contracts {
        let id = served.contract.id();
        for (status, samples) in by_status(&samples::response_samples(served.contract)) {
            told.entry(status).or_default().extend(samples.into_iter().cloned().map(|s| (id, s)));
        }
    }
    let mut responses: Map<String, Value> = told
        .iter()
        .map(|(status, samples)| (status.to_string(), response(*status, samples)))
        .collect();
    let slow = responses::problem(StatusCode::REQUEST_TIMEOUT, &[SLOW_BODY]);
    let slow = responses::with(slow, &[TIMES]);
    responses.insert(StatusCode::REQUEST_TIMEOUT.as_str().to_owned(), slow);
    responses
}

fn response(status: u16, samples: &[(ContractId, Sample)]) -> Value {
    let mut ids: Vec<ContractId> = samples.iter().map(|(id, _)| *id).collect();
    ids.dedup();
    let of = |id: &ContractId| reference(&responses::name(*id, status));
    let schema = match ids.as_slice() {
        [only] => of(only),
        several => json!({ "oneOf": several.iter().map(of).collect::<Vec<_>>() }),
    };
    let examples = samples.iter().map(|(id, sample)| {
        let name =
            if ids.len() == 1 { sample.name.clone() } else { format!("{id}.{}", sample.name) };
        (name, sample.summary.as_str(), &sample.body)
    });
    let headers: &[&str] = match status {
        201 => &["Idempotency-Replayed"],
        429 => &["Retry-After"],
        503 => &["Idempotency-Key", "Retry-After"],
        500.. => &["Idempotency-Key"],
        _ => &[],
    };
    responses::with(responses::json(&schema, examples), &[headers, &[TIMES]].concat())
}

/// The header that makes repeating a request safe.
pub(super) fn key_parameter() -> Value {
    json!({
        "name": "Idempotency-Key",
        "in": "header",
        "required": false,
        "description": format!(
            "{} to {} visible ASCII characters, in quotation marks or without. For a day the same \
             document under the same key is the same registration: it is answered again, with a new \
             token. Another document under that key, or another password, is refused.",
            IdempotencyKey::MIN,
            IdempotencyKey::MAX
        ),
        "schema": key_schema(),
    })
}

/// See [`IdempotencyKey::parse`]: a key has no quotation marks at both ends, unless it stands in them.
pub(super) fn key_schema() -> Value {
    let (min, max) = (IdempotencyKey::MIN, IdempotencyKey::MAX);
    let plain = format!("[!#-~][!-~]{{{},{}}}", min - 1, max - 1);
    let half_quoted = format!("\"[!-~]{{{},{}}}[!#-~]", min - 2, max - 2);
    let key = format!("({plain}|{half_quoted})");
    json!({ "type": "string", "pattern": format!("^({key}|\"{key}\")$") })
}
