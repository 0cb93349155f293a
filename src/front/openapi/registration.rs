//! The registration operations: one or two paths for each mount, with the mount's contracts.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::reference;
use super::responses::{self, by_status};
use crate::config::{self, Mount};
use crate::contract::samples::{self, ResponseSample};
use crate::contract::{Contract, contract, sole_contract};
use crate::domain::{ContractId, IdempotencyKey};
use crate::front::signup::SLOW_BODY;

pub(super) const TAG: &str = "registration";
/// The header of every response, if the HTML pages are enabled.
const SERVER_TIMING: &str = "Server-Timing";

/// A contract as it behaves at a mount.
pub(super) struct MountedContract {
    pub(super) contract: &'static dyn Contract,
    /// Whether its schema differs from that of the same contract at a shared path.
    alone: bool,
}

impl MountedContract {
    /// The schema name of its document.
    pub(super) fn name(&self) -> String {
        let id = self.contract.id();
        if self.alone { format!("{id}.alone") } else { id.to_string() }
    }
}

/// The contracts of a mount. A contract that is alone at its path can accept more documents than at a shared one.
pub(super) fn contracts(mount: &Mount) -> Vec<MountedContract> {
    let mounted = |contract: &'static dyn Contract| {
        let shared = crate::contract::contract(contract.id());
        MountedContract { contract, alone: contract.schema() != shared.schema() }
    };
    match mount.contracts.as_slice() {
        [only] => vec![mounted(sole_contract(*only))],
        shared => shared.iter().map(|id| mounted(contract(*id))).collect(),
    }
}

/// The paths of a mount: its own and, if it has any prefix, a second one with a `prefix` parameter.
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

/// The path with the parameter of [`prefix`] in front of it.
pub(in crate::front) fn prefixed(path: &str) -> String {
    format!("/{{prefix}}{path}")
}

/// The path parameter of mounts with any prefix.
pub(super) fn prefix() -> Value {
    json!({
        "name": "prefix",
        "in": "path",
        "required": true,
        "description": "Any prefix; it can contain slashes.",
        "schema": { "type": "string", "minLength": 1 },
        "example": "identity",
    })
}

fn operation(path: &str, mount: &Mount, settings: &config::FrontSettings) -> Value {
    let contracts = contracts(mount);
    let names: Vec<String> =
        contracts.iter().map(|mounted| format!("`{}`", mounted.contract.id())).collect();
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
        "responses": all_responses(&contracts),
    })
}

/// The operation id: `post` and `/users/register` give `postUsersRegister`.
pub(super) fn operation_id(verb: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let capital = |word: &str| format!("{}{}", word[..1].to_uppercase(), &word[1..]);
    format!("{verb}{}", words.map(capital).collect::<String>())
}

fn about(mount: &Mount, settings: &config::FrontSettings) -> String {
    let deadline = humantime::format_duration(settings.request_timeout);
    let timing = format!(
        "Responds when the user is stored and the token is signed, at the latest after {deadline}. After 503 no user \
         was registered; after 500 or 504 the outcome is unknown. Retrying with the Idempotency-Key of the \
         response is always safe."
    );
    match mount.contracts.as_slice() {
        [first, _] => format!("{} {timing}", selection(*first)),
        _ => timing,
    }
}

/// Describes how the body selects one of two contracts at a path; see [`crate::contract::select_contract`].
fn selection(first: ContractId) -> String {
    format!(
        "Two contracts share this path, and the keys of the body select one: `fullname` selects `{}`, `firstname` \
         or `lastname` selects `{}`. With both, with neither, and for errors before the body is parsed, it is \
         `{first}`.",
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
                .map(|mounted| (mounted.name(), json!({ "value": mounted.contract.example() })))
                .collect();
            let mut selected = reference(&second.name());
            selected["not"] = match second.contract.id() {
                ContractId::FlatName => json!({ "required": ["fullname"] }),
                _ => {
                    json!({ "anyOf": [{ "required": ["firstname"] }, { "required": ["lastname"] }] })
                }
            };
            let schema = json!({ "oneOf": [reference(&first.name()), selected] });
            json!({ "schema": schema, "examples": examples })
        }
        // `config` allows at most two contracts per path.
        _ => json!({}),
    }
}

fn all_responses(contracts: &[MountedContract]) -> Map<String, Value> {
    let mut by_code: BTreeMap<u16, Vec<(ContractId, ResponseSample)>> = BTreeMap::new();
    for mounted in contracts {
        let id = mounted.contract.id();
        for (status, samples) in by_status(&samples::response_samples(mounted.contract)) {
            let samples = samples.into_iter().cloned().map(|sample| (id, sample));
            by_code.entry(status).or_default().extend(samples);
        }
    }
    let mut all: Map<String, Value> = by_code
        .iter()
        .map(|(status, samples)| (status.to_string(), response(*status, samples)))
        .collect();
    let timeout = responses::problem(StatusCode::REQUEST_TIMEOUT, &[SLOW_BODY]);
    let timeout = responses::with_headers(timeout, &[SERVER_TIMING]);
    all.insert(StatusCode::REQUEST_TIMEOUT.as_str().to_owned(), timeout);
    all
}

fn response(status: u16, samples: &[(ContractId, ResponseSample)]) -> Value {
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
    responses::with_headers(
        responses::json(&schema, examples),
        &[headers, &[SERVER_TIMING]].concat(),
    )
}

/// The `Idempotency-Key` request header.
pub(super) fn key_parameter() -> Value {
    json!({
        "name": "Idempotency-Key",
        "in": "header",
        "required": false,
        "description": format!(
            "{} to {} visible ASCII characters, with or without quotation marks. For a day, the same document with \
             the same key is the same registration: the response is repeated, with a new token. Another \
             document or another password with that key is rejected.",
            IdempotencyKey::MIN,
            IdempotencyKey::MAX
        ),
        "schema": key_schema(),
    })
}

/// The pattern that [`IdempotencyKey::parse`] accepts. A key is optionally enclosed in quotation marks; without them it
/// does not both start and end with one.
pub(super) fn key_schema() -> Value {
    let (min, max) = (IdempotencyKey::MIN, IdempotencyKey::MAX);
    let plain = format!("[!#-~][!-~]{{{},{}}}", min - 1, max - 1);
    let half_quoted = format!("\"[!-~]{{{},{}}}[!#-~]", min - 2, max - 2);
    let key = format!("({plain}|{half_quoted})");
    json!({ "type": "string", "pattern": format!("^({key}|\"{key}\")$") })
}
