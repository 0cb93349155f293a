//! The page that shows the OpenAPI document to people. Written once, on this side, and without a script:
//! what a browser gets is text and a style sheet.

mod example;
mod fields;

use maud::{DOCTYPE, Markup, html};
use serde_json::{Map, Value};

use fields::Field;

/// The page that shows this document.
pub(super) fn page(document: &Value) -> String {
    let groups = groups(document);
    let title = text(&document["info"]["title"]);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "HTTP interface · " (title) }
                link rel="icon" href="/pages/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/pages/style.css";
                link rel="stylesheet" href="/pages/docs.css";
            }
            body {
                a.skip href="#operations" { "To the operations" }
                header.top {
                    a.brand href="/" {
                        img src="/pages/icon.svg" alt="" width="28" height="28";
                        (title)
                    }
                    nav aria-label="Pages" {
                        a href="/" { "Sign up" }
                        a href="/status" { "Status" }
                        a href="/docs" aria-current="page" { "Docs" }
                    }
                }
                main.docs {
                    nav.contents aria-label="Operations" { (contents(&groups)) }
                    div id="operations" {
                        div.heading {
                            h1 { "HTTP interface " small { (text(&document["info"]["version"])) } }
                            p { (prose(text(&document["info"]["description"]))) }
                            p { "For programs: " a href="/openapi.json" { "openapi.json" } ", OpenAPI 3.1." }
                        }
                        @for group in &groups { (section(group, document)) }
                    }
                }
                footer { "Written by this server from what it serves. Nothing here comes from elsewhere." }
            }
        }
    }
    .into_string()
}

/// Operations of one tag.
struct Group<'a> {
    name: &'a str,
    about: &'a str,
    operations: Vec<Operation<'a>>,
}

struct Operation<'a> {
    method: String,
    path: &'a str,
    /// Parameters of the path, then of the operation.
    parameters: Vec<&'a Value>,
    told: &'a Value,
}

fn groups(document: &Value) -> Vec<Group<'_>> {
    let tags = document["tags"].as_array().into_iter().flatten();
    tags.map(|tag| Group {
        name: text(&tag["name"]),
        about: text(&tag["description"]),
        operations: operations(document, &tag["name"]),
    })
    .collect()
}

fn operations<'a>(document: &'a Value, tag: &Value) -> Vec<Operation<'a>> {
    let listed = |value: &'a Value| value["parameters"].as_array().into_iter().flatten();
    let mut found = Vec::new();
    for (path, item) in members(&document["paths"]) {
        for (method, told) in members(item).filter(|(_, told)| told["tags"][0] == *tag) {
            let parameters = listed(item).chain(listed(told));
            found.push(Operation {
                method: method.to_uppercase(),
                path,
                parameters: parameters.map(|one| fields::resolved(document, one)).collect(),
                told,
            });
        }
    }
    found
}

fn contents(groups: &[Group<'_>]) -> Markup {
    html! {
        @for group in groups {
            p { (group.name) }
            ul {
                @for Operation { method, path, told, .. } in &group.operations {
                    li {
                        a href={ "#" (text(&told["operationId"])) } {
                            span.method { (method) } " " (path)
                        }
                    }
                }
            }
        }
    }
}

fn section(group: &Group<'_>, document: &Value) -> Markup {
    html! {
        section aria-labelledby={ "group-" (group.name) } {
            div.group {
                h2 id={ "group-" (group.name) } { (group.name) }
                p { (group.about) }
            }
            @for operation in &group.operations { (article(operation, document)) }
        }
    }
}

fn article(operation: &Operation<'_>, document: &Value) -> Markup {
    let Operation { method, path, parameters, told } = operation;
    let id = text(&told["operationId"]);
    html! {
        article.card id=(id) aria-labelledby={ "title-" (id) } {
            h3 id={ "title-" (id) } { (prose(text(&told["summary"]))) }
            p.place { span.badge { (method) } " " code { (path) } }
            p { (prose(text(&told["description"]))) }
            @for (scheme, _) in told["security"].as_array().into_iter().flatten().flat_map(members) {
                p.empty {
                    "Needs " code { "Authorization: Bearer" } ". "
                    (text(&document["components"]["securitySchemes"][scheme]["description"]))
                }
            }
            @if !parameters.is_empty() {
                h4 { "Parameters" }
                (table(&parameters.iter().map(|one| Field::of_parameter(one)).collect::<Vec<_>>()))
            }
            @for (media, body) in members(&told["requestBody"]["content"]) {
                h4 { "Body " code { (media) } }
                p { (prose(text(&told["requestBody"]["description"]))) }
                (schemas(&body["schema"], document))
                (example::all(body))
            }
            h4 { "Answers" }
            @for (status, answer) in members(&told["responses"]) {
                (response(status, answer, document))
            }
        }
    }
}

fn response(status: &str, answer: &Value, document: &Value) -> Markup {
    let kind = match status.as_bytes().first() {
        Some(b'2') => "badge",
        Some(b'4') => "badge refused",
        _ => "badge failed",
    };
    html! {
        details {
            summary { span class=(kind) { (status) } " " span { (prose(text(&answer["description"]))) } }
            @for (name, header) in members(&answer["headers"]) {
                p.empty {
                    code { (name) } " "
                    (text(&fields::resolved(document, header)["description"]))
                }
            }
            @for (media, body) in members(&answer["content"]) {
                p.empty { code { (media) } }
                (schemas(&body["schema"], document))
                (example::all(body))
            }
        }
    }
}

/// The fields of a schema; of one after the other where a body is one of several.
fn schemas(schema: &Value, document: &Value) -> Markup {
    html! {
        @for (name, schema) in fields::choices(schema, document) {
            @let listed = fields::of(schema);
            @if !listed.is_empty() {
                @if let Some(name) = name { h5 { code { (name) } } }
                (table(&listed))
            }
        }
    }
}

fn table(fields: &[Field]) -> Markup {
    html! {
        table {
            thead.unseen { tr { th { "Name" } th { "Type" } th { "Meaning" } } }
            tbody {
                @for field in fields {
                    tr {
                        th scope="row" { code { (field.name) } }
                        td { (field.kind) @if !field.required { span.optional { "optional" } } }
                        td { (prose(&field.about)) }
                    }
                }
            }
        }
    }
}

/// A text in which code stands between back-ticks.
fn prose(text: &str) -> Markup {
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let members = value.as_object().into_iter().flat_map(Map::iter);
    members.map(|(name, value)| (name.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_text_holds_is_text() {
        let document = json!({
            "info": { "title": "<script>", "description": "`<b>` & more" },
            "tags": [{ "name": "t" }],
            "paths": { "/<i>": { "get": { "tags": ["t"], "responses": {} } } },
        });
        let page = page(&document);
        for raw in ["<script", "<b>", "<i>", "& more"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("<code>&lt;b&gt;</code> &amp; more"), "{page}");
    }
}
