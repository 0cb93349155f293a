//! Answers as the document describes them: a sentence, headers, and for each media type a schema with
//! examples.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::reference;
use crate::contract::problem;
use crate::contract::samples::Sample;
use crate::domain::ContractId;

/// Samples by their status.
pub(super) fn by_status(samples: &[Sample]) -> BTreeMap<u16, Vec<&Sample>> {
    let mut found: BTreeMap<u16, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        found.entry(sample.status).or_default().push(sample);
    }
    found
}

/// The name of the schema of a contract's responses with this status.
pub(super) fn name(id: ContractId, status: u16) -> String {
    format!("{id}.{status}")
}

/// An answer in JSON, with its examples: name, summary and body of each.
pub(super) fn json<'a>(
    schema: &Value,
    examples: impl IntoIterator<Item = (String, &'a str, &'a Value)>,
) -> Value {
    let (mut told, mut summaries) = (Map::new(), Vec::new());
    for (name, summary, body) in examples {
        told.insert(name, json!({ "summary": summary, "value": body }));
        if !summaries.contains(&summary) {
            summaries.push(summary);
        }
    }
    json!({
        "description": format!("{}.", summaries.join(". ")),
        "content": { "application/json": { "schema": schema, "examples": told } },
    })
}

/// `{"message": ...}`.
pub(super) fn message(text: &str) -> Value {
    let example = problem::message(text);
    json(&reference("message"), [("message".to_owned(), text, &example)])
}

/// A problem document, with one of these details.
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

/// The same answer with headers that the document describes elsewhere.
pub(super) fn with(mut answer: Value, headers: &[&str]) -> Value {
    for header in headers {
        answer["headers"][header] = json!({ "$ref": format!("#/components/headers/{header}") });
    }
    answer
}
