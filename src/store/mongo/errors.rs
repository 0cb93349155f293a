//! What the server's error codes mean here.

use mongodb::error::{Error, ErrorKind};

use crate::store::{InsertOutcome, PrepareError, StoreError};

/// A unique index refused a write.
pub(super) const DUPLICATE_KEY: i32 = 11000;
/// Finds documents that muster did not write.
pub(super) const MISSING_ID: &str = "{registrationId: null}";
/// An index of that name or on those keys is there with other options.
const INDEX_CONFLICTS: [i32; 2] = [85, 86];
/// The user may not, or is not who it says.
const REFUSED: [i32; 2] = [13, 18];

/// How each document of an unordered insert fared. Which index refused one is not read from the
/// error, because servers disagree on how they say it.
pub(super) fn batch_results(error: &Error, count: usize) -> Vec<Result<InsertOutcome, StoreError>> {
    let ErrorKind::InsertMany(told) = error.kind.as_ref() else {
        tracing::warn!(%error, documents = count, "the store failed to insert");
        return vec![Err(StoreError); count];
    };
    let written = match &told.write_concern_error {
        None => Ok(InsertOutcome::Inserted),
        // What was not refused is written somewhere, and nobody knows whether to stay.
        Some(_) => Err(StoreError),
    };
    let mut results = vec![written; count];
    for refused in told.write_errors.iter().flatten() {
        if let Some(result) = results.get_mut(refused.index) {
            *result = match refused.code {
                DUPLICATE_KEY => Ok(InsertOutcome::Conflict),
                _ => Err(StoreError),
            };
        }
    }
    if results.iter().any(Result::is_err) {
        tracing::warn!(%error, documents = count, "the store failed to insert some of a batch");
    }
    results
}

/// Why a unique index on a field cannot be made: documents have equal values there.
pub(super) fn duplicates(field: &str, address: &str) -> String {
    let found = format!("MongoDB at {address}: a unique index on {field} cannot be made, ");
    if field == "registrationId" {
        return format!(
            "{found}several documents in users have none, so muster did not write them; find them with \
             db.users.find({MISSING_ID}), remove them, or give each one of its own: \
             db.users.updateMany({MISSING_ID}, [{{$set: {{registrationId: {{$toString: \"$_id\"}}}}}}])"
        );
    }
    format!(
        "{found}documents in users have equal values; find them with db.users.aggregate([{{$group: \
         {{_id: \"${field}\", n: {{$sum: 1}}}}}}, {{$match: {{_id: {{$ne: null}}, n: {{$gt: 1}}}}}}]), \
         and remove the duplicates first"
    )
}

/// Whether start-up can wait for it to go away.
pub(super) fn prepare(error: &Error, address: &str) -> PrepareError {
    let code = match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Authentication { .. } => REFUSED.first().copied(),
        _ => None,
    };
    match code {
        Some(code) if INDEX_CONFLICTS.contains(&code) => PrepareError::Incompatible(format!(
            "MongoDB at {address}: an index on username, emailKey or registrationId is there with \
             other options; drop it, and muster makes the right one"
        )),
        Some(code) if REFUSED.contains(&code) => PrepareError::Incompatible(format!(
            "MongoDB at {address}: access refused; check user, password and authSource in MUSTER_STORE"
        )),
        _ => PrepareError::Unavailable(match reason(&error.kind) {
            Some(reason) => format!("MongoDB at {address}: {reason}"),
            None => format!("MongoDB at {address}"),
        }),
    }
}

/// Why it is away, of the kinds that hold no document and no account, and as long as that stays so in the
/// same words: each change is logged.
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

/// That no server is there is told with all that is known of each, also when it was seen. The error of one
/// says why; if none has one, the first sentence says what they lack.
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

    const DONE: Result<InsertOutcome, StoreError> = Ok(InsertOutcome::Inserted);
    const TAKEN: Result<InsertOutcome, StoreError> = Ok(InsertOutcome::Conflict);
    const UNKNOWN: Result<InsertOutcome, StoreError> = Err(StoreError);

    /// What the driver makes of a server's answer to an insert of three.
    fn told(refused: &[(usize, i32)], concern: Value) -> Vec<Result<InsertOutcome, StoreError>> {
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
    fn each_of_a_batch_has_its_own_result() {
        assert_eq!(told(&[(1, DUPLICATE_KEY)], Value::Null), [DONE, TAKEN, DONE]);
        // 10107: not the primary any more, which it may have been for the others.
        assert_eq!(told(&[(0, 10107), (2, DUPLICATE_KEY)], Value::Null), [UNKNOWN, DONE, TAKEN]);
        assert_eq!(told(&[(7, DUPLICATE_KEY)], Value::Null), [DONE, DONE, DONE]);
    }

    #[test]
    fn what_no_majority_has_may_be_rolled_back() {
        let concern = json!({ "code": 64, "codeName": "WriteConcernTimeout", "errmsg": "" });
        assert_eq!(told(&[(1, DUPLICATE_KEY)], concern), [UNKNOWN, TAKEN, UNKNOWN]);
    }

    #[test]
    fn why_it_is_away_is_told_in_words_that_stay() {
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
        let away = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let PrepareError::Unavailable(told) = prepare(&away.into(), "db:27017") else {
            panic!("it waits")
        };
        assert_eq!(told, "MongoDB at db:27017: I/O error: connection reset");
        let documents = json!({ "inserted_ids": {}, "writeErrors": [
            { "index": 0, "code": 1, "errmsg": "ann@example.com" }
        ] });
        let error: mongodb::error::InsertManyError = serde_json::from_value(documents).unwrap();
        let quoting = ErrorKind::InsertMany(error).into();
        let PrepareError::Unavailable(told) = prepare(&quoting, "db:27017") else { panic!("it waits") };
        assert_eq!(told, "MongoDB at db:27017");
    }

    #[test]
    fn of_an_election_nothing_is_known() {
        let away = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(batch_results(&away.into(), 2), [UNKNOWN, UNKNOWN]);
    }
}
