//! The operations that do not depend on a contract: profile, public keys, bulk upload and probes.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::{reference, registration, responses};
use crate::config::Mount;
use crate::contract::{ApiError, contract, samples};
use crate::domain::ContractId;
use crate::front::{NOT_FOUND, bulk, jwks, paths, profile};

pub(super) const USERS: &str = "users";
pub(super) const BULK: &str = "bulk";
pub(super) const PROBES: &str = "probes";

/// The schema name of a contract's profile.
pub(super) fn profile_name(id: ContractId) -> String {
    format!("{id}.profile")
}

/// The schema name of a contract's document as a bulk row.
pub(super) fn row_name(id: ContractId) -> String {
    format!("{id}.row")
}

/// The paths of these operations, including the profile paths of the mounts.
pub(super) fn paths(mounts: &[Mount]) -> Map<String, Value> {
    let path = |path: &str, method: &str, operation: Value| {
        (path.to_owned(), json!({ method: operation }))
    };
    let mut all = Map::new();
    for pattern in paths::profiles(mounts) {
        let exact = if pattern.path.is_empty() { "/" } else { &pattern.path };
        all.insert(exact.to_owned(), json!({ "get": profile(exact) }));
        if pattern.any_prefix {
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

/// Schemas of the bodies that have no type in the code.
pub(super) fn schemas() -> Map<String, Value> {
    let down = json!({ "type": "object", "required": ["reason"], "properties": {
        "reason": { "type": "string" },
    } });
    let ready = json!({
        "type": "object",
        "required": ["ready", "components"],
        "properties": {
            "ready": { "type": "boolean" },
            "components": {
                "type": "object",
                "description": "The state of each required component: \"up\", or the reason why it is down. If \
                                operators have an address of their own, other addresses show only \"down\".",
                "additionalProperties": { "oneOf": [{ "enum": ["up", "down"] }, down] },
            },
            "warnings": {
                "type": "object",
                "description": "Conditions that need an operator's attention although every component is up; absent \
                                if there are none.",
                "additionalProperties": { "type": "string" },
            },
            "workers": {
                "type": ["integer", "null"],
                "description": "Number of workers that consume the interactive queue.",
            },
            "queued": {
                "type": ["integer", "null"],
                "description": "Number of registrations in the interactive queue.",
            },
        },
    });
    let aborted = json!({
        "type": "object",
        "description": "The last line, if the rest of the body was not read.",
        "required": ["outcome", "code"],
        "properties": {
            "outcome": { "const": "aborted" },
            "code": { "enum": ["body_aborted", "idle", "internal", "not_ndjson", "stopping"] },
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
    // The fixed path has the plain operation id.
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
        // Not `oneOf`: the profile of one contract can contain that of another.
        &json!({ "anyOf": of }),
        examples.map(|((id, body), summary)| (id.to_string(), summary.as_str(), body)),
    );
    let unauthorized =
        responses::with_headers(responses::message(profile::UNAUTHORIZED), &["WWW-Authenticate"]);
    let error = |error: ApiError| responses::message(error.text());
    json!({
        "operationId": id,
        "tags": [USERS],
        "summary": "Get the user of a token",
        "description": "The response has the shape of the contract that registered the user. Failures of the \
                        service are never 401, so clients can discard their token on 401.",
        "security": [{ "token": [] }],
        "responses": {
            "200": found,
            "401": unauthorized,
            "429": responses::with_headers(error(ApiError::RateLimited), &["Retry-After"]),
            "500": error(ApiError::Internal),
            "503": responses::with_headers(error(ApiError::Unavailable), &["Retry-After"]),
            "504": error(ApiError::Timeout),
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
        "description": "Served only if the setting front.bulk_api_key is set. Rows are registered while the request \
                        is sent, and their outcomes are returned in the order of the rows. No tokens are \
                        created. With an Idempotency-Key the same body can safely be sent again.",
        "security": [{ "bulkKey": [] }],
        "parameters": [
            {
                "name": "contract",
                "in": "query",
                "required": true,
                "description": "The contract of every row.",
                "schema": { "enum": ContractId::ALL },
            },
            { "$ref": "#/components/parameters/IdempotencyKey" },
        ],
        "requestBody": {
            "required": true,
            "description": "One row per line, a JSON object.",
            "content": { bulk::NDJSON: lines(
                "Documents of the contract. A row can have a bcrypt hash instead of the password.",
                json!({ "anyOf": rows }),
            ) },
        },
        "responses": {
            "200": responses::with_headers(
                json!({
                    "description": "The outcome of each row, in the order of the rows.",
                    "content": { bulk::NDJSON: lines(
                        "One outcome per line, a JSON object.",
                        json!({ "oneOf": [reference("report"), reference("aborted")] }),
                    ) },
                }),
                &["Idempotency-Key"],
            ),
            "400": problem(StatusCode::BAD_REQUEST, &[bulk::NO_CONTRACT, ApiError::InvalidIdempotencyKey.text()]),
            "401": responses::with_headers(
                problem(StatusCode::UNAUTHORIZED, &[bulk::NO_KEY]),
                &["WWW-Authenticate"],
            ),
            "404": problem(StatusCode::NOT_FOUND, &[NOT_FOUND]),
            "415": problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, &[bulk::NOT_NDJSON]),
            "503": responses::with_headers(busy, &["Idempotency-Key", "Retry-After"]),
        },
    })
}

fn keys() -> Value {
    let example = json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    }] });
    let summary = "The public keys that verify tokens";
    let set = responses::json(&reference("keys"), [("keys".to_owned(), summary, &example)]);
    json!({
        "operationId": "getKeys",
        "tags": [USERS],
        "summary": "Get the keys that verify tokens",
        "description": "A JSON Web Key Set (RFC 7517). Served only if tokens are signed with an asymmetric key.",
        "responses": {
            "200": responses::with_headers(set, &["Cache-Control"]),
            "404": responses::problem(StatusCode::NOT_FOUND, &[NOT_FOUND]),
        },
    })
}

fn live() -> Value {
    let example = json!({ "live": true });
    json!({
        "operationId": "isLive",
        "tags": [PROBES],
        "summary": "Check whether the process responds",
        "responses": {
            "200": responses::json(
                &reference("live"),
                [("live".to_owned(), "The process responds", &example)],
            ),
        },
    })
}

fn ready() -> Value {
    let components = |queue: Value| json!({ "process": "up", "queue": queue });
    let up = json!({
        "ready": true, "components": components(json!("up")), "workers": 2, "queued": 0,
    });
    let reason = json!({ "reason": "RabbitMQ at 10.0.0.1:5672: connection refused" });
    let down = json!({
        "ready": false, "components": components(reason), "workers": 0, "queued": 0,
    });
    let response = |summary: &str, example: &Value| {
        responses::json(&reference("ready"), [("components".to_owned(), summary, example)])
    };
    json!({
        "operationId": "isReady",
        "tags": [PROBES],
        "summary": "Check whether the process is ready",
        "responses": {
            "200": response("Every component is up", &up),
            "503": responses::with_headers(
                response("At least one component is down", &down),
                &["Retry-After"],
            ),
        },
    })
}
