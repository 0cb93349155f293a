//! Examples as they are read: each with what it shows, JSON laid out and coloured.

use maud::{Markup, html};
use serde_json::Value;

use super::{members, text};

/// The examples of a body. Those that have a sentence are preceded by it.
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
    html! { pre tabindex="0" { code { (written(example, 0)) } } }
}

fn written(value: &Value, depth: usize) -> Markup {
    let inside = "  ".repeat(depth + 1);
    let end = "  ".repeat(depth);
    html! {
        @match value {
            Value::Object(fields) if !fields.is_empty() => {
                "{\n"
                @for (at, (name, value)) in fields.iter().enumerate() {
                    (inside) span.key { (Value::from(name.as_str()).to_string()) } ": "
                    (written(value, depth + 1))
                    (if at + 1 < fields.len() { ",\n" } else { "\n" })
                }
                (end) "}"
            }
            Value::Array(items) if !items.is_empty() => {
                "[\n"
                @for (at, item) in items.iter().enumerate() {
                    (inside) (written(item, depth + 1))
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
