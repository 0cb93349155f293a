//! Builds OpenAPI response objects: a description, headers, and a schema with examples for each media type.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::reference;
use crate::contract::problem;
use crate::contract::samples::ResponseSample;
use crate::domain::ContractId;

/// Groups samples by their status.
pub(super) fn by_status(samples: &[ResponseSample]) -> BTreeMap<u16, Vec<&ResponseSample>> {
    let mut groups: BTreeMap<u16, Vec<&ResponseSample>> = BTreeMap::new();
    for sample in samples {
        groups.entry(sample.status).or_default().push(sample);
    }
    groups
}

/// The schema name of a contract's responses with this status.
pub(super) fn name(id: ContractId, status: u16) -> String {
    format!("{id}.{status}")
}

/// A JSON response with its examples: the name, summary and body of each.
pub(super) fn json<'a>(
    schema: &Value,
    examples: impl IntoIterator<Item = (String, &'a str, &'a Value)>,
) -> Value {
    let (mut listed, mut summaries) = (Map::new(), Vec::new());
    for (name, summary, body) in examples {
        listed.insert(name, json!({ "summary": summary, "value": body }));
        if !summaries.contains(&summary) {
            summaries.push(summary);
        }
    }
    json!({
        "description": format!("{}.", summaries.join(". ")),
        "content": { "application/json": { "schema": schema, "examples": listed } },
    })
}

/// A response whose body is `{"message": text}`.
pub(super) fn message(text: &str) -> Value {
    let example = problem::message(text);
    json(&reference("message"), [("message".to_owned(), text, &example)])
}

/// A problem document (RFC 9457) that has one of these details.
pub(super) fn problem(status: StatusCode, details: &[&str]) -> Value {
    let title = status.canonical_reason().unwrap_or_default();
    let examples: Map<String, Value> = details
        .iter()
        .enumerate()
        .map(|(at, detail)| {
            let example = problem::problem(status.as_u16(), title, detail);
            (format!("problem-{}", at + 1), json!({ "summary": detail, "value": example }))
        })
        .collect();
    json!({
        "description": details.join(" "),
        "content": {
            problem::MEDIA_TYPE: { "schema": reference("problem"), "examples": examples },
        },
    })
}

/// Adds references to headers in the document's components.
pub(super) fn with_headers(mut response: Value, headers: &[&str]) -> Value {
    for header in headers {
        response["headers"][header] = json!({ "$ref": format!("#/components/headers/{header}") });
    }
    response
}
