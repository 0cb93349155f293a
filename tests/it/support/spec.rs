//! Validates messages against docs/asyncapi.yaml. Every message that tests publish or fetch through `broker` is validated.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use jsonschema::Validator;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use muster::contract::{Document, Policy, check_bulk, contract};
use muster::queue::Door;
use muster::signup::ContractId;
use serde_json::{Map, Value, json};

/// Validators of the parts of a message.
struct Described {
    properties: Validator,
    headers: Validator,
    body: Validator,
}

static DESCRIBED: LazyLock<HashMap<String, Described>> = LazyLock::new(|| {
    let spec: Value = serde_norway::from_str(&asyncapi()).unwrap();
    // Every header and property that muster writes is described, so the two refuse unknown names.
    let validator = |name: &str, part: &str, is_closed: bool| {
        let mut schema = json!({
            "$ref": format!("#/components/messages/{name}/{part}"),
            "components": spec["components"],
        });
        if is_closed {
            schema["unevaluatedProperties"] = json!(false);
        }
        jsonschema::validator_for(&schema).unwrap()
    };
    let messages = spec["components"]["messages"].as_object().unwrap();
    let described = messages.keys().map(|name| {
        let described = Described {
            properties: validator(name, "x-properties", true),
            headers: validator(name, "headers", true),
            body: validator(name, "payload", false),
        };
        (name.clone(), described)
    });
    described.collect()
});

/// The AsyncAPI document of the repository.
pub fn asyncapi() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/asyncapi.yaml");
    fs::read_to_string(path).unwrap()
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
        // Headers that begin with `x-` are the broker's.
        let mut headers = self.headers.clone();
        if let Some(headers) = headers.as_object_mut() {
            headers.retain(|name, _| !name.starts_with("x-"));
        }
        if let Err(error) = described.headers.validate(&headers) {
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
        if self.properties["type"] == "probe" {
            return self.is_a("probe");
        }
        let contract = self.headers["contract"].as_str().unwrap_or_default();
        let name = format!("{door}.{contract}");
        self.is_a(&name)?;
        if self.headers["sealed"].is_null() && accepted(door, contract.parse().unwrap(), self.body)
        {
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
            Some("probe") => self.is_a("probe"),
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

/// Whether a contract accepts a document in the interactive or the bulk queue.
pub fn accepted(door: &str, id: ContractId, body: &[u8]) -> bool {
    let Ok(document) = Document::parse(body) else { return false };
    match door {
        "bulk" => check_bulk(contract(id), &document, &Policy::default()).is_ok(),
        _ => contract(id).check(&document, &Policy::default()).is_ok(),
    }
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
