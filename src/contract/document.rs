//! Reads a request body as the contracts want it read: tolerant of what they do not know, exact in
//! what they do. Used for HTTP bodies and for message bodies alike.
//!
//! Values are kept as unparsed text until a contract asks for one, so that an unknown field may
//! hold anything JSON allows (a number no machine can hold, too) and costs nothing.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// Deepest nesting of arrays and objects that is read.
pub const MAX_DEPTH: usize = 128;

/// A JSON object, its keys in no particular order; of equal keys the last one counts.
#[derive(Clone)]
pub struct Document<'a>(BTreeMap<String, &'a RawValue>);

/// The body is not one JSON object in UTF-8, nests deeper than [`MAX_DEPTH`], or has half of a
/// surrogate pair in a string.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid JSON")]
pub struct Unreadable;

/// What stands at a key where a text is wanted.
pub enum Field {
    /// Nothing, or `null`.
    Absent,
    /// A number, a boolean, an array or an object.
    Wrong,
    /// A text, wiped on drop because it may be a password.
    Text(Zeroizing<String>),
}

/// What stands at a key where an object is wanted.
pub enum Nested<'a> {
    /// Nothing, or `null`.
    Absent,
    /// Not an object.
    Wrong,
    /// An object.
    Object(Document<'a>),
}

impl<'a> Document<'a> {
    /// Reads a body. One leading byte order mark is ignored.
    pub fn parse(body: &'a [u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(body).map_err(|_| Unreadable)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        check_strings_and_depth(text)?;
        serde_json::from_str(text).map(Self).map_err(|_| Unreadable)
    }

    /// Whether the key is there, even with the value `null`.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The text at a key.
    pub fn text(&self, key: &str) -> Field {
        let Some(raw) = self.0.get(key).map(|raw| raw.get()) else { return Field::Absent };
        if raw == "null" {
            return Field::Absent;
        }
        serde_json::from_str(raw).map_or(Field::Wrong, |text| Field::Text(Zeroizing::new(text)))
    }

    /// What stands at a key, unparsed.
    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        self.0.get(key).copied()
    }

    /// Puts another value where one stood, or none did.
    pub fn put(&mut self, key: &str, value: &'a RawValue) {
        self.0.insert(key.to_owned(), value);
    }

    /// The object at a key.
    pub fn object(&self, key: &str) -> Nested<'a> {
        let Some(raw) = self.0.get(key).map(|raw| raw.get()) else { return Nested::Absent };
        if raw == "null" {
            return Nested::Absent;
        }
        serde_json::from_str(raw).map_or(Nested::Wrong, |map| Nested::Object(Self(map)))
    }
}

/// The JSON reader skips unknown values without looking into them. This looks: nesting is bounded
/// and every surrogate escape has its other half, wherever it stands.
fn check_strings_and_depth(text: &str) -> Result<(), Unreadable> {
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut in_string) = (0, 0usize, false);
    while let Some(&byte) = bytes.get(at) {
        match (in_string, byte) {
            (_, b'"') => in_string = !in_string,
            (true, b'\\') => {
                match escape(bytes, at) {
                    Some(0xD800..=0xDBFF) => {
                        if !matches!(escape(bytes, at + 6), Some(0xDC00..=0xDFFF)) {
                            return Err(Unreadable);
                        }
                        at += 10;
                    }
                    Some(0xDC00..=0xDFFF) => return Err(Unreadable),
                    // Skips the escaped byte, so that `\"` does not end the string.
                    _ => {}
                }
                at += 1;
            }
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Unreadable);
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The code unit of a `\uXXXX` escape that begins at `at`.
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
            Field::Text(text) => Some(text.to_string()),
            _ => None,
        }
    }

    #[test]
    fn only_one_object_in_utf8_is_read() {
        for bad in ["", "[]", "\"x\"", "null", "1", "{", "{}x", "{\"a\":1,}", "{'a':1}"] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Document::parse(b"{\"a\":\"\xff\"}").is_err());
        assert!(Document::parse("\u{feff}{}".as_bytes()).is_ok());
        assert!(Document::parse("\u{feff}\u{feff}{}".as_bytes()).is_err());
    }

    #[test]
    fn unknown_fields_may_hold_anything() {
        let body = r#"{"roles":1e999,"x":[-0.1E-9999,{"y":null}],"email":"a"}"#;
        assert_eq!(text(body, "email").as_deref(), Some("a"));
    }

    #[test]
    fn surrogates_come_in_pairs_everywhere() {
        assert_eq!(text(r#"{"a":"\ud83d\ude00"}"#, "a").as_deref(), Some("\u{1f600}"));
        for lone in [r#"{"x":"\ud83d"}"#, r#"{"x":"\ude00"}"#, r#"{"x":["\ud83dx\ude00"]}"#] {
            assert_eq!(Document::parse(lone.as_bytes()).err(), Some(Unreadable), "{lone}");
        }
        assert_eq!(
            text(r#"{"a":"\\ud83d"}"#, "a").as_deref(),
            Some(r"\ud83d"),
            "escaped backslash"
        );
        assert_eq!(text(r#"{"a":"\"["}"#, "a").as_deref(), Some("\"["));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested =
            |depth: usize| format!("{{\"x\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(Document::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(Document::parse(nested(MAX_DEPTH + 1).as_bytes()).is_err());
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        assert_eq!(text(r#"{"a":"1","a":2,"\u0061":"3"}"#, "a").as_deref(), Some("3"));
        let document = Document::parse(br#"{"n":{"a":"1","a":"2"}}"#).unwrap();
        let Nested::Object(inner) = document.object("n") else { panic!("an object") };
        assert!(matches!(inner.text("a"), Field::Text(text) if *text == "2"));
    }

    #[test]
    fn null_is_absence_and_other_types_are_wrong() {
        let document = Document::parse(br#"{"a":null,"b":1e999,"c":{},"d":"x"}"#).unwrap();
        assert!(matches!(document.text("a"), Field::Absent));
        assert!(document.has("a"));
        assert!(matches!(document.text("b"), Field::Wrong));
        assert!(matches!(document.text("c"), Field::Wrong));
        assert!(matches!(document.object("d"), Nested::Wrong));
        assert!(matches!(document.object("a"), Nested::Absent));
    }
}
