//! `muster reindex` on both stores: outdated email keys stop the start, are reported and changed, and no mailbox can
//! be registered twice.

use std::sync::Arc;

use bson::doc;
use mongodb::Collection;
use muster::domain::{
    ContractId, Email, MessageId, Millis, Origin, RegistrationId, StoredUser, UserId, ValidSignup,
};
use muster::store::{self, InsertOutcome, PrepareError, Store};
use muster::telemetry::Health;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::command::{CommandOutput, run};
use crate::support::muster::eventually;
use crate::support::{Pair, QueueAdapter, Setup, StoreAdapter};

type Key = [u8; 12];
const USERS: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("users");
const EMAILS: TableDefinition<'_, &str, Key> = TableDefinition::new("emailKey");
const VERSIONS: TableDefinition<'_, &str, i32> = TableDefinition::new("versions");

async fn open(setup: &Setup) -> Arc<dyn Store> {
    let mut opened = None;
    // The store's thread ends some time after the drop.
    eventually("the store to be closed", async || {
        let part = Health::default().component("store");
        opened = store::open(&setup.settings().store, &part).await.ok();
        opened.is_some()
    })
    .await;
    opened.unwrap()
}

fn record(address: &str) -> StoredUser {
    let contract = ContractId::Register;
    let candidate = ValidSignup {
        contract,
        username: None,
        email: Some(Email::new(address.to_owned()).unwrap()),
        fullname: None,
        password: SecretString::from("never stored").into(),
    };
    let id = RegistrationId::derive(&Origin::Http, contract, &MessageId::random());
    StoredUser::new(
        &candidate,
        id,
        "$2b$04$abcdefghijklmnopqrstuv".into(),
        Millis(1_700_000_000_123),
    )
}

/// Inserts a user with an outdated key: the email in lower case.
async fn insert_old(store: &dyn Store, address: &str) -> UserId {
    let record = StoredUser { email_key: Some(address.to_lowercase()), ..record(address) };
    assert_eq!(store.insert(record.clone()).await, Ok(InsertOutcome::Inserted));
    record.user.id
}

async fn users(setup: &Setup) -> Collection<bson::Document> {
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    client.default_database().unwrap().collection("users")
}

fn file(setup: &Setup) -> Database {
    let path = setup.environment["MUSTER_STORE"].strip_prefix("file:").unwrap();
    Database::open(path).unwrap()
}

/// Removes the key versions, which an older muster did not write.
async fn remove_versions(setup: &Setup, kind: StoreAdapter) {
    if kind == StoreAdapter::Mongo {
        let users = users(setup).await;
        let unset = doc! { "$unset": { "emailKeyVersion": "" } };
        users.update_many(doc! {}, unset).await.unwrap();
        let client = users.client().database(&users.namespace().db);
        return client.collection::<bson::Document>("versions").drop().await.unwrap();
    }
    eventually("the data file to be closed", async || {
        let path = setup.environment["MUSTER_STORE"].strip_prefix("file:").unwrap();
        Database::open(path).is_ok()
    })
    .await;
    let database = file(setup);
    let transaction = database.begin_write().unwrap();
    {
        let mut users = transaction.open_table(USERS).unwrap();
        let all: Vec<(Key, Vec<u8>)> = users
            .iter()
            .unwrap()
            .map(|entry| entry.map(|(key, user)| (key.value(), user.value().to_vec())).unwrap())
            .collect();
        for (key, user) in all {
            let mut user: bson::Document = bson::deserialize_from_slice(&user).unwrap();
            user.remove("emailKeyVersion");
            users.insert(key, bson::serialize_to_vec(&user).unwrap().as_slice()).unwrap();
        }
    }
    transaction.delete_table(VERSIONS).unwrap();
    transaction.commit().unwrap();
}

async fn remove(setup: &Setup, kind: StoreAdapter, id: UserId, key: &str) {
    if kind == StoreAdapter::Mongo {
        users(setup).await.delete_one(doc! { "_id": id.0 }).await.unwrap();
        return;
    }
    let database = file(setup);
    let transaction = database.begin_write().unwrap();
    transaction.open_table(USERS).unwrap().remove(id.0.bytes()).unwrap();
    transaction.open_table(EMAILS).unwrap().remove(key).unwrap();
    transaction.commit().unwrap();
}

async fn version_of(setup: &Setup, kind: StoreAdapter, id: UserId) -> (Option<i32>, String) {
    let user = if kind == StoreAdapter::Mongo {
        users(setup).await.find_one(doc! { "_id": id.0 }).await.unwrap().unwrap()
    } else {
        let database = file(setup);
        let transaction = database.begin_read().unwrap();
        let user = transaction.open_table(USERS).unwrap().get(id.0.bytes()).unwrap().unwrap();
        bson::deserialize_from_slice(user.value()).unwrap()
    };
    (user.get_i32("emailKeyVersion").ok(), user.get_str("emailKey").unwrap().to_owned())
}

async fn reindex(setup: &Setup, flags: &[&str]) -> (CommandOutput, Value) {
    let output = run(setup, &[&["reindex", "--json"], flags].concat()).await;
    for address in ["ann@", "carl@", "σς"] {
        assert!(
            !output.stdout.contains(address),
            "the output contains an address: {}",
            output.stdout
        );
    }
    let report = output.json();
    (output, report)
}

async fn finding(setup: &Setup) -> Option<String> {
    let document = run(setup, &["doctor", "--json"]).await.json();
    let findings = document["findings"].as_array().unwrap().clone();
    let found = findings.into_iter().find(|finding| finding["check"] == "address keys")?;
    Some(found["severity"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn outdated_email_keys_are_reported_and_changed() {
    for kind in [StoreAdapter::File, StoreAdapter::Mongo] {
        let pair = Pair(QueueAdapter::Local, kind);
        if pair.is_available() {
            println!("on {kind:?}");
            keys_are_changed(&Setup::new(pair), kind).await;
        }
    }
}

async fn keys_are_changed(setup: &Setup, kind: StoreAdapter) {
    let store = open(setup).await;
    store.prepare().await.unwrap();
    let ann = insert_old(&*store, "ann@bücher.example").await;
    let sigma = insert_old(&*store, "ΣΣ@b.example").await;
    let bob = insert_old(&*store, "bob@b.example").await;
    let carl = insert_old(&*store, "carl@bücher.example").await;
    let other = insert_old(&*store, "carl@xn--bcher-kva.example").await;
    drop(store);
    remove_versions(setup, kind).await;

    // No worker starts, so no mailbox can be registered twice.
    let store = open(setup).await;
    match store.prepare().await {
        Err(PrepareError::Incompatible(text)) => {
            assert!(text.contains("muster reindex --apply"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    drop(store);
    drop(open(setup).await);
    eventually("doctor to report an error", async || {
        finding(setup).await.as_deref() == Some("error")
    })
    .await;

    // A dry run changes nothing.
    for _ in 0..2 {
        let (output, report) = reindex(setup, &[]).await;
        assert_eq!(output.code, Some(3), "{}", output.stderr);
        let numbers = ["outdated", "changed", "withoutAsciiForm"].map(|name| &report[name]);
        assert_eq!(numbers, [&json!(3), &json!(2), &json!(0)], "{report}");
        let conflict = &report["conflicts"][0];
        assert_eq!(conflict["userId"], carl.to_string(), "{report}");
        assert_eq!(conflict["address"], "c***@bücher.example");
        assert_eq!(conflict["holderId"], other.to_string());
        assert_eq!(conflict["holderAddress"], "c***@xn--bcher-kva.example");
        assert_eq!(version_of(setup, kind, ann).await, (None, "ann@bücher.example".into()));
    }

    let (output, report) = reindex(setup, &["--apply"]).await;
    assert_eq!(output.code, Some(3), "{}", output.stderr);
    assert_eq!((&report["changed"], &report["applied"]), (&json!(2), &json!(true)));
    assert_eq!(version_of(setup, kind, ann).await, (Some(2), "ann@xn--bcher-kva.example".into()));
    assert_eq!(version_of(setup, kind, sigma).await, (Some(2), "σσ@b.example".into()));
    assert_eq!(version_of(setup, kind, carl).await, (None, "carl@bücher.example".into()));
    assert_eq!(version_of(setup, kind, bob).await, (None, "bob@b.example".into()));

    // Every mailbox is protected, also that of the two conflicting users.
    let store = open(setup).await;
    store.prepare().await.unwrap();
    for address in [
        "Ann@xn--bcher-kva.example",
        "ann@BÜCHER.example",
        "σσ@b.example",
        "σς@B.example",
        "bob@b.example",
        "carl@bücher.example",
        "carl@xn--bcher-kva.example",
    ] {
        assert_eq!(store.insert(record(address)).await, Ok(InsertOutcome::Conflict), "{address}");
    }
    drop(store);

    // The operator removes one of the conflicting users; then the command changes the other.
    eventually("the data file to be closed", async || {
        run(setup, &["reindex", "--apply", "--json"]).await.code == Some(3)
    })
    .await;
    remove(setup, kind, other, "carl@xn--bcher-kva.example").await;
    let (output, report) = reindex(setup, &["--apply"]).await;
    assert_eq!((output.code, &report["changed"]), (Some(0), &json!(1)), "{report}");
    assert_eq!(reindex(setup, &[]).await.1["outdated"], 0);
    assert_eq!(finding(setup).await.as_deref(), Some("ok"));
    let text = run(setup, &["reindex"]).await.expect_stdout();
    assert!(text.starts_with("0 users with a key of an older rule"), "{text}");
}

#[tokio::test]
async fn conflicting_users_are_reported_in_a_dry_run_too() {
    let setup = Setup::embedded();
    let store = open(&setup).await;
    store.prepare().await.unwrap();
    insert_old(&*store, "ann@bücher.example").await;
    insert_old(&*store, "ann@ｂücher.example").await;
    drop(store);
    remove_versions(&setup, StoreAdapter::File).await;
    let (_, report) = reindex(&setup, &[]).await;
    assert_eq!(report["changed"], 1, "{report}");
    assert_eq!(report["conflicts"].as_array().unwrap().len(), 1, "{report}");
    let (_, report) = reindex(&setup, &["--apply"]).await;
    assert_eq!((&report["changed"], report["conflicts"].as_array().unwrap().len()), (&json!(1), 1));
}

#[tokio::test]
async fn data_file_of_a_stopped_process_can_be_read() {
    let setup = Setup::embedded();
    assert!(setup.start().await.stop().await.success());
    let (output, report) = reindex(&setup, &[]).await;
    assert_eq!((output.code, &report["outdated"]), (Some(0), &json!(0)), "{report}");
}
