//! The rules as JSON Schema (draft 2020-12), built from the same constants. The contracts compose
//! their schemas from these, and the OpenAPI document includes them.
//!
//! A schema accepts everything that the rules accept. It also accepts some invalid values, because
//! JSON Schema cannot express lengths in bytes, general categories and the full address syntax. Only
//! keywords that drafts 7 and 2020-12 share are used, so that other documents can embed the schemas.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::characters::is_invisible;
use super::rules;

/// Characters that are trimmed (Unicode's `White_Space`), for use inside a regular expression's class.
const SPACE: &str = r"\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";
/// Control characters, for use inside a class.
const CONTROL: &str = r"\u0000-\u001f\u007f-\u009f";
/// Invisible and direction-changing characters, for use inside a class. Those above U+FFFF are left
/// out, because no escape for them works in every regular expression dialect.
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

/// Returns the schema of a document. Unknown fields are allowed, because the contracts ignore them.
pub(super) fn document(title: &str, properties: Value, required: &[&str]) -> Value {
    json!({ "title": title, "type": "object", "properties": properties, "required": required })
}

/// Returns the schema for [`rules::name`].
pub(super) fn name(min: u64) -> Value {
    json!({
        "type": "string",
        "description": format!(
            "{min} to {} characters, without surrounding white space; no control characters.",
            rules::NAME_MAX
        ),
        "pattern": format!("^{}$", trimmed(min, rules::NAME_MAX, "")),
    })
}

/// Returns the schema for [`rules::optional_name`].
pub(super) fn optional_name(min: u64) -> Value {
    json!({
        "type": ["string", "null"],
        "description": format!(
            "Missing, null or blank: none. Otherwise {min} to {} characters, without surrounding white \
             space; no control characters.",
            rules::NAME_MAX
        ),
        "pattern": format!("^[{SPACE}]*$|^{}$", trimmed(min, rules::NAME_MAX, "")),
    })
}

/// Returns the schema for [`rules::username`].
pub(super) fn username() -> Value {
    json!({
        "type": "string",
        "description": format!(
            "1 to {} characters in NFC, without surrounding white space; no control, invisible or \
             direction-changing characters. Unique; case matters.",
            rules::USERNAME_MAX
        ),
        "pattern": format!("^{}$", trimmed(1, rules::USERNAME_MAX, &INVISIBLE)),
    })
}

/// Returns the schema for [`rules::email`].
pub(super) fn email() -> Value {
    let atom = format!(r"[^\s@.{}]", *INVISIBLE);
    let label = format!("{atom}{{1,{}}}", rules::LABEL_MAX_BYTES);
    json!({
        "type": "string",
        "description": format!(
            "An address in HTML5 syntax, in any script, with a dot in its domain: at most {} bytes, at \
             most {} of them before the @. The domain must have an ASCII form (UTS 46). No invisible or \
             direction-changing characters. Unique; case and the form of the domain do not matter.",
            rules::EMAIL_MAX_BYTES,
            rules::LOCAL_MAX_BYTES
        ),
        "maxLength": rules::EMAIL_MAX_BYTES,
        "pattern": format!(r"^{atom}+(\.{atom}+)*@{label}(\.{label})+$"),
    })
}

/// Returns the schema for an optional address.
pub(super) fn optional_email() -> Value {
    let mut schema = email();
    schema["type"] = json!(["string", "null"]);
    schema
}

/// Returns the schema for a password of at least `min` characters. `note` is appended to the
/// description.
pub(super) fn password(min: u64, note: &str) -> Value {
    json!({
        "type": "string",
        "description": format!(
            "At least {min} characters, at most {} bytes in UTF-8, no U+0000.{note}",
            rules::PASSWORD_MAX_BYTES
        ),
        "minLength": min,
        "maxLength": rules::PASSWORD_MAX_BYTES,
        "pattern": r"^[^\u0000]*$",
    })
}

/// Returns the schema for [`rules::is_bcrypt`].
pub(super) fn password_hash() -> Value {
    let costs: Vec<String> = rules::HASH_COSTS.map(|cost| format!("{cost:02}")).collect();
    json!({
        "type": "string",
        "description": format!(
            "A bcrypt hash: $2a$, $2b$ or $2y$, a cost from {} to {}, {} characters in total.",
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

/// Returns a pattern for `min` to `max` characters with optional white space around them. Control
/// characters and those of the class `forbidden` do not match.
fn trimmed(min: u64, max: u64, forbidden: &str) -> String {
    let edge = format!("[^{SPACE}{CONTROL}{forbidden}]");
    let middle = format!("[^{CONTROL}{forbidden}]");
    let rest = |least: u64| format!("{middle}{{{least},{}}}{edge}", max - 2);
    let text = match min {
        0 | 1 => format!("{edge}({})?", rest(0)),
        more => format!("{edge}{}", rest(more - 2)),
    };
    format!("[{SPACE}]*{text}[{SPACE}]*")
}
