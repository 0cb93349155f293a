//! Flattens a JSON Schema into a list of fields; fields of nested objects are named by their paths.

use serde_json::{Map, Value};

/// One line of the table.
pub(super) struct SchemaField {
    /// `fullname.firstname`, `errors[].msg`.
    pub(super) name: String,
    /// `string`, `string or null`, `"const"`.
    pub(super) kind: String,
    /// Whether it is required in its parent object.
    pub(super) required: bool,
    /// The description; can be empty.
    pub(super) description: String,
}

impl SchemaField {
    /// A parameter of an operation.
    pub(super) fn of_parameter(parameter: &Value) -> Self {
        let text = |name: &str| parameter[name].as_str().unwrap_or_default();
        Self {
            name: text("name").to_owned(),
            kind: format!("{} in {}", kind(&parameter["schema"]), text("in")),
            required: parameter["required"] == true,
            description: text("description").to_owned(),
        }
    }
}

/// Resolves a `$ref` within the document; other values are returned unchanged.
pub(super) fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let pointer = value["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    pointer.and_then(|pointer| document.pointer(pointer)).unwrap_or(value)
}

/// The alternatives of a schema (`oneOf` or `anyOf`) with their names; without alternatives, the schema itself.
pub(super) fn choices<'a>(
    schema: &'a Value,
    document: &'a Value,
) -> Vec<(Option<&'a str>, &'a Value)> {
    let lines = &schema["x-line"];
    let schema = if lines.is_null() { schema } else { lines };
    match ["oneOf", "anyOf"].iter().find_map(|key| schema[key].as_array()) {
        Some(listed) => listed.iter().map(|one| (name(one), resolved(document, one))).collect(),
        None => vec![(None, resolved(document, schema))],
    }
}

fn name(reference: &Value) -> Option<&str> {
    reference["$ref"].as_str()?.rsplit('/').next()
}

/// The fields of an object schema, sorted by name.
pub(super) fn of(schema: &Value) -> Vec<SchemaField> {
    let mut found = Vec::new();
    collect(schema, "", &mut found);
    found
}

fn collect(schema: &Value, within: &str, found: &mut Vec<SchemaField>) {
    let is_required = |name: &str| {
        schema["required"].as_array().is_some_and(|names| names.iter().any(|one| one == name))
    };
    for (name, field) in schema["properties"].as_object().into_iter().flat_map(Map::iter) {
        let path = format!("{within}{name}");
        found.push(SchemaField {
            name: path.clone(),
            kind: kind(field),
            required: is_required(name),
            description: field["description"].as_str().unwrap_or_default().to_owned(),
        });
        collect(field, &format!("{path}."), found);
        collect(&field["items"], &format!("{path}[]."), found);
    }
}

fn kind(schema: &Value) -> String {
    let joined = |values: &Value| {
        let shown = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
        values.as_array().map(|all| all.iter().map(shown).collect::<Vec<_>>().join(" or "))
    };
    let typed = joined(&schema["type"]).or_else(|| schema["type"].as_str().map(str::to_owned));
    let constant = || schema.get("const").map(Value::to_string);
    typed.or_else(|| joined(&schema["enum"])).or_else(constant).unwrap_or_else(|| "any".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_fields_are_named_by_their_paths() {
        let schema = json!({
            "required": ["errors"],
            "properties": {
                "errors": { "type": "array", "items": { "properties": { "msg": { "type": "string" } } } },
                "name": { "properties": { "first": { "type": ["string", "null"] } } },
                "success": { "const": false },
            },
        });
        let fields = of(&schema);
        let listed: Vec<(&str, &str, bool)> =
            fields.iter().map(|f| (f.name.as_str(), f.kind.as_str(), f.required)).collect();
        let expected = [
            ("errors", "array", true),
            ("errors[].msg", "string", false),
            ("name", "any", false),
            ("name.first", "string or null", false),
            ("success", "false", false),
        ];
        assert_eq!(listed, expected);
    }
}
