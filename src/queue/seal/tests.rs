//! Tests of sealing and opening passwords and tokens.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::Origin;
use crate::queue::ReplyAddress;
use crate::telemetry::TraceContext;

const NOW: Millis = Millis(1_700_000_000_000);
const REPLY_TO: &str = "registration.reply.one";
const PASSWORD: &str = "correct horse 7";

/// A new key pair.
fn pair() -> (Sealer, SecretKey) {
    let private = SecretKey::generate(&mut OsRng);
    (Sealer::new(private.public_key().to_bytes()), private)
}

fn opener(keys: &[&SecretKey]) -> Opener {
    let keys = keys.iter().map(|key| (key_id(&key.public_key()), (*key).clone()));
    Opener { keys: keys.collect(), required: false }
}

fn id(text: &str) -> MessageId {
    MessageId::parse(text).unwrap()
}

fn document(password: &str) -> Value {
    json!({
        "email": "ann@example.com", "fullname": { "firstname": "Ann", "lastname": null },
        "password": password,
    })
}

/// The sealed document of the message row-1.
fn seal(sealer: &Sealer, password: &str) -> Value {
    let id = id("row-1");
    let context = SealContext {
        contract: ContractId::Register,
        id: &id,
        reply_to: Some(REPLY_TO),
        not_after: NOW,
    };
    let body = sealer.seal(&context, document(password).to_string().as_bytes()).unwrap();
    serde_json::from_slice(&body).unwrap()
}

/// The message row-1 with this body.
fn message(sealer: &Sealer, body: &Value) -> Message {
    Message {
        queue: QueueKind::Interactive,
        kind: MessageKind::Register(ContractId::Register),
        id: id("row-1"),
        origin: Origin::Http,
        new_key: false,
        sealed: Some(sealer.key_id().to_owned()),
        body: Bytes::from(body.to_string()),
        expires: None,
        expiration: None,
        deliveries: 0,
        attempt: 0,
        trace: TraceContext::default(),
        reply_address: ReplyAddress { reply_to: Some(REPLY_TO.into()), correlation_id: None },
    }
}

/// Opens a message and checks it as the worker does. `None` if it was sealed for another candidate.
fn open_at(opener: &Opener, message: &Message, now: Millis) -> Result<Option<String>, OpenError> {
    let mut document = Document::parse(&message.body).unwrap();
    let opened = opener.open(message, &document, now)?;
    if let Some(opened) = &opened {
        document.put("password", opened.password());
    }
    let candidate = contract(ContractId::Register).check(&document, &Policy::default()).unwrap();
    let is_for_candidate = opened.as_ref().is_none_or(|opened| opened.is_for(&candidate));
    Ok(is_for_candidate.then(|| candidate.password.in_document().1.to_owned()))
}

fn open(opener: &Opener, message: &Message) -> Result<Option<String>, OpenError> {
    open_at(opener, message, NOW)
}

fn assert_invalid(opened: Result<Option<String>, OpenError>, expected: &str) {
    match opened {
        Err(OpenError::Invalid(error)) => {
            assert!(error.contains(expected), "expected {expected:?}, got {error:?}")
        }
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

#[test]
fn sealed_password_opens_only_in_its_message() {
    let (sealer, private) = pair();
    let opener = opener(&[&private]);
    let body = seal(&sealer, PASSWORD);
    assert!(!body.to_string().contains(PASSWORD));
    assert_eq!(body["email"], "ann@example.com");
    let sealed = message(&sealer, &body);
    assert_eq!(open(&opener, &sealed).unwrap().as_deref(), Some(PASSWORD));

    assert_invalid(open(&opener, &Message { id: id("row-2"), ..sealed.clone() }), "message_id");
    let kind = MessageKind::Register(ContractId::NestedName);
    assert_invalid(open(&opener, &Message { kind, ..sealed.clone() }), "contract");
    for reply_to in ["registration.reply.two", "amq.rabbitmq.reply-to.x", ""] {
        let mut copied = sealed.clone();
        copied.reply_address.reply_to = Some(reply_to.to_owned());
        assert_invalid(open(&opener, &copied), "reply_to");
    }
    assert_invalid(open_at(&opener, &sealed, Millis(NOW.0 + 1)), "expired");
    for (field, value) in
        [("email", json!("eve@example.com")), ("fullname", json!({ "firstname": "Eve" }))]
    {
        let mut other = body.clone();
        other[field] = value;
        assert_eq!(open(&opener, &message(&sealer, &other)), Ok(None), "{field}");
    }
}

#[test]
fn sealed_message_without_reply_to_opens() {
    let (sealer, private) = pair();
    let mut requeued = message(&sealer, &seal(&sealer, PASSWORD));
    requeued.reply_address.reply_to = None;
    assert!(open(&opener(&[&private]), &requeued).unwrap().is_some());
}

#[test]
fn corrupted_box_is_refused() {
    let (sealer, private) = pair();
    let opener = opener(&[&private]);
    let mut body = seal(&sealer, PASSWORD);
    let mut bytes = BASE64.decode(body["password"].as_str().unwrap()).unwrap();
    for at in [0, 31, 32, 47, 48, bytes.len() - 1] {
        bytes[at] ^= 1;
        body["password"] = BASE64.encode(&bytes).into();
        assert_invalid(open(&opener, &message(&sealer, &body)), "decrypted");
        bytes[at] ^= 1;
    }
    let foreign = BASE64.encode(sealer.key.seal(&mut OsRng, b"\"hunter2\"").unwrap());
    for (password, expected) in [
        (json!("hunter2"), "base64"),
        (json!(""), "decrypted"),
        (json!("aHVudGVyMg=="), "decrypted"),
        (json!(foreign), "cannot be parsed"),
        (json!(7), "no sealed password"),
        (Value::Null, "no sealed password"),
    ] {
        body["password"] = password;
        assert_invalid(open(&opener, &message(&sealer, &body)), expected);
    }
}

#[test]
fn box_opens_only_with_its_key_and_keys_rotate() {
    let ((old, old_private), (new, new_private)) = (pair(), pair());
    assert_ne!(old.key_id(), new.key_id());
    let (before, after) = (seal(&old, PASSWORD), seal(&new, PASSWORD));
    let (before, after) = (message(&old, &before), message(&new, &after));

    assert_eq!(open(&opener(&[&new_private]), &before), Err(OpenError::UnknownKey));
    assert_eq!(open(&Opener::default(), &before), Err(OpenError::UnknownKey));
    let both = opener(&[&new_private, &old_private]);
    assert!(open(&both, &before).unwrap().is_some());
    assert!(open(&both, &after).unwrap().is_some());
    // The id of the other key does not decrypt it.
    assert_invalid(
        open(&both, &Message { sealed: Some(new.key_id().into()), ..before }),
        "decrypted",
    );
}

#[test]
fn clear_password_is_accepted_unless_sealing_is_required() {
    let (sealer, private) = pair();
    let mut opener = opener(&[&private]);
    let clear = Message { sealed: None, ..message(&sealer, &document(PASSWORD)) };
    assert_eq!(open(&opener, &clear).unwrap().as_deref(), Some(PASSWORD));
    opener.required = true;
    assert_eq!(open(&opener, &clear), Err(OpenError::NotSealed));
    assert!(open(&opener, &message(&sealer, &seal(&sealer, PASSWORD))).unwrap().is_some());
    // A document without a password has no clear one. The contract rejects it later.
    let none = Document::parse(b"{}").unwrap();
    assert!(opener.open(&clear, &none, NOW).unwrap().is_none());
}

#[test]
fn invalid_document_is_not_sealed() {
    let (sealer, _) = pair();
    let id = id("row-1");
    let context =
        SealContext { contract: ContractId::Register, id: &id, reply_to: None, not_after: NOW };
    for body in [document("short").to_string(), "{}".into(), "[".into()] {
        assert_eq!(sealer.seal(&context, body.as_bytes()), None, "{body}");
    }
}

#[test]
fn shortest_box_looks_sealed_and_longest_password_does_not() {
    let (sealer, _) = pair();
    let id = id("a");
    let context = SealContext {
        contract: ContractId::Register,
        id: &id,
        reply_to: None,
        not_after: Millis(0),
    };
    let body = sealer.seal(&context, document("123456").to_string().as_bytes()).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert!(looks_sealed(body["password"].as_str().unwrap()));
    assert!(!looks_sealed(&"abcd".repeat(18)), "72 bytes");
}

#[test]
fn dead_letter_keeps_only_the_sealed_password_of_a_bulk_row() {
    let (sealer, _) = pair();
    let interactive = message(&sealer, &seal(&sealer, PASSWORD));
    let row = Message { queue: QueueKind::Bulk, ..interactive.clone() };
    let clear = Message { sealed: None, ..row.clone() };
    assert!(may_keep_sealed(&row, DeadLetterReason::Poison));
    assert!(!may_keep_sealed(&row, DeadLetterReason::BadSeal));
    assert!(!may_keep_sealed(&interactive, DeadLetterReason::Poison));
    assert!(!may_keep_sealed(&clear, DeadLetterReason::Poison));
}

#[test]
fn sealed_token_opens_only_in_its_message() {
    let ((sealer, private), (_, other)) = (pair(), pair());
    let body = sealer.seal_token(&id("row-1"), REPLY_TO, NOW, b"header.claims.signature").unwrap();
    assert!(!String::from_utf8_lossy(&body).contains("claims"));
    let sealed = Message {
        queue: QueueKind::Profile,
        kind: MessageKind::Profile,
        body: body.into(),
        ..message(&sealer, &json!({}))
    };
    let opener = opener(&[&private]);
    let open = |message: &Message, now| {
        opener.open_token(message, now).map(|token| token.as_str().to_owned())
    };
    assert_eq!(open(&sealed, NOW), Ok("header.claims.signature".to_owned()));
    assert!(matches!(open(&sealed, Millis(NOW.0 + 1)), Err(OpenError::Invalid(_))), "too late");
    let copied = Message { id: id("row-2"), ..sealed.clone() };
    assert!(matches!(open(&copied, NOW), Err(OpenError::Invalid(_))));
    let diverted = ReplyAddress { reply_to: Some("another".into()), correlation_id: None };
    let diverted = Message { reply_address: diverted, ..sealed.clone() };
    assert!(matches!(open(&diverted, NOW), Err(OpenError::Invalid(_))));
    let broken = Message { body: "AAAA".into(), ..sealed.clone() };
    assert!(matches!(open(&broken, NOW), Err(OpenError::Invalid(_))));
    let unknown = Message { sealed: Some(key_id(&other.public_key())), ..sealed.clone() };
    assert_eq!(open(&unknown, NOW), Err(OpenError::UnknownKey));
    let clear = Message { sealed: None, body: "a.b.c".into(), ..sealed };
    assert_eq!(open(&clear, NOW), Ok("a.b.c".to_owned()));
}

#[test]
fn generated_key_pair_matches() {
    let pair = KeyPair::generate();
    let public = BASE64.decode(&pair.public).unwrap();
    let private = BASE64.decode(pair.private.expose_secret()).unwrap();
    let private = SecretKey::from_slice(&private).unwrap();
    let sealer = Sealer::new(public.try_into().unwrap());
    assert_eq!(sealer.key_id(), pair.key_id);
    assert!(opener(&[&private]).has_key(&pair.key_id));
    assert_ne!(KeyPair::generate().key_id, pair.key_id);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every valid password is opened unchanged and does not appear in the body.
    #[test]
    fn any_password_is_opened_unchanged(password in "[^\u{0}]{6,18}") {
        let (sealer, private) = pair();
        let body = seal(&sealer, &password);
        prop_assert!(!body.to_string().contains(&password));
        let opened = open(&opener(&[&private]), &message(&sealer, &body)).unwrap();
        prop_assert_eq!(opened, Some(password));
    }
}
