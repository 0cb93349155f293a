//! Infers a JSON Schema from sample values. Keys that every sample has are required; the others are
//! optional.

use serde_json::{Map, Value, json};

use super::samples::{CREATED_AT, TOKEN, USER_ID};

/// Returns a schema that accepts all of the samples.
pub fn infer(samples: &[&Value]) -> Value {
    let objects: Vec<&Map<String, Value>> =
        samples.iter().filter_map(|sample| sample.as_object()).collect();
    let items: Vec<&Value> =
        samples.iter().filter_map(|sample| sample.as_array()).flatten().collect();
    let mut types: Vec<&str> = Vec::new();
    for sample in samples {
        if !types.contains(&type_name(sample)) {
            types.push(type_name(sample));
        }
    }
    let mut schema = match samples {
        [first, rest @ ..] if first.is_boolean() && rest.iter().all(|other| other == first) => {
            return json!({ "const": first });
        }
        [Value::String(text), ..] if types.len() == 1 => string_schema(text),
        _ => {
            json!({ "type": if let [only] = types.as_slice() { json!(only) } else { json!(types) } })
        }
    };
    if !objects.is_empty() {
        schema["properties"] = properties(&objects);
        let required = required(&objects);
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
    }
    if types.contains(&"array") && !items.is_empty() {
        schema["items"] = infer(&items);
    }
    schema
}

fn type_name(sample: &Value) -> &'static str {
    match sample {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Returns the schema of a string. The id, token and time of [`samples`](super::samples) get a
/// description or format.
fn string_schema(sample: &str) -> Value {
    match sample {
        USER_ID => json!({
            "type": "string",
            "description": "The user's id: 24 hexadecimal digits.",
            "pattern": "^[0-9a-f]{24}$",
        }),
        TOKEN => json!({
            "type": "string",
            "description": "A JSON Web Token (RFC 7519), for the header `Authorization: Bearer`.",
        }),
        time if time == CREATED_AT.to_rfc3339() => json!({
            "type": "string",
            "format": "date-time",
        }),
        _ => json!({ "type": "string" }),
    }
}

fn properties(objects: &[&Map<String, Value>]) -> Value {
    let mut schemas = Map::new();
    for name in objects.iter().flat_map(|object| object.keys()) {
        if !schemas.contains_key(name) {
            let values: Vec<&Value> =
                objects.iter().filter_map(|object| object.get(name)).collect();
            schemas.insert(name.clone(), infer(&values));
        }
    }
    Value::Object(schemas)
}

fn required<'a>(objects: &[&'a Map<String, Value>]) -> Vec<&'a String> {
    let in_all = |name: &&String| objects.iter().all(|object| object.contains_key(*name));
    let names = objects.first().into_iter().flat_map(|object| object.keys());
    names.filter(in_all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_all_samples_are_required() {
        let samples = [
            json!({ "a": "x", "errors": [{ "msg": "m" }], "ok": false }),
            json!({ "a": "y", "errors": [{ "msg": "m", "param": "p" }], "ok": false, "n": null }),
        ];
        let expected = json!({
            "type": "object",
            "required": ["a", "errors", "ok"],
            "properties": {
                "a": { "type": "string" },
                "errors": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["msg"],
                        "properties": { "msg": { "type": "string" }, "param": { "type": "string" } },
                    },
                },
                "ok": { "const": false },
                "n": { "type": "null" },
            },
        });
        assert_eq!(infer(&samples.iter().collect::<Vec<_>>()), expected);
    }

    #[test]
    fn types_of_all_samples_are_listed() {
        let samples = [json!("up"), json!({ "reason": "x" })];
        let schema = infer(&samples.iter().collect::<Vec<_>>());
        assert_eq!(schema["type"], json!(["string", "object"]));
        assert_eq!(schema["properties"]["reason"]["type"], "string");
    }
}
