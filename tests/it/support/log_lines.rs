//! Every line of a JSON log is one JSON object, and no key is in it twice: of two equal keys each reader
//! keeps another one, and some refuse the line. Every program that a test starts is held to it at its end.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The lines that begin as JSON and are not what a strict reader accepts, each with the reason.
pub fn malformed_in(written: &str) -> Vec<String> {
    let lines = written.lines().filter(|line| line.starts_with('{'));
    lines.filter_map(|line| check(line).err().map(|error| format!("{error}: {line}"))).collect()
}

/// Whether the `event` field of a log line has this name, in the JSON format or in the text format.
pub fn has_event(line: &str, name: &str) -> bool {
    match serde_json::from_str::<Value>(line) {
        Ok(line) => line["event"] == name,
        Err(_) => line.split_whitespace().any(|field| field == format!("event=\"{name}\"")),
    }
}

fn check(line: &str) -> serde_json::Result<()> {
    let mut reader = serde_json::Deserializer::from_str(line);
    Strict.deserialize(&mut reader)?;
    reader.end()
}

/// Reads any value and keeps none of it.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without a key that is there twice")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Strict)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = members.next_key::<String>()? {
            members.next_value_seed(Strict)?;
            if keys.contains(&key) {
                return Err(A::Error::custom(format!("the key {key} is there twice")));
            }
            keys.insert(key);
        }
        Ok(())
    }
}

#[test]
fn this_check_finds_doubled_keys() {
    let sound = "{\"a\":1,\"b\":{\"a\":[null,true,1.5,-1,\"x\"]}}";
    assert_eq!(malformed_in(&format!("plain text\n{sound}")), Vec::<String>::new());
    for bad in ["{\"a\":1,\"a\":2}", "{\"a\":{\"b\":1,\"b\":1}}", "{\"a\":1", "{\"a\":1} more"] {
        assert_eq!(malformed_in(bad).len(), 1, "{bad}");
    }
}

#[test]
fn event_is_found_in_both_formats_of_the_log() {
    let text = "2026-01-01T00:00:00Z DEBUG delivery started event=\"delivery_started\" id=\"1\"";
    let json = r#"{"message":"delivery started","event":"delivery_started","id":"1"}"#;
    for line in [text, json] {
        assert!(has_event(line, "delivery_started"), "{line}");
        assert!(!has_event(line, "delivery"), "{line}");
    }
}
