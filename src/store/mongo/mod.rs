//! The store in MongoDB: one collection, majority writes, unique indexes as the only judge.

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
use super::{ForeignIndex, InsertOutcome, PrepareError, Store, StoreError, Conflicts};
use crate::config;
use crate::domain::{StoredUser, RegistrationId, User, UserId};
use crate::telemetry::finding::Finding;
use calls::{StoreCallError, CallLimiter};
use indexes::Indexes;
use reindex::MongoKeys;
use writer::Writer;

/// The collection all contracts share.
const COLLECTION: &str = "users";
/// Connections, where the URL does not say. The driver's own default of 10 would make inserts
/// queue behind each other.
const POOL: u32 = 64;

/// The MongoDB store.
pub struct MongoStore {
    users: Collection<UserDocument>,
    indexes: Indexes,
    writer: Writer,
    calls: CallLimiter,
    timeout: Duration,
    address: String,
}

impl MongoStore {
    /// Reads the URL; connects in the background.
    pub async fn open(url: &SecretString, settings: &config::StoreSettings) -> anyhow::Result<Self> {
        let url = read(url)?;
        let unusable = "store.url: not a MongoDB URL that can be used; check MUSTER_STORE";
        let mut options = ClientOptions::parse(url).await.context(unusable)?;
        if let Some(Tls::Enabled(tls)) = &options.tls {
            for path in [&tls.ca_file_path, &tls.cert_key_file_path].into_iter().flatten() {
                let opened = config::file::open(path, config::file::MAX_BYTES);
                opened.with_context(|| format!("store.url (MUSTER_STORE): {}", path.display()))?;
            }
        }
        options.app_name.get_or_insert_with(|| "muster".to_owned());
        options.max_pool_size.get_or_insert(POOL);
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

    /// What can be seen of the server.
    pub(super) async fn inspect(&self) -> Vec<Finding> {
        inspect::inspect(self.users.client(), &self.users, &self.address).await
    }

    async fn find(&self, filter: Filter) -> Result<Option<StoredUser>, StoreError> {
        let users = self.users.clone();
        let found = self.calls.run("find", async move { users.find_one(filter).await }).await;
        Ok(found.map_err(StoreCallError::log)?.map(StoredUser::from))
    }

    /// The user who holds a value. A document that muster did not write is not a user; `find_foreign_index` finds it.
    async fn holder(&self, field: &str, value: Option<&str>) -> Result<Option<StoredUser>, StoreError> {
        let Some(value) = value else { return Ok(None) };
        let (users, filter) = (self.users.clone_with_type::<Filter>(), doc! { field: value });
        let found = self.calls.run("find", async move { users.find_one(filter).await }).await;
        let found = found.map_err(StoreCallError::log)?;
        Ok(found
            .and_then(|user| bson::deserialize_from_document::<UserDocument>(user).ok())
            .map(StoredUser::from))
    }

    /// Its address keys, for `muster reindex`.
    pub(super) fn keys(&self) -> MongoKeys {
        MongoKeys::new(&self.users)
    }

    /// Reports unique indexes of other programs. An error if one admits a single user.
    async fn check_foreign(&self) -> Result<(), PrepareError> {
        let users = self.users.clone();
        let listed =
            self.calls.run("list indexes", async move { foreign::list(&users).await }).await;
        let listed = match listed {
            Ok(listed) => listed,
            Err(StoreCallError::Driver(error)) => return Err(errors::prepare(&error, &self.address)),
            Err(StoreCallError::Timeout) => {
                return Err(PrepareError::Unavailable(format!("MongoDB at {}: no answer", self.address)));
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

/// Reads the URL. The reason for which it is refused repeats no part of a credential: it is that of the same URL
/// without them.
fn read(url: &SecretString) -> anyhow::Result<ConnectionString> {
    ConnectionString::parse(url.expose_secret()).map_err(|_| {
        let shown = config::without_credentials(url.expose_secret());
        let reason = match ConnectionString::parse(shown) {
            Ok(_) => "a user, a password or an option is not percent-encoded as it must be".into(),
            // What it got instead of a port may be a password whose host is missing.
            Err(error) => error.to_string().split(", got ").next().unwrap_or_default().to_owned(),
        };
        anyhow::anyhow!(
            "store.url: not a MongoDB URL that can be used; check MUSTER_STORE: {reason}"
        )
    })
}

/// The same URL, naming another database.
pub fn with_database(url: &SecretString, database: &str) -> SecretString {
    let url = url.expose_secret();
    // After the scheme come the hosts (several, perhaps, so that no general parser takes it), up to
    // a slash or the options.
    let hosts = url.find("://").map_or(0, |at| at + 3);
    let end = url[hosts..].find(['/', '?']).map_or(url.len(), |at| hosts + at);
    let (path, options) = url[end..].split_once('?').unwrap_or((&url[end..], ""));
    let mut options: Vec<String> =
        options.split('&').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    // The database in the path is also where the user is looked up, unless an option says where.
    let has_user = url[hosts..end].contains('@');
    let says_where = options.iter().any(|option| option.to_lowercase().starts_with("authsource="));
    if has_user && !says_where {
        let source = Some(path.trim_matches('/')).filter(|source| !source.is_empty());
        options.push(format!("authSource={}", source.unwrap_or("admin")));
    }
    let mark = if options.is_empty() { "" } else { "?" };
    SecretString::from(format!("{}/{database}{mark}{}", &url[..end], options.join("&")))
}

/// Removes the database.
pub(super) async fn remove(url: &SecretString, settings: &config::StoreSettings) -> anyhow::Result<()> {
    let client = Client::with_uri_str(url.expose_secret()).await?;
    let database = client.default_database().unwrap_or_else(|| client.database(&settings.database));
    Ok(database.drop().await?)
}

#[async_trait]
impl Store for MongoStore {
    async fn prepare(&self) -> Result<(), PrepareError> {
        self.indexes.ensure(&self.users).await?;
        // Changes nothing, and yet is answered only by a primary that a majority follows.
        let users = self.users.clone();
        let (nobody, change) =
            (doc! { "_id": bson::oid::ObjectId::new() }, doc! { "$unset": { "probe": "" } });
        let write = async move { users.update_one(nobody, change).await };
        match self.calls.run("check", write).await {
            Ok(_) => self.check_foreign().await,
            Err(StoreCallError::Driver(error)) => Err(errors::prepare(&error, &self.address)),
            Err(StoreCallError::Timeout) => Err(PrepareError::Unavailable(format!(
                "MongoDB at {}: no answer to a write",
                self.address
            ))),
        }
    }

    async fn insert(&self, record: StoredUser) -> Result<InsertOutcome, StoreError> {
        let is_sent = Arc::new(AtomicBool::new(false));
        let inserted = self.writer.insert(UserDocument::from(record), is_sent.clone());
        tokio::time::timeout(self.timeout, inserted).await.unwrap_or_else(|_| {
            let is_sent = is_sent.load(Ordering::Relaxed);
            tracing::warn!(is_sent, "an insert did not end in time");
            Err(StoreError)
        })
    }

    async fn find_by_registration(&self, id: &RegistrationId) -> Result<Option<StoredUser>, StoreError> {
        self.find(doc! { "registrationId": id.as_str() }).await
    }

    async fn find_conflicts(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Conflicts, StoreError> {
        let (username, email) =
            tokio::join!(self.holder("username", username), self.holder("emailKey", email_key));
        Ok(Conflicts { username: username?, email: email? })
    }

    async fn find_foreign_index(&self, record: &StoredUser) -> Result<Option<ForeignIndex>, StoreError> {
        let (users, record) = (self.users.clone(), record.clone());
        let call = async move { foreign::refusing(&users, &record).await };
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
    fn a_url_can_name_another_database() {
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
