//! Rows with password hashes: accepted only from the bulk queue, stored unchanged, and independent of other rows in
//! their batch.

use std::fs;

use bson::doc;
use futures_util::StreamExt;
use mongodb::Client;
use muster::domain::ContractId;
use serde_json::{Value, json};

use crate::support::broker::{Broker, DIRECT_REPLY, registration};
use crate::support::importer::{
    HASH, assert_stored, import, ndjson, outcomes, reports, user, with_password_hash, with_worker,
};
use crate::support::services::{PRODUCTION, unique};
use crate::support::{PAIRS, Setup};

const CONTRACT: &str = "error-code";

/// Imports rows with their own ids and returns the reports in order.
async fn import_rows(setup: &Setup, rows: &[Value]) -> Vec<Value> {
    fs::write(setup.directory().join("users.ndjson"), ndjson(rows.iter().cloned())).unwrap();
    let arguments = ["users.ndjson", "--contract", CONTRACT, "--id-field", "row"];
    let output = import(setup, &arguments).await;
    assert!(matches!(output.code, Some(0 | 3)), "{}", output.stderr);
    let mut reports = reports(&output.stdout);
    reports.sort_by_key(|report| report["line"].as_u64());
    reports
}

fn row(n: usize) -> Value {
    named(with_password_hash(user(ContractId::ErrorCode, n)), n)
}

fn named(mut user: Value, n: usize) -> Value {
    user["row"] = json!(format!("row-{n}"));
    user
}

#[tokio::test]
async fn imported_hashes_are_stored_unchanged() {
    for pair in PAIRS {
        let Some((setup, worker)) = with_worker(pair).await else { continue };
        let before: Vec<Value> = (0..20).map(row).collect();
        let reports = import_rows(&setup, &before).await;
        assert_eq!(outcomes(&reports)["registered"], 20, "{pair:?}: {reports:?}");

        // New users, some of them repeated, and existing users, in one batch.
        let rows: Vec<Value> = (0..300)
            .map(|n| match n % 3 {
                0 => named(with_password_hash(user(ContractId::ErrorCode, n % 20)), 1000 + n),
                _ => named(with_password_hash(user(ContractId::ErrorCode, 100 + n / 6)), 1000 + n),
            })
            .collect();
        let reports = import_rows(&setup, &rows).await;
        let counts = outcomes(&reports);
        // In each run of six rows, four register the same new user.
        assert_eq!((counts["registered"], counts["duplicate"]), (50, 250), "{pair:?}: {counts:?}");
        // Only one process can open the data file.
        drop(worker);
        assert_stored(&setup, &reports).await;
    }
}

#[tokio::test]
async fn repeated_row_is_a_replay_and_another_hash_is_rejected() {
    for pair in PAIRS {
        let Some((setup, _worker)) = with_worker(pair).await else { continue };
        let first = import_rows(&setup, &[row(1)]).await;
        let again = import_rows(&setup, &[row(1)]).await;
        assert_eq!(again[0]["userId"], first[0]["userId"], "{pair:?}");
        let mut other = row(1);
        other["passwordHash"] = HASH.replacen("$2a$", "$2b$", 1).into();
        let reports = import_rows(&setup, &[other]).await;
        assert_eq!(reports[0]["code"], "key_reused", "{pair:?}: {reports:?}");
    }
}

#[tokio::test]
async fn invalid_hash_is_rejected_with_a_code() {
    let Some((setup, _worker)) = with_worker(crate::support::services::EMBEDDED).await else {
        return;
    };
    let with = |field: &str, value: &str| {
        let mut row = row(1);
        row[field] = value.into();
        row
    };
    let rows = [
        with("password", "Secret-12"),
        with("passwordHash", "Secret-12"),
        with("passwordHash", &HASH.replacen("$10$", "$07$", 1)),
        with("passwordHash", "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aGFzaA"),
    ];
    let reports = import_rows(&setup, &rows).await;
    let codes: Vec<&str> =
        reports.iter().map(|report| report["errors"][0]["code"].as_str().unwrap()).collect();
    let expected = ["CONFLICTING_FIELDS", "INVALID_HASH", "INVALID_HASH", "UNSUPPORTED_HASH"];
    assert_eq!(codes, expected);
}

#[tokio::test]
async fn hash_is_accepted_only_from_the_bulk_queue() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let muster = setup.start().await;
    let mut body = with_password_hash(user(ContractId::Username, 1));
    let response = muster.client().post("/signup", &body).await;
    assert_eq!(response.status, 400, "passwordHash is ignored");
    body["password"] = "secret-1".into();
    assert_eq!(muster.client().post("/signup", &body).await.status, 201);

    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    let properties = registration("username")
        .with_message_id(unique("row").into())
        .with_reply_to(DIRECT_REPLY.into())
        .with_expiration("10000".into());
    let hash_alone = with_password_hash(user(ContractId::Username, 2)).to_string();
    broker
        .publish_unchecked(setup.namespace(), "interactive", properties, hash_alone.as_bytes())
        .await;
    let reply = replies.next().await.unwrap().unwrap();
    let reply: Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!((&reply["outcome"], &reply["code"]), (&json!("rejected"), &json!("invalid")));

    // The store has the hash of the password, not the sent hash.
    let client = Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    let users = client.default_database().unwrap().collection::<bson::Document>("users");
    let user = users.find_one(doc! { "username": "user 1" }).await.unwrap().unwrap();
    assert_ne!(user.get_str("password").unwrap(), HASH);
    assert_eq!(users.count_documents(doc! {}).await.unwrap(), 1);
}

#[tokio::test]
async fn hash_like_password_is_rejected_from_the_bulk_queue() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let _worker = setup.start_role("worker").await;
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    let mut row = user(ContractId::Username, 1);
    row["password"] = HASH.into();
    let mut allowed = row.clone();
    allowed["allowHashLikePassword"] = true.into();
    for (row, outcome) in [(row, "rejected"), (allowed, "registered")] {
        let properties = registration("username")
            .with_message_id(unique("row").into())
            .with_reply_to(DIRECT_REPLY.into());
        let body = row.to_string();
        broker.publish_unchecked(setup.namespace(), "bulk", properties, body.as_bytes()).await;
        let reply = replies.next().await.unwrap().unwrap();
        let reply: Value = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(reply["outcome"], outcome, "{reply}");
        if outcome == "rejected" {
            assert_eq!(reply["errors"][0]["code"], "LOOKS_LIKE_HASH");
        }
    }
}
