//! Checks of `muster doctor` on MongoDB, without changes: topology, write concern, clock and unique indexes.

use bson::{Bson, Document as Reply, doc};
use futures_util::TryStreamExt;
use mongodb::{Client, Collection, IndexModel};

use super::errors::MISSING_ID;
use super::foreign::{self, Effect};
use super::indexes::{self, UNIQUE};
use super::reindex::MongoKeys;
use crate::domain::Clock;
use crate::store::document::UserDocument;
use crate::telemetry::finding::Finding;

/// Clock skew in milliseconds above which doctor warns.
const MAX_SKEW: i64 = 5_000;

/// Server error code: the collection does not exist.
const NAMESPACE_NOT_FOUND: i32 = 26;

/// Checks the server of a collection.
pub(super) async fn inspect(
    client: &Client,
    users: &Collection<UserDocument>,
    address: &str,
) -> Vec<Finding> {
    let clock = Clock::system();
    let before = clock.now().0;
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await;
    let hello = match hello {
        Ok(hello) => hello,
        Err(error) => {
            return vec![Finding::error(
                "database",
                format!("MongoDB at {address}: {error}"),
                "check that it runs there and that store.url (MUSTER_STORE) is right",
            )];
        }
    };
    // The server read its clock about halfway through the call.
    let here = i64::midpoint(before, clock.now().0);
    let mut findings = vec![replica_set(&hello, address), journal(client, &hello).await];
    findings.push(skew(&hello, here));
    findings.extend(unique(users).await);
    findings.extend(missing_ids(users).await);
    findings.push(MongoKeys::new(users).inspect().await);
    findings
}

fn replica_set(hello: &Reply, address: &str) -> Finding {
    let check = "replica set";
    if hello.get_str("msg").is_ok_and(|kind| kind == "isdbgrid") {
        return Finding::note(
            check,
            format!("{address} is a router of a sharded cluster"),
            "unique indexes hold across shards only where they begin with the shard key; keep the \
             users collection unsharded",
        );
    }
    let Ok(name) = hello.get_str("setName") else {
        return Finding::warning(
            check,
            format!("{address} is a standalone server: if it is lost, its users are lost"),
            "run a replica set of three members, and name it in store.url (?replicaSet=…)",
        );
    };
    let members = hello.get_array("hosts").map_or(0, Vec::len);
    if members < 3 {
        return Finding::note(
            check,
            format!("{name} has {members} member(s): the loss of one stops writes or loses users"),
            "run three members; they keep working when one is lost",
        );
    }
    Finding::ok(check, format!("{name}, {members} members"))
}

/// Checks that a majority write is on disk. muster always writes with `w: majority`; whether that includes the journal
/// is a setting of the replica set.
async fn journal(client: &Client, hello: &Reply) -> Finding {
    let check = "write concern";
    let configured = async {
        hello.get_str("setName").ok()?;
        let command = doc! { "replSetGetConfig": 1 };
        let reply = client.database("admin").run_command(command).await.ok()?;
        let config = reply.get_document("config").ok()?;
        Some(config.get_bool("writeConcernMajorityJournalDefault").unwrap_or(true))
    };
    match configured.await {
        Some(true) => Finding::ok(check, "majority, acknowledged after the write to disk"),
        Some(false) => Finding::warning(
            check,
            "majority writes are acknowledged before they are on disk \
             (writeConcernMajorityJournalDefault is off): a power cut can lose registered users",
            "rs.reconfig with writeConcernMajorityJournalDefault: true",
        ),
        None => Finding::note(
            check,
            "majority; this user cannot see whether writes are on disk before they are acknowledged",
            "check rs.conf(): writeConcernMajorityJournalDefault must be true",
        ),
    }
}

fn skew(hello: &Reply, here: i64) -> Finding {
    let check = "clock";
    let Some(Bson::DateTime(there)) = hello.get("localTime") else {
        return Finding::note(check, "the database does not report its time", "nothing");
    };
    let apart = (here - there.timestamp_millis()).abs();
    if apart > MAX_SKEW {
        return Finding::warning(
            check,
            format!("this machine and the database are {} s apart", apart / 1000),
            "run NTP on both: other programs reject tokens from the future, and sealed passwords \
             expire ten minutes after their deadline",
        );
    }
    Finding::ok(check, format!("{apart} ms from the database's"))
}

async fn unique(users: &Collection<UserDocument>) -> Vec<Finding> {
    let check = "indexes";
    let found: Result<Vec<IndexModel>, _> = match users.list_indexes().await {
        Ok(cursor) => cursor.try_collect().await,
        Err(error) => Err(error),
    };
    let found = match found {
        Ok(found) => found,
        Err(error) if is_missing(&error) => Vec::new(),
        Err(error) => {
            return vec![Finding::error(
                check,
                format!("cannot be listed: {error}"),
                "give the user the role readWrite on the database",
            )];
        }
    };
    let foreign = found.iter().filter(|index| foreign::is_foreign(index)).filter_map(|index| {
        let (reason, remedy) = foreign::consequence(index)?;
        Some(match foreign::effect(index) {
            Effect::OneUser => Finding::error(check, reason, remedy),
            _ => Finding::warning(check, reason, remedy),
        })
    });
    UNIQUE
        .into_iter()
        .map(|(field, optional)| {
            let same_keys = found.iter().any(|index| index.keys == indexes::keys(field));
            if found.iter().any(|index| indexes::guards(index, field, optional)) {
                Finding::ok(check, format!("{field} is unique"))
            } else if same_keys {
                Finding::error(
                    check,
                    format!("the index on {field} does not make it unique"),
                    format!(
                        "drop the index on {field}; a worker creates the right one at its start"
                    ),
                )
            } else {
                Finding::note(
                    check,
                    format!("the index on {field} does not exist yet"),
                    "nothing: a worker creates it at its start, before it consumes messages",
                )
            }
        })
        .chain(foreign)
        .collect()
}

/// Reports documents without a registration id: two of them prevent the unique index on it.
async fn missing_ids(users: &Collection<UserDocument>) -> Option<Finding> {
    let count = users.count_documents(doc! { "registrationId": null }).limit(2).await.ok()?;
    (count > 1).then(|| {
        Finding::error(
            "indexes",
            "several documents in users have no registrationId, so muster did not write them, and no \
             worker starts",
            format!(
                "find them with db.users.find({MISSING_ID}), and remove them or give each its own \
                 registrationId"
            ),
        )
    })
}

fn is_missing(error: &mongodb::error::Error) -> bool {
    use mongodb::error::ErrorKind;
    matches!(error.kind.as_ref(), ErrorKind::Command(error) if error.code == NAMESPACE_NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::finding::Severity;

    #[test]
    fn clock_skew_above_the_limit_is_a_warning() {
        let hello = doc! { "localTime": bson::DateTime::from_millis(1_000_000) };
        for (here, severity) in [
            (1_000_000 + MAX_SKEW, Severity::Ok),
            (1_000_001 + MAX_SKEW, Severity::Warning),
            (999_999 - MAX_SKEW, Severity::Warning),
        ] {
            assert_eq!(skew(&hello, here).severity, severity, "{here}");
        }
        assert_eq!(skew(&doc! {}, 0).severity, Severity::Note);
    }

    #[test]
    fn topology_is_read_from_the_hello_response() {
        let three = doc! { "setName": "rs0", "hosts": ["a:1", "b:1", "c:1"] };
        for (hello, severity) in [
            (three, Severity::Ok),
            (doc! { "setName": "rs0", "hosts": ["a:1"] }, Severity::Note),
            (doc! { "msg": "isdbgrid" }, Severity::Note),
            (doc! {}, Severity::Warning),
        ] {
            assert_eq!(replica_set(&hello, "here").severity, severity, "{hello}");
        }
    }
}
