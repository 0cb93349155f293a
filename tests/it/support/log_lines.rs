//! Finds log lines that are not valid JSON or repeat a key. Readers differ in which of two equal keys they
//! keep, and some reject the line. The log of every program that a test starts is checked at its end.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Lines that begin with `{` and are not strict JSON, each with the error.
pub fn malformed_lines(written: &str) -> Vec<String> {
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

/// Deserializes any value, rejects repeated keys, and discards the value.
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
        f.write_str("JSON without repeated keys")
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
                return Err(A::Error::custom(format!("repeated key {key}")));
            }
            keys.insert(key);
        }
        Ok(())
    }
}

#[test]
fn malformed_lines_finds_repeated_keys() {
    let sound = "{\"a\":1,\"b\":{\"a\":[null,true,1.5,-1,\"x\"]}}";
    assert_eq!(malformed_lines(&format!("plain text\n{sound}")), Vec::<String>::new());
    for bad in ["{\"a\":1,\"a\":2}", "{\"a\":{\"b\":1,\"b\":1}}", "{\"a\":1", "{\"a\":1} more"] {
        assert_eq!(malformed_lines(bad).len(), 1, "{bad}");
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
