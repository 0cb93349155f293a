//! The HTTP door as an OpenAPI document, from the definitions that the code itself uses: mounts, the
//! contracts' schemas, and the responses that the contracts give. Served at `/openapi.json`, printed by
//! `muster spec openapi`.

mod responses;
mod operations;
mod registration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config;
use crate::contract::{bulk_schema, contract, problem, samples, schema_inference};
use crate::domain::ContractId;
pub(in crate::front) use registration::prefixed;

const DESCRIPTION: &str = "Registers users. Five published signup contracts are served at once, each with the \
    responses its document prescribes. A registration goes through a queue to a worker that hashes the \
    password, stores the user and signs the token; the answer comes when that is done. Fields that a \
    contract does not know are ignored, of equal keys the last one counts, and null is the same as \
    absent. Every answer says which pages may read it (CORS), and every path responses OPTIONS with 204, those too where nothing is.";

/// The document of one front, built once: for programs as bytes, for the page as a value.
pub(super) struct Specification {
    pub(super) document: Value,
    pub(super) bytes: Bytes,
}

impl Specification {
    pub(super) fn new(settings: &config::FrontSettings) -> Self {
        let document = document(settings);
        Self { bytes: Bytes::from(document.to_string()), document }
    }
}

/// The document, for these mounts and limits.
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
            { "name": registration::TAG, "description": "One user at a time." },
            { "name": operations::USERS, "description": "Who a token belongs to, and who signed it." },
            { "name": operations::BULK, "description": "Many users with one request." },
            { "name": operations::PROBES, "description": "How the process is doing." },
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
                    "description": "The token of a registration.",
                },
                "bulkKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The API key in the setting front.bulk_api_key.",
                },
            },
        },
    })
}

/// What the responses' bodies and the documents look like, each under the name that refers to it.
fn schemas(mounts: &[config::Mount]) -> Map<String, Value> {
    let mut all = Map::new();
    for mount in mounts {
        for served in registration::contracts(mount) {
            all.insert(served.name(), served.contract.schema());
            for (status, samples) in responses::by_status(&samples::response_samples(served.contract))
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

/// One line of a bulk response, as `rows::Report` writes it.
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
            "field": text("The field; absent if the error is about the whole row."),
            "code": text("A stable code."),
            "message": text("A text that repeats no value."),
            "column": count("The byte of the line at which parsing failed, counted from 1."),
        },
    });
    json!({
        "type": "object",
        "description": "One line of a report.",
        "required": ["line", "outcome"],
        "properties": {
            "line": count("The line at which the row begins, counted from 1."),
            "registrationId":
                id(64, "The identity under which the user is stored; absent if the row could not be read."),
            "outcome": { "enum": ["registered", "rejected", "failed"] },
            "code": text("Why it was not registered."),
            "userId": id(24, "The user."),
            "replayed": {
                "type": "boolean",
                "description": "true if the same row was registered before, under the same id.",
            },
            "errors": { "type": "array", "description": "One entry for each violation.", "items": error },
        },
    })
}

fn headers() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "Idempotency-Key": {
            "description": "The key under which repeating the request is safe: the one that was sent, or \
                            one made for it.",
            "schema": registration::key_schema(),
        },
        "Idempotency-Replayed": {
            "description": "There, and true, where an earlier registration is answered again.",
            "schema": { "const": "true" },
        },
        "Server-Timing": {
            "description": "How many milliseconds the stages took that the registration came to. Only \
                            where pages for people are on.",
            "schema": text,
        },
        "Retry-After": {
            "description": "In how many seconds to try again.",
            "schema": { "type": "integer", "minimum": 1 },
        },
        "WWW-Authenticate": { "description": "How to say who one is.", "schema": text },
        "Cache-Control": { "description": "How long it may be kept.", "schema": text },
    })
}

/// A reference to a schema of [`schemas`].
fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}
