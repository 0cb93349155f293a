//! Conformance tests of the store port, run on both adapters, and tests of each adapter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::doc;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use mongodb::{Collection, IndexModel};
use muster::domain::{
    ContractId, Email, FullName, MessageId, Millis, Origin, RegistrationId, StoredUser, UserId,
    ValidSignup,
};
use muster::store::{self, Conflicts, InsertOutcome, PrepareError, Store, StoreError};
use muster::telemetry::{Component, Health};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use secrecy::SecretString;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::support::muster::eventually;
use crate::support::proxy::Proxy;
use crate::support::services::{mongodb_url, unique};
use crate::support::{Pair, QueueAdapter, Setup, StoreAdapter};

async fn on_both(test: impl AsyncFn(Setup)) {
    for kind in [StoreAdapter::File, StoreAdapter::Mongo] {
        let pair = Pair(QueueAdapter::Local, kind);
        if pair.is_available() {
            println!("on {kind:?}");
            test(Setup::new(pair)).await;
        }
    }
}

/// A setup with the database; `None` without one.
fn mongo() -> Option<Setup> {
    mongodb_url().map(|_| Setup::new(Pair(QueueAdapter::Local, StoreAdapter::Mongo)))
}

/// A health component for the store.
fn component() -> Component {
    Health::default().component("store")
}

async fn open(setup: &Setup) -> Arc<dyn Store> {
    let store = store::open(&setup.settings().store, &component()).await.unwrap();
    store.prepare().await.unwrap();
    store
}

/// Closes the store and opens it again.
async fn reopen(setup: &Setup, store: Arc<dyn Store>) -> Arc<dyn Store> {
    drop(store);
    let mut reopened = None;
    // The store's thread ends some time after the drop.
    eventually("the store to be closed", async || {
        reopened = store::open(&setup.settings().store, &component()).await.ok();
        reopened.is_some()
    })
    .await;
    let store = reopened.unwrap();
    store.prepare().await.unwrap();
    store
}

fn record(username: Option<&str>, email: Option<&str>) -> StoredUser {
    let contract = ContractId::NestedName;
    let candidate = ValidSignup {
        contract,
        username: username.map(str::to_owned),
        email: email.map(|email| Email::new(email.to_owned()).unwrap()),
        fullname: Some(FullName { firstname: "Ann".into(), lastname: None }),
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

fn anonymous() -> StoredUser {
    record(None, None)
}

#[tokio::test]
async fn inserted_user_is_found() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let ann = record(Some("Ann"), Some("Ann@Example.com"));
        assert_eq!(store.find_by_registration(&ann.registration_id).await, Ok(None));
        assert_eq!(store.find_user(ann.user.id).await, Ok(None));
        assert_eq!(store.insert(ann.clone()).await, Ok(InsertOutcome::Inserted));

        assert_eq!(store.find_by_registration(&ann.registration_id).await, Ok(Some(ann.clone())));
        assert_eq!(store.find_user(ann.user.id).await, Ok(Some(ann.user.clone())));
        assert_eq!(store.find_user(UserId::generate()).await, Ok(None));
        for (username, email_key, conflicts) in [
            (None, None, (false, false)),
            (Some("Ann"), None, (true, false)),
            (None, Some("ann@example.com"), (false, true)),
            (Some("Ann"), Some("ann@example.com"), (true, true)),
            (Some("ann"), Some("Ann@Example.com"), (false, false)),
            (Some("Bob"), Some("ann@example.com"), (false, true)),
        ] {
            let found = store.find_conflicts(username, email_key).await;
            let holder = |is_taken: bool| is_taken.then(|| ann.clone());
            let expected = Conflicts { username: holder(conflicts.0), email: holder(conflicts.1) };
            assert_eq!(found, Ok(expected), "{username:?} {email_key:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn names_addresses_and_registrations_are_unique() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let ann = record(Some("Ann"), Some("ann@example.com"));
        assert_eq!(store.insert(ann.clone()).await, Ok(InsertOutcome::Inserted));

        let same_registration = StoredUser {
            registration_id: ann.registration_id.clone(),
            ..record(Some("Bob"), None)
        };
        for (what, refused) in [
            ("the name", record(Some("Ann"), Some("other@example.com"))),
            ("the name alone", record(Some("Ann"), None)),
            ("the address", record(Some("Bob"), Some("ann@example.com"))),
            ("the address in capitals", record(None, Some("ANN@EXAMPLE.COM"))),
            ("the registration", same_registration),
            ("everything", ann.clone()),
        ] {
            assert_eq!(store.insert(refused.clone()).await, Ok(InsertOutcome::Conflict), "{what}");
            let left = store.find_by_registration(&refused.registration_id).await.unwrap();
            let expected = (refused.registration_id == ann.registration_id).then_some(&ann);
            assert_eq!(left.as_ref(), expected, "{what}: a conflict must store nothing");
        }
        assert_eq!(store.find_conflicts(Some("Bob"), None).await, Ok(Conflicts::default()));

        // Names are case-sensitive, unlike addresses.
        assert_eq!(store.insert(record(Some("ann"), None)).await, Ok(InsertOutcome::Inserted));
        assert_eq!(store.insert(record(Some("Bob"), None)).await, Ok(InsertOutcome::Inserted));
    })
    .await;
}

#[tokio::test]
async fn missing_fields_do_not_conflict() {
    on_both(async |setup| {
        let store = open(&setup).await;
        for _ in 0..3 {
            let named = record(Some(&unique("ann")), None);
            let addressed = record(None, Some(&format!("{}@example.com", unique("ann"))));
            for record in [named, addressed, anonymous()] {
                assert_eq!(store.insert(record.clone()).await, Ok(InsertOutcome::Inserted));
                assert_eq!(
                    store.find_by_registration(&record.registration_id).await,
                    Ok(Some(record))
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn one_of_fifty_equal_parallel_inserts_succeeds() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let registration = anonymous();
        let equal: [(&str, &dyn Fn() -> StoredUser); 3] = [
            ("name", &|| record(Some("Ann"), None)),
            ("address", &|| record(None, Some("ann@example.com"))),
            ("registration", &|| StoredUser {
                registration_id: registration.registration_id.clone(),
                ..anonymous()
            }),
        ];
        for (what, record) in equal {
            let inserts = join_all((0..50).map(|_| store.insert(record()))).await;
            let done =
                inserts.iter().filter(|insert| **insert == Ok(InsertOutcome::Inserted)).count();
            let conflicts =
                inserts.iter().filter(|insert| **insert == Ok(InsertOutcome::Conflict)).count();
            assert_eq!((done, conflicts), (1, 49), "equal by {what}");
        }
    })
    .await;
}

#[tokio::test]
async fn five_hundred_parallel_inserts_are_all_stored() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let records: Vec<StoredUser> =
            (0..500).map(|n| record(Some(&format!("user-{n}")), None)).collect();
        let inserts = join_all(records.iter().map(|record| store.insert(record.clone()))).await;
        assert!(inserts.iter().all(|insert| *insert == Ok(InsertOutcome::Inserted)), "{inserts:?}");

        let store = reopen(&setup, store).await;
        for record in records {
            assert_eq!(store.find_user(record.user.id).await, Ok(Some(record.user.clone())));
        }
    })
    .await;
}

/// The store may write parallel inserts in one batch. Each must have the same result as alone.
#[tokio::test]
async fn parallel_inserts_are_independent() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let mark = unique("");
        let email = |n: usize| format!("{n}{mark}@b.co");
        store.insert(record(None, Some(&email(0)))).await.unwrap();
        // Every address occurs three times; address 0 is stored already.
        let records: Vec<_> = (0..300).map(|n| record(None, Some(&email(n % 100)))).collect();
        let results = join_all(records.iter().map(|record| store.insert(record.clone()))).await;
        let mut inserted = vec![0; 100];
        for (n, (record, result)) in records.iter().zip(results).enumerate() {
            let stored = store.find_by_registration(&record.registration_id).await.unwrap();
            match result.unwrap() {
                InsertOutcome::Inserted => {
                    inserted[n % 100] += 1;
                    assert_eq!(stored.as_ref(), Some(record));
                }
                InsertOutcome::Conflict => assert_eq!(stored, None),
            }
        }
        assert_eq!(inserted[0], 0);
        assert!(inserted[1..].iter().all(|inserted| *inserted == 1), "{inserted:?}");
    })
    .await;
}

/// A user name and an address from small sets, so that they conflict.
type Names = (Option<u8>, Option<u8>);

fn names() -> impl Strategy<Value = Vec<Names>> {
    vec((of(0..20u8), of(0..20u8)), 0..40)
}

fn collide(one: &Names, other: &Names) -> bool {
    let equal = |one: Option<u8>, other: Option<u8>| one.is_some() && one == other;
    equal(one.0, other.0) || equal(one.1, other.1)
}

/// Inserts some users one after the other, then others in parallel, and compares the results with a model.
async fn assert_inserts_are_independent(
    store: &dyn Store,
    before: Vec<Names>,
    together: Vec<Names>,
) -> Result<(), TestCaseError> {
    let mark = unique("");
    let record = |(name, email): &Names| {
        let name = name.map(|n| format!("{n}{mark}"));
        let email = email.map(|n| format!("{n}{mark}@b.co"));
        record(name.as_deref(), email.as_deref())
    };
    let (mut stored, mut refused): (Vec<Names>, Vec<Names>) = (Vec::new(), Vec::new());
    for names in before {
        let conflicts = stored.iter().any(|other| collide(other, &names));
        let expected = if conflicts { InsertOutcome::Conflict } else { InsertOutcome::Inserted };
        prop_assert_eq!(store.insert(record(&names)).await, Ok(expected));
        if !conflicts {
            stored.push(names);
        }
    }
    let records: Vec<StoredUser> = together.iter().map(record).collect();
    let results = join_all(records.iter().map(|record| store.insert(record.clone()))).await;
    for ((names, record), result) in together.iter().zip(records).zip(results) {
        let found = store.find_by_registration(&record.registration_id).await;
        if result == Ok(InsertOutcome::Inserted) {
            prop_assert_eq!(found, Ok(Some(record)));
            prop_assert!(
                !stored.iter().any(|other| collide(other, names)),
                "two users with {:?}",
                names
            );
            stored.push(*names);
        } else {
            prop_assert_eq!((result, found), (Ok(InsertOutcome::Conflict), Ok(None)));
            refused.push(*names);
        }
    }
    for names in refused {
        prop_assert!(
            stored.iter().any(|other| collide(other, &names)),
            "no stored user conflicts with {:?}",
            names
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_parallel_inserts_are_independent() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let config =
            ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
        #[expect(clippy::disallowed_methods, reason = "proptest is synchronous")]
        let tested = block_in_place(|| {
            TestRunner::new(config).run(&(names(), names()), |(before, together)| {
                Handle::current()
                    .block_on(assert_inserts_are_independent(&*store, before, together))
            })
        });
        tested.unwrap();
    })
    .await;
}

#[tokio::test]
async fn users_survive_a_reopen() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let ann = record(Some("Ann"), Some("ann@example.com"));
        assert_eq!(store.insert(ann.clone()).await, Ok(InsertOutcome::Inserted));
        let store = reopen(&setup, store).await;
        assert_eq!(store.find_by_registration(&ann.registration_id).await, Ok(Some(ann.clone())));
        assert_eq!(store.insert(record(Some("Ann"), None)).await, Ok(InsertOutcome::Conflict));
        assert_eq!(
            store.insert(record(None, Some("ann@example.com"))).await,
            Ok(InsertOutcome::Conflict)
        );
        assert_eq!(store.insert(ann).await, Ok(InsertOutcome::Conflict));
    })
    .await;
}

#[tokio::test]
async fn data_file_can_be_opened_only_once() {
    let setup = Setup::embedded();
    let _store = open(&setup).await;
    let error = store::open(&setup.settings().store, &component())
        .await
        .err()
        .expect("the file is open already");
    let error = format!("{error:#}");
    assert!(error.contains("users.redb: another process has it open"), "{error}");
    assert!(error.contains("MUSTER_STORE"), "{error}");
}

#[tokio::test]
async fn unusable_data_file_is_named_in_the_error() {
    let setup = Setup::embedded();
    let garbage = setup.directory().join("garbage");
    std::fs::write(&garbage, "not a database".repeat(1000)).unwrap();
    for path in [garbage, setup.directory(), setup.directory().join("no/such/users.redb")] {
        let setup = Setup::embedded().with("MUSTER_STORE", &format!("file:{}", path.display()));
        let error =
            store::open(&setup.settings().store, &component()).await.err().expect("no database");
        let error = format!("{error:#}");
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("MUSTER_STORE"), "{error}");
    }
}

/// The collection, from another client.
async fn users(setup: &Setup) -> Collection<bson::Document> {
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    client.default_database().unwrap().collection("users")
}

#[tokio::test]
async fn mongodb_indexes_are_unique() {
    let Some(setup) = mongo() else { return };
    let store = open(&setup).await;
    // A second call changes nothing.
    store.prepare().await.unwrap();
    let indexes: Vec<IndexModel> =
        users(&setup).await.list_indexes().await.unwrap().try_collect().await.unwrap();
    for (field, optional) in [("username", true), ("emailKey", true), ("registrationId", false)] {
        let index = indexes.iter().find(|index| index.keys == doc! { field: 1 });
        let options = index.and_then(|index| index.options.as_ref()).expect(field);
        assert_eq!(options.unique, Some(true), "{field}");
        assert_eq!(options.partial_filter_expression.is_some(), optional, "{field}");
    }
}

#[tokio::test]
async fn mongodb_document_has_the_documented_form() {
    let Some(setup) = mongo() else { return };
    let store = open(&setup).await;
    let ann = record(None, Some("Ann@Example.com"));
    assert_eq!(store.insert(ann.clone()).await, Ok(InsertOutcome::Inserted));
    let found = users(&setup).await.find_one(doc! { "_id": ann.user.id.0 }).await.unwrap();
    let at = bson::DateTime::from_millis(1_700_000_000_123);
    assert_eq!(
        found.unwrap(),
        doc! {
            "_id": ann.user.id.0,
            "contract": "nested-name",
            "email": "Ann@Example.com",
            "emailKey": "ann@example.com",
            "emailKeyVersion": 2,
            "fullname": { "firstname": "Ann" },
            "password": "$2b$04$abcdefghijklmnopqrstuv",
            "socketId": null,
            "createdAt": at,
            "updatedAt": at,
            "registrationId": ann.registration_id.as_str(),
            "fingerprint": ann.fingerprint,
        }
    );
}

#[tokio::test]
async fn mongodb_with_a_non_unique_index_is_incompatible() {
    let Some(setup) = mongo() else { return };
    let weak = IndexModel::builder().keys(doc! { "username": 1 }).build();
    users(&setup).await.create_index(weak).await.unwrap();
    let store = store::open(&setup.settings().store, &component()).await.unwrap();
    match store.prepare().await {
        Err(PrepareError::Incompatible(error)) => {
            assert!(error.contains("index") && error.contains("username"), "{error}");
            assert!(error.contains("drop it"), "expected a remedy in: {error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn mongodb_with_duplicates_is_incompatible() {
    let Some(setup) = mongo() else { return };
    let twice = [doc! { "username": "ann" }, doc! { "username": "ann" }];
    users(&setup).await.insert_many(twice).await.unwrap();
    let store = store::open(&setup.settings().store, &component()).await.unwrap();
    match store.prepare().await {
        Err(PrepareError::Incompatible(error)) => {
            assert!(error.contains("remove the duplicates"), "{error}")
        }
        other => panic!("{other:?}"),
    }
}

/// A setup with a proxy to the database and a call timeout of one second.
async fn setup_with_proxy() -> Option<(Setup, Proxy)> {
    let url = mongodb_url()?;
    let proxy = Proxy::to(&url).await;
    let setup = mongo()?;
    let database = setup.environment["MUSTER_STORE"].clone();
    let setup =
        setup.with("MUSTER_STORE", &proxy.url(&database)).with("MUSTER_STORE_TIMEOUT", "1s");
    Some((setup, proxy))
}

#[tokio::test]
async fn unavailable_mongodb_is_reported_in_time_and_recovers() {
    let Some((setup, proxy)) = setup_with_proxy().await else { return };
    type Fault = fn(&Proxy);
    let faults: [Fault; 2] = [Proxy::cut, Proxy::stall];
    for fault in faults {
        fault(&proxy);
        let store = store::open(&setup.settings().store, &component()).await.unwrap();
        let started = Instant::now();
        match store.prepare().await {
            Err(PrepareError::Unavailable(error)) => {
                assert!(error.contains(&proxy.address()), "{error}")
            }
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        proxy.restore();
        eventually("the store to be available", async || store.prepare().await.is_ok()).await;
        assert_eq!(store.insert(anonymous()).await, Ok(InsertOutcome::Inserted));
    }
}

#[tokio::test]
async fn indexes_lost_by_mongodb_are_created_before_the_next_insert() {
    let Some((setup, proxy)) = setup_with_proxy().await else { return };
    let store = open(&setup).await;
    let ann = || record(Some("Ann"), None);
    assert_eq!(store.insert(ann()).await, Ok(InsertOutcome::Inserted));
    proxy.cut();
    assert_eq!(store.insert(anonymous()).await, Err(StoreError));
    proxy.restore();
    users(&setup).await.drop().await.unwrap();
    let first = ann();
    eventually("an insert to succeed", async || store.insert(first.clone()).await.is_ok()).await;
    assert_eq!(store.insert(ann()).await, Ok(InsertOutcome::Conflict));
}

#[tokio::test]
async fn mongodb_calls_end_within_their_timeout() {
    let Some((setup, proxy)) = setup_with_proxy().await else { return };
    let store = open(&setup).await;
    // The first insert may check the indexes.
    assert_eq!(store.insert(anonymous()).await, Ok(InsertOutcome::Inserted));
    let ann = record(Some("Ann"), None);
    proxy.stall();
    let started = Instant::now();
    assert_eq!(store.insert(ann.clone()).await, Err(StoreError));
    assert_eq!(store.find_user(ann.user.id).await, Err(StoreError));
    assert_eq!(store.find_by_registration(&ann.registration_id).await, Err(StoreError));
    assert_eq!(store.find_conflicts(Some("Ann"), Some("ann@example.com")).await, Err(StoreError));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(6), "four calls of a second each took {took:?}");

    // The timed-out insert is still sent and arrives once the proxy forwards again.
    proxy.restore();
    eventually("the insert to arrive", async || {
        store.find_by_registration(&ann.registration_id).await == Ok(Some(ann.clone()))
    })
    .await;
}
