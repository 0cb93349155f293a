//! Rows whose passwords were hashed elsewhere: taken through the bulk door alone, stored as they are, and
//! each on its own however many are written together.

use std::fs;

use bson::doc;
use futures_util::StreamExt;
use mongodb::Client;
use muster::domain::ContractId;
use serde_json::{Value, json};

use crate::support::broker::{Broker, DIRECT_REPLY, registration};
use crate::support::importer::{
    HASH, assert_stored, with_password_hash, import, ndjson, outcomes, reports, user, with_worker,
};
use crate::support::services::{PRODUCTION, unique};
use crate::support::{PAIRS, Setup};

const CONTRACT: &str = "error-code";

/// Imports rows that name themselves, and returns what became of each.
async fn import_rows(setup: &Setup, rows: &[Value]) -> Vec<Value> {
    fs::write(setup.directory().join("users.ndjson"), ndjson(rows.iter().cloned())).unwrap();
    let arguments = ["users.ndjson", "--contract", CONTRACT, "--id-field", "row"];
    let ended = import(setup, &arguments).await;
    assert!(matches!(ended.code, Some(0 | 3)), "{}", ended.stderr);
    let mut told = reports(&ended.stdout);
    told.sort_by_key(|report| report["line"].as_u64());
    told
}

fn row(n: usize) -> Value {
    named(with_password_hash(user(ContractId::ErrorCode, n)), n)
}

fn named(mut user: Value, n: usize) -> Value {
    user["row"] = json!(format!("row-{n}"));
    user
}

#[tokio::test]
async fn hashes_are_kept_as_they_are_and_rows_stand_alone() {
    for pair in PAIRS {
        let Some((setup, worker)) = with_worker(pair).await else { continue };
        let before: Vec<Value> = (0..20).map(row).collect();
        let told = import_rows(&setup, &before).await;
        assert_eq!(outcomes(&told)["registered"], 20, "{pair:?}: {told:?}");

        // New ones, some of them twice, among some that are there already, all in one batch.
        let rows: Vec<Value> = (0..300)
            .map(|n| match n % 3 {
                0 => named(with_password_hash(user(ContractId::ErrorCode, n % 20)), 1000 + n),
                _ => named(with_password_hash(user(ContractId::ErrorCode, 100 + n / 6)), 1000 + n),
            })
            .collect();
        let told = import_rows(&setup, &rows).await;
        let counts = outcomes(&told);
        // Of each run of six rows, four ask for one new user.
        assert_eq!((counts["registered"], counts["duplicate"]), (50, 250), "{pair:?}: {counts:?}");
        // One process at a time has the embedded file open.
        drop(worker);
        assert_stored(&setup, &told).await;
    }
}

#[tokio::test]
async fn the_same_row_again_is_its_user_and_another_hash_is_refused() {
    for pair in PAIRS {
        let Some((setup, _worker)) = with_worker(pair).await else { continue };
        let first = import_rows(&setup, &[row(1)]).await;
        let again = import_rows(&setup, &[row(1)]).await;
        assert_eq!(again[0]["userId"], first[0]["userId"], "{pair:?}");
        let mut other = row(1);
        other["passwordHash"] = HASH.replacen("$2a$", "$2b$", 1).into();
        let told = import_rows(&setup, &[other]).await;
        assert_eq!(told[0]["code"], "key_reused", "{pair:?}: {told:?}");
    }
}

#[tokio::test]
async fn what_is_no_hash_is_refused_with_a_code() {
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
    let told = import_rows(&setup, &rows).await;
    let codes: Vec<&str> =
        told.iter().map(|report| report["errors"][0]["code"].as_str().unwrap()).collect();
    let expected = ["CONFLICTING_FIELDS", "INVALID_HASH", "INVALID_HASH", "UNSUPPORTED_HASH"];
    assert_eq!(codes, expected);
}

#[tokio::test]
async fn nobody_but_the_bulk_door_takes_a_hash() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let muster = setup.start().await;
    let mut body = with_password_hash(user(ContractId::Username, 1));
    let response = muster.client().post("/signup", &body).await;
    assert_eq!(response.status, 400, "a hash alone is no password");
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

    // What the store has is the hash of the password, not the one that came beside it.
    let client = Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    let users = client.default_database().unwrap().collection::<bson::Document>("users");
    let user = users.find_one(doc! { "username": "user 1" }).await.unwrap().unwrap();
    assert_ne!(user.get_str("password").unwrap(), HASH);
    assert_eq!(users.count_documents(doc! {}).await.unwrap(), 1);
}

#[tokio::test]
async fn a_hash_as_password_is_refused_at_the_bulk_queue() {
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
