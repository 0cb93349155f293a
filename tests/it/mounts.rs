//! Runs the settings of `docs/mounts.md` with the requests in the tables below them.

use muster::contract::{ApiResponse, Document, Policy, contract};
use muster::domain::{ContractId, Millis, User, UserId, ValidSignup};
use serde_json::{Map, Value, json};

use crate::support::services::unique;
use crate::support::{Client, Setup};

const PAGE: &str = include_str!("../../docs/mounts.md");

/// Method, path and expected result.
type Row = (&'static str, &'static str, &'static str);

/// The blocks of settings, with the rows of the tables below them.
fn examples() -> Vec<(&'static str, Vec<Row>)> {
    let blocks = PAGE.split("```toml\n").skip(1);
    let examples = blocks.map(|block| {
        let (settings, rest) = block.split_once("```").unwrap();
        let rest = rest.split("\n## ").next().unwrap();
        (settings, rest.lines().filter_map(row).collect())
    });
    examples.collect()
}

fn row(line: &'static str) -> Option<Row> {
    let (request, expected_text) =
        line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | ")?;
    let (method, path) = request.split_once(' ')?;
    Some((method, path, expected_text))
}

/// A document of a contract with a unique user.
fn document(id: ContractId) -> Value {
    let mut document = contract(id).example();
    let person = unique("person");
    for (key, text) in [("email", format!("{person}@example.com")), ("username", person.clone())] {
        if document.get(key).is_some() {
            document[key] = json!(text);
        }
    }
    document
}

/// The expected shape of the response to a document.
fn shape_of(id: ContractId, document: &Value) -> Value {
    let text = document.to_string();
    let document = Document::parse(text.as_bytes()).unwrap();
    let candidate: ValidSignup =
        contract(id).check(&document, &Policy::default()).unwrap_or_else(|_| panic!("{id}"));
    let user = User::new(UserId::generate(), &candidate, Millis(0));
    let response = ApiResponse::Created { user: &user, token: Some("a.b.c") };
    shape(&contract(id).render(&response).body)
}

/// A body without the values that differ between users.
fn shape(body: &Value) -> Value {
    match body {
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| {
                let varies = ["_id", "token", "createdAt", "updatedAt"].contains(&key.as_str());
                (key.clone(), if varies { Value::Null } else { shape(value) })
            });
            Value::Object(members.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

async fn register(client: &Client, path: &str, id: ContractId) -> Option<String> {
    let document = document(id);
    let response = client.post(path, &document).await;
    assert_eq!(response.status, 201, "{path}, {id}: {}", response.json());
    assert_eq!(shape(&response.json()), shape_of(id, &document), "{path}, {id}");
    let body = response.json();
    let token = body.get("token").or_else(|| body.pointer("/data/token"));
    token.map(|token| token.as_str().unwrap().to_owned())
}

#[tokio::test]
async fn documented_mounts_are_served() {
    let examples = examples();
    assert_eq!(examples.len(), 7, "examples in docs/mounts.md");
    for (settings, rows) in examples {
        assert!(rows.len() > 2, "{settings}");
        let setup = Setup::embedded();
        let file = setup.directory().join("muster.toml");
        std::fs::write(&file, settings).unwrap();
        let muster = setup.start_with(&["serve", "--config", file.to_str().unwrap()]).await;
        let muster = muster.ready().await;
        let client = muster.client();
        let mut token = None;
        for (method, path, expected_text) in rows {
            let expected: Result<u16, _> = expected_text.parse();
            match (expected, expected_text) {
                (Ok(status), _) => {
                    let response = client.send(method, path, &[], "").await.unwrap();
                    assert_eq!(response.status, status, "{settings}{method} {path}");
                }
                (Err(_), "profile") => {
                    let bearer = format!("Bearer {}", token.as_deref().expect("a token before"));
                    let response = client.get(path, &[("authorization", &bearer)]).await;
                    assert_eq!(response.status, 200, "{settings}{path}: {}", response.json());
                    assert_eq!(client.get(path, &[]).await.status, 401, "{path}");
                }
                (Err(_), contracts) => {
                    for name in contracts.split_whitespace() {
                        let id = name.trim_matches('`').parse().unwrap();
                        token = register(client, path, id).await.or(token);
                    }
                }
            }
        }
    }
}

#[test]
fn page_shows_the_default_mounts() {
    let (settings, _) = examples()[0];
    let mounts = |text: &str| text.parse::<toml::Table>().unwrap()["front"]["mounts"].clone();
    assert_eq!(mounts(settings), mounts(include_str!("../../config.default.toml")));
}

#[tokio::test]
async fn flat_name_alone_accepts_the_nested_form() {
    let setup = Setup::embedded().with("MUSTER_FRONT_MOUNTS", "/users/register = flat-name");
    let muster = setup.start().await;
    let nested = document(ContractId::NestedName);
    assert_eq!(muster.client().post("/users/register", &nested).await.json()["success"], true);
    let empty = muster.client().post("/users/register", &json!({})).await;
    assert_eq!((empty.status, &empty.json()["success"]), (400, &json!(false)));
}
