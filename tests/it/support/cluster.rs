//! Three brokers as a cluster, and processes that reach each of them by a link of their own, so that a test
//! chooses which broker a process is connected to, and takes brokers and links away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::Muster;
use super::ledger::{Fronts, Ledger, users_in};
use super::muster::{Setup, eventually};
use super::proxy::{Proxy, authority};
use super::services::{PRODUCTION, command, provided, report, try_command};

/// Clients at work, and their pause between two registrations: enough to see a gap, few enough to repeat
/// them all at the end.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// Twice the time after which brokers give a silent node up (`net_ticktime`, and a quarter more).
const GIVEN_UP: Duration = Duration::from_secs(150);

/// The brokers, numbered from 0.
#[derive(Clone, Debug)]
pub struct Cluster {
    urls: Vec<String>,
}

impl Cluster {
    /// All nodes running and connected; none where there are no three brokers.
    pub async fn whole() -> Option<Self> {
        provided("TEST_CLUSTER")?;
        let urls = provided("AMQP_CLUSTER_URLS")?;
        let cluster = Self { urls: urls.split_whitespace().map(str::to_owned).collect() };
        cluster.wake().await;
        if !cluster.is_whole().await {
            cluster.mend().await;
        }
        // What docs/cluster.md asks for, whatever the test before set.
        cluster.handle_partitions("pause_minority").await;
        Some(cluster)
    }

    pub fn len(&self) -> usize {
        self.urls.len()
    }

    pub fn url(&self, n: usize) -> &str {
        &self.urls[n]
    }

    /// `start`, `launch`, `stop`, `kill`, `freeze`, `thaw` or `cut` (see tests/services/rabbitmq.sh).
    pub async fn node(&self, verb: &str, n: usize) {
        command("TEST_CLUSTER", &[verb, &name(n)]).await.unwrap();
    }

    /// Ends every cut between nodes.
    pub async fn heal(&self) {
        command("TEST_CLUSTER", &["heal"]).await.unwrap();
    }

    /// One of RabbitMQ's own programs on a node.
    pub async fn run(&self, n: usize, program: &str, arguments: &[&str]) -> String {
        let node = name(n);
        let arguments = [&["run", &node, program, "-q"], arguments].concat();
        command("TEST_CLUSTER", &arguments).await.unwrap()
    }

    /// `rabbitmqctl` on a node.
    pub async fn ctl(&self, n: usize, arguments: &[&str]) -> String {
        self.run(n, "rabbitmqctl", arguments).await
    }

    /// Stops a node as an upgrade does: once no quorum queue depends on it, and after it gave up its leaders.
    pub async fn stop_for_upgrade(&self, n: usize) {
        let timeout = ["await_online_quorum_plus_one", "--timeout", "60"];
        self.run(n, "rabbitmq-upgrade", &timeout).await;
        self.run(n, "rabbitmq-upgrade", &["drain"]).await;
        self.node("stop", n).await;
    }

    /// Sets how every broker deals with a partition.
    pub async fn handle_partitions(&self, how: &str) {
        let set = format!("application:set_env(rabbit, cluster_partition_handling, {how}).");
        for n in 0..self.len() {
            self.ctl(n, &["eval", &set]).await;
        }
    }

    /// Starts what does not run, ends every cut, and waits until all nodes form one cluster.
    pub async fn mend(&self) {
        self.wake().await;
        for n in 0..self.len() {
            self.node("start", n).await;
        }
        let mut checks = 0;
        eventually("one cluster", async || {
            checks += 1;
            // A node that was frozen for longer than the others waited for it keeps a view of its own.
            if checks % 5 == 0 {
                self.restart_loners().await;
            }
            self.is_whole().await
        })
        .await;
    }

    /// Starts what does not run, without a wait, and ends every freeze and cut: a frozen node answers nobody.
    async fn wake(&self) {
        self.heal().await;
        for n in 0..self.len() {
            self.node("launch", n).await;
            self.node("thaw", n).await;
        }
    }

    /// Whether every node counts all others as running.
    async fn is_whole(&self) -> bool {
        let counts = "lists:sum([case rpc:call(N, mnesia, system_info, [running_db_nodes]) of \
            L when is_list(L) -> length(L); _ -> 0 end || N <- rabbit_nodes:list_members()]).";
        let program = ["run", &name(0), "rabbitmqctl", "-q", "--timeout", "20", "eval", counts];
        // A node that is about to start answers with an error.
        let printed = try_command("TEST_CLUSTER", &program).await;
        printed.is_some_and(|sum| sum.trim() == (self.len() * self.len()).to_string())
    }

    async fn restart_loners(&self) {
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

    /// The node whose process leads a queue, or holds it.
    pub async fn leader(&self, queue: &str, ask: usize) -> usize {
        let listed = self.ctl(ask, &["list_queues", "name", "pid", "--no-table-headers"]).await;
        let line = listed.lines().find(|line| line.split('\t').next() == Some(queue)).unwrap();
        (0..self.len()).find(|n| line.contains(&format!("-{}@", name(*n)))).unwrap()
    }
}

fn name(n: usize) -> String {
    format!("node{}", n + 1)
}

/// A process, and a link of its own to each broker.
#[derive(Debug)]
pub struct Member {
    role: &'static str,
    pub setup: Setup,
    pub links: Vec<Proxy>,
    process: Option<Muster>,
}

impl Member {
    pub async fn new(cluster: &Cluster, role: &'static str, setup: &Setup) -> Self {
        let mut links = Vec::new();
        for n in 0..cluster.len() {
            links.push(Proxy::to(cluster.url(n)).await);
        }
        let hosts: Vec<String> = links.iter().map(Proxy::address).collect();
        let url = cluster.url(0);
        let url = url.replace(&authority(url), &hosts.join(","));
        Self { role, setup: setup.clone().with("MUSTER_QUEUE", &url), links, process: None }
    }

    /// Starts it where only one broker can be reached, then lets it reach all.
    pub async fn start_at(&mut self, n: usize) {
        for (other, link) in self.links.iter().enumerate() {
            if other == n { link.heal() } else { link.cut() }
        }
        self.start().await;
        self.links.iter().for_each(Proxy::heal);
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(&mut self) {
        self.process = Some(self.setup.start_role(self.role).await);
    }

    pub fn client(&self) -> super::Client {
        self.process.as_ref().unwrap().client().clone()
    }

    /// Brokers that it is connected to.
    pub fn connected(&self) -> Vec<usize> {
        (0..self.links.len()).filter(|n| self.links[*n].open() > 0).collect()
    }

    /// Waits until `/ready` says so, and gives its body.
    pub async fn is_ready(&self, ready: bool) -> String {
        let (client, mut body) = (self.client(), String::new());
        eventually(&format!("ready: {ready}"), async || {
            let answer = client.send("GET", "/ready", &[], "").await.unwrap();
            body = answer.json().to_string();
            (answer.status == 200) == ready
        })
        .await;
        body
    }
}

/// A front and two workers on three brokers, and a ledger of what clients are told.
#[derive(Debug)]
pub struct ClusterRig {
    pub cluster: Cluster,
    pub front: Member,
    pub workers: Vec<Member>,
    pub addresses: Fronts,
    pub ledger: Ledger,
    // Last, because it takes away what the others still use.
    pub setup: Setup,
}

impl ClusterRig {
    /// All processes run, connected to the same broker, whose queues are declared there.
    pub async fn at(n: usize) -> Option<Self> {
        if !PRODUCTION.is_there() {
            return None;
        }
        let cluster = Cluster::whole().await?;
        // The queues are removed over a broker that no fault is about.
        let setup = Setup::on(PRODUCTION, cluster.url((n + 1) % cluster.len()).to_owned());
        let mut rig = Self {
            front: Member::new(&cluster, "front", &setup).await,
            workers: vec![
                Member::new(&cluster, "worker", &setup).await,
                Member::new(&cluster, "worker", &setup).await,
            ],
            addresses: Arc::new(Mutex::new(Vec::new())),
            ledger: Ledger::default(),
            cluster,
            setup,
        };
        for worker in &mut rig.workers {
            worker.start_at(n).await;
        }
        rig.front.start_at(n).await;
        let front = &rig.front;
        eventually("a standby elsewhere", async || front.connected().len() > 1).await;
        *rig.addresses.lock().unwrap() = vec![rig.front.client()];
        Some(rig)
    }

    /// Every process.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.workers.iter().chain([&self.front])
    }

    /// Does something to the links of all processes to one broker.
    pub fn links(&self, n: usize, change: impl Fn(&Proxy)) {
        self.members().for_each(|member| change(&member.links[n]));
    }

    pub fn queue(&self, name: &str) -> String {
        format!("{}.{name}", self.setup.namespace())
    }

    /// Waits until a request for a profile gets it.
    pub async fn profile_is_answered(&self) {
        let asked = self.ledger.registration();
        self.ledger.insist(&self.addresses, &asked).await;
        let answer = self.ledger.ask(&self.front.client(), &asked).await.unwrap();
        let bearer = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
        let client = self.front.client();
        eventually("a profile", async || {
            let headers = [("authorization", bearer.as_str())];
            let answer = client.send("GET", "/users/profile", &headers, "").await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// Breaks something while clients are at work. Before, during and after it they get on, and in the end
    /// no user is lost or doubled. `fault` begins it, `repair` ends it; the longest time without a
    /// signup is reported for both.
    pub async fn survives(
        mut self,
        what: &str,
        fault: impl AsyncFnOnce(&mut Self),
        repair: impl AsyncFnOnce(&mut Self),
    ) {
        let load = self.ledger.drive_with(&self.addresses, CLIENTS, PAUSE);
        self.ledger.goes_on(20).await;

        let gaps = Gaps::watch(&self.ledger);
        let before = self.ledger.created();
        fault(&mut self).await;
        self.resumes(before + 20).await;
        tokio::time::sleep(held()).await;
        let broken = gaps.longest();
        let gaps = Gaps::watch(&self.ledger);
        repair(&mut self).await;
        self.ledger.goes_on(20).await;
        for member in self.members() {
            member.is_ready(true).await;
        }
        let repaired = gaps.longest();
        self.profile_is_answered().await;

        load.finish().await;
        let figures = self.settle().await;
        report(&format!(
            "cluster: {what}: longest time without a signup {:.1} s, while it is repaired {:.1} s; {:?}",
            broken.as_secs_f64(),
            repaired.as_secs_f64(),
            figures,
        ));
    }

    /// Waits until so many registrations are created, for longer than the brokers take to give a node up: how
    /// soon it is belongs into the report.
    pub async fn resumes(&self, created: usize) {
        let started = Instant::now();
        while self.ledger.created() < created {
            assert!(started.elapsed() < GIVEN_UP, "signups do not resume");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Repeats every registration and compares the ledger with the store.
    pub async fn settle(&self) -> String {
        self.ledger.repeat_all(&self.addresses).await;
        let figures = self.ledger.compare(&self.users().await);
        figures.assert_kept();
        format!("{} users, {:?}", figures.registrations, figures.answers)
    }

    pub async fn users(&self) -> HashMap<String, Vec<String>> {
        users_in(&self.setup.environment["MUSTER_STORE"]).await
    }
}

/// How long a fault lasts at least: `CLUSTER_FAULT_SECONDS`, for measuring. A test goes on once signups do.
pub fn held() -> Duration {
    let seconds = std::env::var("CLUSTER_FAULT_SECONDS").ok();
    Duration::from_secs(seconds.map_or(0, |seconds| seconds.parse().unwrap()))
}

/// Watches how long no registration is created.
#[derive(Debug)]
pub struct Gaps {
    state: Arc<Mutex<(Instant, Duration)>>,
    watching: JoinHandle<()>,
}

impl Gaps {
    pub fn watch(ledger: &Ledger) -> Self {
        let state = Arc::new(Mutex::new((Instant::now(), Duration::ZERO)));
        let (shared, ledger) = (state.clone(), ledger.clone());
        let watching = tokio::spawn(async move {
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
        Self { state, watching }
    }

    /// The longest time so far.
    pub fn longest(self) -> Duration {
        self.watching.abort();
        self.state.lock().unwrap().1
    }
}
