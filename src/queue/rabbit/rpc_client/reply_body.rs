//! Parses the body of a reply. A newer worker may send an outcome that this version does not know. The request then
//! ends as indeterminate without waiting for its deadline, and a warning names the outcome.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::domain::Outcome;

/// Maximum number of unknown outcomes that are logged.
const KINDS_MAX: usize = 32;
/// Longest outcome that is logged, in bytes.
const OUTCOME_MAX: usize = 40;

/// The outcomes that were logged; each is logged once.
static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Parses the outcome in a reply's body; `None` if this version cannot.
pub(super) fn read(body: &[u8]) -> Option<Outcome> {
    let error = match serde_json::from_slice(body) {
        Ok(outcome) => return Some(outcome),
        Err(error) => error,
    };
    // The text of the error may contain parts of the reply, so it is not logged.
    let (outcome, is_syntax) = (kind(body), !error.is_data());
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if logged.len() < KINDS_MAX && logged.insert(outcome.clone()) {
        tracing::warn!(
            event = "reply_unreadable",
            outcome,
            is_syntax,
            "parsing a reply failed, so its request ends as indeterminate; upgrade this process to the \
             version of the workers (logged once for each outcome)"
        );
    }
    None
}

/// The field `outcome` of an unreadable body, if it is safe to log, else `none`.
fn kind(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Named {
        outcome: String,
    }
    let named = serde_json::from_slice::<Named>(body).ok().map(|named| named.outcome);
    let is_label = |text: &String| {
        text.len() <= OUTCOME_MAX && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    named.filter(is_label).unwrap_or_else(|| "none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_body_is_named_without_its_values() {
        assert_eq!(read(br#"{"outcome":"postponed","until":7}"#), None);
        assert_eq!(kind(br#"{"outcome":"postponed","until":7}"#), "postponed");
        assert_eq!(kind(br#"{"outcome":"ann@example.com"}"#), "none");
        assert_eq!(kind(b"{\"outcome\":"), "none");
    }
}
