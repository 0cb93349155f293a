//! A JSON object read from a request or message body.
//!
//! A value stays unparsed until a contract reads it. An unknown field may therefore hold any JSON
//! value, even a number that no numeric type can hold, and is never parsed.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// Maximum nesting depth of arrays and objects.
pub const MAX_DEPTH: usize = 128;

/// A JSON object. Of duplicate keys, the last one counts.
#[derive(Clone)]
pub struct Document<'a>(BTreeMap<String, &'a RawValue>);

/// The body is not exactly one JSON object in UTF-8, nests deeper than [`MAX_DEPTH`], or contains an
/// escape for an unpaired surrogate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid JSON")]
pub struct InvalidDocument;

/// The value of a key that should hold a string.
pub enum TextValue {
    /// The key is missing or `null`.
    Absent,
    /// A number, a boolean, an array or an object.
    WrongType,
    /// A string. It is wiped on drop because it may be a password.
    Text(Zeroizing<String>),
}

/// The value of a key that should hold an object.
pub enum ObjectValue<'a> {
    /// The key is missing or `null`.
    Absent,
    /// Not an object.
    WrongType,
    /// An object.
    Object(Document<'a>),
}

impl<'a> Document<'a> {
    /// Parses a body. One leading byte order mark is ignored.
    pub fn parse(body: &'a [u8]) -> Result<Self, InvalidDocument> {
        let text = std::str::from_utf8(body).map_err(|_| InvalidDocument)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        check_strings_and_depth(text)?;
        serde_json::from_str(text).map(Self).map_err(|_| InvalidDocument)
    }

    /// Whether the key exists, even with the value `null`.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Reads the value of a key as a string.
    pub fn text(&self, key: &str) -> TextValue {
        let Some(raw) = self.0.get(key).map(|raw| raw.get()) else { return TextValue::Absent };
        if raw == "null" {
            return TextValue::Absent;
        }
        serde_json::from_str(raw)
            .map_or(TextValue::WrongType, |text| TextValue::Text(Zeroizing::new(text)))
    }

    /// Returns the unparsed value of a key.
    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        self.0.get(key).copied()
    }

    /// Sets or replaces the value of a key.
    pub fn put(&mut self, key: &str, value: &'a RawValue) {
        self.0.insert(key.to_owned(), value);
    }

    /// Reads the value of a key as an object.
    pub fn object(&self, key: &str) -> ObjectValue<'a> {
        let Some(raw) = self.0.get(key).map(|raw| raw.get()) else { return ObjectValue::Absent };
        if raw == "null" {
            return ObjectValue::Absent;
        }
        serde_json::from_str(raw)
            .map_or(ObjectValue::WrongType, |map| ObjectValue::Object(Self(map)))
    }
}

/// Checks the nesting depth and the surrogate escapes of the whole text. serde_json does not check
/// them in values that it skips.
fn check_strings_and_depth(text: &str) -> Result<(), InvalidDocument> {
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut in_string) = (0, 0usize, false);
    while let Some(&byte) = bytes.get(at) {
        match (in_string, byte) {
            (_, b'"') => in_string = !in_string,
            (true, b'\\') => {
                match escape(bytes, at) {
                    Some(0xD800..=0xDBFF) => {
                        if !matches!(escape(bytes, at + 6), Some(0xDC00..=0xDFFF)) {
                            return Err(InvalidDocument);
                        }
                        at += 10;
                    }
                    Some(0xDC00..=0xDFFF) => return Err(InvalidDocument),
                    // Skips the escaped byte, so that `\"` does not end the string.
                    _ => {}
                }
                at += 1;
            }
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(InvalidDocument);
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Returns the code unit of a `\uXXXX` escape that begins at byte `at`.
fn escape(bytes: &[u8], at: usize) -> Option<u16> {
    let [b'\\', b'u', digits @ ..] = bytes.get(at..at + 6)? else { return None };
    let digits = std::str::from_utf8(digits).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &str, key: &str) -> Option<String> {
        match Document::parse(body.as_bytes()).unwrap().text(key) {
            TextValue::Text(text) => Some(text.to_string()),
            _ => None,
        }
    }

    #[test]
    fn only_one_object_in_utf8_is_accepted() {
        for bad in ["", "[]", "\"x\"", "null", "1", "{", "{}x", "{\"a\":1,}", "{'a':1}"] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Document::parse(b"{\"a\":\"\xff\"}").is_err());
        assert!(Document::parse("\u{feff}{}".as_bytes()).is_ok());
        assert!(Document::parse("\u{feff}\u{feff}{}".as_bytes()).is_err());
    }

    #[test]
    fn unknown_fields_may_hold_any_json() {
        let body = r#"{"roles":1e999,"x":[-0.1E-9999,{"y":null}],"email":"a"}"#;
        assert_eq!(text(body, "email").as_deref(), Some("a"));
    }

    #[test]
    fn unpaired_surrogates_are_rejected_everywhere() {
        assert_eq!(text(r#"{"a":"\ud83d\ude00"}"#, "a").as_deref(), Some("\u{1f600}"));
        for lone in [r#"{"x":"\ud83d"}"#, r#"{"x":"\ude00"}"#, r#"{"x":["\ud83dx\ude00"]}"#] {
            assert_eq!(Document::parse(lone.as_bytes()).err(), Some(InvalidDocument), "{lone}");
        }
        assert_eq!(
            text(r#"{"a":"\\ud83d"}"#, "a").as_deref(),
            Some(r"\ud83d"),
            "escaped backslash"
        );
        assert_eq!(text(r#"{"a":"\"["}"#, "a").as_deref(), Some("\"["));
    }

    #[test]
    fn nesting_deeper_than_the_limit_is_rejected() {
        let nested =
            |depth: usize| format!("{{\"x\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(Document::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(Document::parse(nested(MAX_DEPTH + 1).as_bytes()).is_err());
    }

    #[test]
    fn last_of_duplicate_keys_counts() {
        assert_eq!(text(r#"{"a":"1","a":2,"\u0061":"3"}"#, "a").as_deref(), Some("3"));
        let document = Document::parse(br#"{"n":{"a":"1","a":"2"}}"#).unwrap();
        let ObjectValue::Object(inner) = document.object("n") else { panic!("an object") };
        assert!(matches!(inner.text("a"), TextValue::Text(text) if *text == "2"));
    }

    #[test]
    fn null_is_absent_and_other_types_are_wrong() {
        let document = Document::parse(br#"{"a":null,"b":1e999,"c":{},"d":"x"}"#).unwrap();
        assert!(matches!(document.text("a"), TextValue::Absent));
        assert!(document.has("a"));
        assert!(matches!(document.text("b"), TextValue::WrongType));
        assert!(matches!(document.text("c"), TextValue::WrongType));
        assert!(matches!(document.object("d"), ObjectValue::WrongType));
        assert!(matches!(document.object("a"), ObjectValue::Absent));
    }
}
