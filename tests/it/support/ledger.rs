//! The book that is kept while things break: what every client asked and heard, compared with the
//! store at the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::{Document, doc, oid::ObjectId};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::http::{Answer, Client};
use super::muster::{PATIENCE, eventually};
use super::services::unique;

/// All passwords begin so; nothing the programs write may hold it.
pub const PASSWORD: &str = "never-seen-outside-";
/// Nobody waits longer for an answer: the front's deadline in these tests, and room for a machine
/// that is busy.
const ANSWERED_BY: Duration = Duration::from_secs(20);
/// A client that was told to try again waits this long first.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the fronts are just now; a front that was started again has another address.
pub type Fronts = Arc<Mutex<Vec<Client>>>;

/// What was asked and answered, by user name.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<HashMap<String, Entry>>>);

/// One registration, however often it was asked for.
#[derive(Clone, Debug)]
struct Entry {
    /// None while the client chose none and was not told the one that was made for it.
    key: Option<String>,
    password: String,
    heard: Vec<Heard>,
}

/// What one request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Created {
        id: String,
        replayed: bool,
    },
    /// A clear "try again": 500, 503, 504.
    TryAgain(u16),
    /// The connection broke, because the front it led to was gone.
    Broken,
    /// Nothing came, or what no client may be told here.
    Wrong(String),
}

impl Heard {
    fn of(answer: &Answer, key: Option<&str>) -> Self {
        match answer.status {
            201 => {
                let id = answer.json()["user"]["_id"].as_str().unwrap().to_owned();
                Self::Created { id, replayed: answer.header("idempotency-replayed").is_some() }
            }
            status @ (500 | 503 | 504) => match answer.header("idempotency-key") {
                Some(told) if key.is_none_or(|key| key == told) => Self::TryAgain(status),
                other => Self::Wrong(format!("{status} with the key {other:?}")),
            },
            status => Self::Wrong(format!("{status} {:?}", answer.json())),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Created { replayed: false, .. } => "201".into(),
            Self::Created { replayed: true, .. } => "201 replayed".into(),
            Self::TryAgain(status) => status.to_string(),
            Self::Broken => "broken connection".into(),
            Self::Wrong(what) => format!("wrong: {what}"),
        }
    }
}

/// A registration as its client knows it.
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

/// What a ledger holds in figures.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub registrations: usize,
    pub requests: usize,
    pub answers: BTreeMap<String, usize>,
    /// Registrations that were answered with 201 and are not in the store, or under another id.
    pub lost: Vec<String>,
    /// Users nobody asked for, or more than one for a name.
    pub doubled: Vec<String>,
    /// Whatever else must not be.
    pub wrong: Vec<String>,
}

impl Figures {
    /// Fails unless everything is as promised.
    pub fn assert_kept(&self) {
        let Self { lost, doubled, wrong, .. } = self;
        assert!(lost.is_empty() && doubled.is_empty() && wrong.is_empty(), "{self:#?}");
    }
}

impl Ledger {
    /// A user nobody else is.
    pub fn registration(&self) -> Registration {
        self.registration_with(Some(unique("key-of-a-client")))
    }

    /// One whose client sends no key: its first delivery is hashed without a look-up, which is how
    /// a test gets a worker to wait at its insert.
    pub fn registration_without_key(&self) -> Registration {
        self.registration_with(None)
    }

    fn registration_with(&self, key: Option<String>) -> Registration {
        let (username, password) = (unique("ann"), unique(PASSWORD));
        let entry = Entry { key: key.clone(), password: password.clone(), heard: Vec::new() };
        self.0.lock().unwrap().insert(username.clone(), entry);
        Registration { username, key, password }
    }

    /// Asks once, and writes down what came.
    pub async fn ask(&self, client: &Client, asked: &Registration) -> Option<Answer> {
        let body = asked.body().to_string();
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(asked.key.as_deref().map(|key| ("idempotency-key", key)));
        let sent = client.send("POST", "/signup", &headers, body);
        let (heard, answer) = match tokio::time::timeout(ANSWERED_BY, sent).await {
            Ok(Ok(answer)) => (Heard::of(&answer, asked.key.as_deref()), Some(answer)),
            Ok(Err(_)) => (Heard::Broken, None),
            Err(_) => (Heard::Wrong("no answer at all".into()), None),
        };
        let mut entries = self.0.lock().unwrap();
        let entry = entries.get_mut(&asked.username).unwrap();
        entry.heard.push(heard);
        if let Some(told) = answer.as_ref().and_then(|answer| answer.header("idempotency-key")) {
            entry.key.get_or_insert_with(|| told.to_owned());
        }
        answer
    }

    /// Asks again with the same key, as long as the answer is "try again".
    pub async fn insist(&self, fronts: &Fronts, asked: &Registration) {
        let started = Instant::now();
        let mut turn = asked.username.bytes().map(usize::from).sum::<usize>();
        while started.elapsed() < PATIENCE {
            turn += 1;
            let client = {
                let fronts = fronts.lock().unwrap();
                fronts.get(turn % fronts.len().max(1)).cloned()
            };
            // None while all fronts are dead at once.
            let Some(client) = client else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            self.ask(&client, asked).await;
            let last = self.0.lock().unwrap()[&asked.username].heard.last().cloned();
            if matches!(last, Some(Heard::Created { .. } | Heard::Wrong(_))) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// So many clients, each with one registration after the other until it is told to stop.
    pub fn drive(&self, fronts: &Fronts, clients: usize) -> Load {
        // Not a load test: what counts is that somebody is always waiting.
        self.drive_with(fronts, clients, PAUSE / 5)
    }

    /// As [`Self::drive`], each client waiting so long between two registrations.
    pub fn drive_with(&self, fronts: &Fronts, clients: usize, pause: Duration) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients).map(|_| {
            let (ledger, fronts, stop) = (self.clone(), fronts.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let asked = ledger.registration();
                    ledger.insist(&fronts, &asked).await;
                    tokio::time::sleep(pause).await;
                }
            })
        });
        Load { clients: clients.collect(), stop }
    }

    /// Waits for so many more registrations to be answered with 201.
    pub async fn goes_on(&self, more: usize) {
        let before = self.created();
        eventually("more registrations", async || self.created() >= before + more).await;
    }

    /// How many registrations were answered with 201.
    pub fn created(&self) -> usize {
        let entries = self.0.lock().unwrap();
        let created =
            |entry: &&Entry| entry.heard.iter().any(|heard| matches!(heard, Heard::Created { .. }));
        entries.values().filter(created).count()
    }

    /// Every id of a user that anybody was told.
    pub fn ids(&self) -> HashSet<String> {
        let entries = self.0.lock().unwrap();
        let heard = entries.values().flat_map(|entry| &entry.heard);
        let ids = heard.filter_map(|heard| match heard {
            Heard::Created { id, .. } => Some(id.clone()),
            _ => None,
        });
        ids.collect()
    }

    /// Repeats every registration with its key, so that those in doubt are settled, and those
    /// answered once must come to the same user again.
    pub async fn repeat_all(&self, fronts: &Fronts) {
        let all: Vec<Registration> = {
            let entries = self.0.lock().unwrap();
            let asked = entries.iter().map(|(username, entry)| Registration {
                username: username.clone(),
                key: entry.key.clone(),
                password: entry.password.clone(),
            });
            // Without a key nobody can ask for the same again.
            asked.filter(|asked| asked.key.is_some()).collect()
        };
        for some in all.chunks(32) {
            join_all(some.iter().map(|asked| self.insist(fronts, asked))).await;
        }
    }

    /// What was heard, by itself and beside the users there are.
    pub fn compare(&self, store: &HashMap<String, Vec<String>>) -> Figures {
        let entries = self.0.lock().unwrap();
        let mut figures = Figures { registrations: entries.len(), ..Figures::default() };
        for (username, entry) in entries.iter() {
            let mut ids = Vec::new();
            let mut firsts = 0;
            for heard in &entry.heard {
                figures.requests += 1;
                *figures.answers.entry(heard.name()).or_default() += 1;
                match heard {
                    Heard::Created { id, replayed } => {
                        firsts += usize::from(!replayed);
                        ids.push(id.clone());
                    }
                    Heard::Wrong(what) => figures.wrong.push(format!("{username}: {what}")),
                    Heard::TryAgain(_) | Heard::Broken => {}
                }
            }
            ids.dedup();
            match (ids.as_slice(), store.get(username).map(Vec::as_slice)) {
                ([told], Some([stored])) if told == stored => {}
                ([], _) => figures.wrong.push(format!("{username}: never created")),
                ([_], None | Some([_])) => figures.lost.push(username.clone()),
                _ => figures.doubled.push(username.clone()),
            }
            if firsts > 1 {
                figures.doubled.push(format!("{username}: created {firsts} times"));
            }
        }
        figures.doubled.extend(store.keys().filter(|name| !entries.contains_key(*name)).cloned());
        figures
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    clients: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Lets every client finish what it began.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// The ids of all users in a database, by name.
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
    // What the driver does in the background would complain about a runtime that ends before it.
    client.shutdown().await;
    found
}
