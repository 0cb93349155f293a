//! A cluster of three brokers, and processes that reach each broker through a proxy. A test chooses the
//! broker that a process connects to, and stops brokers and proxies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::Muster;
use super::ledger::{FrontClients, Ledger, users_in};
use super::muster::{Setup, eventually};
use super::proxy::{Proxy, authority};
use super::services::{PRODUCTION, command, provided, report, try_command};

/// Number of clients, and their pause between two registrations. Frequent enough to measure a gap, few
/// enough to repeat all registrations at the end.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// Twice the time after which brokers declare a silent node down (`net_ticktime` plus 25 %).
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(150);

/// The brokers, numbered from 0.
#[derive(Clone, Debug)]
pub struct Cluster {
    urls: Vec<String>,
}

impl Cluster {
    /// Starts and connects all nodes. `None` without three brokers.
    pub async fn healthy() -> Option<Self> {
        provided("TEST_CLUSTER")?;
        let urls = provided("AMQP_CLUSTER_URLS")?;
        let cluster = Self { urls: urls.split_whitespace().map(str::to_owned).collect() };
        cluster.resume_nodes().await;
        if !cluster.is_healthy().await {
            cluster.repair().await;
        }
        // Required by docs/cluster.md; the previous test may have changed it.
        cluster.handle_partitions("pause_minority").await;
        Some(cluster)
    }

    pub fn len(&self) -> usize {
        self.urls.len()
    }

    pub fn url(&self, n: usize) -> &str {
        &self.urls[n]
    }

    /// Runs `start`, `launch`, `stop`, `kill`, `freeze`, `thaw` or `cut` (see tests/services/rabbitmq.sh).
    pub async fn node(&self, verb: &str, n: usize) {
        command("TEST_CLUSTER", &[verb, &name(n)]).await.unwrap();
    }

    /// Ends every network partition between nodes.
    pub async fn end_partitions(&self) {
        command("TEST_CLUSTER", &["heal"]).await.unwrap();
    }

    /// Runs one of RabbitMQ's command-line tools on a node.
    pub async fn run(&self, n: usize, program: &str, arguments: &[&str]) -> String {
        let node = name(n);
        let arguments = [&["run", &node, program, "-q"], arguments].concat();
        command("TEST_CLUSTER", &arguments).await.unwrap()
    }

    /// Runs `rabbitmqctl` on a node.
    pub async fn ctl(&self, n: usize, arguments: &[&str]) -> String {
        self.run(n, "rabbitmqctl", arguments).await
    }

    /// Stops a node as an upgrade does: waits until no quorum queue depends on it, moves its leaders, then
    /// stops it.
    pub async fn stop_for_upgrade(&self, n: usize) {
        let timeout = ["await_online_quorum_plus_one", "--timeout", "60"];
        self.run(n, "rabbitmq-upgrade", &timeout).await;
        // 3.10.8 fails if a connection ends during the drain (noproc; no issue filed).
        let node = name(n);
        let drain = ["run", &node, "rabbitmq-upgrade", "-q", "drain"];
        let drained = async || try_command("TEST_CLUSTER", &drain).await.is_some();
        eventually("a drained node", drained).await;
        self.node("stop", n).await;
    }

    /// Sets `cluster_partition_handling` of every broker.
    pub async fn handle_partitions(&self, mode: &str) {
        let set = format!("application:set_env(rabbit, cluster_partition_handling, {mode}).");
        for n in 0..self.len() {
            self.ctl(n, &["eval", &set]).await;
        }
    }

    /// Starts stopped nodes, ends every partition, and waits until all nodes form one cluster.
    pub async fn repair(&self) {
        self.resume_nodes().await;
        for n in 0..self.len() {
            self.node("start", n).await;
        }
        let mut checks = 0;
        eventually("all nodes to form one cluster", async || {
            checks += 1;
            // A node that was frozen longer than the others' timeout keeps its own view of the cluster.
            if checks % 5 == 0 {
                self.restart_isolated_nodes().await;
            }
            self.is_healthy().await
        })
        .await;
    }

    /// Ends every freeze and partition and starts stopped nodes, without waiting for them.
    async fn resume_nodes(&self) {
        self.end_partitions().await;
        for n in 0..self.len() {
            self.node("launch", n).await;
            self.node("thaw", n).await;
        }
    }

    /// Whether every node sees all nodes as running.
    async fn is_healthy(&self) -> bool {
        let counts = "lists:sum([case rpc:call(N, mnesia, system_info, [running_db_nodes]) of \
            L when is_list(L) -> length(L); _ -> 0 end || N <- mnesia:system_info(db_nodes)]).";
        let program = ["run", &name(0), "rabbitmqctl", "-q", "--timeout", "20", "eval", counts];
        // A starting node answers with an error.
        let printed = try_command("TEST_CLUSTER", &program).await;
        printed.is_some_and(|sum| sum.trim() == (self.len() * self.len()).to_string())
    }

    async fn restart_isolated_nodes(&self) {
        for n in 0..self.len() {
            let count = "length(mnesia:system_info(running_db_nodes)).";
            let (node, timeout) = (name(n), ["--timeout", "20"]);
            let program = [&["run", &node, "rabbitmqctl", "-q"], &timeout[..], &["eval", count]];
            let printed = try_command("TEST_CLUSTER", &program.concat()).await;
            if printed.is_none_or(|count| count.trim() == "1") {
                self.node("stop", n).await;
                self.node("start", n).await;
            }
        }
    }

    /// The node that leads a queue, or holds it if it is not replicated. `via` is the node that is queried.
    pub async fn leader(&self, queue: &str, via: usize) -> usize {
        let listed = self.ctl(via, &["list_queues", "name", "pid", "--no-table-headers"]).await;
        let line = listed.lines().find(|line| line.split('\t').next() == Some(queue)).unwrap();
        (0..self.len()).find(|n| line.contains(&format!("-{}@", name(*n)))).unwrap()
    }
}

fn name(n: usize) -> String {
    format!("node{}", n + 1)
}

/// A process with a proxy to each broker.
#[derive(Debug)]
pub struct ClusterProcess {
    role: &'static str,
    pub setup: Setup,
    pub proxies: Vec<Proxy>,
    process: Option<Muster>,
}

impl ClusterProcess {
    pub async fn new(cluster: &Cluster, role: &'static str, setup: &Setup) -> Self {
        let mut proxies = Vec::new();
        for n in 0..cluster.len() {
            proxies.push(Proxy::to(cluster.url(n)).await);
        }
        let hosts: Vec<String> = proxies.iter().map(Proxy::address).collect();
        let url = cluster.url(0);
        let url = url.replace(&authority(url), &hosts.join(","));
        Self { role, setup: setup.clone().with("MUSTER_QUEUE", &url), proxies, process: None }
    }

    /// Starts the process with only one broker reachable, then makes all brokers reachable.
    pub async fn start_at(&mut self, n: usize) {
        for (other, proxy) in self.proxies.iter().enumerate() {
            if other == n { proxy.restore() } else { proxy.cut() }
        }
        self.start().await;
        self.proxies.iter().for_each(Proxy::restore);
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&mut self) {
        self.process = Some(self.setup.start_role(self.role).await);
    }

    pub fn client(&self) -> super::Client {
        self.process.as_ref().unwrap().client().clone()
    }

    /// Numbers of the brokers that the process is connected to.
    pub fn connected(&self) -> Vec<usize> {
        (0..self.proxies.len()).filter(|n| self.proxies[*n].open() > 0).collect()
    }

    /// Waits until `/ready` answers 200 (`true`) or something else (`false`), and returns its body.
    pub async fn wait_for_readiness(&self, ready: bool) -> String {
        let (client, mut body) = (self.client(), String::new());
        eventually(&format!("ready: {ready}"), async || {
            let response = client.send("GET", "/ready", &[], "").await.unwrap();
            body = response.json().to_string();
            (response.status == 200) == ready
        })
        .await;
        body
    }
}

/// A front and two workers on three brokers, and a ledger of the registrations.
#[derive(Debug)]
pub struct ClusterFleet {
    pub cluster: Cluster,
    pub front: ClusterProcess,
    pub workers: Vec<ClusterProcess>,
    pub addresses: FrontClients,
    pub ledger: Ledger,
    // Last: dropping it removes the queues and the database that the processes use.
    pub setup: Setup,
}

impl ClusterFleet {
    /// Starts all processes connected to broker `n`, on which they declare the queues.
    pub async fn at(n: usize) -> Option<Self> {
        if !PRODUCTION.is_available() {
            return None;
        }
        let cluster = Cluster::healthy().await?;
        // The cleanup uses a broker that the tests do not stop.
        let setup = Setup::on(PRODUCTION, cluster.url((n + 1) % cluster.len()).to_owned());
        let mut fleet = Self {
            front: ClusterProcess::new(&cluster, "front", &setup).await,
            workers: vec![
                ClusterProcess::new(&cluster, "worker", &setup).await,
                ClusterProcess::new(&cluster, "worker", &setup).await,
            ],
            addresses: Arc::new(Mutex::new(Vec::new())),
            ledger: Ledger::default(),
            cluster,
            setup,
        };
        for worker in &mut fleet.workers {
            worker.start_at(n).await;
        }
        fleet.front.start_at(n).await;
        let front = &fleet.front;
        eventually("a standby connection to another broker", async || front.connected().len() > 1)
            .await;
        *fleet.addresses.lock().unwrap() = vec![fleet.front.client()];
        Some(fleet)
    }

    pub fn processes(&self) -> impl Iterator<Item = &ClusterProcess> {
        self.workers.iter().chain([&self.front])
    }

    /// Changes the proxies of all processes to one broker.
    pub fn proxies_to(&self, n: usize, change: impl Fn(&Proxy)) {
        self.processes().for_each(|process| change(&process.proxies[n]));
    }

    pub fn queue(&self, name: &str) -> String {
        format!("{}.{name}", self.setup.namespace())
    }

    /// Registers a user and waits until a request for its profile succeeds.
    pub async fn wait_for_profile(&self) {
        let registration = self.ledger.registration();
        self.ledger.retry_until_final(&self.addresses, &registration).await;
        let response = self.ledger.register(&self.front.client(), &registration).await.unwrap();
        let bearer = format!("Bearer {}", response.json()["token"].as_str().unwrap());
        let client = self.front.client();
        eventually("a profile", async || {
            let headers = [("authorization", bearer.as_str())];
            let response = client.send("GET", "/users/profile", &headers, "").await;
            response.is_ok_and(|response| response.status == 200)
        })
        .await;
    }

    /// Causes a fault under load. `fault` begins it, `repair` ends it. Signups must succeed before, during
    /// and after it, and no user may be lost or duplicated. Reports the longest time without a signup.
    pub async fn assert_survives(
        mut self,
        what: &str,
        fault: impl AsyncFnOnce(&mut Self),
        repair: impl AsyncFnOnce(&mut Self),
    ) {
        let load = self.ledger.start_load_with(&self.addresses, CLIENTS, PAUSE);
        self.ledger.wait_for_created(20).await;

        let gaps = GapMonitor::start(&self.ledger);
        let before = self.ledger.created();
        fault(&mut self).await;
        self.wait_for_recovery(before + 20).await;
        tokio::time::sleep(min_fault_duration()).await;
        let broken = gaps.longest();
        let gaps = GapMonitor::start(&self.ledger);
        repair(&mut self).await;
        self.ledger.wait_for_created(20).await;
        for process in self.processes() {
            process.wait_for_readiness(true).await;
        }
        let repaired = gaps.longest();
        self.wait_for_profile().await;

        load.finish().await;
        let summary = self.repeat_and_compare().await;
        report(&format!(
            "cluster: {what}: longest time without a signup {:.1} s, while it is repaired {:.1} s; {:?}",
            broken.as_secs_f64(),
            repaired.as_secs_f64(),
            summary,
        ));
    }

    /// Waits until this many registrations are created, longer than brokers take to declare a node down.
    /// The report shows the time.
    pub async fn wait_for_recovery(&self, created: usize) {
        let started = Instant::now();
        while self.ledger.created() < created {
            assert!(
                started.elapsed() < RECOVERY_TIMEOUT,
                "signups did not resume within {RECOVERY_TIMEOUT:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Repeats every registration and compares the ledger with the store.
    pub async fn repeat_and_compare(&self) -> String {
        self.ledger.repeat_all(&self.addresses).await;
        let summary = self.ledger.compare(&self.users().await);
        summary.assert_consistent();
        format!("{} users, {:?}", summary.registrations, summary.responses)
    }

    pub async fn users(&self) -> HashMap<String, Vec<String>> {
        users_in(&self.setup.environment["MUSTER_STORE"]).await
    }
}

/// Minimum duration of a fault (`CLUSTER_FAULT_SECONDS`, default 0). After it, a test continues once signups
/// succeed.
pub fn min_fault_duration() -> Duration {
    let seconds = std::env::var("CLUSTER_FAULT_SECONDS").ok();
    Duration::from_secs(seconds.map_or(0, |seconds| seconds.parse().unwrap()))
}

/// Measures the longest time without a new registration.
#[derive(Debug)]
pub struct GapMonitor {
    state: Arc<Mutex<(Instant, Duration)>>,
    task: JoinHandle<()>,
}

impl GapMonitor {
    pub fn start(ledger: &Ledger) -> Self {
        let state = Arc::new(Mutex::new((Instant::now(), Duration::ZERO)));
        let (shared, ledger) = (state.clone(), ledger.clone());
        let task = tokio::spawn(async move {
            let mut created = ledger.created();
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let now = ledger.created();
                let mut state = shared.lock().unwrap();
                state.1 = state.1.max(state.0.elapsed());
                if now > created {
                    (created, state.0) = (now, Instant::now());
                }
            }
        });
        Self { state, task }
    }

    /// Stops the measurement and returns the longest gap.
    pub fn longest(self) -> Duration {
        self.task.abort();
        self.state.lock().unwrap().1
    }
}
