//! Code samples of an operation: a `curl` command and a JavaScript `fetch` call.

use std::fmt::Write;

use maud::{Markup, html};
use serde_json::Value;

use super::{DocOperation, members, text};
use crate::contract::contract;
use crate::domain::ContractId;

/// The request of one code sample.
struct CodeSample<'a> {
    /// The heading, if the operation has several samples.
    name: Option<&'a str>,
    path: String,
    body: SampleBody,
    /// The variables with the bearer token: the shell's and the script's.
    bearer: Option<(&'static str, &'static str)>,
}

enum SampleBody {
    None,
    Json(Value),
    /// NDJSON with rows like this one.
    Rows(Value),
}

/// The samples of an operation, with headings if there are several. `origin` is the server's address; the page's script
/// replaces it with the address that the page was loaded from.
pub(super) fn all(operation: &DocOperation<'_>, origin: &str) -> Markup {
    let method = operation.method.as_str();
    html! {
        h4 { "Samples" }
        @for sample in samples(operation) {
            @if let Some(name) = sample.name { h5 { code { (name) } } }
            div.samples {
                (block("curl", operation, curl(method, &sample), Some(origin)))
                (block("fetch", operation, fetch(method, &sample), None))
            }
        }
    }
}

/// A sample with its copy button, which the page's script shows. `origin` replaces [`ORIGIN`] in `written`.
fn block(
    kind: &str,
    operation: &DocOperation<'_>,
    written: String,
    origin: Option<&str>,
) -> Markup {
    let label = format!("Copy the {kind} sample of {} {}", operation.method, operation.path);
    html! {
        div.sample {
            div.title {
                span.kind { (kind) }
                button.copy type="button" aria-label=(label) hidden { "Copy" }
            }
            pre tabindex="0" {
                code {
                    @if let (Some(origin), Some((command, rest))) = (origin, written.split_once(ORIGIN)) {
                        (command) span.origin { (origin) } (rest)
                    } @else {
                        (written)
                    }
                }
            }
        }
    }
}

/// Placeholder for the server's address in a command.
const ORIGIN: char = '\u{fffc}';

fn samples<'a>(operation: &DocOperation<'a>) -> Vec<CodeSample<'a>> {
    let path = example_path(operation);
    let bearer = operation.object["security"].as_array().and_then(|schemes| {
        let named = |name: &str| schemes.iter().any(|scheme| scheme.get(name).is_some());
        match (named("token"), named("bulkKey")) {
            (true, _) => Some(("TOKEN", "token")),
            (_, true) => Some(("MUSTER_FRONT_BULK_API_KEY", "bulkKey")),
            _ => None,
        }
    });
    let content = &operation.object["requestBody"]["content"];
    let sample = |name, body| CodeSample { name, path: path.clone(), body, bearer };
    if content.get("application/x-ndjson").is_some() {
        return vec![sample(None, SampleBody::Rows(contract(ContractId::ALL[0]).example()))];
    }
    let json = &content["application/json"];
    if let Some(example) = json.get("example") {
        return vec![sample(None, SampleBody::Json(example.clone()))];
    }
    let named: Vec<CodeSample<'_>> = members(&json["examples"])
        .map(|(name, example)| sample(Some(name), SampleBody::Json(example["value"].clone())))
        .collect();
    if named.is_empty() { vec![sample(None, SampleBody::None)] } else { named }
}

/// The path with example values for its parameters, and with the required query parameters.
fn example_path(operation: &DocOperation<'_>) -> String {
    let mut path = operation.path.to_owned();
    let mut query = Vec::new();
    for parameter in operation.parameters.iter().filter(|one| one["required"] == true) {
        let name = text(&parameter["name"]);
        let value = text(parameter.get("example").unwrap_or(&parameter["schema"]["enum"][0]));
        match text(&parameter["in"]) {
            "path" => path = path.replace(&format!("{{{name}}}"), value),
            "query" => query.push(format!("{name}={value}")),
            _ => {}
        }
    }
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

fn curl(method: &str, sample: &CodeSample<'_>) -> String {
    let CodeSample { path, body, bearer, .. } = sample;
    let url = format!("{ORIGIN}{path}");
    // An unquoted question mark is a glob pattern in a shell.
    let url = if path.contains('?') { format!("'{url}'") } else { url };
    let mut written = match (method, body) {
        ("GET", _) | (_, SampleBody::Json(_)) => format!("curl {url}"),
        _ => format!("curl -X {method} {url}"),
    };
    let mut option = |option: &str| {
        // Writing to a String cannot fail.
        let _ = write!(written, " \\\n  {option}");
    };
    if let Some((variable, _)) = bearer {
        option(&format!("-H \"Authorization: Bearer ${variable}\""));
    }
    match body {
        SampleBody::None => {}
        SampleBody::Json(body) => {
            option("-H 'Content-Type: application/json'");
            option(&format!("-d '{}'", format!("{body:#}").replace('\'', r"'\''")));
        }
        SampleBody::Rows(_) => {
            option("-H 'Content-Type: application/x-ndjson'");
            option("-N -T users.ndjson");
        }
    }
    written
}

fn fetch(method: &str, sample: &CodeSample<'_>) -> String {
    let CodeSample { path, body, bearer, .. } = sample;
    let mut headers = Vec::new();
    if let Some((_, variable)) = bearer {
        headers.push(format!("Authorization: `Bearer ${{{variable}}}`"));
    }
    let (media_type, body) = match body {
        SampleBody::None => (None, None),
        SampleBody::Json(body) => {
            (Some("application/json"), Some(format!("JSON.stringify({})", indented(body))))
        }
        SampleBody::Rows(row) => (
            Some("application/x-ndjson"),
            Some(format!(
                "[{}]\n    .map((row) => JSON.stringify(row)).join(\"\\n\")",
                indented(row)
            )),
        ),
    };
    headers.extend(media_type.map(|media_type| format!("\"Content-Type\": \"{media_type}\"")));
    let mut options = Vec::new();
    if method != "GET" {
        options.push(format!("  method: \"{method}\",\n"));
    }
    if !headers.is_empty() {
        options.push(format!("  headers: {{ {} }},\n", headers.join(", ")));
    }
    options.extend(body.map(|body| format!("  body: {body},\n")));
    let options =
        if options.is_empty() { String::new() } else { format!(", {{\n{}}}", options.concat()) };
    let read = if media_type == Some("application/x-ndjson") { "text" } else { "json" };
    format!(
        "const response = await fetch(\"{path}\"{options});\n\
         console.log(response.status, await response.{read}());"
    )
}

/// A value as JavaScript, indented for the options of the `fetch` call.
fn indented(value: &Value) -> String {
    format!("{value:#}").replace('\n', "\n  ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn operation<'a>(
        method: &str,
        object: &'a Value,
        parameters: Vec<&'a Value>,
    ) -> DocOperation<'a> {
        DocOperation { method: method.into(), path: "/{prefix}/x", parameters, object }
    }

    #[test]
    fn post_sample_sends_the_example() {
        let prefix = json!({ "name": "prefix", "in": "path", "required": true, "example": "id" });
        let object = json!({ "requestBody": { "content": { "application/json": {
            "example": { "name": "O'Neil" },
        } } } });
        let operation = operation("POST", &object, vec![&prefix]);
        let samples = samples(&operation);
        let expected = "curl \u{fffc}/id/x \\\n  -H 'Content-Type: application/json' \\\n  \
                        -d '{\n  \"name\": \"O'\\''Neil\"\n}'";
        assert_eq!(curl("POST", &samples[0]), expected);
        let expected = "const response = await fetch(\"/id/x\", {\n  method: \"POST\",\n  \
             headers: { \"Content-Type\": \"application/json\" },\n  \
             body: JSON.stringify({\n    \"name\": \"O'Neil\"\n  }),\n});\n\
             console.log(response.status, await response.json());";
        assert_eq!(fetch("POST", &samples[0]), expected);
        assert!(
            all(&operation, "host:1")
                .into_string()
                .contains("<span class=\"origin\">host:1</span>/id/x")
        );
    }

    #[test]
    fn sample_quotes_a_url_with_a_query() {
        let query = json!({ "name": "c", "in": "query", "required": true, "schema": { "enum": ["a", "b"] } });
        let object = json!({
            "security": [{ "bulkKey": [] }],
            "requestBody": { "content": { "application/x-ndjson": {} } },
        });
        let operation = DocOperation { path: "/rows", ..operation("POST", &object, vec![&query]) };
        let samples = samples(&operation);
        let expected = "curl -X POST '\u{fffc}/rows?c=a' \\\n  \
                        -H \"Authorization: Bearer $MUSTER_FRONT_BULK_API_KEY\" \\\n  \
                        -H 'Content-Type: application/x-ndjson' \\\n  -N -T users.ndjson";
        assert_eq!(curl("POST", &samples[0]), expected);
        assert!(fetch("POST", &samples[0]).contains("Authorization: `Bearer ${bulkKey}`"));
    }
}
