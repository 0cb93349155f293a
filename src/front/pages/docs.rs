//! The API documentation page: renders the OpenAPI document as HTML on the server. Its script only adds buttons that
//! copy samples.

mod example;
mod fields;
mod samples;

use maud::{DOCTYPE, Markup, html};
use serde_json::{Map, Value};

use crate::config;
use crate::front::{openapi, paths};
use fields::SchemaField;

/// Renders the OpenAPI document of these settings.
pub(super) fn page(document: &Value, settings: &config::FrontSettings) -> String {
    render(document, &paths_in_order(settings), &origin(settings))
}

/// The paths in the order of the mounts. The document itself is sorted by name.
fn paths_in_order(settings: &config::FrontSettings) -> Vec<String> {
    let mounted = settings.mounts.iter().map(|mount| (mount.path.clone(), mount.any_prefix));
    let profiles = paths::profiles(&settings.mounts);
    let profiles = profiles.into_iter().map(|pattern| (pattern.path, pattern.any_prefix));
    let both = mounted.chain(profiles).flat_map(|(path, any_prefix)| {
        let path = if path.is_empty() { "/".to_owned() } else { path };
        let prefixed = any_prefix.then(|| openapi::prefixed(&path));
        [Some(path), prefixed]
    });
    both.flatten().collect()
}

/// The server's address for `curl` samples. Behind a proxy the real address differs; the page's script replaces it.
fn origin(settings: &config::FrontSettings) -> String {
    let scheme = if settings.tls.is_some() { "https://" } else { "" };
    let mut address = settings.listen;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    format!("{scheme}{address}")
}

fn render(document: &Value, order: &[String], origin: &str) -> String {
    let groups = groups(document, order);
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
                script type="module" src="/pages/docs.js" {}
            }
            body {
                a.skip href="#operations" { "Skip to the operations" }
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
                            p { "Machine-readable: " a href="/openapi.json" { "openapi.json" } ", OpenAPI 3.1." }
                            p.visually-hidden id="copied" role="status" {}
                        }
                        @for group in &groups { (section(group, document, origin)) }
                    }
                }
                footer { "This page is generated from the routes of this server and loads nothing from other servers." }
            }
        }
    }
    .into_string()
}

/// The operations of one tag.
struct OperationGroup<'a> {
    name: &'a str,
    description: &'a str,
    operations: Vec<DocOperation<'a>>,
}

struct DocOperation<'a> {
    method: String,
    path: &'a str,
    /// The parameters of the path, then those of the operation.
    parameters: Vec<&'a Value>,
    /// The OpenAPI operation object.
    object: &'a Value,
}

fn groups<'a>(document: &'a Value, order: &[String]) -> Vec<OperationGroup<'a>> {
    let tags = document["tags"].as_array().into_iter().flatten();
    tags.map(|tag| OperationGroup {
        name: text(&tag["name"]),
        description: text(&tag["description"]),
        operations: operations(document, &tag["name"], order),
    })
    .collect()
}

/// The operations of a tag: first those whose path is in `order`, in that order, then the others.
fn operations<'a>(document: &'a Value, tag: &Value, order: &[String]) -> Vec<DocOperation<'a>> {
    let listed = |value: &'a Value| value["parameters"].as_array().into_iter().flatten();
    let mut found = Vec::new();
    for (path, item) in members(&document["paths"]) {
        for (method, object) in members(item).filter(|(_, object)| object["tags"][0] == *tag) {
            let parameters = listed(item).chain(listed(object));
            found.push(DocOperation {
                method: method.to_uppercase(),
                path,
                parameters: parameters.map(|one| fields::resolved(document, one)).collect(),
                object,
            });
        }
    }
    let rank = |path: &str| order.iter().position(|one| one == path).unwrap_or(order.len());
    found.sort_by_key(|operation| rank(operation.path));
    found
}

fn contents(groups: &[OperationGroup<'_>]) -> Markup {
    html! {
        @for group in groups {
            p { (group.name) }
            ul {
                @for DocOperation { method, path, object, .. } in &group.operations {
                    li {
                        a href={ "#" (text(&object["operationId"])) } {
                            span.method { (method) } " " (path)
                        }
                    }
                }
            }
        }
    }
}

fn section(group: &OperationGroup<'_>, document: &Value, origin: &str) -> Markup {
    html! {
        section aria-labelledby={ "group-" (group.name) } {
            div.group {
                h2 id={ "group-" (group.name) } { (group.name) }
                p { (group.description) }
            }
            @for operation in &group.operations { (article(operation, document, origin)) }
        }
    }
}

fn article(operation: &DocOperation<'_>, document: &Value, origin: &str) -> Markup {
    let DocOperation { method, path, parameters, object } = operation;
    let id = text(&object["operationId"]);
    html! {
        article.card id=(id) aria-labelledby={ "title-" (id) } {
            h3 id={ "title-" (id) } { (prose(text(&object["summary"]))) }
            p.endpoint { span.badge { (method) } " " code { (path) } }
            p { (prose(text(&object["description"]))) }
            @for (scheme, _) in object["security"].as_array().into_iter().flatten().flat_map(members) {
                p.empty {
                    "Needs " code { "Authorization: Bearer" } ". "
                    (text(&document["components"]["securitySchemes"][scheme]["description"]))
                }
            }
            @if !parameters.is_empty() {
                h4 { "Parameters" }
                (table(&parameters.iter().map(|one| SchemaField::of_parameter(one)).collect::<Vec<_>>(), Direction::Sent))
            }
            @for (media, body) in members(&object["requestBody"]["content"]) {
                h4 { "Body " code { (media) } }
                p { (prose(text(&object["requestBody"]["description"]))) }
                (schemas(&body["schema"], document, Direction::Sent))
            }
            (samples::all(operation, origin))
            h4 { "Responses" }
            @for (status, object) in members(&object["responses"]) {
                (response(status, object, document))
            }
        }
    }
}

fn response(status: &str, object: &Value, document: &Value) -> Markup {
    let kind = match status.as_bytes().first() {
        Some(b'2') => "badge",
        Some(b'4') => "badge rejected",
        _ => "badge failed",
    };
    html! {
        details {
            summary { span class=(kind) { (status) } " " span { (prose(text(&object["description"]))) } }
            @for (name, header) in members(&object["headers"]) {
                p.empty {
                    code { (name) } " "
                    (text(&fields::resolved(document, header)["description"]))
                }
            }
            @for (media, body) in members(&object["content"]) {
                p.empty { code { (media) } }
                (schemas(&body["schema"], document, Direction::Received))
                (example::all(body))
            }
        }
    }
}

/// Whether the fields of a table are in a request or in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Sent,
    Received,
}

/// The fields of a schema; if a body matches one of several schemas, one table for each.
fn schemas(schema: &Value, document: &Value, usage: Direction) -> Markup {
    html! {
        @for (name, schema) in fields::choices(schema, document) {
            @let listed = fields::of(schema);
            @if !listed.is_empty() {
                @if let Some(name) = name { h5 { code { (name) } } }
                (table(&listed, usage))
            }
        }
    }
}

/// A table of fields. Request fields are marked as required or optional, response fields only as optional.
fn table(fields: &[SchemaField], usage: Direction) -> Markup {
    html! {
        table {
            thead.visually-hidden { tr { th { "Name" } th { "Type" } th { "Meaning" } } }
            tbody {
                @for field in fields {
                    tr {
                        th scope="row" { code { (field.name) } }
                        td {
                            (field.kind)
                            @if !field.required { span.optional { "optional" } }
                            @else if usage == Direction::Sent { span.required { "required" } }
                        }
                        td { (prose(&field.description)) }
                    }
                }
            }
        }
    }
}

/// Renders a text; parts between backticks are code.
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
    fn texts_are_escaped() {
        let document = json!({
            "info": { "title": "<script>", "description": "`<b>` & more" },
            "tags": [{ "name": "t" }],
            "paths": { "/<i>": { "get": { "tags": ["t"], "responses": {} } } },
        });
        let page = render(&document, &[], "");
        for raw in ["<script>", "<b>", "<i>", "& more"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("<code>&lt;b&gt;</code> &amp; more"), "{page}");
    }
}
