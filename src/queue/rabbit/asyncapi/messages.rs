//! Every message of the AMQP door: its properties, headers and body. What `properties` writes and reads
//! is described here and nowhere else; the tests hold each message they see against it.

use serde_json::{Map, Value, json};

use super::Names;
use crate::queue::event;
use crate::queue::rabbit::header;
use crate::queue::rabbit::properties::{
    DIRECT_REPLY_PREFIX, JSON, KEY_ID_MAX, NAME_MAX, PERSISTENT, REPLY, TRANSIENT,
};
use crate::queue::{Door, Kind, Reason, schema};
use crate::signup::{ContractId, MessageId};
use crate::telemetry::trace::{TRACEPARENT, TRACESTATE};

/// The names of the messages that come through a door.
pub(super) fn of_door(door: Door) -> Vec<String> {
    match door {
        Door::Profile => vec![door.as_str().to_owned()],
        _ => ContractId::ALL.map(|id| schema::document_name(door, id)).to_vec(),
    }
}

/// All of them by their names.
pub(super) fn all(names: &Names, reply_prefix: &str) -> Map<String, Value> {
    let mut all = Map::new();
    let reply_to = reply_to(names, reply_prefix);
    for door in [Door::Interactive, Door::Bulk] {
        for id in ContractId::ALL {
            all.insert(schema::document_name(door, id), registration(door, id, &reply_to));
        }
    }
    all.insert(Door::Profile.as_str().to_owned(), look_up(&reply_to));
    all.insert(schema::REPLY.to_owned(), reply());
    for name in event::NAMES {
        all.insert(name.to_owned(), event(name));
    }
    all.insert(schema::DEAD_LETTER.to_owned(), dead_letter());
    all
}

fn registration(door: Door, id: ContractId, reply_to: &Value) -> Value {
    let mut headers = json!({
        header::CONTRACT: { "const": id.as_str() },
        header::SEALED: {
            "type": "string",
            "maxLength": KEY_ID_MAX,
            "description": "The id of the key that the password is sealed with; absent if it is clear.",
        },
        header::FRESH: {
            "type": "boolean",
            "description": "Nothing can be registered under this message_id yet. A hint that spares a \
                            look-up.",
        },
    });
    put(&mut headers, trace());
    put(&mut headers, entry_point());
    if door == Door::Bulk {
        put(&mut headers, put_back());
    } else {
        put(&mut headers, waiting());
    }
    let kind = Kind::Register(id).as_str();
    json!({
        "name": kind,
        "title": format!("A registration under {id}"),
        "contentType": JSON,
        "headers": { "type": "object", "properties": headers, "required": [header::CONTRACT] },
        "payload": payload(&schema::document_name(door, id)),
        "correlationId": correlation_id(),
        "bindings": amqp(kind),
        "x-properties": asked(door, kind, PERSISTENT, reply_to),
    })
}

fn look_up(reply_to: &Value) -> Value {
    let kind = Kind::Profile.as_str();
    let mut headers = waiting();
    put(&mut headers, trace());
    put(&mut headers, entry_point());
    json!({
        "name": kind,
        "title": "A look-up of a token's owner",
        "headers": { "type": "object", "properties": headers },
        "payload": { "type": "string", "description": "The token, as it is." },
        "correlationId": correlation_id(),
        "bindings": amqp(kind),
        "x-properties": asked(Door::Profile, kind, TRANSIENT, reply_to),
    })
}

fn reply() -> Value {
    let mut headers = json!({
        header::PER_KILOSECOND: {
            "type": "integer",
            "description": "What its worker can register in a thousand seconds.",
        },
        header::THREADS: {
            "type": "integer",
            "description": "The threads on which its worker hashes them.",
        },
        header::SERVER_TIMING: {
            "type": "string",
            "description": "How long the worker's stages took, in milliseconds, written as in \
                        the HTTP header of that name: slot (waiting for a hash slot), hash, insert, and \
                        work, which is all from the message's arrival to its outcome.",
            "examples": ["slot;dur=0.021, hash;dur=210.1, insert;dur=1.2, work;dur=211.9"],
        },
    });
    put(&mut headers, trace());
    json!({
        "name": REPLY,
        "title": "How a registration or a look-up ended",
        "contentType": JSON,
        "headers": {
            "type": "object",
            "properties": headers,
            "required": [header::PER_KILOSECOND],
        },
        "payload": payload(schema::REPLY),
        "correlationId": correlation_id(),
        "bindings": amqp(REPLY),
        "x-properties": {
            "type": "object",
            "properties": {
                "type": { "const": REPLY },
                "content_type": { "const": JSON },
                "delivery_mode": { "const": TRANSIENT },
                "message_id": message_id("That of the message."),
                "correlation_id": { "type": "string", "description": "That of the message, if it had one." },
            },
            "required": ["type", "content_type", "delivery_mode", "message_id"],
        },
    })
}

fn event(name: &str) -> Value {
    json!({
        "name": name,
        "title": name,
        "contentType": JSON,
        "headers": { "type": "object", "properties": trace() },
        "payload": payload(name),
        "bindings": amqp(name),
        "x-properties": {
            "type": "object",
            "properties": {
                "type": { "const": name },
                "content_type": { "const": JSON },
                "delivery_mode": { "const": PERSISTENT },
                "message_id": {
                    "type": "string",
                    "pattern": "^[0-9a-f]{64}$",
                    "description": "The registration's id. With the type it tells an event from others; \
                                    the same again is the same event.",
                },
                "timestamp": { "type": "integer", "description": "When it was sent, in seconds since 1970." },
            },
            "required": ["type", "content_type", "delivery_mode", "message_id", "timestamp"],
        },
    })
}

fn dead_letter() -> Value {
    let mut headers = json!({
        header::REASON: { "enum": Reason::ALL.map(Reason::as_str) },
        header::DOOR: { "enum": Door::ALL.map(Door::as_str) },
        header::DETAIL: { "type": "string", "description": "What could not be read." },
        header::BODY_BYTES: {
            "type": "integer",
            "description": "The size of the body, where properties could not be read and it was left out.",
        },
        header::CONTRACT: { "enum": ContractId::ALL.map(ContractId::as_str) },
        header::SEALED: { "type": "string", "description": "The key of the sealed password that stayed." },
        header::PASSWORD_REMOVED: { "type": "boolean" },
    });
    put(&mut headers, put_back());
    put(&mut headers, trace());
    put(&mut headers, entry_point());
    json!({
        "name": schema::DEAD_LETTER,
        "title": "A message that was put aside by a worker",
        "description": "The broker moves bulk messages here too; those are as they were published, and \
                        have the header x-death.",
        "contentType": JSON,
        "headers": {
            "type": "object",
            "properties": headers,
            "required": [header::REASON, header::DOOR],
        },
        "payload": payload(schema::DEAD_LETTER),
        "x-properties": {
            "type": "object",
            "properties": {
                "message_id": message_id("That of the message, or one made for it."),
                "delivery_mode": { "const": PERSISTENT },
                "timestamp": { "type": "integer", "description": "When it was put aside." },
                "reply_to": false,
                "expiration": false,
            },
            "required": ["message_id", "delivery_mode", "timestamp"],
        },
    })
}

/// The properties of what is asked through a door.
fn asked(door: Door, kind: &str, mode: u8, reply_to: &Value) -> Value {
    let (expiration, required) = match door {
        Door::Bulk => (Value::Bool(false), json!(["type", "message_id"])),
        _ => (
            json!({
                "type": "string",
                "pattern": "^[0-9]{1,10}$",
                "description": "Milliseconds for which a client waits. After them it is dropped. More than \
                                three times the front.deadline of the workers is answered invalid.",
            }),
            json!(["type", "message_id", "reply_to", "expiration"]),
        ),
    };
    json!({
        "type": "object",
        "properties": {
            "type": { "const": kind },
            "content_type": { "const": JSON },
            "delivery_mode": {
                "enum": [TRANSIENT, PERSISTENT],
                "description": format!("{mode} wanted."),
            },
            "message_id": message_id(
                "The producer's own id of the registration: the same again is the same registration.",
            ),
            "correlation_id": { "type": "string", "description": "Given back in the reply." },
            "reply_to": reply_to,
            "expiration": expiration,
            "user_id": {
                "type": "string",
                "description": "The account at the broker, which checks it. Part of the registration's \
                                identity, and of the names of reply queues.",
            },
        },
        "required": required,
    })
}

/// Headers of a message that somebody waits for.
fn waiting() -> Value {
    json!({
        header::DEADLINE: {
            "type": "integer",
            "description": "Milliseconds that were left when it was sent; expiration if absent.",
        },
        header::SENT_AT: {
            "type": "integer",
            "description": "The sender's clock, in milliseconds since 1970.",
        },
    })
}

/// Where a registration entered.
fn entry_point() -> Value {
    json!({
        header::ENTRY_POINT: {
            "type": "string",
            "description": "http, import or amqp; part of the registration's identity. Muster's own, and \
                            ignored under any other account's user_id.",
        },
    })
}

/// Where a message stands in its trace.
fn trace() -> Value {
    json!({
        TRACEPARENT: {
            "type": "string",
            "description": "Trace and span from which it comes, as in W3C Trace Context. What is not right \
                            is ignored.",
        },
        TRACESTATE: { "type": "string", "description": "What tracing systems keep there." },
    })
}

/// Headers that muster writes when it puts a message back or aside.
fn put_back() -> Value {
    json!({
        header::ATTEMPT: {
            "type": "integer",
            "description": "How often it was put back. Muster's own, like the next two: they are believed \
                            under its own user_id alone.",
        },
        header::PRODUCER: { "type": "string", "description": "Who published it first." },
        header::REPLY_TO: { "type": "string", "description": "Where the reply goes." },
    })
}

/// The queues that may be replied to.
fn reply_to(names: &Names, prefix: &str) -> Value {
    let own = names.reply_prefix();
    let direct = DIRECT_REPLY_PREFIX.trim_end_matches('.');
    let foreign = if prefix.is_empty() {
        "None else: queue.reply_prefix is empty.".to_owned()
    } else {
        format!("Or {prefix}<user_id>.<name>, where user_id is set and name has no dot.")
    };
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": NAME_MAX,
        "description": format!("{direct}, or the reply queue of a front end ({own}…). {foreign}"),
    })
}

fn message_id(about: &str) -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": MessageId::MAX,
        "description": format!("{about} At most {} bytes.", MessageId::MAX),
    })
}

fn payload(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn correlation_id() -> Value {
    json!({
        "location": "$message.header#/correlation_id",
        "description": "The AMQP property correlation_id.",
    })
}

fn amqp(kind: &str) -> Value {
    json!({ "amqp": { "messageType": kind, "bindingVersion": "0.3.0" } })
}

fn put(headers: &mut Value, more: Value) {
    if let (Value::Object(headers), Value::Object(more)) = (headers, more) {
        headers.extend(more);
    }
}
