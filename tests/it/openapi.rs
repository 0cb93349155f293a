//! The OpenAPI document: it is up to date, valid, and describes the configured mounts; its examples match their
//! schemas; third-party tools can use it and find no response that differs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::command::run;
use crate::support::services::{EMBEDDED, PRODUCTION, Pair, service, unique};
use crate::support::{Muster, Setup};

/// Limit for a run of a tool.
const TIMEOUT: Duration = Duration::from_secs(240);

/// `front.bulk_api_key`.
const BULK_KEY: &str = "a-bulk-key-of-the-tests-with-32-characters";

fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The checked-in document.
fn checked_in() -> String {
    fs::read_to_string(package("docs/openapi.json")).unwrap_or_default()
}

/// The output of `spec openapi` with exactly this environment.
async fn printed(environment: &[(&str, &str)]) -> String {
    let mut setup = Setup::embedded();
    setup.environment.clear();
    let setup = environment.iter().fold(setup, |setup, (name, value)| setup.with(name, value));
    run(&setup, &["spec", "openapi"]).await.expect_stdout()
}

async fn served_document(muster: &Muster) -> Value {
    let response = muster.client().get("/openapi.json", &[]).await;
    assert_eq!(response.status, 200);
    response.json()
}

/// Runs a tool that `./tests/run` installs, in a directory. `None` without the tools.
async fn tool(name: &str, arguments: &[&str], folder: &Path) -> Option<Output> {
    let tools = service("TEST_OPENAPI")?;
    // One tool starts another one.
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(Path::new(&tools).join(name));
    command.args(arguments).current_dir(folder).env("PATH", path);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output()).await;
    Some(output.unwrap_or_else(|_| panic!("{name} did not exit within {TIMEOUT:?}")).unwrap())
}

fn combined_output(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}", text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn checked_in_document_matches_the_printed_one() {
    let is_current = checked_in() == printed(&[]).await;
    assert!(is_current, "out of date: cargo run -- spec openapi > docs/openapi.json");
}

#[tokio::test]
async fn served_document_describes_the_configured_mounts() {
    let mounts = "/join = flat-name,*/enlist = error-code,/both = flat-name | nested-name";
    let mounts = [("MUSTER_FRONT_MOUNTS", mounts), ("MUSTER_FRONT_BODY_LIMIT", "4711")];
    let setup =
        mounts.iter().fold(Setup::embedded(), |setup, (name, value)| setup.with(name, value));
    let document = served_document(&setup.start().await).await;
    assert_eq!(document, serde_json::from_str::<Value>(&printed(&mounts).await).unwrap());
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    let expected = [
        "/.well-known/jwks.json",
        "/both",
        "/enlist",
        "/join",
        "/live",
        "/profile",
        "/ready",
        "/registrations",
        "/users/profile",
        "/{prefix}/enlist",
        "/{prefix}/profile",
    ];
    assert_eq!(paths, expected);
    let body = &document["paths"]["/join"]["post"]["requestBody"];
    assert!(body["description"].as_str().unwrap().contains("4711"));
    let schema = |path: &str| {
        let place = format!("/paths/{}/post", path.replace('/', "~1"));
        let operation = document.pointer(&place).unwrap();
        let mut schema = operation["requestBody"]["content"]["application/json"]["schema"].clone();
        schema["components"] = document["components"].clone();
        jsonschema::validator_for(&schema).unwrap()
    };
    // A flat-name mount alone also accepts the nested form. Two contracts on one path accept exactly one form.
    let rest = json!({ "email": "a@b.co", "password": "secret-1" });
    let with = |fields: Value| {
        let mut document = rest.clone();
        document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        document
    };
    let flat = with(json!({ "firstname": "Ann" }));
    let nested = with(json!({ "fullname": { "firstname": "Ann" } }));
    let both = with(json!({ "firstname": "Ann", "fullname": { "firstname": "Ann" } }));
    for path in ["/join", "/both"] {
        for document in [&flat, &nested, &both] {
            assert!(schema(path).is_valid(document), "{path}: {document}");
        }
        assert!(!schema(path).is_valid(&rest), "{path}");
        assert!(!schema(path).is_valid(&with(json!({ "firstname": "A" }))), "{path}");
    }
}

/// Calls `found` with the path and value of each media type in requests and responses.
fn bodies(place: &str, value: &Value, found: &mut impl FnMut(&str, &Value)) {
    let Value::Object(members) = value else { return };
    for (name, inner) in members {
        let place = format!("{place}/{name}");
        if name == "content" {
            inner.as_object().unwrap().values().for_each(|body| found(&place, body));
        } else {
            bodies(&place, inner, found);
        }
    }
}

#[test]
fn every_example_matches_its_schema() {
    let document: Value = serde_json::from_str(&checked_in()).unwrap();
    let mut seen = 0;
    bodies("", &document["paths"], &mut |place, body| {
        let mut schema = body["schema"].clone();
        schema["components"] = document["components"].clone();
        let schema = jsonschema::validator_for(&schema).unwrap();
        let several = body["examples"].as_object().into_iter().flat_map(|all| all.values());
        let several = several.map(|example| &example["value"]);
        for example in body.get("example").into_iter().chain(several) {
            assert!(schema.is_valid(example), "{place}: {example}");
            seen += 1;
        }
    });
    assert!(seen > 80, "expected more than 80 examples, got {seen}");
}

#[tokio::test]
async fn document_is_valid_openapi() {
    let arguments = ["-m", "openapi_spec_validator", "--schema", "3.1", "docs/openapi.json"];
    let Some(output) = tool("python", &arguments, &package("")).await else { return };
    assert!(output.status.success(), "{}", combined_output(&output));
}

#[tokio::test]
async fn generated_client_registers_a_user() {
    let folder = tempfile::tempdir().unwrap();
    // The generator does not support NDJSON.
    let mut document: Value = serde_json::from_str(&checked_in()).unwrap();
    document["paths"].as_object_mut().unwrap().remove("/registrations");
    fs::write(folder.path().join("openapi.json"), document.to_string()).unwrap();
    let arguments = [
        "generate",
        "--path=openapi.json",
        "--output-path=client",
        "--meta=none",
        "--fail-on-warning",
    ];
    let output = tool("openapi-python-client", &arguments, folder.path()).await;
    let Some(output) = output else { return };
    assert!(output.status.success(), "{}", combined_output(&output));

    let muster = Setup::embedded().start().await;
    let program = fs::read_to_string(package("tests/it/openapi/person.py")).unwrap();
    let url = format!("http://{}", muster.client().address());
    let address = format!("{}@example.com", unique("client"));
    let output = tool("python", &["-c", &program, &url, &address], folder.path()).await.unwrap();
    assert!(output.status.success(), "{}", combined_output(&output));
}

/// Runs schemathesis, which searches for requests whose responses differ from the document.
async fn assert_schemathesis_passes(pair: Pair, examples: &str) {
    if !pair.is_available() || service("TEST_OPENAPI").is_none() {
        return;
    }
    let setup = Setup::new(pair).with("MUSTER_FRONT_BULK_API_KEY", BULK_KEY);
    let key = setup.directory().join("key.pem");
    let key = key.to_str().unwrap();
    run(&setup, &["keys", "make", "--output", key]).await.expect_stdout();
    let muster = setup.clone().with("MUSTER_TOKEN_KEY_FILES", key).start().await;
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    let token = muster.client().post("/signup", &body).await.json()["token"].clone();

    let settings = fs::read_to_string(package("tests/it/openapi/schemathesis.toml")).unwrap();
    let hooks = package("tests/it/openapi");
    let settings = settings
        .replace("{folder}", hooks.to_str().unwrap())
        .replace("{token}", token.as_str().unwrap())
        .replace("{key}", BULK_KEY);
    let file = setup.directory().join("schemathesis.toml");
    fs::write(&file, settings).unwrap();
    let url = format!("http://{}/openapi.json", muster.client().address());
    let arguments = [
        "--config-file",
        file.to_str().unwrap(),
        "run",
        &url,
        "--max-examples",
        examples,
        "--no-color",
    ];
    let output = tool("schemathesis", &arguments, &setup.directory()).await.unwrap();
    assert!(output.status.success(), "{}", combined_output(&output));
    let log = muster.stop_and_collect_output().await;
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn schemathesis_finds_no_mismatch() {
    assert_schemathesis_passes(EMBEDDED, "40").await;
}

#[tokio::test]
async fn schemathesis_finds_no_mismatch_on_broker_and_database() {
    assert_schemathesis_passes(PRODUCTION, "10").await;
}
