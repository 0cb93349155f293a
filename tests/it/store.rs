//! One suite for the store's port, run on both adapters, and what each promises beyond it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::doc;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use mongodb::{Collection, IndexModel};
use muster::domain::{
    ValidSignup, ContractId, Email, FullName, MessageId, Millis, Origin, StoredUser, RegistrationId,
    UserId,
};
use muster::store::{self, InsertOutcome, PrepareError, Store, StoreError, Conflicts};
use muster::telemetry::{Health, Part};
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

/// A setup on the database, if there is one.
fn mongo() -> Option<Setup> {
    mongodb_url().map(|_| Setup::new(Pair(QueueAdapter::Local, StoreAdapter::Mongo)))
}

/// Somebody who would be told of a failure for good.
fn part() -> Part {
    Health::default().component("store")
}

async fn open(setup: &Setup) -> Arc<dyn Store> {
    let store = store::open(&setup.settings().store, &part()).await.unwrap();
    store.prepare().await.unwrap();
    store
}

/// The same store after everything that had it open is gone.
async fn reopen(setup: &Setup, store: Arc<dyn Store>) -> Arc<dyn Store> {
    drop(store);
    let mut reopened = None;
    // Its thread ends with it, but not at the same moment.
    eventually("the store to be let go", async || {
        reopened = store::open(&setup.settings().store, &part()).await.ok();
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
    StoredUser::new(&candidate, id, "$2b$04$abcdefghijklmnopqrstuv".into(), Millis(1_700_000_000_123))
}

fn nobody() -> StoredUser {
    record(None, None)
}

#[tokio::test]
async fn who_was_inserted_is_found() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let ann = record(Some("Ann"), Some("Ann@Example.com"));
        assert_eq!(store.find_by_registration(&ann.registration_id).await, Ok(None));
        assert_eq!(store.find_user(ann.user.id).await, Ok(None));
        assert_eq!(store.insert(ann.clone()).await, Ok(InsertOutcome::Inserted));

        assert_eq!(store.find_by_registration(&ann.registration_id).await, Ok(Some(ann.clone())));
        assert_eq!(store.find_user(ann.user.id).await, Ok(Some(ann.user.clone())));
        assert_eq!(store.find_user(UserId::generate()).await, Ok(None));
        for (username, email_key, taken) in [
            (None, None, (false, false)),
            (Some("Ann"), None, (true, false)),
            (None, Some("ann@example.com"), (false, true)),
            (Some("Ann"), Some("ann@example.com"), (true, true)),
            (Some("ann"), Some("Ann@Example.com"), (false, false)),
            (Some("Bob"), Some("ann@example.com"), (false, true)),
        ] {
            let found = store.find_conflicts(username, email_key).await;
            let holder = |is_taken: bool| is_taken.then(|| ann.clone());
            let expected = Conflicts { username: holder(taken.0), email: holder(taken.1) };
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

        let same_registration =
            StoredUser { registration_id: ann.registration_id.clone(), ..record(Some("Bob"), None) };
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
            assert_eq!(left.as_ref(), expected, "{what}: nothing of it stays");
        }
        assert_eq!(store.find_conflicts(Some("Bob"), None).await, Ok(Conflicts::default()));

        // Compared exactly, unlike addresses.
        assert_eq!(store.insert(record(Some("ann"), None)).await, Ok(InsertOutcome::Inserted));
        assert_eq!(store.insert(record(Some("Bob"), None)).await, Ok(InsertOutcome::Inserted));
    })
    .await;
}

#[tokio::test]
async fn what_users_lack_does_not_collide() {
    on_both(async |setup| {
        let store = open(&setup).await;
        for _ in 0..3 {
            let named = record(Some(&unique("ann")), None);
            let addressed = record(None, Some(&format!("{}@example.com", unique("ann"))));
            for record in [named, addressed, nobody()] {
                assert_eq!(store.insert(record.clone()).await, Ok(InsertOutcome::Inserted));
                assert_eq!(store.find_by_registration(&record.registration_id).await, Ok(Some(record)));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn of_fifty_equal_inserts_at_once_one_is_done() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let registration = nobody();
        let equal: [(&str, &dyn Fn() -> StoredUser); 3] = [
            ("name", &|| record(Some("Ann"), None)),
            ("address", &|| record(None, Some("ann@example.com"))),
            ("registration", &|| StoredUser {
                registration_id: registration.registration_id.clone(),
                ..nobody()
            }),
        ];
        for (what, record) in equal {
            let inserts = join_all((0..50).map(|_| store.insert(record()))).await;
            let done = inserts.iter().filter(|insert| **insert == Ok(InsertOutcome::Inserted)).count();
            let taken = inserts.iter().filter(|insert| **insert == Ok(InsertOutcome::Conflict)).count();
            assert_eq!((done, taken), (1, 49), "equal by {what}");
        }
    })
    .await;
}

#[tokio::test]
async fn five_hundred_inserts_at_once_are_all_answered_and_all_there() {
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

/// Inserts that come together may be written together; still each fares as if it were alone.
#[tokio::test]
async fn inserts_side_by_side_do_not_touch_each_other() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let mark = unique("");
        let email = |n: usize| format!("{n}{mark}@b.co");
        store.insert(record(None, Some(&email(0)))).await.unwrap();
        // Every address comes three times; the first of them was there before.
        let records: Vec<_> = (0..300).map(|n| record(None, Some(&email(n % 100)))).collect();
        let results = join_all(records.iter().map(|record| store.insert(record.clone()))).await;
        let mut made = vec![0; 100];
        for (n, (record, result)) in records.iter().zip(results).enumerate() {
            let there = store.find_by_registration(&record.registration_id).await.unwrap();
            match result.unwrap() {
                InsertOutcome::Inserted => {
                    made[n % 100] += 1;
                    assert_eq!(there.as_ref(), Some(record));
                }
                InsertOutcome::Conflict => assert_eq!(there, None),
            }
        }
        assert_eq!(made[0], 0);
        assert!(made[1..].iter().all(|made| *made == 1), "{made:?}");
    })
    .await;
}

/// A user name and an address, each out of few, so that rows collide.
type Names = (Option<u8>, Option<u8>);

fn names() -> impl Strategy<Value = Vec<Names>> {
    vec((of(0..20u8), of(0..20u8)), 0..40)
}

fn collide(one: &Names, other: &Names) -> bool {
    let equal = |one: Option<u8>, other: Option<u8>| one.is_some() && one == other;
    equal(one.0, other.0) || equal(one.1, other.1)
}

/// Inserts some one after the other and then some at once.
async fn each_fares_as_if_alone(
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
    let (mut there, mut refused): (Vec<Names>, Vec<Names>) = (Vec::new(), Vec::new());
    for names in before {
        let taken = there.iter().any(|other| collide(other, &names));
        let expected = if taken { InsertOutcome::Conflict } else { InsertOutcome::Inserted };
        prop_assert_eq!(store.insert(record(&names)).await, Ok(expected));
        if !taken {
            there.push(names);
        }
    }
    let records: Vec<StoredUser> = together.iter().map(record).collect();
    let results = join_all(records.iter().map(|record| store.insert(record.clone()))).await;
    for ((names, record), result) in together.iter().zip(records).zip(results) {
        let found = store.find_by_registration(&record.registration_id).await;
        if result == Ok(InsertOutcome::Inserted) {
            prop_assert_eq!(found, Ok(Some(record)));
            prop_assert!(!there.iter().any(|other| collide(other, names)), "two of {:?}", names);
            there.push(*names);
        } else {
            prop_assert_eq!((result, found), (Ok(InsertOutcome::Conflict), Ok(None)));
            refused.push(*names);
        }
    }
    for names in refused {
        prop_assert!(there.iter().any(|other| collide(other, &names)), "nobody has {:?}", names);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_together_each_fares_as_if_alone() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let config =
            ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
        #[expect(clippy::disallowed_methods, reason = "who checks a property cannot wait")]
        let tested = block_in_place(|| {
            TestRunner::new(config).run(&(names(), names()), |(before, together)| {
                Handle::current().block_on(each_fares_as_if_alone(&*store, before, together))
            })
        });
        tested.unwrap();
    })
    .await;
}

#[tokio::test]
async fn users_stay() {
    on_both(async |setup| {
        let store = open(&setup).await;
        let ann = record(Some("Ann"), Some("ann@example.com"));
        assert_eq!(store.insert(ann.clone()).await, Ok(InsertOutcome::Inserted));
        let store = reopen(&setup, store).await;
        assert_eq!(store.find_by_registration(&ann.registration_id).await, Ok(Some(ann.clone())));
        assert_eq!(store.insert(record(Some("Ann"), None)).await, Ok(InsertOutcome::Conflict));
        assert_eq!(store.insert(record(None, Some("ann@example.com"))).await, Ok(InsertOutcome::Conflict));
        assert_eq!(store.insert(ann).await, Ok(InsertOutcome::Conflict));
    })
    .await;
}

#[tokio::test]
async fn a_data_file_is_opened_once() {
    let setup = Setup::embedded();
    let _store = open(&setup).await;
    let error =
        store::open(&setup.settings().store, &part()).await.err().expect("it is open already");
    let told = format!("{error:#}");
    assert!(told.contains("users.redb: another process has it open"), "{told}");
    assert!(told.contains("MUSTER_STORE"), "{told}");
}

#[tokio::test]
async fn a_data_file_that_cannot_be_used_is_named() {
    let setup = Setup::embedded();
    let garbage = setup.directory().join("garbage");
    std::fs::write(&garbage, "not a database".repeat(1000)).unwrap();
    for path in [garbage, setup.directory(), setup.directory().join("no/such/users.redb")] {
        let setup = Setup::embedded().with("MUSTER_STORE", &format!("file:{}", path.display()));
        let error = store::open(&setup.settings().store, &part()).await.err().expect("no database");
        let told = format!("{error:#}");
        assert!(told.contains(&path.display().to_string()), "{told}");
        assert!(told.contains("MUSTER_STORE"), "{told}");
    }
}

/// The collection as another client sees it.
async fn users(setup: &Setup) -> Collection<bson::Document> {
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    client.default_database().unwrap().collection("users")
}

#[tokio::test]
async fn the_indexes_of_mongodb_are_unique() {
    let Some(setup) = mongo() else { return };
    let store = open(&setup).await;
    // Twice is as good as once.
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
async fn the_document_in_mongodb_is_as_described() {
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
async fn mongodb_with_an_index_that_guards_nothing_is_refused() {
    let Some(setup) = mongo() else { return };
    let weak = IndexModel::builder().keys(doc! { "username": 1 }).build();
    users(&setup).await.create_index(weak).await.unwrap();
    let store = store::open(&setup.settings().store, &part()).await.unwrap();
    match store.prepare().await {
        Err(PrepareError::Incompatible(told)) => {
            assert!(told.contains("index") && told.contains("username"), "{told}");
            assert!(told.contains("drop it"), "no remedy in: {told}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn mongodb_with_duplicates_is_incompatible() {
    let Some(setup) = mongo() else { return };
    let twice = [doc! { "username": "ann" }, doc! { "username": "ann" }];
    users(&setup).await.insert_many(twice).await.unwrap();
    let store = store::open(&setup.settings().store, &part()).await.unwrap();
    match store.prepare().await {
        Err(PrepareError::Incompatible(told)) => assert!(told.contains("remove the duplicates"), "{told}"),
        other => panic!("{other:?}"),
    }
}

/// A setup whose database is reached by way of a proxy, with calls that take a second at most.
async fn by_proxy() -> Option<(Setup, Proxy)> {
    let url = mongodb_url()?;
    let proxy = Proxy::to(&url).await;
    let setup = mongo()?;
    let database = setup.environment["MUSTER_STORE"].clone();
    let setup =
        setup.with("MUSTER_STORE", &proxy.url(&database)).with("MUSTER_STORE_TIMEOUT", "1s");
    Some((setup, proxy))
}

#[tokio::test]
async fn mongodb_that_is_away_is_told_in_time_and_works_when_it_comes() {
    let Some((setup, proxy)) = by_proxy().await else { return };
    type Fault = fn(&Proxy);
    let faults: [Fault; 2] = [Proxy::cut, Proxy::stall];
    for fault in faults {
        fault(&proxy);
        let store = store::open(&setup.settings().store, &part()).await.unwrap();
        let started = Instant::now();
        match store.prepare().await {
            Err(PrepareError::Unavailable(told)) => assert!(told.contains(&proxy.address()), "{told}"),
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        proxy.restore();
        eventually("the store to be there", async || store.prepare().await.is_ok()).await;
        assert_eq!(store.insert(nobody()).await, Ok(InsertOutcome::Inserted));
    }
}

#[tokio::test]
async fn mongodb_that_comes_back_without_its_indexes_gets_them_before_its_first_user() {
    let Some((setup, proxy)) = by_proxy().await else { return };
    let store = open(&setup).await;
    let ann = || record(Some("Ann"), None);
    assert_eq!(store.insert(ann()).await, Ok(InsertOutcome::Inserted));
    proxy.cut();
    assert_eq!(store.insert(nobody()).await, Err(StoreError));
    proxy.restore();
    users(&setup).await.drop().await.unwrap();
    let first = ann();
    eventually("the first user", async || store.insert(first.clone()).await.is_ok()).await;
    assert_eq!(store.insert(ann()).await, Ok(InsertOutcome::Conflict));
}

#[tokio::test]
async fn calls_to_mongodb_end_in_time() {
    let Some((setup, proxy)) = by_proxy().await else { return };
    let store = open(&setup).await;
    // The first insert looks at the indexes, if the server was seen only now.
    assert_eq!(store.insert(nobody()).await, Ok(InsertOutcome::Inserted));
    let ann = record(Some("Ann"), None);
    proxy.stall();
    let started = Instant::now();
    assert_eq!(store.insert(ann.clone()).await, Err(StoreError));
    assert_eq!(store.find_user(ann.user.id).await, Err(StoreError));
    assert_eq!(store.find_by_registration(&ann.registration_id).await, Err(StoreError));
    assert_eq!(store.find_conflicts(Some("Ann"), Some("ann@example.com")).await, Err(StoreError));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(6), "four calls of a second each took {took:?}");

    // What was not answered was not given up either: it arrives with the first bytes that do.
    proxy.restore();
    eventually("the insert to arrive", async || {
        store.find_by_registration(&ann.registration_id).await == Ok(Some(ann.clone()))
    })
    .await;
}
