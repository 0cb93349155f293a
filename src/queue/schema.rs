//! JSON Schemas (draft 2020-12) of the bodies that travel: documents by door, replies, events. Documents
//! come from their contracts, the rest from the types that are written. What goes around a body is
//! described in `rabbit::asyncapi`.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, generate::SchemaGenerator};
use serde_json::{Map, Value, json};

use super::event::{REGISTRATION_REJECTED, RegistrationRejected, USER_REGISTERED, UserRegistered};
use super::redact::{KEPT, NESTED};
use super::{Door, seal};
use crate::contract::{bulk_schema, contract};
use crate::signup::{ContractId, Outcome};

/// The name of the schema of replies.
pub const REPLY: &str = "reply";

/// The name of the schema of dead letters.
pub const DEAD_LETTER: &str = "dead-letter";

/// Every schema with its name, which is a file's and a component's too.
pub fn all() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for door in [Door::Interactive, Door::Bulk] {
        for id in ContractId::ALL {
            all.push((document_name(door, id), document(door, id)));
        }
    }
    all.push((REPLY.to_owned(), of::<Outcome>()));
    all.push((USER_REGISTERED.to_owned(), of::<UserRegistered>()));
    all.push((REGISTRATION_REJECTED.to_owned(), of::<RegistrationRejected>()));
    all.push((DEAD_LETTER.to_owned(), dead_letter()));
    all
}

/// The name of the schema of a contract's document at a door.
pub fn document_name(door: Door, id: ContractId) -> String {
    format!("{}.{id}", door.as_str())
}

/// A contract's document as a door takes it: its password may be sealed, and at the bulk door a hash
/// may stand in its place.
fn document(door: Door, id: ContractId) -> Value {
    let contract = contract(id);
    let mut schema = match door {
        Door::Bulk => bulk_schema(contract),
        Door::Interactive | Door::Profile => contract.schema(),
    };
    let clear = schema["properties"]["password"].take();
    schema["properties"]["password"] = json!({ "anyOf": [clear, sealed()] });
    schema
}

/// What is left of a document that was put aside.
fn dead_letter() -> Value {
    let text = json!({ "type": "string" });
    let kept: Map<String, Value> =
        KEPT.iter().map(|field| ((*field).to_owned(), text.clone())).collect();
    let nested = json!({ "type": "object", "properties": kept, "additionalProperties": false });
    let mut fields = kept;
    fields.insert(NESTED.to_owned(), nested);
    fields.insert("password".to_owned(), sealed());
    json!({
        "title": DEAD_LETTER,
        "description": "The fields that identify a user; the password only if it is sealed. The body is \
                        empty where it could not be read.",
        "type": "object",
        "properties": fields,
        "additionalProperties": false,
    })
}

fn sealed() -> Value {
    json!({
        "type": "string",
        "description": "A sealed password in base64, where the header `sealed` names its key.",
        "contentEncoding": "base64",
        "pattern": "^[A-Za-z0-9+/]+={0,2}$",
        "minLength": seal::SHORTEST_TEXT,
    })
}

/// The schema of a type as muster writes it, in one piece.
pub fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value();
    without_null(&mut schema);
    schema
}

/// What is not there is left out of what muster writes, and never null.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_mut_slice() {
                    let only = only.take();
                    map.insert("type".to_owned(), only);
                }
            }
            map.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::rules::HASH_LENGTH;

    fn accepts(door: Door, document: &Value) -> bool {
        let schema = super::document(door, ContractId::Username);
        jsonschema::validator_for(&schema).unwrap().is_valid(document)
    }

    fn with_hash(hash: &str) -> Value {
        json!({ "username": "ann", "passwordHash": hash })
    }

    /// A hash of this beginning, of the right length.
    fn hash(start: &str) -> String {
        format!("{start:.<HASH_LENGTH$}")
    }

    #[test]
    fn hashes_are_taken_at_the_bulk_door_and_in_one_form() {
        for start in ["$2a$08$", "$2b$10$", "$2y$14$"] {
            assert!(accepts(Door::Bulk, &with_hash(&hash(start))), "{start}");
            assert!(!accepts(Door::Interactive, &with_hash(&hash(start))), "{start}");
        }
        for bad in ["$2x$10$", "$2b$07$", "$2b$15$", "$2b$9$", "$argon2id$v=19$", "$2b$10$-"] {
            assert!(!accepts(Door::Bulk, &with_hash(&hash(bad))), "{bad}");
        }
        assert!(!accepts(Door::Bulk, &with_hash(&hash("$2b$10$")[1..])));
        assert!(!accepts(Door::Bulk, &with_hash(&format!("{}.", hash("$2b$10$")))));
    }

    #[test]
    fn a_document_has_a_password_or_a_hash_and_never_both() {
        let mut both = with_hash(&hash("$2b$10$"));
        both["password"] = json!("secret-1");
        assert!(!accepts(Door::Bulk, &both));
        assert!(!accepts(Door::Bulk, &json!({ "username": "ann" })));
        for door in [Door::Interactive, Door::Bulk] {
            assert!(accepts(door, &json!({ "username": "ann", "password": "secret-1" })));
            let sealed = "c2Vh".repeat(80);
            assert!(accepts(door, &json!({ "username": "ann", "password": sealed })));
        }
    }
}
