//! The worker enforces the policy for passwords and names on every entry point, also if the front has none. A golden
//! file has the texts over HTTP.

use futures_util::StreamExt;
use muster::domain::ContractId;
use serde_json::{Value, json};

use crate::support::broker::{Broker, DIRECT_REPLY, registration};
use crate::support::command::run;
use crate::support::importer::{import, ndjson, outcomes, reports, user, with_password_hash};
use crate::support::services::{PRODUCTION, unique};
use crate::support::{Setup, importer};

const MINIMUM: &str = "MUSTER_PASSWORD_MIN_LENGTH";
const BLOCKLIST: &str = "MUSTER_PASSWORD_BLOCKLIST";
const SCRIPTS: &str = "MUSTER_ADMISSION_USERNAMES";
/// A password that every contract accepts and the blocklist contains.
const COMMON: &str = "Hunter2-hunter2";

/// A setup that rejects [`COMMON`] in any case and passwords shorter than 12 characters.
fn strict(setup: Setup) -> Setup {
    let list = setup.directory().join("common.txt");
    std::fs::write(&list, b"hunter2-HUNTER2\r\n\n\xff\xfe no UTF-8\n").unwrap();
    setup.with(MINIMUM, "12").with(BLOCKLIST, &format!("file:{}", list.display()))
}

/// User number `n` with this password.
fn with_password(contract: ContractId, n: usize, password: &str) -> Value {
    let mut user = user(contract, n);
    user["password"] = json!(password);
    user
}

/// The error codes of a report.
fn codes(report: &Value) -> Vec<&str> {
    let errors = report["errors"].as_array().into_iter().flatten();
    errors.map(|error| error["code"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn worker_enforces_its_password_policy_over_http() {
    if !PRODUCTION.is_available() {
        return;
    }
    let lenient = Setup::new(PRODUCTION);
    let front = lenient.start_role("front").await;
    let _worker = strict(lenient.clone()).start_role("worker").await;
    let paths = [
        ("/signup", ContractId::Username),
        ("/users/register", ContractId::NestedName),
        ("/users/register", ContractId::FlatName),
        ("/register", ContractId::Register),
        ("/auth/signup", ContractId::ErrorCode),
    ];
    for (n, (path, contract)) in paths.into_iter().enumerate() {
        let body = with_password(contract, n, COMMON);
        let response = front.client().post(path, &body).await;
        assert_eq!(response.status, 400, "{contract}");
        let text = response.json().to_string();
        assert!(text.contains("Password is too common"), "{contract}: {text}");
        let response = front.client().post(path, &with_password(contract, n, "Shorter-1!")).await;
        let text = response.json().to_string();
        assert!(text.contains("Password must be at least 12 characters"), "{contract}: {text}");
        let response =
            front.client().post(path, &with_password(contract, n, "Hunter3-hunter3")).await;
        assert_eq!(response.status, 201, "{contract}: {}", response.json());
    }
}

#[tokio::test]
async fn worker_enforces_its_password_policy_over_amqp() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = strict(Setup::new(PRODUCTION));
    let _worker = setup.start_role("worker").await;
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    let clear = with_password(ContractId::Register, 1, COMMON);
    for (key, body, expected) in [
        ("interactive", &clear, "rejected"),
        ("bulk", &clear, "rejected"),
        // The policy cannot apply to a hash.
        ("bulk", &with_password_hash(clear.clone()), "registered"),
    ] {
        let mut properties = registration("register")
            .with_message_id(unique("message").into())
            .with_reply_to(DIRECT_REPLY.into());
        if key == "interactive" {
            properties = properties.with_expiration("30000".into());
        }
        let body = body.to_string();
        broker.publish(setup.namespace(), key, properties, body.as_bytes()).await;
        let reply = replies.next().await.unwrap().unwrap();
        let reply: Value = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(reply["outcome"], expected, "{key}: {reply}");
        if expected == "rejected" {
            assert_eq!(
                (&reply["code"], codes(&reply)),
                (&json!("invalid"), vec!["COMMON_PASSWORD"])
            );
        }
    }
}

#[tokio::test]
async fn import_applies_the_password_policy_in_a_dry_run_too() {
    let setup = strict(Setup::embedded());
    let rows = [
        with_password(ContractId::Register, 1, COMMON),
        with_password(ContractId::Register, 2, "shorter"),
        with_password(ContractId::Register, 3, "Hunter3-hunter3"),
        with_password_hash(user(ContractId::Register, 4)),
    ];
    std::fs::write(setup.directory().join("users.ndjson"), ndjson(rows.into_iter())).unwrap();
    let arguments = ["users.ndjson", "--contract", "register"];
    for (more, good) in [(&["--dry-run"][..], "valid"), (&[], "registered")] {
        let output = import(&setup, &[&arguments, more].concat()).await;
        let mut found = reports(&output.stdout);
        found.sort_by_key(|report| report["line"].as_u64());
        assert_eq!(codes(&found[0]), ["COMMON_PASSWORD"], "{}", output.stderr);
        assert_eq!(codes(&found[1]), ["INVALID_LENGTH"]);
        let counts = outcomes(&found);
        assert_eq!((counts["invalid"], counts[good]), (2, 2), "{counts:?}");
    }
}

#[tokio::test]
async fn worker_enforces_its_password_policy_on_imports() {
    if !PRODUCTION.is_available() {
        return;
    }
    let lenient = Setup::new(PRODUCTION);
    let _worker = strict(lenient.clone()).start_role("worker").await;
    let rows = [with_password(ContractId::Register, 1, COMMON)];
    std::fs::write(lenient.directory().join("users.ndjson"), ndjson(rows.into_iter())).unwrap();
    let output = import(&lenient, &["users.ndjson", "--contract", "register"]).await;
    assert_eq!(
        codes(&importer::reports(&output.stdout)[0]),
        ["COMMON_PASSWORD"],
        "{}",
        output.stderr
    );
}

/// A document whose identifying field mixes a Cyrillic letter with Latin ones, and the field's name.
fn look_alike(contract: ContractId, n: usize) -> (Value, &'static str) {
    let mut user = user(contract, n);
    let field = if user["username"].is_string() { "username" } else { "email" };
    user[field] = json!(format!("\u{430}{}", user[field].as_str().unwrap()));
    (user, field)
}

#[tokio::test]
async fn worker_rejects_mixed_scripts_from_every_entry_point() {
    if !PRODUCTION.is_available() {
        return;
    }
    let lenient = Setup::new(PRODUCTION);
    let front = lenient.start_role("front").await;
    let strict = lenient.clone().with(SCRIPTS, "single-script");
    let _worker = strict.start_role("worker").await;
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    for (n, contract) in ContractId::ALL.into_iter().enumerate() {
        let (document, field) = look_alike(contract, n);
        let path = match contract {
            ContractId::Username => "/signup",
            ContractId::NestedName | ContractId::FlatName => "/users/register",
            ContractId::Register => "/register",
            ContractId::ErrorCode => "/auth/signup",
        };
        let response = front.client().post(path, &document).await;
        assert_eq!(response.status, 400, "{contract}");
        let text = response.json().to_string();
        assert!(text.contains("contains invalid characters"), "{contract}: {text}");
        for (key, body) in [
            ("interactive", document.clone()),
            ("bulk", document.clone()),
            ("bulk", with_password_hash(document)),
        ] {
            let mut properties = registration(contract.as_str())
                .with_message_id(unique("message").into())
                .with_reply_to(DIRECT_REPLY.into());
            if key == "interactive" {
                properties = properties.with_expiration("30000".into());
            }
            let body = body.to_string();
            broker.publish(lenient.namespace(), key, properties, body.as_bytes()).await;
            let reply = replies.next().await.unwrap().unwrap();
            let reply: Value = serde_json::from_slice(&reply.data).unwrap();
            assert_eq!(reply["code"], "invalid", "{contract}, {key}: {reply}");
            assert_eq!(reply["errors"][0]["field"], field, "{contract}, {key}");
        }
    }
}

#[tokio::test]
async fn import_rejects_mixed_scripts_with_and_without_a_hash() {
    let setup = Setup::embedded().with(SCRIPTS, "single-script");
    let rows = [
        look_alike(ContractId::Register, 1).0,
        with_password_hash(look_alike(ContractId::Register, 2).0),
        user(ContractId::Register, 3),
    ];
    std::fs::write(setup.directory().join("users.ndjson"), ndjson(rows.into_iter())).unwrap();
    let output = import(&setup, &["users.ndjson", "--contract", "register"]).await;
    let mut reports = reports(&output.stdout);
    reports.sort_by_key(|report| report["line"].as_u64());
    assert_eq!(codes(&reports[0]), ["INVALID_CHARACTER"], "{}", output.stderr);
    assert_eq!(codes(&reports[1]), ["INVALID_CHARACTER"]);
    assert_eq!(reports[2]["outcome"], "registered");
}

#[tokio::test]
async fn unusable_blocklist_stops_the_start() {
    for (list, part) in [("none at all\n", None), ("", Some("expected one per line"))] {
        let setup = Setup::embedded();
        let path = setup.directory().join("list.txt");
        if part.is_some() {
            std::fs::write(&path, list).unwrap();
        }
        let setup = setup.with(BLOCKLIST, &format!("file:{}", path.display()));
        let output = run(&setup, &["serve"]).await;
        assert_eq!(output.code, Some(2), "{}", output.stderr);
        let stderr = output.stderr;
        assert!(stderr.contains("password.blocklist") && stderr.contains("list.txt"), "{stderr}");
        assert!(stderr.contains(part.unwrap_or("No such file")), "{stderr}");
    }
}
