//! Runs a Prometheus server for a test, and `promtool`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;
use tempfile::TempDir;

use super::Client;
use super::muster::TIMEOUT;
use super::services::service;

/// Runs `promtool` with this input and fails unless it succeeds. Skipped without `TEST_PROMTOOL`.
pub fn promtool(arguments: &[&str], input: &str) {
    let Some(program) = service("TEST_PROMTOOL") else { return };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&text));
}

/// A running server with its own port and data. Dropping it kills the process and removes the data.
pub struct Prometheus {
    child: Child,
    client: Client,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts a server that scrapes these targets (job, address) four times a second and evaluates these
    /// rules. `None` without `TEST_PROMETHEUS`.
    pub fn scraping(targets: &[(&str, &str)], rules: &str) -> Option<Self> {
        let program = service("TEST_PROMETHEUS")?;
        let directory = TempDir::new().unwrap();
        let jobs = targets.iter().map(|(job, address)| {
            format!("  - job_name: {job}\n    static_configs: [{{ targets: [\"{address}\"] }}]\n")
        });
        let configuration = format!(
            "global: {{ scrape_interval: 250ms, evaluation_interval: 250ms }}\n\
             rule_files: [alerts.yml]\nscrape_configs:\n{}",
            jobs.collect::<String>()
        );
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("prometheus.yml"), configuration).unwrap();
        std::fs::write(at("alerts.yml"), rules).unwrap();
        let mut child = Command::new(program)
            .arg(format!("--config.file={}", at("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It logs its address, then that it is ready. The thread reads the rest so that the pipe does not fill.
        let (sender, ready) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            let mut address = None;
            for line in lines.map_while(Result::ok) {
                if let Some((_, listening)) = line.split_once("msg=\"Listening on\" address=") {
                    address = Some(listening.to_owned());
                }
                if line.contains("Server is ready")
                    && let Some(address) = address.take()
                {
                    let _ = sender.send(address);
                }
            }
        });
        let address = ready.recv_timeout(TIMEOUT).expect("Prometheus was not ready in time");
        Some(Self { child, client: Client::new(address), _directory: directory })
    }

    /// Runs a query. The error is the server's message about an invalid query.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let response = self.client.get(&format!("/api/v1/query?query={query}"), &[]).await;
        match response.json() {
            body if response.status == 200 => {
                Ok(body["data"]["result"].as_array().unwrap().clone())
            }
            body => Err(body.to_string()),
        }
    }

    /// The loaded rules with their health.
    pub async fn rules(&self) -> Vec<Value> {
        let body = self.client.get("/api/v1/rules", &[]).await.json();
        let groups = body["data"]["groups"].as_array().unwrap().clone();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
