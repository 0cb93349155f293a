//! An operator's policy for passwords and names, at every door: what a front would have let through, a worker
//! refuses, in each contract's words. The words over HTTP are a golden file.

use futures_util::StreamExt;
use muster::domain::ContractId;
use serde_json::{Value, json};

use crate::support::broker::{Broker, DIRECT_REPLY, registration};
use crate::support::command::run;
use crate::support::importer::{with_password_hash, import, ndjson, outcomes, reports, user};
use crate::support::services::{PRODUCTION, unique};
use crate::support::{Setup, importer};

const MINIMUM: &str = "MUSTER_PASSWORD_MIN_LENGTH";
const BLOCKLIST: &str = "MUSTER_PASSWORD_BLOCKLIST";
const SCRIPTS: &str = "MUSTER_ADMISSION_USERNAMES";
/// Good enough for every contract, and for nobody who has seen the list.
const COMMON: &str = "Hunter2-hunter2";

/// A setup that refuses [`COMMON`], written otherwise, and what is shorter than 12 characters.
fn strict(setup: Setup) -> Setup {
    let list = setup.directory().join("common.txt");
    std::fs::write(&list, b"hunter2-HUNTER2\r\n\n\xff\xfe no UTF-8\n").unwrap();
    setup.with(MINIMUM, "12").with(BLOCKLIST, &format!("file:{}", list.display()))
}

/// A user whom nobody else is, with this password.
fn with_password(contract: ContractId, n: usize, password: &str) -> Value {
    let mut user = user(contract, n);
    user["password"] = json!(password);
    user
}

/// The codes of what is wrong with a row.
fn codes(report: &Value) -> Vec<&str> {
    let errors = report["errors"].as_array().into_iter().flatten();
    errors.map(|error| error["code"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_worker_asks_it_of_what_a_lenient_front_lets_through() {
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
        let told = response.json().to_string();
        assert!(told.contains("Password is too common"), "{contract}: {told}");
        let response = front.client().post(path, &with_password(contract, n, "Shorter-1!")).await;
        let told = response.json().to_string();
        assert!(told.contains("Password must be at least 12 characters"), "{contract}: {told}");
        let response =
            front.client().post(path, &with_password(contract, n, "Hunter3-hunter3")).await;
        assert_eq!(response.status, 201, "{contract}: {}", response.json());
    }
}

#[tokio::test]
async fn a_worker_asks_it_of_those_who_publish() {
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
        // Nobody knows what was hashed.
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
async fn many_at_once_are_told_the_same_dry_or_not() {
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
        let ended = import(&setup, &[&arguments, more].concat()).await;
        let mut told = reports(&ended.stdout);
        told.sort_by_key(|report| report["line"].as_u64());
        assert_eq!(codes(&told[0]), ["COMMON_PASSWORD"], "{}", ended.stderr);
        assert_eq!(codes(&told[1]), ["INVALID_LENGTH"]);
        let counts = outcomes(&told);
        assert_eq!((counts["invalid"], counts[good]), (2, 2), "{counts:?}");
    }
}

#[tokio::test]
async fn an_import_that_does_not_ask_is_refused_by_the_worker_that_does() {
    if !PRODUCTION.is_available() {
        return;
    }
    let lenient = Setup::new(PRODUCTION);
    let _worker = strict(lenient.clone()).start_role("worker").await;
    let rows = [with_password(ContractId::Register, 1, COMMON)];
    std::fs::write(lenient.directory().join("users.ndjson"), ndjson(rows.into_iter())).unwrap();
    let ended = import(&lenient, &["users.ndjson", "--contract", "register"]).await;
    assert_eq!(codes(&importer::reports(&ended.stdout)[0]), ["COMMON_PASSWORD"], "{}", ended.stderr);
}

/// A document with a Cyrillic letter among Latin ones where its contract has a name to be known by.
fn look_alike(contract: ContractId, n: usize) -> (Value, &'static str) {
    let mut user = user(contract, n);
    let field = if user["username"].is_string() { "username" } else { "email" };
    user[field] = json!(format!("\u{430}{}", user[field].as_str().unwrap()));
    (user, field)
}

#[tokio::test]
async fn mixed_scripts_are_refused_by_the_worker_whatever_the_entry_point() {
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
async fn an_import_refuses_mixed_scripts_with_or_without_a_hash() {
    let setup = Setup::embedded().with(SCRIPTS, "single-script");
    let rows = [
        look_alike(ContractId::Register, 1).0,
        with_password_hash(look_alike(ContractId::Register, 2).0),
        user(ContractId::Register, 3),
    ];
    std::fs::write(setup.directory().join("users.ndjson"), ndjson(rows.into_iter())).unwrap();
    let ended = import(&setup, &["users.ndjson", "--contract", "register"]).await;
    let mut reports = reports(&ended.stdout);
    reports.sort_by_key(|report| report["line"].as_u64());
    assert_eq!(codes(&reports[0]), ["INVALID_CHARACTER"], "{}", ended.stderr);
    assert_eq!(codes(&reports[1]), ["INVALID_CHARACTER"]);
    assert_eq!(reports[2]["outcome"], "registered");
}

#[tokio::test]
async fn a_list_that_cannot_be_used_stops_the_start() {
    for (list, part) in [("none at all\n", None), ("", Some("one a line"))] {
        let setup = Setup::embedded();
        let path = setup.directory().join("list.txt");
        if part.is_some() {
            std::fs::write(&path, list).unwrap();
        }
        let setup = setup.with(BLOCKLIST, &format!("file:{}", path.display()));
        let ended = run(&setup, &["serve"]).await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let told = ended.stderr;
        assert!(told.contains("password.blocklist") && told.contains("list.txt"), "{told}");
        assert!(told.contains(part.unwrap_or("No such file")), "{told}");
    }
}
