//! Renders the examples of a body as indented JSON with syntax colours.

use maud::{Markup, html};
use serde_json::Value;

use super::{members, text};

/// The examples of a body, each under its summary or its name.
pub(super) fn all(body: &Value) -> Markup {
    html! {
        @if let Some(example) = body.get("example") { (one(example)) }
        @for (name, example) in members(&body["examples"]) {
            @let summary = text(&example["summary"]);
            h5 { (if summary.is_empty() { name } else { summary }) }
            (one(&example["value"]))
        }
    }
}

fn one(example: &Value) -> Markup {
    html! { pre tabindex="0" { code { (formatted(example, 0)) } } }
}

fn formatted(value: &Value, depth: usize) -> Markup {
    let inside = "  ".repeat(depth + 1);
    let end = "  ".repeat(depth);
    html! {
        @match value {
            Value::Object(fields) if !fields.is_empty() => {
                "{\n"
                @for (at, (name, value)) in fields.iter().enumerate() {
                    (inside) span.key { (Value::from(name.as_str()).to_string()) } ": "
                    (formatted(value, depth + 1))
                    (if at + 1 < fields.len() { ",\n" } else { "\n" })
                }
                (end) "}"
            }
            Value::Array(items) if !items.is_empty() => {
                "[\n"
                @for (at, item) in items.iter().enumerate() {
                    (inside) (formatted(item, depth + 1))
                    (if at + 1 < items.len() { ",\n" } else { "\n" })
                }
                (end) "]"
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                span.literal { (value.to_string()) }
            }
            other => { (other.to_string()) }
        }
    }
}
