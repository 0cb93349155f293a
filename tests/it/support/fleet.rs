//! A fleet of front and worker processes. Each process reaches the broker and the store through its own proxies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::broker::Broker;
use super::ledger::{FrontClients, Ledger, LedgerSummary, users_in};
use super::muster::Setup;
use super::proxy::Proxy;
use super::secrets::lines_with_secrets;
use super::services::{PRODUCTION, amqp_url, mongodb_url};
use super::{Client, Muster};

/// A process and its two proxies. The proxies stay when the process ends.
#[derive(Debug)]
pub struct ProxiedProcess {
    role: &'static str,
    setup: Setup,
    pub broker: Proxy,
    pub store: Proxy,
    process: Option<Muster>,
    /// Output of the earlier processes.
    past_output: Vec<String>,
}

impl ProxiedProcess {
    async fn new(role: &'static str, setup: &Setup) -> Self {
        let broker = Proxy::to(&amqp_url().unwrap()).await;
        let store = Proxy::to(&mongodb_url().unwrap()).await;
        // A heartbeat of one second, so that muster detects a stalled connection within a test.
        let queue = format!("{}?heartbeat=1", broker.url(&setup.environment["MUSTER_QUEUE"]));
        let users = store.url(&setup.environment["MUSTER_STORE"]);
        let setup = setup.clone().with("MUSTER_QUEUE", &queue).with("MUSTER_STORE", &users);
        Self { role, setup, broker, store, process: None, past_output: Vec::new() }
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&mut self) {
        self.process = Some(self.setup.start_role(self.role).await);
    }

    /// Sends SIGKILL and waits for the exit.
    pub async fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal("KILL");
        assert!(!process.wait_for_exit().await.success());
        self.past_output.push(process.output());
    }

    /// Stops the process with SIGTERM. Fails if its exit code is not 0.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal("TERM");
        assert!(process.wait_for_exit().await.success());
        self.past_output.push(process.output());
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub fn process(&mut self) -> &mut Muster {
        self.process.as_mut().unwrap()
    }

    pub fn client(&self) -> Client {
        self.process.as_ref().unwrap().client().clone()
    }

    /// Waits for a log line whose `event` field has this name.
    pub async fn wait_for_event(&mut self, name: &str) {
        self.process().wait_for_event(name).await;
    }

    /// As [`Self::wait_for_event`], for a line that also contains `text`.
    pub async fn wait_for_event_with(&mut self, name: &str, text: &str) {
        self.process().wait_for_event_with(name, text).await;
    }

    /// Waits until `/ready` answers 200 (`true`) or something else (`false`).
    pub async fn wait_for_readiness(&self, ready: bool) {
        let client = self.client();
        super::muster::eventually(&format!("ready: {ready}"), async || {
            let response = client.send("GET", "/ready", &[], "").await.unwrap();
            (response.status == 200) == ready
        })
        .await;
    }

    fn output(&self) -> String {
        let running = self.process.as_ref().map(Muster::output);
        self.past_output.iter().cloned().chain(running).collect::<Vec<_>>().join("\n")
    }
}

/// Fronts, workers and a ledger, on one broker and one store.
#[derive(Debug)]
pub struct Fleet {
    pub fronts: Vec<ProxiedProcess>,
    pub workers: Vec<ProxiedProcess>,
    /// Clients for the running fronts.
    pub addresses: FrontClients,
    pub ledger: Ledger,
    // Last: dropping it removes the queues and the database that the processes use.
    pub setup: Setup,
}

impl Fleet {
    /// Starts the fronts; the test starts the workers. `None` without a broker and a database.
    /// `store.timeout` is one second unless the settings change it.
    pub async fn new(fronts: usize, workers: usize, settings: &[(&str, &str)]) -> Option<Self> {
        if !PRODUCTION.is_available() {
            return None;
        }
        let mut setup = Setup::new(PRODUCTION).with("MUSTER_STORE_TIMEOUT", "1s");
        for (name, value) in settings {
            setup = setup.with(name, value);
        }
        let mut fleet = Self {
            fronts: Vec::new(),
            workers: Vec::new(),
            addresses: Arc::new(Mutex::new(Vec::new())),
            ledger: Ledger::default(),
            setup,
        };
        for _ in 0..workers {
            fleet.workers.push(ProxiedProcess::new("worker", &fleet.setup).await);
        }
        for _ in 0..fronts {
            fleet.fronts.push(ProxiedProcess::new("front", &fleet.setup).await);
        }
        for n in 0..fronts {
            fleet.start_front(n).await;
        }
        Some(fleet)
    }

    /// Starts one front and two workers.
    pub async fn running(settings: &[(&str, &str)]) -> Option<Self> {
        let mut fleet = Self::new(1, 2, settings).await?;
        for worker in &mut fleet.workers {
            worker.start().await;
        }
        Some(fleet)
    }

    /// Starts a front and gives its address to the clients.
    pub async fn start_front(&mut self, n: usize) {
        self.fronts[n].start().await;
        self.update_addresses();
    }

    /// Gives the addresses of the running fronts to the clients.
    pub fn update_addresses(&self) {
        let running = self.fronts.iter().filter(|front| front.process.is_some());
        *self.addresses.lock().unwrap() = running.map(ProxiedProcess::client).collect();
    }

    /// Causes a fault under load. Signups must succeed before and after it, and the ledger must match the
    /// store at the end.
    pub async fn under_load(mut self, fault: impl AsyncFnOnce(&mut Self)) {
        let ledger = self.ledger.clone();
        let load = ledger.start_load(&self.addresses, 8);
        ledger.wait_for_created(20).await;
        fault(&mut self).await;
        ledger.wait_for_created(20).await;
        load.finish().await;
        self.repeat_and_compare().await.assert_consistent();
    }

    /// Ids of all users in the store, by name.
    pub async fn users(&self) -> HashMap<String, Vec<String>> {
        users_in(&self.setup.environment["MUSTER_STORE"]).await
    }

    /// Number of ready messages in a queue. Next to registrations there may be a probe from the front.
    pub async fn messages(&self, queue: &str) -> u32 {
        Broker::connect().await.count(&format!("{}.{queue}", self.setup.namespace())).await
    }

    /// Number of consumers of a queue; 0 if the queue does not exist.
    pub async fn consumers(&self, queue: &str) -> u32 {
        let broker = Broker::connect().await;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let name = format!("{}.{queue}", self.setup.namespace());
        let table = FieldTable::default();
        let queue = broker.channel.queue_declare(name.as_str().into(), options, table).await;
        queue.map_or(0, |queue| queue.consumer_count())
    }

    /// Repeats every registration, compares the ledger with the store, and searches the output of all
    /// processes for secrets.
    pub async fn repeat_and_compare(&self) -> LedgerSummary {
        self.ledger.repeat_all(&self.addresses).await;
        let mut summary = self.ledger.compare(&self.users().await);
        for node in self.fronts.iter().chain(&self.workers) {
            summary.unexpected.extend(lines_with_secrets(&node.output()));
        }
        summary
    }
}
