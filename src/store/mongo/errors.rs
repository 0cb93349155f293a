//! What the server's error codes mean here.

use mongodb::error::{Error, ErrorKind};

use crate::store::{Inserted, PrepareError, StoreError};

/// A unique index refused a write.
const DUPLICATE_KEY: i32 = 11000;
/// An index of that name or on those keys is there with other options.
const INDEX_CONFLICTS: [i32; 2] = [85, 86];
/// The user may not, or is not who it says.
const REFUSED: [i32; 2] = [13, 18];

/// How each document of an unordered insert fared. Which index refused one is not read from the
/// error, because servers disagree on how they say it.
pub(super) fn of_batch(error: &Error, count: usize) -> Vec<Result<Inserted, StoreError>> {
    let ErrorKind::InsertMany(told) = error.kind.as_ref() else {
        tracing::warn!(%error, documents = count, "the store failed to insert");
        return vec![Err(StoreError); count];
    };
    let written = match &told.write_concern_error {
        None => Ok(Inserted::Done),
        // What was not refused is written somewhere, and nobody knows whether to stay.
        Some(_) => Err(StoreError),
    };
    let mut results = vec![written; count];
    for refused in told.write_errors.iter().flatten() {
        if let Some(result) = results.get_mut(refused.index) {
            *result = match refused.code {
                DUPLICATE_KEY => Ok(Inserted::Taken),
                _ => Err(StoreError),
            };
        }
    }
    if results.iter().any(Result::is_err) {
        tracing::warn!(%error, documents = count, "the store failed to insert some of a batch");
    }
    results
}

/// Whether start-up can wait for it to go away.
pub(super) fn prepare(error: &Error, address: &str) -> PrepareError {
    let code = match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Authentication { .. } => REFUSED.first().copied(),
        _ => None,
    };
    match code {
        Some(code) if code == DUPLICATE_KEY => PrepareError::Unfit(format!(
            "MongoDB at {address}: a unique index cannot be made, the collection already holds \
             equal values; remove the doubles first"
        )),
        Some(code) if INDEX_CONFLICTS.contains(&code) => PrepareError::Unfit(format!(
            "MongoDB at {address}: an index on username, emailKey or registrationId is there with \
             other options; drop it, and muster makes the right one"
        )),
        Some(code) if REFUSED.contains(&code) => PrepareError::Unfit(format!(
            "MongoDB at {address}: access refused; check user, password and authSource in MUSTER_STORE"
        )),
        _ => PrepareError::Away(format!("MongoDB at {address}")),
    }
}
