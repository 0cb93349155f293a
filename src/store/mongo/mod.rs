//! The store in MongoDB: one collection, majority writes, and unique indexes that alone detect conflicts.

mod calls;
mod errors;
mod foreign;
mod indexes;
mod inspect;
mod reindex;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bson::{Document as Filter, doc};
use mongodb::options::{
    ClientOptions, CollectionOptions, ConnectionString, ReadConcern, ReadPreference,
    SelectionCriteria, Tls, WriteConcern,
};
use mongodb::{Client, Collection};
use secrecy::{ExposeSecret, SecretString};

use super::document::UserDocument;
use super::{Conflicts, ForeignIndex, InsertOutcome, PrepareError, Store, StoreError};
use crate::config;
use crate::domain::{RegistrationId, StoredUser, User, UserId};
use crate::telemetry::finding::Finding;
use calls::{CallLimiter, StoreCallError};
use indexes::Indexes;
use reindex::MongoKeys;
use writer::Writer;

/// The collection of the users of all contracts.
const COLLECTION: &str = "users";
/// Default size of the connection pool. With the driver's default of 10, inserts would wait for connections.
const DEFAULT_POOL_SIZE: u32 = 64;

/// The store in MongoDB.
pub struct MongoStore {
    users: Collection<UserDocument>,
    indexes: Indexes,
    writer: Writer,
    calls: CallLimiter,
    timeout: Duration,
    address: String,
}

impl MongoStore {
    /// Parses the URL; the driver connects in the background. Returns an error if the URL is malformed or a file
    /// that it names cannot be read.
    pub async fn open(
        url: &SecretString,
        settings: &config::StoreSettings,
    ) -> anyhow::Result<Self> {
        let url = parse(url)?;
        let invalid = "store.url: not a valid MongoDB URL; check MUSTER_STORE";
        let mut options = ClientOptions::parse(url).await.context(invalid)?;
        if let Some(Tls::Enabled(tls)) = &options.tls {
            for path in [&tls.ca_file_path, &tls.cert_key_file_path].into_iter().flatten() {
                let opened = config::file::open(path, config::file::MAX_BYTES);
                opened.with_context(|| format!("store.url (MUSTER_STORE): {}", path.display()))?;
            }
        }
        options.app_name.get_or_insert_with(|| "muster".to_owned());
        options.max_pool_size.get_or_insert(DEFAULT_POOL_SIZE);
        options.server_selection_timeout.get_or_insert(settings.timeout);
        options.connect_timeout.get_or_insert(settings.timeout);
        let hosts: Vec<String> = options.hosts.iter().map(ToString::to_string).collect();
        let address = hosts.join(", ");
        let indexes = Indexes::new(address.clone(), settings.timeout * 2);
        options.sdam_event_handler = Some(indexes.listener());
        let database = options.default_database.clone();
        let client = Client::with_options(options).context("store.url")?;
        let concerns = CollectionOptions::builder()
            .write_concern(
                WriteConcern::builder()
                    .w(mongodb::options::Acknowledgment::Majority)
                    .w_timeout(settings.timeout)
                    .build(),
            )
            .read_concern(ReadConcern::majority())
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .build();
        let users = client
            .database(database.as_deref().unwrap_or(&settings.database))
            .collection_with_options(COLLECTION, concerns);
        let calls = CallLimiter::new(settings.timeout);
        let writer = Writer::start(&users, &indexes, &calls);
        Ok(Self { users, indexes, writer, calls, timeout: settings.timeout, address })
    }

    /// Checks the server for `muster doctor`.
    pub(super) async fn inspect(&self) -> Vec<Finding> {
        inspect::inspect(self.users.client(), &self.users, &self.address).await
    }

    /// Returns the user that matches a filter.
    async fn find(&self, filter: Filter) -> Result<Option<StoredUser>, StoreError> {
        let users = self.users.clone();
        let found = self.calls.run("find", async move { users.find_one(filter).await }).await;
        Ok(found.map_err(StoreCallError::log)?.map(StoredUser::from))
    }

    /// Returns the user who has a value. Ignores documents that muster did not write; `find_foreign_index` reports
    /// those.
    async fn find_by_value(
        &self,
        field: &str,
        value: Option<&str>,
    ) -> Result<Option<StoredUser>, StoreError> {
        let Some(value) = value else { return Ok(None) };
        let (users, filter) = (self.users.clone_with_type::<Filter>(), doc! { field: value });
        let found = self.calls.run("find", async move { users.find_one(filter).await }).await;
        let found = found.map_err(StoreCallError::log)?;
        Ok(found
            .and_then(|user| bson::deserialize_from_document::<UserDocument>(user).ok())
            .map(StoredUser::from))
    }

    /// Returns access to the address keys, for `muster reindex`.
    pub(super) fn keys(&self) -> MongoKeys {
        MongoKeys::new(&self.users)
    }

    /// Logs the unique indexes of other programs. Returns an error if one of them admits only a single user.
    async fn check_foreign(&self) -> Result<(), PrepareError> {
        let users = self.users.clone();
        let listed =
            self.calls.run("list indexes", async move { foreign::list(&users).await }).await;
        let listed = match listed {
            Ok(listed) => listed,
            Err(StoreCallError::Driver(error)) => {
                return Err(errors::prepare_error(&error, &self.address));
            }
            Err(StoreCallError::Timeout) => {
                return Err(PrepareError::Unavailable(format!(
                    "MongoDB at {}: listing indexes timed out",
                    self.address
                )));
            }
        };
        for index in listed.iter().filter(|index| foreign::is_foreign(index)) {
            let Some((reason, remedy)) = foreign::consequence(index) else { continue };
            if foreign::effect(index) == foreign::Effect::OneUser {
                let address = &self.address;
                return Err(PrepareError::Incompatible(format!(
                    "MongoDB at {address}: {reason}; {remedy}"
                )));
            }
            tracing::warn!(
                event = "foreign_index_found",
                reason,
                remedy,
                "found a foreign unique index"
            );
        }
        Ok(())
    }
}

/// Parses the URL. The error of a malformed one quotes no credentials: it is the driver's error for the same URL
/// without them.
fn parse(url: &SecretString) -> anyhow::Result<ConnectionString> {
    ConnectionString::parse(url.expose_secret()).map_err(|_| {
        let shown = config::without_credentials(url.expose_secret());
        let reason = match ConnectionString::parse(shown) {
            Ok(_) => "a user, a password or an option has to be percent-encoded".into(),
            // The value in place of the port may be a password, if the host is missing.
            Err(error) => error.to_string().split(", got ").next().unwrap_or_default().to_owned(),
        };
        anyhow::anyhow!("store.url: not a valid MongoDB URL; check MUSTER_STORE: {reason}")
    })
}

/// Returns the URL with another database name. Keeps the database in which the user's credentials are looked up.
pub fn with_database(url: &SecretString, database: &str) -> SecretString {
    let url = url.expose_secret();
    // The list of hosts ends at a slash or at the options. A general URL parser rejects several hosts.
    let hosts = url.find("://").map_or(0, |at| at + 3);
    let end = url[hosts..].find(['/', '?']).map_or(url.len(), |at| hosts + at);
    let (path, options) = url[end..].split_once('?').unwrap_or((&url[end..], ""));
    let mut options: Vec<String> =
        options.split('&').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    // Without `authSource`, the server looks the user up in the database of the path.
    let has_user = url[hosts..end].contains('@');
    let has_source = options.iter().any(|option| option.to_lowercase().starts_with("authsource="));
    if has_user && !has_source {
        let source = Some(path.trim_matches('/')).filter(|source| !source.is_empty());
        options.push(format!("authSource={}", source.unwrap_or("admin")));
    }
    let mark = if options.is_empty() { "" } else { "?" };
    SecretString::from(format!("{}/{database}{mark}{}", &url[..end], options.join("&")))
}

/// Drops the database that the URL names, or else the configured one.
pub(super) async fn remove(
    url: &SecretString,
    settings: &config::StoreSettings,
) -> anyhow::Result<()> {
    let client = Client::with_uri_str(url.expose_secret()).await?;
    let database = client.default_database().unwrap_or_else(|| client.database(&settings.database));
    Ok(database.drop().await?)
}

#[async_trait]
impl Store for MongoStore {
    async fn prepare(&self) -> Result<(), PrepareError> {
        self.indexes.ensure(&self.users).await?;
        // Matches no document, but succeeds only on a primary that can reach a majority.
        let users = self.users.clone();
        let (no_user, change) =
            (doc! { "_id": bson::oid::ObjectId::new() }, doc! { "$unset": { "probe": "" } });
        let write = async move { users.update_one(no_user, change).await };
        match self.calls.run("check", write).await {
            Ok(_) => self.check_foreign().await,
            Err(StoreCallError::Driver(error)) => Err(errors::prepare_error(&error, &self.address)),
            Err(StoreCallError::Timeout) => Err(PrepareError::Unavailable(format!(
                "MongoDB at {}: a write timed out",
                self.address
            ))),
        }
    }

    async fn insert(&self, record: StoredUser) -> Result<InsertOutcome, StoreError> {
        let is_sent = Arc::new(AtomicBool::new(false));
        let inserted = self.writer.insert(UserDocument::from(record), is_sent.clone());
        tokio::time::timeout(self.timeout, inserted).await.unwrap_or_else(|_| {
            let is_sent = is_sent.load(Ordering::Relaxed);
            tracing::warn!(event = "insert_timed_out", is_sent, "an insert into MongoDB timed out");
            Err(StoreError)
        })
    }

    async fn find_by_registration(
        &self,
        id: &RegistrationId,
    ) -> Result<Option<StoredUser>, StoreError> {
        self.find(doc! { "registrationId": id.as_str() }).await
    }

    async fn find_conflicts(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Conflicts, StoreError> {
        let (username, email) = tokio::join!(
            self.find_by_value("username", username),
            self.find_by_value("emailKey", email_key)
        );
        Ok(Conflicts { username: username?, email: email? })
    }

    async fn find_foreign_index(
        &self,
        record: &StoredUser,
    ) -> Result<Option<ForeignIndex>, StoreError> {
        let (users, record) = (self.users.clone(), record.clone());
        let call = async move { foreign::find_conflict(&users, &record).await };
        self.calls.run("find a foreign index", call).await.map_err(StoreCallError::log)
    }

    async fn find_user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        Ok(self.find(doc! { "_id": id.0 }).await?.map(|record| record.user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_database_replaces_only_the_database() {
        let other =
            |url: &str| with_database(&SecretString::from(url), "b").expose_secret().to_owned();
        assert_eq!(other("mongodb://h:1,i:2/a?w=1"), "mongodb://h:1,i:2/b?w=1");
        assert_eq!(other("mongodb://u:p@h"), "mongodb://u:p@h/b?authSource=admin");
        assert_eq!(other("mongodb://u:p@h/a?w=1"), "mongodb://u:p@h/b?w=1&authSource=a");
        assert_eq!(other("mongodb://u:p@h/a?authSource=c"), "mongodb://u:p@h/b?authSource=c");
        assert_eq!(other("mongodb://h"), "mongodb://h/b");
        assert_eq!(other("mongodb+srv://h/?tls=true"), "mongodb+srv://h/b?tls=true");
    }
}
