//! The AMQP door as an AsyncAPI document, from the definitions that the code itself uses: names and
//! arguments of the topology, names of headers, schemas of bodies. `muster spec asyncapi` prints it.

mod messages;

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::topology::{self, Names};
use crate::config;
use crate::queue::event::{REGISTRATION_REJECTED, USER_REGISTERED};
use crate::queue::{Door, schema};

const ABOUT: &str = "Registers users. Any system with an account at the broker publishes registrations: \
    the body is the contract's own JSON document, everything else is in the properties. Here \
    `x-properties` describes the AMQP properties of a message, `headers` the table in its property \
    `headers`, and `x-topology` what muster declares. Operations are muster's: it receives what others \
    send. What to do with all this is told in docs/amqp.md.";

/// The document, with the names and limits of these settings.
pub fn document(settings: &config::Queue) -> Value {
    let names = Names::new(&settings.namespace);
    let (host, protocol, vhost) = server(&settings.url);
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "muster",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": host,
                "protocol": protocol,
                "protocolVersion": "0-9-1",
                "pathname": format!("/{vhost}"),
                "description": "RabbitMQ 3.10 to 4.x",
            },
        },
        "channels": channels(&names, &vhost),
        "operations": operations(),
        "components": {
            "messages": messages::all(&names, &settings.reply_prefix),
            "schemas": schema::all().into_iter().collect::<Map<_, _>>(),
        },
        "x-topology": topology(&names, settings),
    })
}

/// Host and port, protocol and vhost, as far as the settings say.
fn server(url: &config::QueueUrl) -> (String, &'static str, String) {
    let uri: Option<AMQPUri> = match url {
        config::QueueUrl::Local => None,
        config::QueueUrl::Amqp(url) => url.expose_secret().parse().ok(),
    };
    let Some(uri) = uri else { return ("localhost:5672".to_owned(), "amqp", "/".to_owned()) };
    let protocol = if uri.scheme == AMQPScheme::AMQPS { "amqps" } else { "amqp" };
    (format!("{}:{}", uri.authority.host, uri.authority.port), protocol, uri.vhost)
}

fn channels(names: &Names, vhost: &str) -> Value {
    let exchange = |name: &str, kind: &str| {
        json!({
            "amqp": {
                "is": "routingKey",
                "exchange": {
                    "name": name, "type": kind, "durable": true, "autoDelete": false, "vhost": vhost,
                },
                "bindingVersion": "0.3.0",
            },
        })
    };
    let door = |door: Door, about: &str| {
        json!({
            "address": door.as_str(),
            "description": about,
            "messages": references(messages::of_door(door), "#/components/messages"),
            "bindings": exchange(names.exchange(), "direct"),
            "x-queue": names.queue(door),
        })
    };
    let event = |name: &str, about: &str| {
        json!({
            "address": name,
            "description": about,
            "messages": references(vec![name.to_owned()], "#/components/messages"),
            "bindings": exchange(&names.events_exchange(), "topic"),
        })
    };
    json!({
        "interactive": door(Door::Interactive, "Registrations somebody waits for."),
        "bulk": door(Door::Bulk, "Registrations nobody waits for right now. They may wait for hours."),
        "profile": door(Door::Profile, "Look-ups of a token's owner."),
        "replies": {
            "address": null,
            "description": "The queue that a message names in reply_to.",
            "messages": references(vec![schema::REPLY.to_owned()], "#/components/messages"),
        },
        USER_REGISTERED: event(USER_REGISTERED, "Users who were registered; see queue.events."),
        REGISTRATION_REJECTED:
            event(REGISTRATION_REJECTED, "Bulk registrations that were refused and asked for no reply."),
        "dead": {
            "address": names.dead_queue(),
            "description": "What could not be done, without its secrets: see muster dead.",
            "messages": references(vec![schema::DEAD_LETTER.to_owned()], "#/components/messages"),
            "bindings": {
                "amqp": {
                    "is": "queue",
                    "queue": {
                        "name": names.dead_queue(),
                        "durable": true, "exclusive": false, "autoDelete": false, "vhost": vhost,
                    },
                    "bindingVersion": "0.3.0",
                },
            },
        },
    })
}

fn operations() -> Value {
    let receive = |channel: &str, summary: &str| {
        json!({
            "action": "receive",
            "channel": { "$ref": format!("#/channels/{channel}") },
            "summary": summary,
            "bindings": { "amqp": { "ack": true, "bindingVersion": "0.3.0" } },
            "reply": {
                "address": {
                    "location": "$message.header#/reply_to",
                    "description": "The AMQP property reply_to; on the bulk door it may be absent.",
                },
                "channel": { "$ref": "#/channels/replies" },
            },
        })
    };
    let send = |channel: &str, summary: &str, mandatory: bool| {
        json!({
            "action": "send",
            "channel": { "$ref": format!("#/channels/{channel}") },
            "summary": summary,
            "bindings": { "amqp": { "mandatory": mandatory, "bindingVersion": "0.3.0" } },
        })
    };
    json!({
        "register": receive("interactive", "Registers a user before the message expires, and replies."),
        "registerInBulk": receive("bulk", "Registers a user, and replies if that is asked for."),
        "lookUp": receive("profile", "Replies with the owner of the token in the body."),
        "announceUser": send(USER_REGISTERED, "Told at least once.", false),
        "announceRefusal": send(REGISTRATION_REJECTED, "Told at least once.", false),
        "putAside": send("dead", "Keeps what cannot be done.", true),
    })
}

/// References to components, each under its own name.
fn references(names: Vec<String>, place: &str) -> Map<String, Value> {
    let reference = |name: String| {
        let reference = json!({ "$ref": format!("{place}/{name}") });
        (name, reference)
    };
    names.into_iter().map(reference).collect()
}

/// What is declared. Another's queues for replies and events are not among it.
fn topology(names: &Names, settings: &config::Queue) -> Value {
    let exchanges: Map<String, Value> = topology::exchanges(names)
        .into_iter()
        .map(|(name, kind)| (name, json!({ "type": kind_name(&kind), "durable": true })))
        .collect();
    let queues: Map<String, Value> = topology::queues(names, settings)
        .into_iter()
        .map(|queue| {
            let mut told = json!({ "durable": true, "arguments": arguments(&queue.arguments) });
            if let Some((exchange, key)) = queue.bound_to {
                told["bound"] = json!({ "exchange": exchange, "routingKey": key });
            }
            (queue.name, told)
        })
        .collect();
    json!({ "exchanges": exchanges, "queues": queues })
}

fn kind_name(kind: &ExchangeKind) -> &str {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Headers => "headers",
        ExchangeKind::Topic => "topic",
        ExchangeKind::Custom(name) => name,
    }
}

fn arguments(table: &FieldTable) -> Map<String, Value> {
    let told = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => json!(text.to_string()),
        AMQPValue::LongLongInt(number) => json!(number),
        other => json!(format!("{other:?}")),
    };
    table.inner().iter().map(|(name, value)| (name.to_string(), told(value))).collect()
}
