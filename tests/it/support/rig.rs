//! Fronts and workers as processes of their own, each with a wire of its own to the broker and to
//! the store, and a ledger of what clients are told meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::broker::Broker;
use super::ledger::{Figures, Fronts, Ledger, users_in};
use super::muster::Setup;
use super::proxy::Proxy;
use super::secrets::secrets_in;
use super::services::{PRODUCTION, amqp_url, mongodb_url};
use super::{Client, Muster};

/// A process and its wires. The process may be gone, the wires stay.
#[derive(Debug)]
pub struct Node {
    role: &'static str,
    setup: Setup,
    pub broker: Proxy,
    pub store: Proxy,
    process: Option<Muster>,
    /// What processes wrote that are gone.
    written: Vec<String>,
}

impl Node {
    async fn new(role: &'static str, setup: &Setup) -> Self {
        let broker = Proxy::to(&amqp_url().unwrap()).await;
        let store = Proxy::to(&mongodb_url().unwrap()).await;
        // A heartbeat of a second, so that a silent wire is noticed while a test can wait for it.
        let queue = format!("{}?heartbeat=1", broker.url(&setup.environment["MUSTER_QUEUE"]));
        let users = store.url(&setup.environment["MUSTER_STORE"]);
        let setup = setup.clone().with("MUSTER_QUEUE", &queue).with("MUSTER_STORE", &users);
        Self { role, setup, broker, store, process: None, written: Vec::new() }
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(&mut self) {
        self.process = Some(self.setup.start_role(self.role).await);
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal("KILL");
        assert!(!process.ended().await.success());
        self.written.push(process.output());
    }

    /// Asks it to stop; a process that was not well would not end so.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal("TERM");
        assert!(process.ended().await.success());
        self.written.push(process.output());
    }

    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    pub fn process(&mut self) -> &mut Muster {
        self.process.as_mut().unwrap()
    }

    pub fn client(&self) -> Client {
        self.process.as_ref().unwrap().client().clone()
    }

    /// Waits until it has logged this.
    pub async fn says(&mut self, what: &str) {
        self.process().wait_for_log(|line| line.contains(what)).await;
    }

    /// Waits until it has logged a line whose `event` field has this name.
    pub async fn says_event(&mut self, name: &str) {
        self.process().wait_for_event(name).await;
    }

    /// Waits until `/ready` says so.
    pub async fn is_ready(&self, ready: bool) {
        let client = self.client();
        super::muster::eventually(&format!("ready: {ready}"), async || {
            let answer = client.send("GET", "/ready", &[], "").await.unwrap();
            (answer.status == 200) == ready
        })
        .await;
    }

    fn output(&self) -> String {
        let running = self.process.as_ref().map(Muster::output);
        self.written.iter().cloned().chain(running).collect::<Vec<_>>().join("\n")
    }
}

/// Everything a test breaks.
#[derive(Debug)]
pub struct Rig {
    pub fronts: Vec<Node>,
    pub workers: Vec<Node>,
    /// Where the fronts are that run.
    pub addresses: Fronts,
    pub ledger: Ledger,
    // Last, because it takes away what the others still use.
    pub setup: Setup,
}

impl Rig {
    /// So many fronts, running, and so many workers, not yet; none where there are no services.
    /// Whatever waits for the store gives up after a second, and clients after ten.
    pub async fn new(fronts: usize, workers: usize, settings: &[(&str, &str)]) -> Option<Self> {
        if !PRODUCTION.is_there() {
            return None;
        }
        let mut setup = Setup::new(PRODUCTION).with("MUSTER_STORE_TIMEOUT", "1s");
        for (name, value) in settings {
            setup = setup.with(name, value);
        }
        let mut rig = Self {
            fronts: Vec::new(),
            workers: Vec::new(),
            addresses: Arc::new(Mutex::new(Vec::new())),
            ledger: Ledger::default(),
            setup,
        };
        for _ in 0..workers {
            rig.workers.push(Node::new("worker", &rig.setup).await);
        }
        for _ in 0..fronts {
            rig.fronts.push(Node::new("front", &rig.setup).await);
        }
        for n in 0..fronts {
            rig.start_front(n).await;
        }
        Some(rig)
    }

    /// One front and two workers, all running.
    pub async fn running(settings: &[(&str, &str)]) -> Option<Self> {
        let mut rig = Self::new(1, 2, settings).await?;
        for worker in &mut rig.workers {
            worker.start().await;
        }
        Some(rig)
    }

    /// Starts a front and tells clients where it is.
    pub async fn start_front(&mut self, n: usize) {
        self.fronts[n].start().await;
        self.tell_addresses();
    }

    pub fn tell_addresses(&self) {
        let running = self.fronts.iter().filter(|front| front.process.is_some());
        *self.addresses.lock().unwrap() = running.map(Node::client).collect();
    }

    /// Breaks something while clients are at work. Before and after it they get on, and in the end
    /// everything is as promised.
    pub async fn under_load(mut self, fault: impl AsyncFnOnce(&mut Self)) {
        let ledger = self.ledger.clone();
        let load = ledger.drive(&self.addresses, 8);
        ledger.goes_on(20).await;
        fault(&mut self).await;
        ledger.goes_on(20).await;
        load.finish().await;
        self.settle().await.assert_kept();
    }

    /// The users there are.
    pub async fn users(&self) -> HashMap<String, Vec<String>> {
        users_in(&self.setup.environment["MUSTER_STORE"]).await
    }

    /// Messages that wait in a queue. Behind a registration a probe of the front may wait too.
    pub async fn messages(&self, queue: &str) -> u32 {
        Broker::connect().await.count(&format!("{}.{queue}", self.setup.namespace())).await
    }

    /// Consumers of a queue; none while it is not there.
    pub async fn consumers(&self, queue: &str) -> u32 {
        let broker = Broker::connect().await;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let name = format!("{}.{queue}", self.setup.namespace());
        let table = FieldTable::default();
        let queue = broker.channel.queue_declare(name.as_str().into(), options, table).await;
        queue.map_or(0, |queue| queue.consumer_count())
    }

    /// Repeats every registration, compares the ledger with the store, and looks for secrets in all
    /// that was written.
    pub async fn settle(&self) -> Figures {
        self.ledger.repeat_all(&self.addresses).await;
        let mut figures = self.ledger.compare(&self.users().await);
        for node in self.fronts.iter().chain(&self.workers) {
            figures.wrong.extend(secrets_in(&node.output()));
        }
        figures
    }
}
