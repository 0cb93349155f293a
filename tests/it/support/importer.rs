//! Runs `muster import` as a process, reads its report, and generates rows for it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use muster::domain::{ContractId, RegistrationId};
use muster::store;
use muster::telemetry::Health;
use serde_json::{Value, json};

use super::muster::TIMEOUT;
use super::{Muster, Pair, QueueAdapter, Setup};

/// A running import. Dropping it kills the process.
#[derive(Debug)]
pub struct Importer {
    child: Child,
    stderr: PathBuf,
    stdout: PathBuf,
}

/// Exit code and output of an import.
#[derive(Debug)]
pub struct ImportOutput {
    /// `None` if a signal ended the process.
    pub code: Option<i32>,
    /// Standard error: progress and errors.
    pub stderr: String,
    /// Standard output: the report, unless `--output` names a file.
    pub stdout: String,
}

impl Importer {
    /// Starts an import with these arguments and an empty standard input.
    pub fn start(setup: &Setup, arguments: &[&str]) -> Self {
        Self::start_from(setup, arguments, Stdio::null())
    }

    pub fn start_from(setup: &Setup, arguments: &[&str], input: Stdio) -> Self {
        let name = super::services::unique("import");
        let stderr = setup.directory().join(format!("{name}.stderr"));
        let stdout = setup.directory().join(format!("{name}.stdout"));
        let mut command = setup.command(&[&["import"], arguments].concat());
        let child = command
            .stdin(input)
            .stderr(fs::File::create(&stderr).unwrap())
            .stdout(fs::File::create(&stdout).unwrap())
            .spawn()
            .unwrap();
        Self { child, stderr, stdout }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its peak resident memory in KiB.
    pub fn peak_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }

    pub async fn wait_for_exit(self) -> ImportOutput {
        self.wait_for_exit_within(TIMEOUT).await
    }

    pub async fn wait_for_exit_within(mut self, timeout: Duration) -> ImportOutput {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return ImportOutput {
                    code: status.code(),
                    stderr: self.stderr(),
                    stdout: fs::read_to_string(&self.stdout).unwrap(),
                };
            }
            assert!(started.elapsed() < timeout, "the import did not exit: {}", self.stderr());
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

/// A setup, and a worker if the queue is a broker. With the local queue the import starts its own worker.
/// `None` without the services.
pub async fn with_worker(pair: Pair) -> Option<(Setup, Option<Muster>)> {
    if !pair.is_available() {
        return None;
    }
    let setup = Setup::new(pair);
    let worker = match pair.0 {
        QueueAdapter::Rabbit => Some(setup.start_role("worker").await),
        QueueAdapter::Local => None,
    };
    Some((setup, worker))
}

/// Runs an import and waits for its exit.
pub async fn import(setup: &Setup, arguments: &[&str]) -> ImportOutput {
    Importer::start(setup, arguments).wait_for_exit().await
}

/// Parses the lines of a report.
pub fn reports(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Number of reports by code, or by outcome where there is no code.
pub fn outcomes(reports: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for report in reports {
        let label = report["code"].as_str().unwrap_or(report["outcome"].as_str().unwrap());
        *counts.entry(label.to_owned()).or_default() += 1;
    }
    counts
}

/// The document of user number `n` in the form of a contract.
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

/// A hash from jBCrypt's tests.
pub const HASH: &str = "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u";

/// Replaces the password of a document by `passwordHash`.
pub fn with_password_hash(mut user: Value) -> Value {
    user.as_object_mut().unwrap().remove("password");
    user["passwordHash"] = HASH.into();
    user
}

/// Users as NDJSON.
pub fn ndjson(users: impl Iterator<Item = Value>) -> String {
    users.map(|user| format!("{user}\n")).collect()
}

/// Users as CSV; nested fields become dotted columns.
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
        other => panic!("not a string: {other}"),
    }
}

/// Compares reports with the store. Each registered row must have the user id that the store has for its
/// registration, and no two rows may have the same user.
pub async fn assert_stored(setup: &Setup, reports: &[Value]) {
    let part = Health::default().component("store");
    let store = store::open(&setup.settings().store, &part).await.unwrap();
    let mut owners: HashMap<String, u64> = HashMap::new();
    for report in reports.iter().filter(|report| report["outcome"] == "registered") {
        let id: RegistrationId = serde_json::from_value(report["registrationId"].clone()).unwrap();
        let record = store.find_by_registration(&id).await.unwrap();
        let stored = record.unwrap_or_else(|| panic!("not in the store: {report}"));
        assert_eq!(report["userId"], stored.user.id.to_string(), "{report}");
        let line = report["line"].as_u64().unwrap();
        assert_eq!(
            owners.insert(stored.user.id.to_string(), line),
            None,
            "two rows have the same user"
        );
    }
}
