//! Text in the methods that come with a message. RabbitMQ takes any bytes as a routing key, and delivers
//! the first key of a message that reached its queue by another (`CC`); lapin takes UTF-8 alone.

/// `connection.tune`: class and method.
const TUNE: [u8; 4] = [0, 10, 0, 30];
/// `basic.return`, `basic.deliver` and `basic.get-ok`.
const RETURN: [u8; 4] = [0, 60, 0, 50];
const DELIVER: [u8; 4] = [0, 60, 0, 60];
const GET_OK: [u8; 4] = [0, 60, 0, 71];

/// Bytes of class and method, with which each method begins.
pub(super) const ID: usize = 4;
/// Longest of these methods in bytes: four short strings and a few numbers.
const LONGEST: usize = 2 << 10;

/// Fields of a method.
enum Field {
    Bytes(usize),
    Text,
}

use Field::{Bytes, Text};

/// Whether a method that begins so has to be seen as a whole.
pub(super) fn is_of_interest(id: &[u8], size: usize) -> bool {
    size <= LONGEST && (id == TUNE || layout(id).is_some())
}

fn layout(id: &[u8]) -> Option<&'static [Field]> {
    Some(match <[u8; ID]>::try_from(id).ok()? {
        RETURN => &[Bytes(2), Text, Text, Text],
        DELIVER => &[Text, Bytes(8), Bytes(1), Text, Text],
        GET_OK => &[Bytes(8), Bytes(1), Text, Text, Bytes(4)],
        _ => return None,
    })
}

/// The method with empty strings in place of those that are not UTF-8; `None` if it is fine as it is.
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

/// The largest frame that the broker offers, if this method is `connection.tune`; 0 is no limit.
pub(super) fn offered_frame_max(method: &[u8]) -> Option<u32> {
    let arguments = method.strip_prefix(&TUNE)?;
    // After the number of channels.
    Some(u32::from_be_bytes(arguments.get(2..6)?.try_into().ok()?))
}
