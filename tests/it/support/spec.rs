//! The printed specification, and whether messages are as it says. Every message that tests publish or
//! fetch by way of `broker` is held against it.

use std::collections::HashMap;
use std::sync::LazyLock;

use jsonschema::Validator;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use muster::contract::{Document, Policy, contract};
use muster::queue::Door;
use muster::signup::ContractId;
use serde_json::{Map, Value, json};

use super::Setup;

/// What a message consists of, each part described by a schema.
struct Described {
    properties: Validator,
    headers: Validator,
    body: Validator,
}

static DESCRIBED: LazyLock<HashMap<String, Described>> = LazyLock::new(|| {
    let spec = printed();
    let messages = spec["components"]["messages"].as_object().unwrap();
    let described = messages.iter().map(|(name, message)| {
        let body = match message["payload"]["$ref"].as_str() {
            Some(place) => spec.pointer(place.strip_prefix('#').unwrap()).unwrap(),
            None => &message["payload"],
        };
        let headers = message.get("headers").cloned().unwrap_or(Value::Bool(true));
        let described = Described {
            properties: jsonschema::validator_for(&message["x-properties"]).unwrap(),
            headers: jsonschema::validator_for(&headers).unwrap(),
            body: jsonschema::validator_for(body).unwrap(),
        };
        (name.clone(), described)
    });
    described.collect()
});

/// What `muster spec asyncapi` prints without any settings.
pub fn asyncapi() -> String {
    let mut setup = Setup::embedded();
    setup.environment.clear();
    let done = setup.command(&["spec", "asyncapi"]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn printed() -> Value {
    serde_norway::from_str(&asyncapi()).unwrap()
}

/// Whether a body is what the message of this name holds.
pub fn accepts(name: &str, body: &Value) -> bool {
    DESCRIBED[name].body.is_valid(body)
}

/// A message on its way, whoever saw it.
pub struct Seen<'a> {
    pub properties: Value,
    pub headers: Value,
    pub body: &'a [u8],
}

impl<'a> Seen<'a> {
    pub fn new(properties: &BasicProperties, body: &'a [u8]) -> Self {
        let headers = properties.headers().clone().unwrap_or_default();
        Self { properties: as_json(properties), headers: table_as_json(&headers), body }
    }

    /// What is wrong with a message as one of this name, if anything.
    pub fn is_a(&self, name: &str) -> Result<(), String> {
        let described = DESCRIBED.get(name).ok_or(format!("there is no message {name}"))?;
        let told = |part: &str, error: jsonschema::ValidationError<'_>| {
            Err(format!("{part} of {name}: {error} at {}", error.instance_path()))
        };
        if let Err(error) = described.properties.validate(&self.properties) {
            return told("properties", error);
        }
        if let Err(error) = described.headers.validate(&self.headers) {
            return told("headers", error);
        }
        Ok(())
    }

    /// The same with its body.
    fn is_whole(&self, name: &str) -> Result<(), String> {
        self.is_a(name)?;
        let body = serde_json::from_slice(self.body).map_err(|error| format!("{name}: {error}"))?;
        DESCRIBED[name].body.validate(&body).map_err(|error| format!("body of {name}: {error}"))
    }

    /// As what was asked through a door. Of the body this says only that the schema refuses nothing that
    /// the contract accepts: tests send much that neither does.
    pub fn is_asked(&self, door: &str) -> Result<(), String> {
        if door == "profile" {
            return self.is_a(door);
        }
        let contract = self.headers["contract"].as_str().unwrap_or_default();
        let name = format!("{door}.{contract}");
        self.is_a(&name)?;
        if self.headers["sealed"].is_null() && accepted(contract.parse().unwrap(), self.body) {
            self.is_whole(&name)?;
        }
        Ok(())
    }

    /// As what came to a queue of muster's or of another system's.
    pub fn came_to(&self, queue: &str) -> Result<(), String> {
        let end = queue.rsplit('.').next().unwrap();
        if Door::ALL.iter().any(|door| door.as_str() == end) {
            return self.is_asked(end);
        }
        if end == "dead" {
            // The broker's own are as they were published.
            let by_broker = !self.headers["x-death"].is_null();
            let empty = self.body.is_empty();
            return match (by_broker, empty) {
                (true, _) => Ok(()),
                (false, true) => self.is_a("dead-letter"),
                (false, false) => self.is_whole("dead-letter"),
            };
        }
        match self.properties["type"].as_str() {
            Some("outcome") => self.is_whole("reply"),
            Some(event) => self.is_whole(event),
            None => Err(format!("a message without a type in {queue}")),
        }
    }
}

/// Fails unless what was delivered is as it should be there.
pub fn assert_came_to(queue: &str, delivery: &Delivery) {
    let seen = Seen::new(&delivery.properties, &delivery.data);
    if let Err(wrong) = seen.came_to(queue) {
        panic!("{queue}: {wrong}");
    }
}

/// Whether a contract accepts a document.
pub fn accepted(id: ContractId, body: &[u8]) -> bool {
    Document::parse(body)
        .is_ok_and(|document| contract(id).check(&document, &Policy::default()).is_ok())
}

fn as_json(properties: &BasicProperties) -> Value {
    let mut json = Map::new();
    let texts = [
        ("type", properties.kind()),
        ("content_type", properties.content_type()),
        ("message_id", properties.message_id()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("user_id", properties.user_id()),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            json.insert(name.to_owned(), json!(text.as_str()));
        }
    }
    if let Some(mode) = properties.delivery_mode() {
        json.insert("delivery_mode".to_owned(), json!(mode));
    }
    if let Some(time) = properties.timestamp() {
        json.insert("timestamp".to_owned(), json!(time));
    }
    Value::Object(json)
}

/// A table as JSON.
pub fn table_as_json(table: &FieldTable) -> Value {
    let entries = table.inner().iter();
    entries.map(|(name, value)| (name.to_string(), value_as_json(value))).collect()
}

fn value_as_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => json!(flag),
        AMQPValue::ShortShortInt(number) => json!(number),
        AMQPValue::ShortShortUInt(number) => json!(number),
        AMQPValue::ShortInt(number) => json!(number),
        AMQPValue::ShortUInt(number) => json!(number),
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongUInt(number) => json!(number),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::Timestamp(number) => json!(number),
        AMQPValue::LongString(text) => json!(text.to_string()),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::FieldTable(table) => table_as_json(table),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(value_as_json).collect(),
        other => json!(format!("{other:?}")),
    }
}
