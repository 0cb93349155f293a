//! The OpenAPI document of the HTTP interface. It is derived from the mounts, the contracts' schemas and the responses that the
//! contracts render. The front serves it at `/openapi.json`; `muster spec openapi` prints it.

mod operations;
mod registration;
mod responses;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config;
use crate::contract::{bulk_schema, contract, problem, samples, schema_inference};
use crate::domain::ContractId;
pub(in crate::front) use registration::prefixed;

const DESCRIPTION: &str = "Registers users through five published signup contracts, each with its own \
    requests and responses. A registration is sent through a queue to a worker, which hashes the password, \
    stores the user and signs a token; then the response is sent. Unknown fields are ignored, the last of \
    several equal keys counts, and null means absent. Every response has CORS headers, and every path, \
    including unknown ones, responds to OPTIONS with 204.";

/// The OpenAPI document of one front, built once.
pub(super) struct Specification {
    /// For the HTML page.
    pub(super) document: Value,
    /// The serialized document.
    pub(super) bytes: Bytes,
}

impl Specification {
    pub(super) fn new(settings: &config::FrontSettings) -> Self {
        let document = document(settings);
        Self { bytes: Bytes::from(document.to_string()), document }
    }
}

/// Builds the document for the mounts and limits of these settings.
pub fn document(settings: &config::FrontSettings) -> Value {
    let mut paths = operations::paths(&settings.mounts);
    for mount in &settings.mounts {
        paths.extend(registration::paths(mount, settings));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "muster",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": "/" }],
        "tags": [
            { "name": registration::TAG, "description": "Register one user per request." },
            { "name": operations::USERS, "description": "Get the user of a token, and the keys that verify tokens." },
            { "name": operations::BULK, "description": "Register many users with one request." },
            { "name": operations::PROBES, "description": "Liveness and readiness of the process." },
        ],
        "paths": paths,
        "components": {
            "schemas": schemas(&settings.mounts),
            "parameters": { "IdempotencyKey": registration::key_parameter() },
            "headers": headers(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "The token that a registration returned.",
                },
                "bulkKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The API key of the setting front.bulk_api_key.",
                },
            },
        },
    })
}

/// The schemas of request documents and response bodies, by name.
fn schemas(mounts: &[config::Mount]) -> Map<String, Value> {
    let mut all = Map::new();
    for mount in mounts {
        for served in registration::contracts(mount) {
            all.insert(served.name(), served.contract.schema());
            for (status, samples) in
                responses::by_status(&samples::response_samples(served.contract))
            {
                let bodies: Vec<&Value> = samples.iter().map(|sample| &sample.body).collect();
                all.insert(
                    responses::name(served.contract.id(), status),
                    schema_inference::infer(&bodies),
                );
            }
        }
    }
    for id in ContractId::ALL {
        let profiles = samples::profile_samples(contract(id));
        all.insert(
            operations::profile_name(id),
            schema_inference::infer(&profiles.iter().collect::<Vec<_>>()),
        );
        all.insert(operations::row_name(id), bulk_schema(contract(id)));
    }
    all.insert("report".to_owned(), report());
    all.insert(
        "problem".to_owned(),
        schema_inference::infer(&[&problem::problem(404, "title", "detail")]),
    );
    all.insert("message".to_owned(), schema_inference::infer(&[&problem::message("text")]));
    all.extend(operations::schemas());
    all
}

/// The schema of one line of a bulk response, which `rows::RowReport` serializes.
fn report() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let id = |digits: u8, description: &str| {
        let pattern = format!("^[0-9a-f]{{{digits}}}$");
        json!({ "type": "string", "pattern": pattern, "description": description })
    };
    let count =
        |description: &str| json!({ "type": "integer", "minimum": 1, "description": description });
    let error = json!({
        "type": "object",
        "required": ["code", "message"],
        "properties": {
            "field": text("The invalid field; absent if the error concerns the whole row."),
            "code": text("A stable error code."),
            "message": text("A message that contains no value of the row."),
            "column": count("The byte of the line at which parsing failed, starting at 1."),
        },
    });
    json!({
        "type": "object",
        "description": "The outcome of one row.",
        "required": ["line", "outcome"],
        "properties": {
            "line": count("The line number of the row, starting at 1."),
            "registrationId":
                id(64, "The registration's id, which is stored with the user; absent if the row could not be read."),
            "outcome": { "enum": ["registered", "rejected", "failed"] },
            "code": text("Why the row was not registered; absent if it was."),
            "userId": id(24, "The id of the registered user."),
            "replayed": {
                "type": "boolean",
                "description": "true if the row was registered by an earlier request, under the same registration id.",
            },
            "errors": { "type": "array", "description": "One entry for each violation.", "items": error },
        },
    })
}

fn headers() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "Idempotency-Key": {
            "description": "The key with which the request can safely be retried: the one that was sent, or a \
                            generated one.",
            "schema": registration::key_schema(),
        },
        "Idempotency-Replayed": {
            "description": "true if the response repeats the outcome of an earlier request; otherwise absent.",
            "schema": { "const": "true" },
        },
        "Server-Timing": {
            "description": "Duration of each stage of the registration in milliseconds. Present if the HTML pages are \
                            enabled.",
            "schema": text,
        },
        "Retry-After": {
            "description": "Seconds to wait before the next attempt.",
            "schema": { "type": "integer", "minimum": 1 },
        },
        "WWW-Authenticate": { "description": "The required authentication scheme.", "schema": text },
        "Cache-Control": { "description": "How long the response may be cached.", "schema": text },
    })
}

/// A reference to a schema in [`schemas`].
fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}
