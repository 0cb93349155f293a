//! Maps the errors of the MongoDB driver to those of the store.

use mongodb::error::{Error, ErrorKind};

use crate::store::{InsertOutcome, PrepareError, StoreError};

/// Server error code: a unique index rejected a write.
pub(super) const DUPLICATE_KEY: i32 = 11000;
/// Filter for documents that muster did not write.
pub(super) const MISSING_ID: &str = "{registrationId: null}";
/// Server error codes: an index with that name or those keys exists with other options.
const INDEX_CONFLICTS: [i32; 2] = [85, 86];
/// Server error codes: the user is not authorized, or authentication failed.
const ACCESS_DENIED: [i32; 2] = [13, 18];

/// Returns the result of each document of an unordered insert. Ignores which index rejected a document, because
/// servers differ in how they report it.
pub(super) fn batch_results(error: &Error, count: usize) -> Vec<Result<InsertOutcome, StoreError>> {
    let ErrorKind::InsertMany(failure) = error.kind.as_ref() else {
        tracing::warn!(event = "insert_failed", %error, documents = count, "inserting into MongoDB failed");
        return vec![Err(StoreError); count];
    };
    let written = match &failure.write_concern_error {
        None => Ok(InsertOutcome::Inserted),
        // Written on the primary, but a failover may roll it back.
        Some(_) => Err(StoreError),
    };
    let mut results = vec![written; count];
    for write_error in failure.write_errors.iter().flatten() {
        if let Some(result) = results.get_mut(write_error.index) {
            *result = match write_error.code {
                DUPLICATE_KEY => Ok(InsertOutcome::Conflict),
                _ => Err(StoreError),
            };
        }
    }
    if results.iter().any(Result::is_err) {
        tracing::warn!(
            event = "insert_partly_failed",
            %error,
            documents = count,
            "inserting some documents of a batch into MongoDB failed"
        );
    }
    results
}

/// The error text for documents with equal values in a field, which prevent its unique index.
pub(super) fn duplicates(field: &str, address: &str) -> String {
    let found = format!("MongoDB at {address}: cannot create the unique index on {field}: ");
    if field == "registrationId" {
        return format!(
            "{found}several documents in users have no registrationId, so muster did not write them; find them with \
             db.users.find({MISSING_ID}), and remove them or give each its own: \
             db.users.updateMany({MISSING_ID}, [{{$set: {{registrationId: {{$toString: \"$_id\"}}}}}}])"
        );
    }
    format!(
        "{found}several documents in users have the same value; find them with db.users.aggregate([{{$group: \
         {{_id: \"${field}\", n: {{$sum: 1}}}}}}, {{$match: {{_id: {{$ne: null}}, n: {{$gt: 1}}}}}}]), \
         and remove the duplicates"
    )
}

/// Classifies an error of the preparation: index conflicts and denied access need an operator, other errors are worth
/// a retry.
pub(super) fn prepare_error(error: &Error, address: &str) -> PrepareError {
    let code = match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Authentication { .. } => ACCESS_DENIED.first().copied(),
        _ => None,
    };
    match code {
        Some(code) if INDEX_CONFLICTS.contains(&code) => PrepareError::Incompatible(format!(
            "MongoDB at {address}: an index on username, emailKey or registrationId has other options than \
             expected; drop it, and muster creates the right one"
        )),
        Some(code) if ACCESS_DENIED.contains(&code) => PrepareError::Incompatible(format!(
            "MongoDB at {address}: access denied; check user, password and authSource in MUSTER_STORE"
        )),
        _ => PrepareError::Unavailable(match reason(&error.kind) {
            Some(reason) => format!("MongoDB at {address}: {reason}"),
            None => format!("MongoDB at {address}"),
        }),
    }
}

/// The cause of an outage, from those kinds of error that contain no document and no credentials. The text stays the
/// same during an outage, because each change of it is logged.
fn reason(kind: &ErrorKind) -> Option<String> {
    match kind {
        ErrorKind::ServerSelection { message, .. } => Some(without_times(message).to_owned()),
        ErrorKind::Command(error) => Some(format!("{} ({})", error.code_name, error.code)),
        ErrorKind::DnsResolve { .. }
        | ErrorKind::IncompatibleServer { .. }
        | ErrorKind::InvalidTlsConfig { .. }
        | ErrorKind::Io(_) => Some(kind.to_string()),
        _ => None,
    }
}

/// Shortens the driver's server selection error to the error of the first server, or else to its first sentence. The
/// rest describes every server, with times that change.
fn without_times(message: &str) -> &str {
    let (before, end) = match message.split_once(", Error: Kind: ") {
        Some((_, error)) => (error, ", labels: "),
        None => (message, ". Topology: "),
    };
    before.split(end).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const INSERTED: Result<InsertOutcome, StoreError> = Ok(InsertOutcome::Inserted);
    const CONFLICT: Result<InsertOutcome, StoreError> = Ok(InsertOutcome::Conflict);
    const FAILED: Result<InsertOutcome, StoreError> = Err(StoreError);

    /// The results of an insert of three documents, for these write errors and this write concern error.
    fn results_of(
        refused: &[(usize, i32)],
        concern: Value,
    ) -> Vec<Result<InsertOutcome, StoreError>> {
        let refused: Vec<Value> = refused
            .iter()
            .map(|(index, code)| json!({ "index": index, "code": code, "errmsg": "" }))
            .collect();
        let error = json!({
            "writeErrors": refused, "writeConcernError": concern, "inserted_ids": {},
            "write_errors": refused, "write_concern_error": concern,
        });
        let error: mongodb::error::InsertManyError = serde_json::from_value(error).unwrap();
        batch_results(&ErrorKind::InsertMany(error).into(), 3)
    }

    #[test]
    fn each_document_of_a_batch_has_its_own_result() {
        assert_eq!(results_of(&[(1, DUPLICATE_KEY)], Value::Null), [INSERTED, CONFLICT, INSERTED]);
        // 10107: no longer the primary, which it may have been for the other documents.
        assert_eq!(
            results_of(&[(0, 10107), (2, DUPLICATE_KEY)], Value::Null),
            [FAILED, INSERTED, CONFLICT]
        );
        assert_eq!(results_of(&[(7, DUPLICATE_KEY)], Value::Null), [INSERTED, INSERTED, INSERTED]);
    }

    #[test]
    fn insert_without_majority_is_an_error() {
        let concern = json!({ "code": 64, "codeName": "WriteConcernTimeout", "errmsg": "" });
        assert_eq!(results_of(&[(1, DUPLICATE_KEY)], concern), [FAILED, CONFLICT, FAILED]);
    }

    #[test]
    fn cause_of_an_outage_has_a_constant_text() {
        let refused = "{ Type: Unknown, Servers: [ { Address: db:27017, Type: Unknown, Error: Kind: I/O \
            error: Connection refused (os error 111), labels: {}, source: None, server response: None }, \
            { Address: db2:27017, Type: RsSecondary, Average RTT: 1.2ms } ] }";
        let message =
            format!("Server selection timeout: No available servers. Topology: {refused}");
        assert_eq!(without_times(&message), "I/O error: Connection refused (os error 111)");
        let message = "Server selection timeout: None of the available servers suitable for criteria \
            ReadPreference(Primary). Topology: { Servers: [ { Address: db:27017, Average RTT: 1.2ms } ] }";
        assert_eq!(
            without_times(message),
            "Server selection timeout: None of the available servers suitable for criteria \
             ReadPreference(Primary)"
        );
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let PrepareError::Unavailable(cause) = prepare_error(&reset.into(), "db:27017") else {
            panic!("expected a retry")
        };
        assert_eq!(cause, "MongoDB at db:27017: I/O error: connection reset");
        let documents = json!({ "inserted_ids": {}, "writeErrors": [
            { "index": 0, "code": 1, "errmsg": "ann@example.com" }
        ] });
        let error: mongodb::error::InsertManyError = serde_json::from_value(documents).unwrap();
        let quoting = ErrorKind::InsertMany(error).into();
        let PrepareError::Unavailable(cause) = prepare_error(&quoting, "db:27017") else {
            panic!("expected a retry")
        };
        assert_eq!(cause, "MongoDB at db:27017");
    }

    #[test]
    fn lost_connection_fails_every_document() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(batch_results(&reset.into(), 2), [FAILED, FAILED]);
    }
}
