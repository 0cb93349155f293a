//! Registrations against a fake store: conflicts, unknown writes, and replays. The conformance suite in tests/it/store.rs
//! holds the real stores to what the fake one assumes.

use std::sync::Arc;

use bytes::Bytes;
use secrecy::SecretString;
use serde_json::json;

use super::*;
use crate::contract::Policy;
use crate::queue::{MessageKind, ReplyAddress};
use crate::domain::{MessageId, Millis, Origin};
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
        queue: queue,
        kind: MessageKind::Register(ContractId::Username),
        id: MessageId::parse("row-1").unwrap(),
        origin: Origin::Amqp { producer: "crm".to_owned() },
        new_key: true,
        sealed: None,
        body: Bytes::from(body.to_string()),
        expires: (door != QueueKind::Bulk).then(|| Instant::now() + REMAINING),
        waits_for: None,
        deliveries: 0,
        attempt: 0,
        trace: TraceContext::default(),
        reply_address: ReplyAddress::default(),
    }
}

fn candidate(message: &Message) -> ValidSignup {
    let document = Document::parse(&message.body).unwrap();
    contract(ContractId::Username).check(&document, &Policy::default()).ok().unwrap()
}

fn registration_id(message: &Message) -> RegistrationId {
    RegistrationId::derive(&message.origin, ContractId::Username, &message.id)
}

/// The user that an earlier delivery of this message stored, with this password.
async fn earlier(message: &Message, password: &str) -> StoredUser {
    let hashed = hash_pool().hash(&SecretString::from(password), Priority::Bulk, None).await.unwrap();
    StoredUser::new(&candidate(message), registration_id(message), hashed.value, NOW)
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
        assert_eq!(fixture.store.look_ups(), 0, "a fresh id is not looked up");
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
        store.taken.username = username.then(|| holder.clone());
        store.taken.email = email.then(|| holder.clone());
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
        // Its own user holds the name too, which must not make it a duplicate.
        store.taken.username = Some(holder.clone());
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
async fn conflict_with_an_index_of_another_program() {
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
async fn conflict_without_a_visible_holder_is_looked_up_until_the_deadline() {
    for door in [QueueKind::Interactive, QueueKind::Bulk] {
        let fixture = RegisterFixture::new(FakeStore::new(InsertBehavior::Conflicts));
        let message = message(queue);
        let began = Instant::now();
        let outcome = fixture.register(&message).await;
        assert_eq!(outcome, FailureCode::StoreUnavailable.into());
        let limit = if door == QueueKind::Bulk { LOOK_FOR } else { REMAINING };
        let took = began.elapsed();
        assert!(took <= limit && took + LOOK_AGAIN * 2 > limit, "{queue:?}: {took:?}");
        assert!(fixture.store.look_ups() > 10, "{queue:?}: {}", fixture.store.look_ups());
    }
}

#[tokio::test(start_paused = true)]
async fn holder_that_becomes_visible_before_the_deadline_is_a_replay() {
    let message = message(QueueKind::Interactive);
    let mut store = FakeStore::new(InsertBehavior::Conflicts);
    store.registered = Some((earlier(&message, PASSWORD).await, 3));
    let fixture = RegisterFixture::new(store);
    let outcome = fixture.register(&message).await;
    assert!(matches!(outcome, Outcome::Registered { replayed: true, .. }), "{outcome:?}");
    assert_eq!(fixture.store.look_ups(), 4);
}

#[tokio::test(start_paused = true)]
async fn failed_write_is_looked_up_before_it_is_reported() {
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
    assert_eq!(lost.store.look_ups(), 1);

    let mut unreadable = FakeStore::new(InsertBehavior::Fails { is_stored: true });
    unreadable.look_up_fails = true;
    let outcome = RegisterFixture::new(unreadable).register(&message).await;
    assert_eq!(outcome, FailureCode::StoreUnavailable.into());
}

#[tokio::test(start_paused = true)]
async fn failed_write_that_another_delivery_made_first_is_a_replay() {
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
async fn known_id_is_looked_up_before_anything_is_written() {
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
async fn expired_message_is_not_written() {
    let fixture = RegisterFixture::new(FakeStore::new(InsertBehavior::Stores));
    let message = Message { expires: Some(Instant::now()), ..message(QueueKind::Interactive) };
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(fixture.register(&message).await, FailureCode::Expired.into());
    assert!(fixture.store.inserted().is_none());
}

#[tokio::test(start_paused = true)]
async fn form_sent_again_by_the_same_person_is_a_replay_within_the_window() {
    let from_front = Message { origin: Origin::Http, ..message(QueueKind::Interactive) };
    for (origin, age, is_replay) in
        [(Origin::Http, 59, true), (Origin::Http, 61, false), (from_crm(), 1, false)]
    {
        let mut holder = other(&from_front).await;
        holder.user.created_at = Millis(NOW.0 - age * 1000);
        let mut store = FakeStore::new(InsertBehavior::Conflicts);
        store.taken.username = Some(holder.clone());
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
