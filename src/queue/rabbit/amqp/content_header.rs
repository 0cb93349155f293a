//! Validates the properties of a message on the wire (AMQP 0-9-1, 4.2.6.1) by the rules of lapin's parser, without
//! recursion. Writes the marker that replaces invalid properties.

use lapin::BasicProperties;
use lapin::types::AMQPValue;

/// The header that replaces unreadable properties; its value is the reason. A producer that sends this header only
/// gets its own message dead-lettered.
const MARKER: &str = "x-muster-unreadable";

/// Deepest nesting of tables and arrays, including the header table. lapin's parser recurses without a limit (4.12.3;
/// no issue filed).
const MAX_DEPTH: usize = 16;
/// Most values in all tables and arrays of a message. A value of one byte on the wire takes dozens of bytes in memory.
const MAX_VALUES: usize = 1024;

/// Bytes of class, weight and body size, which precede the properties.
pub(super) const PREFIX: usize = 12;
/// The flag of the header table among the properties.
const HEADERS_FLAG: u16 = 1 << 13;
/// The flag of `message_id`.
const MESSAGE_ID_FLAG: u16 = 1 << 7;

const MALFORMED: &str = "its properties are malformed";
const TOO_DEEP: &str = "its headers are nested more than 16 levels deep";
const TOO_MANY: &str = "its headers hold more than 1024 values";
const UNKNOWN_TYPE: &str = "a header has an unknown type";
const HEADER_NAME: &str = "a header's name is not UTF-8";
/// The reason for properties that do not fit into one frame.
pub(super) const TOO_LARGE: &str = "its properties are larger than a frame";
/// The reason for a marker that a producer sent.
const UNKNOWN: &str = "its properties were replaced";

/// The wire type of a property.
#[derive(Clone, Copy)]
enum Property {
    /// A short string, with the error text if it is not UTF-8.
    Text(&'static str),
    /// A number of this many bytes.
    Number(usize),
    Headers,
}

/// The properties in the order of their flags, highest bit first.
const PROPERTIES: [Property; 14] = [
    Property::Text("content_type is not UTF-8"),
    Property::Text("content_encoding is not UTF-8"),
    Property::Headers,
    Property::Number(1), // delivery_mode
    Property::Number(1), // priority
    Property::Text("correlation_id is not UTF-8"),
    Property::Text("reply_to is not UTF-8"),
    Property::Text("expiration is not UTF-8"),
    Property::Text("message_id is not UTF-8"),
    Property::Number(8), // timestamp
    Property::Text("type is not UTF-8"),
    Property::Text("user_id is not UTF-8"),
    Property::Text("app_id is not UTF-8"),
    Property::Text("cluster_id is not UTF-8"),
];

/// Validates properties: the part of a content header after the first [`PREFIX`] bytes.
///
/// # Errors
/// Why lapin could not read them.
pub(super) fn check(properties: &[u8]) -> Result<(), &'static str> {
    let mut rest = PropertyReader(properties);
    let flags = rest.number(2)?;
    for (at, property) in PROPERTIES.into_iter().enumerate() {
        if flags & (1 << (15 - at)) == 0 {
            continue;
        }
        match property {
            Property::Text(not_utf8) => _ = rest.short_string(not_utf8)?,
            Property::Number(bytes) => _ = rest.take(bytes)?,
            Property::Headers => check_headers(rest.long_string()?)?,
        }
    }
    if rest.0.is_empty() { Ok(()) } else { Err(MALFORMED) }
}

fn check_headers(table: &[u8]) -> Result<(), &'static str> {
    let mut values = 0;
    // The unread rest of each enclosing table or array, and whether its values have names.
    let mut open = vec![(PropertyReader(table), true)];
    while let Some((rest, has_names)) = open.last_mut() {
        if rest.0.is_empty() {
            open.pop();
            continue;
        }
        values += 1;
        if values > MAX_VALUES {
            return Err(TOO_MANY);
        }
        if *has_names {
            rest.short_string(HEADER_NAME)?;
        }
        let fixed = match rest.take(1)?[0] {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => {
                rest.long_string()?;
                continue;
            }
            kind @ (b'F' | b'A') => {
                let inner = PropertyReader(rest.long_string()?);
                if open.len() == MAX_DEPTH {
                    return Err(TOO_DEEP);
                }
                open.push((inner, kind == b'F'));
                continue;
            }
            _ => return Err(UNKNOWN_TYPE),
        };
        rest.take(fixed)?;
    }
    Ok(())
}

/// Reads from the front of a byte slice.
struct PropertyReader<'a>(&'a [u8]);

impl<'a> PropertyReader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], &'static str> {
        let (head, rest) = self.0.split_at_checked(bytes).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(head)
    }

    fn number(&mut self, bytes: usize) -> Result<usize, &'static str> {
        let head = self.take(bytes)?;
        Ok(head.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn long_string(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.number(4)?;
        self.take(length)
    }

    fn short_string(&mut self, not_utf8: &'static str) -> Result<&'a str, &'static str> {
        let length = self.number(1)?;
        std::str::from_utf8(self.take(length)?).map_err(|_| not_utf8)
    }
}

/// The message id, if it can be read although other properties are invalid.
pub(super) fn message_id(properties: &[u8]) -> Option<&str> {
    let mut rest = PropertyReader(properties);
    let flags = rest.number(2).ok()?;
    for (at, property) in PROPERTIES.into_iter().enumerate() {
        let flag = 1 << (15 - at);
        if flags & flag == 0 {
            continue;
        }
        let value = match property {
            Property::Text(_) => rest.number(1).and_then(|length| rest.take(length)),
            Property::Number(bytes) => rest.take(bytes),
            Property::Headers => rest.long_string(),
        };
        if flag == usize::from(MESSAGE_ID_FLAG) {
            return std::str::from_utf8(value.ok()?).ok();
        }
        value.ok()?;
    }
    None
}

/// Writes properties that contain only the marker and the message id, if there is one.
pub(super) fn write_marker(reason: &str, message_id: Option<&str>, into: &mut Vec<u8>) {
    let value = reason.as_bytes();
    let table = 1 + MARKER.len() + 1 + 4 + value.len();
    let id_flag = if message_id.is_some() { MESSAGE_ID_FLAG } else { 0 };
    into.extend((HEADERS_FLAG | id_flag).to_be_bytes());
    into.extend((table as u32).to_be_bytes());
    into.push(MARKER.len() as u8);
    into.extend(MARKER.as_bytes());
    into.push(b'S');
    into.extend((value.len() as u32).to_be_bytes());
    into.extend(value);
    if let Some(id) = message_id {
        into.push(id.len() as u8);
        into.extend(id.as_bytes());
    }
}

/// The reason why properties were replaced; `None` for original properties.
pub(in super::super) fn unreadable(properties: &BasicProperties) -> Option<&'static str> {
    let marker = properties.headers().as_ref()?.inner().get(MARKER)?;
    let fixed = [MALFORMED, TOO_DEEP, TOO_MANY, UNKNOWN_TYPE, HEADER_NAME, TOO_LARGE];
    let texts = PROPERTIES.into_iter().filter_map(|property| match property {
        Property::Text(not_utf8) => Some(not_utf8),
        Property::Number(_) | Property::Headers => None,
    });
    let AMQPValue::LongString(reason) = marker else { return Some(UNKNOWN) };
    // The reason is logged and shown to operators, so only fixed texts are returned.
    Some(
        fixed
            .into_iter()
            .chain(texts)
            .find(|text| text.as_bytes() == reason.as_bytes())
            .unwrap_or(UNKNOWN),
    )
}
