//! `muster import` as a process: started, killed, and its report read; and rows for it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use muster::signup::{ContractId, RegistrationId};
use muster::store;
use muster::telemetry::Health;
use serde_json::{Value, json};

use super::muster::PATIENCE;
use super::{Muster, Pair, QueueKind, Setup};

/// An import under way. Killed when dropped.
#[derive(Debug)]
pub struct Importer {
    child: Child,
    told: PathBuf,
    printed: PathBuf,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// None if a signal ended it.
    pub code: Option<i32>,
    /// Standard error, for people.
    pub told: String,
    /// Standard output.
    pub printed: String,
}

impl Importer {
    /// Starts it with these arguments, and nothing on standard input.
    pub fn start(setup: &Setup, arguments: &[&str]) -> Self {
        Self::start_from(setup, arguments, Stdio::null())
    }

    pub fn start_from(setup: &Setup, arguments: &[&str], input: Stdio) -> Self {
        let name = super::services::unique("import");
        let told = setup.directory().join(format!("{name}.told"));
        let printed = setup.directory().join(format!("{name}.printed"));
        let mut command = setup.command(&[&["import"], arguments].concat());
        let child = command
            .stdin(input)
            .stderr(fs::File::create(&told).unwrap())
            .stdout(fs::File::create(&printed).unwrap())
            .spawn()
            .unwrap();
        Self { child, told, printed }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// What it has told so far.
    pub fn told(&self) -> String {
        fs::read_to_string(&self.told).unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The most memory it ever had.
    pub fn peak_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }

    pub async fn ended(self) -> Ended {
        self.ended_within(PATIENCE).await
    }

    pub async fn ended_within(mut self, patience: Duration) -> Ended {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ended {
                    code: status.code(),
                    told: self.told(),
                    printed: fs::read_to_string(&self.printed).unwrap(),
                };
            }
            assert!(started.elapsed() < patience, "it does not end: {}", self.told());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Importer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A setup, and a worker where the importer does not bring its own.
pub async fn with_worker(pair: Pair) -> Option<(Setup, Option<Muster>)> {
    if !pair.is_there() {
        return None;
    }
    let setup = Setup::new(pair);
    let worker = match pair.0 {
        QueueKind::Rabbit => Some(setup.start_role("worker").await),
        QueueKind::Local => None,
    };
    Some((setup, worker))
}

/// Runs it to its end.
pub async fn import(setup: &Setup, arguments: &[&str]) -> Ended {
    Importer::start(setup, arguments).ended().await
}

/// A report's lines.
pub fn reports(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How many reports have each outcome, or each code where there is one.
pub fn outcomes(reports: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for report in reports {
        let word = report["code"].as_str().unwrap_or(report["outcome"].as_str().unwrap());
        *counts.entry(word.to_owned()).or_default() += 1;
    }
    counts
}

/// A user of a contract; the same number is the same user.
pub fn user(contract: ContractId, n: usize) -> Value {
    let (username, email) = (format!("user {n}"), format!("user{n}@example.com"));
    let password = format!("{}A1-{n}", super::ledger::PASSWORD);
    let name = json!({ "firstname": "Ann-Marie", "lastname": "O'Neil, \"Jr\"" });
    match contract {
        ContractId::Username => json!({ "username": username, "password": password }),
        ContractId::NestedName | ContractId::Register => {
            json!({ "fullname": name, "email": email, "password": password })
        }
        ContractId::FlatName => json!({
            "firstname": name["firstname"], "lastname": name["lastname"],
            "email": email, "password": password,
        }),
        ContractId::ErrorCode => {
            json!({ "username": username, "email": email, "password": password })
        }
    }
}

/// A hash that jBCrypt's tests publish, in the place of a user's password.
pub const HASH: &str = "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u";

/// The same user, whose password was hashed elsewhere.
pub fn hashed(mut user: Value) -> Value {
    user.as_object_mut().unwrap().remove("password");
    user["passwordHash"] = HASH.into();
    user
}

/// Users as NDJSON.
pub fn ndjson(users: impl Iterator<Item = Value>) -> String {
    users.map(|user| format!("{user}\n")).collect()
}

/// Users as CSV, their objects as dotted columns.
pub fn csv(users: impl Iterator<Item = Value>) -> String {
    let mut text = String::new();
    for user in users {
        let mut cells = Vec::new();
        flatten("", &user, &mut cells);
        let quoted = |cell: &str| format!("\"{}\"", cell.replace('"', "\"\""));
        if text.is_empty() {
            text += &cells.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
            text += "\r\n";
        }
        text += &cells.iter().map(|(_, cell)| quoted(cell)).collect::<Vec<_>>().join(",");
        text += "\r\n";
    }
    text
}

fn flatten(prefix: &str, value: &Value, cells: &mut Vec<(String, String)>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let gap = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{gap}{key}"), value, cells);
            }
        }
        Value::String(text) => cells.push((prefix.to_owned(), text.clone())),
        other => panic!("no cell is like {other}"),
    }
}

/// Compares reports with the store: each registered row is the user that the store has under its
/// registration, and no user belongs to two rows.
pub async fn assert_stored(setup: &Setup, reports: &[Value]) {
    let part = Health::default().part("store");
    let store = store::open(&setup.settings().store, &part).await.unwrap();
    let mut owners: HashMap<String, u64> = HashMap::new();
    for report in reports.iter().filter(|report| report["outcome"] == "registered") {
        let id: RegistrationId = serde_json::from_value(report["registrationId"].clone()).unwrap();
        let record = store.registered(&id).await.unwrap();
        let stored = record.unwrap_or_else(|| panic!("not in the store: {report}"));
        assert_eq!(report["userId"], stored.user.id.to_string(), "{report}");
        let line = report["line"].as_u64().unwrap();
        assert_eq!(owners.insert(stored.user.id.to_string(), line), None, "one user, two rows");
    }
}
