//! Unique indexes of other programs on the user collection: found at the start and by doctor, and reported when they
//! reject a user.

use bson::doc;
use mongodb::options::IndexOptions;
use mongodb::{Collection, IndexModel};
use muster::domain::ContractId;
use muster::store::{self, PrepareError};
use muster::telemetry::Health;
use serde_json::{Value, json};

use crate::support::command::run;
use crate::support::importer::{import, ndjson, reports, user};
use crate::support::services::{PRODUCTION, mongodb_url, unique};
use crate::support::{Pair, QueueAdapter, Setup, StoreAdapter};

fn mongo() -> Option<Setup> {
    mongodb_url().map(|_| Setup::new(Pair(QueueAdapter::Local, StoreAdapter::Mongo)))
}

async fn users(setup: &Setup) -> Collection<bson::Document> {
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    client.default_database().unwrap().collection("users")
}

async fn make_unique(setup: &Setup, field: &str, sparse: bool) {
    let options = IndexOptions::builder().unique(true).sparse(sparse).build();
    let index = IndexModel::builder().keys(doc! { field: 1 }).options(options).build();
    users(setup).await.create_index(index).await.unwrap();
}

async fn prepared(setup: &Setup) -> Result<(), PrepareError> {
    let part = Health::default().component("store");
    store::open(&setup.settings().store, &part).await.unwrap().prepare().await
}

/// Severity, and reason with remedy, of doctor's most severe finding about indexes.
async fn finding(setup: &Setup) -> (String, String) {
    let document = run(setup, &["doctor", "--json"]).await.json();
    let findings = document["findings"].as_array().unwrap().clone();
    let rank = |finding: &Value| match finding["severity"].as_str() {
        Some("error") => 2,
        Some("warning") => 1,
        _ => 0,
    };
    let indexes = findings.into_iter().filter(|finding| finding["check"] == "indexes");
    let worst = indexes.max_by_key(rank).unwrap();
    let text = format!("{} {}", worst["reason"], worst["remedy"]);
    (worst["severity"].as_str().unwrap().to_owned(), text)
}

fn person(email: &str) -> Value {
    json!({ "fullname": { "firstname": "Ann" }, "email": email, "password": "correct horse 7" })
}

#[tokio::test]
async fn unique_index_on_a_missing_field_stops_the_start() {
    let Some(setup) = mongo() else { return };
    make_unique(&setup, "phone", false).await;
    match prepared(&setup).await {
        Err(PrepareError::Incompatible(text)) => {
            for part in ["phone_1", "admits one user", "dropIndex"] {
                assert!(text.contains(part), "expected {part} in: {text}");
            }
        }
        other => panic!("{other:?}"),
    }
    let (severity, text) = finding(&setup).await;
    assert!(severity == "error" && text.contains("phone_1"), "{severity}: {text}");
    let output = run(&setup, &["serve"]).await;
    assert_eq!(output.code, Some(2), "{}", output.stderr);
    assert!(output.stderr.contains("phone_1"), "{}", output.stderr);
}

#[tokio::test]
async fn satisfiable_foreign_index_does_not_stop_the_start() {
    let Some(setup) = mongo() else { return };
    make_unique(&setup, "phone", true).await;
    prepared(&setup).await.unwrap();
    assert_ne!(finding(&setup).await.0, "error");
    make_unique(&setup, "email", false).await;
    prepared(&setup).await.unwrap();
    let (severity, text) = finding(&setup).await;
    assert_eq!(severity, "warning", "{text}");
    assert!(text.contains("email_1") && text.contains("as a duplicate"), "{text}");
}

#[tokio::test]
async fn documents_without_a_registration_id_are_named_with_their_query() {
    let Some(setup) = mongo() else { return };
    let old = [doc! { "email": "a@b.example" }, doc! { "email": "c@d.example" }];
    users(&setup).await.insert_many(old).await.unwrap();
    match prepared(&setup).await {
        Err(PrepareError::Incompatible(text)) => {
            for part in ["registrationId", "db.users.find({registrationId: null})", "updateMany"] {
                assert!(text.contains(part), "{part} was expected in: {text}");
            }
        }
        other => panic!("{other:?}"),
    }
    let (severity, text) = finding(&setup).await;
    assert!(severity == "error" && text.contains("{registrationId: null}"), "{severity}: {text}");
}

#[tokio::test]
async fn foreign_index_conflict_is_reported_and_not_retried() {
    let Some(setup) = mongo() else { return };
    let mut muster = setup.start().await;
    let client = muster.client().clone();
    let address = || format!("{}@example.com", unique("ann"));
    assert_eq!(client.post("/register", &person(&address())).await.status, 201);
    // Another program creates its index.
    make_unique(&setup, "phone", false).await;
    let response = client.post("/register", &person(&address())).await;
    assert_eq!(
        (response.status, response.json()["message"].as_str()),
        (500, Some("Internal Server Error"))
    );
    muster.wait_for_event_with("foreign_index_conflict", "phone_1").await;
    muster.wait_for_event_with("registration_handled", r#""outcome":"store_conflict""#).await;
    let metrics = client.send("GET", "/metrics", &[], "").await.unwrap();
    let metrics = String::from_utf8(metrics.bytes.to_vec()).unwrap();
    let counted = "muster_foreign_index_conflicts_total{index=\"phone_1\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    assert!(!muster.output().contains("store_unavailable"), "{}", muster.output());
}

#[tokio::test]
async fn email_in_a_foreign_index_is_a_duplicate() {
    let Some(setup) = mongo() else { return };
    make_unique(&setup, "email", false).await;
    let existing = format!("{}@example.com", unique("old"));
    users(&setup)
        .await
        .insert_one(doc! { "email": &existing, "username": "old ann" })
        .await
        .unwrap();
    let muster = setup.start().await;
    let client = muster.client().clone();
    let response = client.post("/register", &person(&existing)).await;
    assert_eq!((response.status, &response.json()["message"]), (400, &json!("User already exist")));
    // The name in a document of another program is a duplicate too.
    let named = json!({ "username": "old ann", "password": "correct horse 7" });
    let response = client.post("/signup", &named).await;
    assert_eq!(
        (response.status, &response.json()["message"]),
        (403, &json!("That username is already taken"))
    );
    let free = format!("{}@example.com", unique("ann"));
    assert_eq!(client.post("/register", &person(&free)).await.status, 201);
}

#[tokio::test]
async fn rows_rejected_by_a_foreign_index_become_no_dead_letters() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let mut worker = setup.start_role("worker").await;
    let write = |name: &str, numbers: std::ops::Range<usize>| {
        let rows = ndjson(numbers.map(|n| user(ContractId::Register, n)));
        std::fs::write(setup.directory().join(name), rows).unwrap();
    };
    write("first.ndjson", 0..1);
    let output = import(&setup, &["first.ndjson", "--contract", "register"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    make_unique(&setup, "phone", false).await;
    write("more.ndjson", 1..4);
    let output = import(&setup, &["more.ndjson", "--contract", "register"]).await;
    assert_eq!(output.code, Some(3), "{}", output.stderr);
    let reports = reports(&output.stdout);
    assert_eq!(reports.len(), 3, "{}", output.stderr);
    for report in reports {
        assert_eq!(report["outcome"], "failed", "{report}");
        assert_eq!(report["code"], "store_conflict", "{report}");
    }
    worker.wait_for_event("foreign_index_conflict").await;
    let listed = run(&setup, &["dead-letters", "list", "--json"]).await.expect_stdout();
    assert_eq!(listed, "", "no row may be dead-lettered");
}
