//! Validates messages against docs/asyncapi.yaml. `broker` validates every message that tests publish or fetch.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use jsonschema::Validator;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use muster::contract::{Document, Policy, check_bulk, contract};
use muster::domain::ContractId;
use muster::queue::QueueKind;
use serde_json::{Map, Value, json};

/// Validators for the parts of a message.
struct MessageSchema {
    properties: Validator,
    headers: Validator,
    body: Validator,
}

static SCHEMAS: LazyLock<HashMap<String, MessageSchema>> = LazyLock::new(|| {
    let spec: Value = serde_norway::from_str(&asyncapi()).unwrap();
    // The document lists every header and property that muster writes, so unknown names are errors.
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
    let schemas = messages.keys().map(|name| {
        let schema = MessageSchema {
            properties: validator(name, "x-properties", true),
            headers: validator(name, "headers", true),
            body: validator(name, "payload", false),
        };
        (name.clone(), schema)
    });
    schemas.collect()
});

/// The AsyncAPI document of the repository.
pub fn asyncapi() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/asyncapi.yaml");
    fs::read_to_string(path).unwrap()
}

/// Whether a body matches the payload schema of the named message.
pub fn accepts(name: &str, body: &Value) -> bool {
    SCHEMAS[name].body.is_valid(body)
}

/// Properties, headers and body of a published or fetched message.
pub struct WireMessage<'a> {
    pub properties: Value,
    pub headers: Value,
    pub body: &'a [u8],
}

impl<'a> WireMessage<'a> {
    pub fn new(properties: &BasicProperties, body: &'a [u8]) -> Self {
        let headers = properties.headers().clone().unwrap_or_default();
        Self { properties: as_json(properties), headers: table_as_json(&headers), body }
    }

    /// Validates properties and headers as those of the named message.
    pub fn validate_headers(&self, name: &str) -> Result<(), String> {
        let schema = SCHEMAS.get(name).ok_or(format!("no message {name} in docs/asyncapi.yaml"))?;
        let violation = |part: &str, error: jsonschema::ValidationError<'_>| {
            Err(format!("{part} of {name}: {error} at {}", error.instance_path()))
        };
        if let Err(error) = schema.properties.validate(&self.properties) {
            return violation("properties", error);
        }
        // The broker adds the headers that begin with `x-`.
        let mut headers = self.headers.clone();
        if let Some(headers) = headers.as_object_mut() {
            headers.retain(|name, _| !name.starts_with("x-"));
        }
        if let Err(error) = schema.headers.validate(&headers) {
            return violation("headers", error);
        }
        Ok(())
    }

    /// Validates properties, headers and body as those of the named message.
    fn validate_message(&self, name: &str) -> Result<(), String> {
        self.validate_headers(name)?;
        let body = serde_json::from_slice(self.body).map_err(|error| format!("{name}: {error}"))?;
        SCHEMAS[name].body.validate(&body).map_err(|error| format!("body of {name}: {error}"))
    }

    /// Validates a request to a queue. The body is validated only if the contract accepts it, because tests
    /// also send invalid documents.
    pub fn validate_request(&self, queue: &str) -> Result<(), String> {
        if queue == "profile" {
            return self.validate_headers(queue);
        }
        if self.properties["type"] == "probe" {
            return self.validate_headers("probe");
        }
        let contract = self.headers["contract"].as_str().unwrap_or_default();
        let name = format!("{queue}.{contract}");
        self.validate_headers(&name)?;
        if self.headers["sealed"].is_null() && accepted(queue, contract.parse().unwrap(), self.body)
        {
            self.validate_message(&name)?;
        }
        Ok(())
    }

    /// Validates a message that was fetched from one of muster's queues or from a reply or event queue.
    pub fn validate_delivery(&self, queue: &str) -> Result<(), String> {
        let end = queue.rsplit('.').next().unwrap();
        if QueueKind::ALL.iter().any(|queue| queue.as_str() == end) {
            return self.validate_request(end);
        }
        if end == "dead" {
            // A message that the broker dead-lettered keeps its properties and body.
            let by_broker = !self.headers["x-death"].is_null();
            let empty = self.body.is_empty();
            return match (by_broker, empty) {
                (true, _) => Ok(()),
                (false, true) => self.validate_headers("dead-letter"),
                (false, false) => self.validate_message("dead-letter"),
            };
        }
        match self.properties["type"].as_str() {
            Some("outcome") => self.validate_message("reply"),
            Some("probe") => self.validate_headers("probe"),
            Some(event) => self.validate_message(event),
            None => Err(format!("a message without a type in {queue}")),
        }
    }
}

/// Fails unless a delivery matches the messages of its queue.
pub fn assert_valid_delivery(queue: &str, delivery: &Delivery) {
    let message = WireMessage::new(&delivery.properties, &delivery.data);
    if let Err(violation) = message.validate_delivery(queue) {
        panic!("{queue}: {violation}");
    }
}

/// Whether a contract accepts a document in the interactive or the bulk queue.
pub fn accepted(queue: &str, id: ContractId, body: &[u8]) -> bool {
    let Ok(document) = Document::parse(body) else { return false };
    match queue {
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

/// Converts an AMQP table to JSON.
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
        AMQPValue::Float(number) => json!(number),
        AMQPValue::Double(number) => json!(number),
        AMQPValue::Timestamp(number) => json!(number),
        AMQPValue::LongString(text) => json!(text.to_string()),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::FieldTable(table) => table_as_json(table),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(value_as_json).collect(),
        other => json!(format!("{other:?}")),
    }
}
