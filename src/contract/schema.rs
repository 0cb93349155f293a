//! The rules as JSON Schema says them (draft 2020-12), from the constants the rules themselves use. Each
//! contract puts its document together from these; what travels over AMQP is described from there, and so
//! can be what is posted.
//!
//! A schema never refuses what the rules accept. The other way round it cannot say everything: lengths in
//! bytes, general categories, and all of what an address is. Only keywords that drafts 7 and 2020-12 have
//! in common stand here, so that the schemas can be part of other documents as they are.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::characters::is_invisible;
use super::rules;

/// What is trimmed (Unicode's `White_Space`), as the inside of a character class.
const SPACE: &str = r"\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";
/// Control characters, likewise.
const CONTROL: &str = r"\u0000-\u001f\u007f-\u009f";
/// Invisible and direction-changing characters, likewise. Those beyond U+FFFF have no escape that every
/// dialect of patterns reads.
static INVISIBLE: LazyLock<String> = LazyLock::new(|| {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for c in ('\0'..='\u{ffff}').filter(|c| is_invisible(*c)).map(u32::from) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == c => *last = c,
            _ => ranges.push((c, c)),
        }
    }
    let class = ranges.into_iter().map(|(first, last)| match first == last {
        true => format!("\\u{first:04x}"),
        false => format!("\\u{first:04x}-\\u{last:04x}"),
    });
    class.collect()
});

/// A document: its fields, and those it must have. Fields that no contract knows are ignored, so they
/// are not refused here either.
pub(super) fn document(title: &str, properties: Value, required: &[&str]) -> Value {
    json!({ "title": title, "type": "object", "properties": properties, "required": required })
}

/// See [`rules::name`].
pub(super) fn name(min: u64) -> Value {
    json!({
        "type": "string",
        "description": format!(
            "{min} to {} characters without the white space around them; no control characters.",
            rules::NAME_MAX
        ),
        "pattern": format!("^{}$", trimmed(min, rules::NAME_MAX, "")),
    })
}

/// See [`rules::optional_name`].
pub(super) fn optional_name(min: u64) -> Value {
    json!({
        "type": ["string", "null"],
        "description": format!(
            "May be absent, null or blank, and is none then. Else {min} to {} characters without the \
             white space around them; no control characters.",
            rules::NAME_MAX
        ),
        "pattern": format!("^[{SPACE}]*$|^{}$", trimmed(min, rules::NAME_MAX, "")),
    })
}

/// See [`rules::username`].
pub(super) fn username() -> Value {
    json!({
        "type": "string",
        "description": format!(
            "1 to {} characters, in NFC and without the white space around them; no control, invisible \
             or direction-changing characters. Unique as it is written.",
            rules::USERNAME_MAX
        ),
        "pattern": format!("^{}$", trimmed(1, rules::USERNAME_MAX, &INVISIBLE)),
    })
}

/// See [`rules::email`].
pub(super) fn email() -> Value {
    let atom = format!(r"[^\s@.{}]", *INVISIBLE);
    let label = format!("{atom}{{1,{}}}", rules::LABEL_MAX_BYTES);
    json!({
        "type": "string",
        "description": format!(
            "An address as HTML5 has it, in any script, with a dot in its domain: at most {} bytes, \
             of which {} before the @. The domain has an ASCII form (UTS 46); no invisible or \
             direction-changing characters. One mailbox is one user, however its address is written.",
            rules::EMAIL_MAX_BYTES,
            rules::LOCAL_MAX_BYTES
        ),
        "maxLength": rules::EMAIL_MAX_BYTES,
        "pattern": format!(r"^{atom}+(\.{atom}+)*@{label}(\.{label})+$"),
    })
}

/// An address that may be absent.
pub(super) fn optional_email() -> Value {
    let mut schema = email();
    schema["type"] = json!(["string", "null"]);
    schema
}

/// A password of at least `min` characters. `further` says what a schema cannot.
pub(super) fn password(min: u64, further: &str) -> Value {
    json!({
        "type": "string",
        "description": format!(
            "At least {min} characters, at most {} bytes in UTF-8, no U+0000.{further}",
            rules::PASSWORD_MAX_BYTES
        ),
        "minLength": min,
        "maxLength": rules::PASSWORD_MAX_BYTES,
        "pattern": r"^[^\u0000]*$",
    })
}

/// A bcrypt string as [`rules::HASH_COSTS`] allows it.
pub(super) fn password_hash() -> Value {
    let costs: Vec<String> = rules::HASH_COSTS.map(|cost| format!("{cost:02}")).collect();
    json!({
        "type": "string",
        "description": format!(
            "A bcrypt hash: $2a$, $2b$ or $2y$, a cost of {} to {}, {} characters in all.",
            rules::HASH_COSTS.start(),
            rules::HASH_COSTS.end(),
            rules::HASH_LENGTH
        ),
        "pattern": format!(
            r"^\$2[aby]\$({})\$[./A-Za-z0-9]{{21}}[{}][./A-Za-z0-9]{{30}}[{}]$",
            costs.join("|"),
            rules::SALT_ENDS,
            rules::DIGEST_ENDS
        ),
    })
}

/// `min` to `max` characters that begin and end with no white space, with any around them; none of them is
/// a control character or of the class `refused`.
fn trimmed(min: u64, max: u64, refused: &str) -> String {
    let edge = format!("[^{SPACE}{CONTROL}{refused}]");
    let middle = format!("[^{CONTROL}{refused}]");
    let rest = |least: u64| format!("{middle}{{{least},{}}}{edge}", max - 2);
    let text = match min {
        0 | 1 => format!("{edge}({})?", rest(0)),
        more => format!("{edge}{}", rest(more - 2)),
    };
    format!("[{SPACE}]*{text}[{SPACE}]*")
}
