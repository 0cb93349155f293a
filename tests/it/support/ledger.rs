//! Records every request and response of a fault test and compares them with the store at the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::{Document, doc, oid::ObjectId};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::http::{Client, HttpResponse};
use super::muster::{TIMEOUT, eventually};
use super::services::unique;

/// Prefix of every password in these tests; no program may write it.
pub const PASSWORD: &str = "never-seen-outside-";
/// Limit for one response: `front.request_timeout` in these tests, plus a margin for a busy machine.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause of a client before it repeats a request.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Clients for the running fronts; a restarted front listens on another port.
pub type FrontClients = Arc<Mutex<Vec<Client>>>;

/// Requests and responses by user name.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<HashMap<String, LedgerEntry>>>);

/// One registration and the results of all its requests.
#[derive(Clone, Debug)]
struct LedgerEntry {
    /// The client's idempotency key, or the one that the front generated and returned.
    key: Option<String>,
    password: String,
    observations: Vec<Observation>,
}

/// Result of one request, as its client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Observation {
    Created {
        id: String,
        replayed: bool,
    },
    /// 500, 503 or 504 with the effective idempotency key.
    Retryable(u16),
    /// The connection closed before the response, because its front was killed.
    ConnectionLost,
    /// No response in time, or one that the test does not allow.
    Unexpected(String),
}

impl Observation {
    fn from_response(response: &HttpResponse, key: Option<&str>) -> Self {
        match response.status {
            201 => {
                let id = response.json()["user"]["_id"].as_str().unwrap().to_owned();
                Self::Created { id, replayed: response.header("idempotency-replayed").is_some() }
            }
            status @ (500 | 503 | 504) => match response.header("idempotency-key") {
                Some(effective) if key.is_none_or(|key| key == effective) => {
                    Self::Retryable(status)
                }
                other => Self::Unexpected(format!("{status} with the key {other:?}")),
            },
            status => Self::Unexpected(format!("{status} {:?}", response.json())),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Created { replayed: false, .. } => "201".into(),
            Self::Created { replayed: true, .. } => "201 replayed".into(),
            Self::Retryable(status) => status.to_string(),
            Self::ConnectionLost => "connection lost".into(),
            Self::Unexpected(what) => format!("unexpected: {what}"),
        }
    }
}

/// What a client needs to send a registration again.
#[derive(Clone, Debug)]
pub struct Registration {
    pub username: String,
    pub key: Option<String>,
    password: String,
}

impl Registration {
    pub fn body(&self) -> Value {
        json!({ "username": self.username, "password": self.password })
    }
}

/// Counts of a ledger, and its differences from the store.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LedgerSummary {
    pub registrations: usize,
    pub requests: usize,
    pub responses: BTreeMap<String, usize>,
    /// Registrations with a 201 response that the store lacks or has under another id.
    pub lost: Vec<String>,
    /// Names with more than one user, and users without a registration.
    pub duplicated: Vec<String>,
    /// Other violations, one line each.
    pub unexpected: Vec<String>,
}

impl LedgerSummary {
    /// Fails if a user is lost or duplicated, or a response was unexpected.
    pub fn assert_consistent(&self) {
        let Self { lost, duplicated, unexpected, .. } = self;
        assert!(lost.is_empty() && duplicated.is_empty() && unexpected.is_empty(), "{self:#?}");
    }
}

impl Ledger {
    /// A registration with a unique name and key.
    pub fn registration(&self) -> Registration {
        self.registration_with(Some(unique("key-of-a-client")))
    }

    /// A registration without a key. The worker hashes it without a look-up, so a test can stop the worker
    /// at its insert.
    pub fn registration_without_key(&self) -> Registration {
        self.registration_with(None)
    }

    fn registration_with(&self, key: Option<String>) -> Registration {
        let (username, password) = (unique("ann"), unique(PASSWORD));
        let entry =
            LedgerEntry { key: key.clone(), password: password.clone(), observations: Vec::new() };
        self.0.lock().unwrap().insert(username.clone(), entry);
        Registration { username, key, password }
    }

    /// Sends a registration once and records the result.
    pub async fn register(
        &self,
        client: &Client,
        registration: &Registration,
    ) -> Option<HttpResponse> {
        let body = registration.body().to_string();
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(registration.key.as_deref().map(|key| ("idempotency-key", key)));
        let sent = client.send("POST", "/signup", &headers, body);
        let (observation, response) = match tokio::time::timeout(RESPONSE_TIMEOUT, sent).await {
            Ok(Ok(response)) => {
                (Observation::from_response(&response, registration.key.as_deref()), Some(response))
            }
            Ok(Err(_)) => (Observation::ConnectionLost, None),
            Err(_) => (Observation::Unexpected("no response".into()), None),
        };
        let mut entries = self.0.lock().unwrap();
        let entry = entries.get_mut(&registration.username).unwrap();
        entry.observations.push(observation);
        if let Some(key) = response.as_ref().and_then(|response| response.header("idempotency-key"))
        {
            entry.key.get_or_insert_with(|| key.to_owned());
        }
        response
    }

    /// Sends a registration until the result is final, each time with the same key.
    pub async fn retry_until_final(&self, fronts: &FrontClients, registration: &Registration) {
        let started = Instant::now();
        let mut turn = registration.username.bytes().map(usize::from).sum::<usize>();
        while started.elapsed() < TIMEOUT {
            turn += 1;
            let client = {
                let fronts = fronts.lock().unwrap();
                fronts.get(turn % fronts.len().max(1)).cloned()
            };
            // No front runs at the moment.
            let Some(client) = client else {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            self.register(&client, registration).await;
            let last = self.0.lock().unwrap()[&registration.username].observations.last().cloned();
            if matches!(last, Some(Observation::Created { .. } | Observation::Unexpected(_))) {
                return;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Starts clients that each send one registration after the other until [`BackgroundLoad::finish`].
    pub fn start_load(&self, fronts: &FrontClients, clients: usize) -> BackgroundLoad {
        // Not a load test: a request is always in flight.
        self.start_load_with(fronts, clients, RETRY_PAUSE / 5)
    }

    /// As [`Self::start_load`], with this pause between two registrations of a client.
    pub fn start_load_with(
        &self,
        fronts: &FrontClients,
        clients: usize,
        pause: Duration,
    ) -> BackgroundLoad {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients).map(|_| {
            let (ledger, fronts, stop) = (self.clone(), fronts.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let registration = ledger.registration();
                    ledger.retry_until_final(&fronts, &registration).await;
                    tokio::time::sleep(pause).await;
                }
            })
        });
        BackgroundLoad { clients: clients.collect(), stop }
    }

    /// Waits for this many more registrations with a 201 response.
    pub async fn wait_for_created(&self, more: usize) {
        let before = self.created();
        eventually("more registrations", async || self.created() >= before + more).await;
    }

    /// Number of registrations with a 201 response.
    pub fn created(&self) -> usize {
        let entries = self.0.lock().unwrap();
        let created = |entry: &&LedgerEntry| {
            entry
                .observations
                .iter()
                .any(|observation| matches!(observation, Observation::Created { .. }))
        };
        entries.values().filter(created).count()
    }

    /// User ids of all 201 responses.
    pub fn ids(&self) -> HashSet<String> {
        let entries = self.0.lock().unwrap();
        let observations = entries.values().flat_map(|entry| &entry.observations);
        let ids = observations.filter_map(|observation| match observation {
            Observation::Created { id, .. } => Some(id.clone()),
            _ => None,
        });
        ids.collect()
    }

    /// Sends every registration again with its key: unknown results become final, and a created user must be
    /// returned again.
    pub async fn repeat_all(&self, fronts: &FrontClients) {
        let all: Vec<Registration> = {
            let entries = self.0.lock().unwrap();
            let registrations = entries.iter().map(|(username, entry)| Registration {
                username: username.clone(),
                key: entry.key.clone(),
                password: entry.password.clone(),
            });
            // A registration without a key cannot be repeated.
            registrations.filter(|registration| registration.key.is_some()).collect()
        };
        for some in all.chunks(32) {
            join_all(some.iter().map(|registration| self.retry_until_final(fronts, registration)))
                .await;
        }
    }

    /// Compares the responses with each other and with the users in the store.
    pub fn compare(&self, store: &HashMap<String, Vec<String>>) -> LedgerSummary {
        let entries = self.0.lock().unwrap();
        let mut summary =
            LedgerSummary { registrations: entries.len(), ..LedgerSummary::default() };
        for (username, entry) in entries.iter() {
            let mut ids = Vec::new();
            let mut firsts = 0;
            for observation in &entry.observations {
                summary.requests += 1;
                *summary.responses.entry(observation.name()).or_default() += 1;
                match observation {
                    Observation::Created { id, replayed } => {
                        firsts += usize::from(!replayed);
                        ids.push(id.clone());
                    }
                    Observation::Unexpected(what) => {
                        summary.unexpected.push(format!("{username}: {what}"))
                    }
                    Observation::Retryable(_) | Observation::ConnectionLost => {}
                }
            }
            ids.dedup();
            match (ids.as_slice(), store.get(username).map(Vec::as_slice)) {
                ([returned], Some([stored])) if returned == stored => {}
                ([], _) => summary.unexpected.push(format!("{username}: never created")),
                ([_], None | Some([_])) => summary.lost.push(username.clone()),
                _ => summary.duplicated.push(username.clone()),
            }
            if firsts > 1 {
                summary.duplicated.push(format!("{username}: created {firsts} times"));
            }
        }
        summary
            .duplicated
            .extend(store.keys().filter(|name| !entries.contains_key(*name)).cloned());
        summary
    }
}

/// Clients that send registrations in the background.
#[derive(Debug)]
pub struct BackgroundLoad {
    clients: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl BackgroundLoad {
    /// Stops the clients after their current registration.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// Ids of all users in a database, by name.
pub async fn users_in(url: &str) -> HashMap<String, Vec<String>> {
    let client = mongodb::Client::with_uri_str(url).await.unwrap();
    let users = client.default_database().unwrap().collection::<Document>("users");
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    let mut cursor = users.find(doc! { "username": { "$exists": true } }).await.unwrap();
    while let Some(user) = cursor.try_next().await.unwrap() {
        let id: ObjectId = user.get_object_id("_id").unwrap();
        found.entry(user.get_str("username").unwrap().to_owned()).or_default().push(id.to_hex());
    }
    drop(cursor);
    // The driver's background tasks log errors if the runtime ends first.
    client.shutdown().await;
    found
}
