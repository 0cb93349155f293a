//! Replaces text that is not UTF-8 in the methods that precede a message. RabbitMQ accepts any bytes as a routing key,
//! and delivers a message that was routed by `CC` with its first routing key. lapin accepts only UTF-8 (4.12.3; no
//! issue filed).

/// `connection.tune`: class and method.
const TUNE: [u8; 4] = [0, 10, 0, 30];
/// `basic.return`.
const RETURN: [u8; 4] = [0, 60, 0, 50];
/// `basic.deliver`.
const DELIVER: [u8; 4] = [0, 60, 0, 60];
/// `basic.get-ok`.
const GET_OK: [u8; 4] = [0, 60, 0, 71];

/// Bytes of class and method at the start of a method.
pub(super) const ID: usize = 4;
/// Upper bound of these methods in bytes: four short strings and a few numbers.
const LONGEST: usize = 2 << 10;

/// A field of a method: a number of this many bytes, or a short string.
enum MethodField {
    Bytes(usize),
    Text,
}

use MethodField::{Bytes, Text};

/// Whether a method with this class and method id has to be read completely.
pub(super) fn is_of_interest(id: &[u8], size: usize) -> bool {
    size <= LONGEST && (id == TUNE || layout(id).is_some())
}

fn layout(id: &[u8]) -> Option<&'static [MethodField]> {
    Some(match <[u8; ID]>::try_from(id).ok()? {
        RETURN => &[Bytes(2), Text, Text, Text],
        DELIVER => &[Text, Bytes(8), Bytes(1), Text, Text],
        GET_OK => &[Bytes(8), Bytes(1), Text, Text, Bytes(4)],
        _ => return None,
    })
}

/// Replaces strings that are not UTF-8 with empty ones. `None` if there are none.
pub(super) fn with_readable_text(method: &[u8]) -> Option<Vec<u8>> {
    let (id, mut rest) = method.split_at_checked(ID)?;
    let mut readable = id.to_vec();
    for field in layout(id)? {
        let length = match field {
            Bytes(bytes) => *bytes,
            Text => 1 + usize::from(*rest.first()?),
        };
        let (value, after) = rest.split_at_checked(length)?;
        match field {
            Text if std::str::from_utf8(&value[1..]).is_err() => readable.push(0),
            _ => readable.extend(value),
        }
        rest = after;
    }
    (rest.is_empty() && readable.len() < method.len()).then_some(readable)
}

/// The `frame_max` in `connection.tune`, in bytes; 0 means no limit. `None` for other methods.
pub(super) fn offered_frame_max(method: &[u8]) -> Option<u32> {
    let arguments = method.strip_prefix(&TUNE)?;
    // It follows `channel_max`.
    Some(u32::from_be_bytes(arguments.get(2..6)?.try_into().ok()?))
}
