//! The paths that are no registration of a single user: the token's owner, the public keys, rows in
//! bulk, and the probes.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::{responses, reference, registration};
use crate::config::Mount;
use crate::contract::{ApiError, contract, samples};
use crate::domain::ContractId;
use crate::front::{NOT_FOUND, bulk, jwks, paths, profile};

pub(super) const USERS: &str = "users";
pub(super) const BULK: &str = "bulk";
pub(super) const PROBES: &str = "probes";

/// The name of the schema of what a contract shows of its user.
pub(super) fn profile_name(id: ContractId) -> String {
    format!("{id}.profile")
}

/// The name of the schema of a contract's document as a row.
pub(super) fn row_name(id: ContractId) -> String {
    format!("{id}.row")
}

/// The paths that are always served, and those of the mounts' profiles.
pub(super) fn paths(mounts: &[Mount]) -> Map<String, Value> {
    let path = |path: &str, method: &str, operation: Value| {
        (path.to_owned(), json!({ method: operation }))
    };
    let mut all = Map::new();
    for place in paths::profiles(mounts) {
        let exact = if place.path.is_empty() { "/" } else { &place.path };
        all.insert(exact.to_owned(), json!({ "get": profile(exact) }));
        if place.any_prefix {
            let path = registration::prefixed(exact);
            let operation = profile(&path);
            all.insert(path, json!({ "parameters": [registration::prefix()], "get": operation }));
        }
    }
    all.extend([
        path(paths::BULK, "post", bulk()),
        path(paths::KEYS, "get", keys()),
        path(paths::LIVE, "get", live()),
        path(paths::READY, "get", ready()),
    ]);
    all
}

/// Schemas of what is written here and nowhere as a type.
pub(super) fn schemas() -> Map<String, Value> {
    let waits = json!({ "type": "object", "required": ["reason"], "properties": {
        "reason": { "type": "string" },
    } });
    let ready = json!({
        "type": "object",
        "required": ["ready", "parts"],
        "properties": {
            "ready": { "type": "boolean" },
            "parts": {
                "type": "object",
                "description": "Each part that has to work, and what it waits for; where operators have \
                                an address of their own, only whether it works.",
                "additionalProperties": { "oneOf": [{ "enum": ["up", "down"] }, waits] },
            },
            "warnings": {
                "type": "object",
                "description": "What an operator should see to although every part works; absent if nothing.",
                "additionalProperties": { "type": "string" },
            },
            "workers": { "type": ["integer", "null"], "description": "How many consume." },
            "waiting": { "type": ["integer", "null"], "description": "Messages that no worker has taken." },
        },
    });
    let aborted = json!({
        "type": "object",
        "description": "The last line, where the rest of the body was not read.",
        "required": ["outcome", "code"],
        "properties": {
            "outcome": { "const": "aborted" },
            "code": { "enum": ["broken", "idle", "internal", "stopping"] },
        },
    });
    let keys = json!({
        "type": "object",
        "required": ["keys"],
        "properties": {
            "keys": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["kty"],
                    "properties": jwks::PUBLIC
                        .iter()
                        .map(|member| ((*member).to_owned(), json!({ "type": "string" })))
                        .collect::<Map<_, _>>(),
                },
            },
        },
    });
    let live = json!({
        "type": "object", "required": ["live"], "properties": { "live": { "const": true } },
    });
    Map::from_iter([
        ("ready".to_owned(), ready),
        ("aborted".to_owned(), aborted),
        ("keys".to_owned(), keys),
        ("live".to_owned(), live),
    ])
}

fn profile(path: &str) -> Value {
    // The documented path has the plain name.
    let id = match path {
        paths::PROFILE => "getProfile".to_owned(),
        path => registration::operation_id("getProfileAt", path),
    };
    let shown: Vec<(ContractId, Value)> = ContractId::ALL
        .into_iter()
        .filter_map(|id| Some((id, samples::profile_samples(contract(id)).into_iter().next()?)))
        .collect();
    let summaries: Vec<String> = shown.iter().map(|(id, _)| format!("A user of `{id}`")).collect();
    let of: Vec<Value> = shown.iter().map(|(id, _)| reference(&profile_name(*id))).collect();
    let examples = shown.iter().zip(&summaries);
    let found = responses::json(
        // More than one may fit: what one contract shows is a part of what another does.
        &json!({ "anyOf": of }),
        examples.map(|((id, body), summary)| (id.to_string(), summary.as_str(), body)),
    );
    let unauthorized =
        responses::with(responses::message(profile::UNAUTHORIZED), &["WWW-Authenticate"]);
    let fault = |fault: ApiError| responses::message(fault.text());
    json!({
        "operationId": id,
        "tags": [USERS],
        "summary": "The token's owner",
        "description": "In the shape of the contract that created the user. A fault of the service is \
                        never 401, so a client may throw its token away on that.",
        "security": [{ "token": [] }],
        "responses": {
            "200": found,
            "401": unauthorized,
            "429": responses::with(fault(ApiError::RateLimited), &["Retry-After"]),
            "500": fault(ApiError::Internal),
            "503": responses::with(fault(ApiError::Unavailable), &["Retry-After"]),
            "504": fault(ApiError::Timeout),
        },
    })
}

fn bulk() -> Value {
    let lines = |about: &str, of: Value| {
        json!({ "schema": {
        "type": "string", "description": about, "x-line": of,
    } })
    };
    let rows: Vec<Value> = ContractId::ALL.into_iter().map(|id| reference(&row_name(id))).collect();
    let problem = responses::problem;
    let busy = problem(StatusCode::SERVICE_UNAVAILABLE, &[bulk::BUSY]);
    json!({
        "operationId": "registerInBulk",
        "tags": [BULK],
        "summary": "Register many users",
        "description": "There only with the setting front.bulk_api_key. Rows are read, sent and answered while \
                        they come; an answer stands at its row's place. No tokens are made. Under an \
                        Idempotency-Key the same body can be sent again: what is registered stays so.",
        "security": [{ "bulkKey": [] }],
        "parameters": [
            {
                "name": "contract",
                "in": "query",
                "required": true,
                "description": "The contract of all rows.",
                "schema": { "enum": ContractId::ALL },
            },
            { "$ref": "#/components/parameters/IdempotencyKey" },
        ],
        "requestBody": {
            "required": true,
            "description": "One JSON object a line: a row.",
            "content": { bulk::NDJSON: lines(
                "Rows: documents of the contract, which may have a bcrypt hash in the place of the \
                 password.",
                json!({ "anyOf": rows }),
            ) },
        },
        "responses": {
            "200": responses::with(
                json!({
                    "description": "An answer for each row, in the order of the rows.",
                    "content": { bulk::NDJSON: lines(
                        "Reports, one JSON object a line.",
                        json!({ "oneOf": [reference("report"), reference("aborted")] }),
                    ) },
                }),
                &["Idempotency-Key"],
            ),
            "400": problem(StatusCode::BAD_REQUEST, &[bulk::NO_CONTRACT, ApiError::InvalidIdempotencyKey.text()]),
            "401": responses::with(
                problem(StatusCode::UNAUTHORIZED, &[bulk::NO_KEY]),
                &["WWW-Authenticate"],
            ),
            "404": problem(StatusCode::NOT_FOUND, &[NOT_FOUND]),
            "415": problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, &[bulk::NOT_NDJSON]),
            "503": responses::with(busy, &["Idempotency-Key", "Retry-After"]),
        },
    })
}

fn keys() -> Value {
    let example = json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    }] });
    let summary = "The public keys";
    let set = responses::json(&reference("keys"), [("keys".to_owned(), summary, &example)]);
    json!({
        "operationId": "getKeys",
        "tags": [USERS],
        "summary": "The keys that verify tokens",
        "description": "A JSON Web Key Set (RFC 7517). There where tokens are signed with a key that has a \
                        public half.",
        "responses": {
            "200": responses::with(set, &["Cache-Control"]),
            "404": responses::problem(StatusCode::NOT_FOUND, &[NOT_FOUND]),
        },
    })
}

fn live() -> Value {
    let example = json!({ "live": true });
    json!({
        "operationId": "isLive",
        "tags": [PROBES],
        "summary": "Whether the process responses",
        "responses": {
            "200": responses::json(
                &reference("live"),
                [("live".to_owned(), "The process responses", &example)],
            ),
        },
    })
}

fn ready() -> Value {
    let parts = |broker: Value| json!({ "broker": broker, "process": "up" });
    let up = json!({ "ready": true, "parts": parts(json!("up")), "workers": 2, "waiting": 0 });
    let waits = json!({ "reason": "the broker" });
    let down = json!({ "ready": false, "parts": parts(waits), "workers": 0, "waiting": 0 });
    let answer = |summary: &str, example: &Value| {
        responses::json(&reference("ready"), [("parts".to_owned(), summary, example)])
    };
    json!({
        "operationId": "isReady",
        "tags": [PROBES],
        "summary": "Whether every part can work",
        "responses": {
            "200": answer("Every part can work", &up),
            "503": responses::with(
                answer("A part waits for something", &down),
                &["Retry-After"],
            ),
        },
    })
}
