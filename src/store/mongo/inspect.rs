//! What can be seen of a MongoDB without changing anything there: what it is, how it writes, what
//! time it has, and whether the unique indexes are right.

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

/// Clocks further apart than this make tokens and time stamps disagree, in milliseconds.
const SKEW_WARNING: i64 = 5_000;

/// MongoDB's error code for a collection that is not there.
const NO_COLLECTION: i32 = 26;

/// Looks at the server behind a collection.
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
                "see whether it runs there, and whether store.url (MUSTER_STORE) is right",
            )];
        }
    };
    // Its clock was read at about the middle of the question.
    let here = i64::midpoint(before, clock.now().0);
    let mut findings = vec![replica_set(&hello, address), journal(client, &hello).await];
    findings.push(skew(&hello, here));
    findings.extend(unique(users).await);
    findings.extend(unwritten(users).await);
    findings.push(MongoKeys::new(users).inspect().await);
    findings
}

fn replica_set(hello: &Reply, address: &str) -> Finding {
    let check = "replica set";
    if hello.get_str("msg").is_ok_and(|told| told == "isdbgrid") {
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
            format!(
                "{address} is a server on its own: a majority is this one, and users are lost with it"
            ),
            "run a replica set of three members, and name it in store.url (?replicaSet=…)",
        );
    };
    let members = hello.get_array("hosts").map_or(0, Vec::len);
    if members < 3 {
        return Finding::note(
            check,
            format!("{name} has {members} member(s): losing one stops it or loses users"),
            "three members keep working without one",
        );
    }
    Finding::ok(check, format!("{name}, {members} members"))
}

/// muster writes with majority whatever the URL says. What that means is the server's setting.
async fn journal(client: &Client, hello: &Reply) -> Finding {
    let check = "write concern";
    let configured = async {
        hello.get_str("setName").ok()?;
        let asked = doc! { "replSetGetConfig": 1 };
        let reply = client.database("admin").run_command(asked).await.ok()?;
        let config = reply.get_document("config").ok()?;
        Some(config.get_bool("writeConcernMajorityJournalDefault").unwrap_or(true))
    };
    match configured.await {
        Some(true) => Finding::ok(check, "majority, on disk before it is answered"),
        Some(false) => Finding::warning(
            check,
            "a majority answers before it has written to its disks \
             (writeConcernMajorityJournalDefault is off): a power cut can lose users who were told \
             they are registered",
            "rs.reconfig with writeConcernMajorityJournalDefault: true",
        ),
        None => Finding::note(
            check,
            "majority; whether on disk before it is answered cannot be seen by this user",
            "look with rs.conf(): writeConcernMajorityJournalDefault has to be true",
        ),
    }
}

fn skew(hello: &Reply, here: i64) -> Finding {
    let check = "clock";
    let Some(Bson::DateTime(there)) = hello.get("localTime") else {
        return Finding::note(check, "the database does not tell its time", "nothing");
    };
    let apart = (here - there.timestamp_millis()).abs();
    if apart > SKEW_WARNING {
        return Finding::warning(
            check,
            format!("this machine and the database are {} s apart", apart / 1000),
            "run NTP on both; a token made in the future is refused by others, and sealed passwords \
             end ten minutes after their deadline",
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
                    format!("the index on {field} is not the one that keeps it unique"),
                    format!("drop the index on {field}; a worker makes the right one at its start"),
                )
            } else {
                Finding::note(
                    check,
                    format!("the one on {field} is not there yet"),
                    "nothing: a worker makes it at its start, before it takes anything",
                )
            }
        })
        .chain(foreign)
        .collect()
}

/// Two documents without a registration id keep its unique index from being made.
async fn unwritten(users: &Collection<UserDocument>) -> Option<Finding> {
    let count = users.count_documents(doc! { "registrationId": null }).limit(2).await.ok()?;
    (count > 1).then(|| {
        Finding::error(
            "indexes",
            "several documents in users have no registrationId, so muster did not write them, and no \
             worker starts",
            format!(
                "find them with db.users.find({MISSING_ID}); remove them, or give each a registrationId of \
                 its own"
            ),
        )
    })
}

fn is_missing(error: &mongodb::error::Error) -> bool {
    use mongodb::error::ErrorKind;
    matches!(error.kind.as_ref(), ErrorKind::Command(error) if error.code == NO_COLLECTION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::finding::Severity;

    #[test]
    fn clocks_may_be_a_little_apart() {
        let hello = doc! { "localTime": bson::DateTime::from_millis(1_000_000) };
        for (here, severity) in [
            (1_000_000 + SKEW_WARNING, Severity::Ok),
            (1_000_001 + SKEW_WARNING, Severity::Warning),
            (999_999 - SKEW_WARNING, Severity::Warning),
        ] {
            assert_eq!(skew(&hello, here).severity, severity, "{here}");
        }
        assert_eq!(skew(&doc! {}, 0).severity, Severity::Note);
    }

    #[test]
    fn what_a_server_is_follows_from_its_greeting() {
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
