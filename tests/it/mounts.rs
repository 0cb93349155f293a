//! The settings of `docs/mounts.md`, each tried with the requests below it.

use muster::contract::{ApiResponse, Document, Policy, contract};
use muster::domain::{ValidSignup, ContractId, Millis, User, UserId};
use serde_json::{Map, Value, json};

use crate::support::services::unique;
use crate::support::{Client, Setup};

const PAGE: &str = include_str!("../../docs/mounts.md");

/// Method, path, and what it is.
type Row = (&'static str, &'static str, &'static str);

/// A block of settings, and the rows of the table below it.
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
    let (request, is) = line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | ")?;
    let (method, path) = request.split_once(' ')?;
    Some((method, path, is))
}

/// A document of a contract that nobody sent before.
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

/// What the contract answers to that document, as far as it is known before.
fn shape_of(id: ContractId, document: &Value) -> Value {
    let text = document.to_string();
    let document = Document::parse(text.as_bytes()).unwrap();
    let candidate: ValidSignup =
        contract(id).check(&document, &Policy::default()).unwrap_or_else(|_| panic!("{id}"));
    let user = User::new(UserId::generate(), &candidate, Millis(0));
    let answer = ApiResponse::Created { user: &user, token: Some("a.b.c") };
    shape(&contract(id).render(&answer).body)
}

/// A body without what differs from user to user.
fn shape(body: &Value) -> Value {
    match body {
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| {
                let blind = ["_id", "token", "createdAt", "updatedAt"].contains(&key.as_str());
                (key.clone(), if blind { Value::Null } else { shape(value) })
            });
            Value::Object(members.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

async fn is_served(client: &Client, path: &str, id: ContractId) -> Option<String> {
    let document = document(id);
    let answer = client.post(path, &document).await;
    assert_eq!(answer.status, 201, "{path}, {id}: {}", answer.json());
    assert_eq!(shape(&answer.json()), shape_of(id, &document), "{path}, {id}");
    let body = answer.json();
    let token = body.get("token").or_else(|| body.pointer("/data/token"));
    token.map(|token| token.as_str().unwrap().to_owned())
}

#[tokio::test]
async fn every_mount_of_the_page_is_served_as_it_says() {
    let examples = examples();
    assert_eq!(examples.len(), 7, "is this test blind?");
    for (settings, rows) in examples {
        assert!(rows.len() > 2, "{settings}");
        let setup = Setup::embedded();
        let file = setup.directory().join("muster.toml");
        std::fs::write(&file, settings).unwrap();
        let muster = setup.start_with(&["serve", "--config", file.to_str().unwrap()]).await;
        let muster = muster.ready().await;
        let client = muster.client();
        let mut token = None;
        for (method, path, is) in rows {
            let expected: Result<u16, _> = is.parse();
            match (expected, is) {
                (Ok(status), _) => {
                    let answer = client.send(method, path, &[], "").await.unwrap();
                    assert_eq!(answer.status, status, "{settings}{method} {path}");
                }
                (Err(_), "profile") => {
                    let bearer = format!("Bearer {}", token.as_deref().expect("a token before"));
                    let answer = client.get(path, &[("authorization", &bearer)]).await;
                    assert_eq!(answer.status, 200, "{settings}{path}: {}", answer.json());
                    assert_eq!(client.get(path, &[]).await.status, 401, "{path}");
                }
                (Err(_), contracts) => {
                    for name in contracts.split_whitespace() {
                        let id = name.trim_matches('`').parse().unwrap();
                        token = is_served(client, path, id).await.or(token);
                    }
                }
            }
        }
    }
}

#[test]
fn page_shows_the_default() {
    let (settings, _) = examples()[0];
    let mounts = |text: &str| text.parse::<toml::Table>().unwrap()["front"]["mounts"].clone();
    assert_eq!(mounts(settings), mounts(include_str!("../../config.default.toml")));
}

#[tokio::test]
async fn flat_name_alone_takes_the_nested_form_and_answers_an_empty_document() {
    let setup = Setup::embedded().with("MUSTER_FRONT_MOUNTS", "/users/register = flat-name");
    let muster = setup.start().await;
    let nested = document(ContractId::NestedName);
    assert_eq!(muster.client().post("/users/register", &nested).await.json()["success"], true);
    let empty = muster.client().post("/users/register", &json!({})).await;
    assert_eq!((empty.status, &empty.json()["success"]), (400, &json!(false)));
}
