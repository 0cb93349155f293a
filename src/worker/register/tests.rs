//! Tests of registrations with a fake store: conflicts, failed inserts and replays.
//!
//! The conformance suite in tests/it/store.rs verifies that the real stores behave like the fake one.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::SecretString;
use serde_json::json;

use super::*;
use crate::contract::Policy;
use crate::domain::{MessageId, Millis, Origin};
use crate::password::PasswordHasher;
use crate::queue::{MessageKind, ReplyAddress};
use crate::store::ForeignIndex;
use crate::telemetry::TraceContext;
use crate::worker::fake_store::{FakeStore, InsertBehavior, NOW, hash_pool, worker};

const PASSWORD: &str = "secret-1";
/// Time until the deadline of a message.
const REMAINING: Duration = Duration::from_secs(2);

struct RegisterFixture {
    worker: Worker,
    store: Arc<FakeStore>,
}

impl RegisterFixture {
    fn new(store: FakeStore) -> Self {
        let store = Arc::new(store);
        Self { worker: worker(store.clone()), store }
    }

    async fn register(&self, message: &Message) -> Outcome {
        let MessageKind::Register(contract) = message.kind else { panic!("{message:?}") };
        self.worker.register(message, contract, &mut Stages::default()).await.unwrap()
    }
}

/// A first registration of `ann`, from another system.
fn message(queue: QueueKind) -> Message {
    let body = json!({ "username": "ann", "email": "ann@example.com", "password": PASSWORD });
    Message {
        queue,
        kind: MessageKind::Register(ContractId::Username),
        id: MessageId::parse("row-1").unwrap(),
        origin: Origin::Amqp { producer: "crm".to_owned() },
        new_key: true,
        sealed: None,
        body: Bytes::from(body.to_string()),
        expires: (queue != QueueKind::Bulk).then(|| Instant::now() + REMAINING),
        expiration: None,
        deliveries: 0,
        attempt: 0,
        trace: TraceContext::default(),
        reply_address: ReplyAddress::default(),
    }
}

fn signup(message: &Message) -> ValidSignup {
    let document = Document::parse(&message.body).unwrap();
    contract(ContractId::Username).check(&document, &Policy::default()).ok().unwrap()
}

fn registration_id(message: &Message) -> RegistrationId {
    RegistrationId::derive(&message.origin, ContractId::Username, &message.id)
}

/// The user that an earlier delivery of this message stored with this password.
async fn earlier(message: &Message, password: &str) -> StoredUser {
    let hashed =
        hash_pool().hash(&SecretString::from(password), Priority::Bulk, None).await.unwrap();
    StoredUser::new(&signup(message), registration_id(message), hashed.value, NOW)
}

/// The user of another registration with the same data.
async fn other(message: &Message) -> StoredUser {
    let other = Message { id: MessageId::parse("row-2").unwrap(), ..message.clone() };
    earlier(&other, PASSWORD).await
}

fn fields(outcome: &Outcome) -> Vec<&str> {
    let Outcome::Rejected(rejection) = outcome else { panic!("{outcome:?}") };
    assert_eq!(rejection.code, RejectionCode::Duplicate);
    rejection.errors.iter().map(|error| &*error.field).collect()
}

#[tokio::test(start_paused = true)]
async fn new_user_is_stored_and_gets_a_token_unless_it_is_a_bulk_row() {
    for (queue, has_token) in [(QueueKind::Interactive, true), (QueueKind::Bulk, false)] {
        let fixture = RegisterFixture::new(FakeStore::new(InsertBehavior::Stores));
        let message = message(queue);
        let outcome = fixture.register(&message).await;
        let Outcome::Registered { user, token, replayed, .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((token.is_some(), replayed), (has_token, false), "{queue:?}");
        assert_eq!(fixture.store.inserted().unwrap().user.id, user.id);
        assert_eq!(fixture.store.queries(), 0, "a new id is not queried");
    }
}

#[tokio::test(start_paused = true)]
async fn conflict_with_other_users_names_the_fields() {
    let message = message(QueueKind::Interactive);
    let holder = other(&message).await;
    for (username, email, expected) in [
        (true, false, vec!["username"]),
        (false, true, vec!["email"]),
        (true, true, vec!["username", "email"]),
    ] {
        let mut store = FakeStore::new(InsertBehavior::Conflicts);
        store.conflicts.username = username.then(|| holder.clone());
        store.conflicts.email = email.then(|| holder.clone());
        let outcome = RegisterFixture::new(store).register(&message).await;
        assert_eq!(fields(&outcome), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn conflict_with_the_same_registration_is_a_replay_if_nothing_differs() {
    let message = message(QueueKind::Interactive);
    let same = earlier(&message, PASSWORD).await;
    let mut other_data = same.clone();
    other_data.fingerprint = "0".repeat(64);
    let other_password = earlier(&message, "another-1").await;
    for (holder, is_replay) in [(same, true), (other_data, false), (other_password, false)] {
        let mut store = FakeStore::new(InsertBehavior::Conflicts);
        // The user of this registration has the name too, which must not make it a duplicate.
        store.conflicts.username = Some(holder.clone());
        store.registered = Some((holder.clone(), 0));
        let outcome = RegisterFixture::new(store).register(&message).await;
        match outcome {
            Outcome::Registered { user, token, replayed: true, by_other_registration: false } => {
                assert!(is_replay && token.is_some());
                assert_eq!(user.id, holder.user.id);
            }
            outcome => {
                assert!(!is_replay, "{outcome:?}");
                assert_eq!(outcome, RejectionCode::KeyReused.into());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn conflict_with_an_index_of_another_program_is_a_duplicate_or_a_failure() {
    let message = message(QueueKind::Interactive);
    for (duplicate, expected) in
        [(Some("email"), None), (None, Some(Outcome::from(FailureCode::StoreConflict)))]
    {
        let mut store = FakeStore::new(InsertBehavior::Conflicts);
        store.foreign = Some(ForeignIndex { name: "legacy".to_owned(), duplicate });
        let outcome = RegisterFixture::new(store).register(&message).await;
        match expected {
            Some(expected) => assert_eq!(outcome, expected),
            None => assert_eq!(fields(&outcome), ["email"]),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn invisible_conflicting_user_is_queried_until_the_deadline() {
    for queue in [QueueKind::Interactive, QueueKind::Bulk] {
        let fixture = RegisterFixture::new(FakeStore::new(InsertBehavior::Conflicts));
        let message = message(queue);
        let began = Instant::now();
        let outcome = fixture.register(&message).await;
        assert_eq!(outcome, FailureCode::StoreUnavailable.into());
        let limit = if queue == QueueKind::Bulk { CONFLICT_QUERY_TIMEOUT } else { REMAINING };
        let took = began.elapsed();
        assert!(took <= limit && took + CONFLICT_QUERY_PAUSE * 2 > limit, "{queue:?}: {took:?}");
        assert!(fixture.store.queries() > 10, "{queue:?}: {}", fixture.store.queries());
    }
}

#[tokio::test(start_paused = true)]
async fn registration_that_becomes_visible_before_the_deadline_is_a_replay() {
    let message = message(QueueKind::Interactive);
    let mut store = FakeStore::new(InsertBehavior::Conflicts);
    store.registered = Some((earlier(&message, PASSWORD).await, 3));
    let fixture = RegisterFixture::new(store);
    let outcome = fixture.register(&message).await;
    assert!(matches!(outcome, Outcome::Registered { replayed: true, .. }), "{outcome:?}");
    assert_eq!(fixture.store.queries(), 4);
}

#[tokio::test(start_paused = true)]
async fn failed_insert_is_queried_before_it_is_reported() {
    let message = message(QueueKind::Interactive);
    let stored = RegisterFixture::new(FakeStore::new(InsertBehavior::Fails { is_stored: true }));
    let outcome = stored.register(&message).await;
    let Outcome::Registered { user, token, replayed: false, .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(token.is_some());
    assert_eq!(user.id, stored.store.inserted().unwrap().user.id);

    let lost = RegisterFixture::new(FakeStore::new(InsertBehavior::Fails { is_stored: false }));
    assert_eq!(lost.register(&message).await, FailureCode::StoreUnavailable.into());
    assert_eq!(lost.store.queries(), 1);

    let mut unreadable = FakeStore::new(InsertBehavior::Fails { is_stored: true });
    unreadable.query_fails = true;
    let outcome = RegisterFixture::new(unreadable).register(&message).await;
    assert_eq!(outcome, FailureCode::StoreUnavailable.into());
}

#[tokio::test(start_paused = true)]
async fn failed_insert_of_a_registration_stored_by_another_delivery_is_a_replay() {
    let message = message(QueueKind::Interactive);
    // The same registration, stored by another delivery under another user id.
    let holder = earlier(&message, PASSWORD).await;
    let mut store = FakeStore::new(InsertBehavior::Fails { is_stored: false });
    store.registered = Some((holder.clone(), 0));
    let fixture = RegisterFixture::new(store);
    let outcome = fixture.register(&message).await;
    let Outcome::Registered { user, replayed: true, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(user.id, holder.user.id);
    assert_ne!(user.id, fixture.store.inserted().unwrap().user.id);

    let mut store = FakeStore::new(InsertBehavior::Fails { is_stored: false });
    store.registered = Some((earlier(&message, "another-1").await, 0));
    let outcome = RegisterFixture::new(store).register(&message).await;
    assert_eq!(outcome, RejectionCode::KeyReused.into());
}

#[tokio::test(start_paused = true)]
async fn possibly_registered_id_is_queried_before_the_insert() {
    for changed in [
        Message { new_key: false, ..message(QueueKind::Interactive) },
        Message { deliveries: 1, ..message(QueueKind::Interactive) },
        Message { attempt: 1, ..message(QueueKind::Bulk) },
    ] {
        let mut store = FakeStore::new(InsertBehavior::Stores);
        store.registered = Some((earlier(&changed, PASSWORD).await, 0));
        let fixture = RegisterFixture::new(store);
        let outcome = fixture.register(&changed).await;
        assert!(matches!(outcome, Outcome::Registered { replayed: true, .. }), "{outcome:?}");
        assert!(fixture.store.inserted().is_none(), "{changed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn expired_message_is_not_inserted() {
    let fixture = RegisterFixture::new(FakeStore::new(InsertBehavior::Stores));
    let message = Message { expires: Some(Instant::now()), ..message(QueueKind::Interactive) };
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(fixture.register(&message).await, FailureCode::Expired.into());
    assert!(fixture.store.inserted().is_none());
}

/// Takes longer than any deadline.
struct SlowHasher;

#[async_trait]
impl PasswordHasher for SlowHasher {
    async fn hash(
        &self,
        _: &SecretString,
        _: Priority,
        _: Option<Instant>,
    ) -> Result<Timed<String>, HashError> {
        sleep(REMAINING * 2).await;
        Ok(Timed { value: "a hash".into(), queued_for: Duration::ZERO, ran_for: REMAINING * 2 })
    }

    async fn verify(
        &self,
        _: &SecretString,
        _: &str,
        _: Priority,
        _: Option<Instant>,
    ) -> Result<Timed<bool>, HashError> {
        unreachable!("a new registration verifies nothing")
    }

    fn capacity(&self) -> usize {
        1
    }

    fn per_second(&self) -> f64 {
        0.25
    }

    fn threads(&self) -> usize {
        1
    }
}

#[tokio::test(start_paused = true)]
async fn message_that_expires_during_hashing_is_not_inserted() {
    let mut fixture = RegisterFixture::new(FakeStore::new(InsertBehavior::Stores));
    fixture.worker.hash_pool = Arc::new(SlowHasher);
    let outcome = fixture.register(&message(QueueKind::Interactive)).await;
    assert_eq!(outcome, FailureCode::Expired.into());
    assert!(fixture.store.inserted().is_none());
    let bulk = fixture.register(&message(QueueKind::Bulk)).await;
    assert!(matches!(bulk, Outcome::Registered { .. }), "a bulk row has no deadline: {bulk:?}");
}

#[tokio::test(start_paused = true)]
async fn repeated_form_is_a_replay_within_the_window() {
    let from_front = Message { origin: Origin::Http, ..message(QueueKind::Interactive) };
    for (origin, age, is_replay) in
        [(Origin::Http, 59, true), (Origin::Http, 61, false), (from_crm(), 1, false)]
    {
        let mut holder = other(&from_front).await;
        holder.user.created_at = Millis(NOW.0 - age * 1000);
        let mut store = FakeStore::new(InsertBehavior::Conflicts);
        store.conflicts.username = Some(holder.clone());
        let message = Message { origin, ..from_front.clone() };
        match RegisterFixture::new(store).register(&message).await {
            Outcome::Registered { user, by_other_registration: true, .. } => {
                assert!(is_replay, "{age}");
                assert_eq!(user.id, holder.user.id);
            }
            outcome => {
                assert!(!is_replay, "{age}: {outcome:?}");
                assert_eq!(fields(&outcome), ["username"]);
            }
        }
    }
}

fn from_crm() -> Origin {
    Origin::Amqp { producer: "crm".to_owned() }
}
