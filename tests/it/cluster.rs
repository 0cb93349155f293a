//! Faults of one broker in a cluster of three, under load. `./tests/run` runs these tests one after the other and
//! lists their measurements. `trials` has the faults that take minutes.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use muster::domain::ContractId;

use crate::support::Setup;
use crate::support::cluster::{Cluster, ClusterFleet, ClusterProcess};
use crate::support::importer::{Importer, assert_stored, ndjson, outcomes, reports, user};
use crate::support::muster::eventually;
use crate::support::proxy::Proxy;
use crate::support::services::{PRODUCTION, report};

/// The broker that every process connects to first. It holds the queues that are not replicated.
pub const CONNECTED: usize = 0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kills a broker: ./tests/run runs it alone"]
async fn signups_survive_a_kill_of_the_connected_node() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    fleet
        .assert_survives(
            "connected node killed",
            async |fleet| {
                fleet.cluster.node("kill", CONNECTED).await;
                fleet.wait_for_profile().await;
            },
            async |fleet| fleet.cluster.repair().await,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs three brokers: ./tests/run runs it alone"]
async fn signups_survive_stalled_connections_to_the_connected_node() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    fleet
        .assert_survives(
            "connected node silent to its clients",
            async |fleet| fleet.proxies_to(CONNECTED, Proxy::stall),
            async |fleet| fleet.proxies_to(CONNECTED, Proxy::restore),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stops a broker: ./tests/run runs it alone"]
async fn queues_are_declared_while_a_node_is_down() {
    if !PRODUCTION.is_available() {
        return;
    }
    let Some(cluster) = Cluster::healthy().await else { return };
    cluster.node("stop", 2).await;
    let setup = Setup::on(PRODUCTION, cluster.url(0).to_owned());
    let started = std::time::Instant::now();
    let mut worker = ClusterProcess::new(&cluster, "worker", &setup).await;
    worker.start().await;
    let mut front = ClusterProcess::new(&cluster, "front", &setup).await;
    front.start().await;
    report(&format!(
        "cluster: queues declared while a node is down: ready after {:.1} s",
        started.elapsed().as_secs_f64()
    ));
    let body = serde_json::json!({ "username": "ann", "password": "never-seen-outside-1" });
    let headers = [("content-type", "application/json")];
    let response =
        front.client().send("POST", "/signup", &headers, body.to_string()).await.unwrap();
    assert_eq!(response.status, 201);
    cluster.repair().await;
    front.wait_for_readiness(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "restarts every broker: ./tests/run runs it alone"]
async fn rolling_restart_loses_no_signup_and_no_import_row() {
    const ROWS: usize = 200;
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    let import_process = ClusterProcess::new(&fleet.cluster, "import", &fleet.setup).await;
    let arguments = ["-", "--format", "ndjson", "--contract", "flat-name", "--in-flight", "32"];
    let arguments = [&arguments[..], &["--output", "report.ndjson"]].concat();
    let (input, mut rows) = std::io::pipe().unwrap();
    let importer = Importer::start_from(&import_process.setup, &arguments, Stdio::from(input));
    // Sends rows before, during and after the stop of each node.
    let mut sent = 0;
    let mut send = move || {
        let users = (sent..sent + ROWS).map(|n| user(ContractId::FlatName, n));
        rows.write_all(ndjson(users).as_bytes()).unwrap();
        sent += ROWS;
        sent
    };
    send();
    let path = fleet.setup.directory().join("report.ndjson");
    let setup = fleet.setup.clone();
    let report_path = path.clone();
    fleet
        .assert_survives(
            "every node drained and restarted in turn, with an import",
            async move |fleet| {
                for n in 0..fleet.cluster.len() {
                    fleet.cluster.stop_for_upgrade(n).await;
                    send();
                    fleet.ledger.wait_for_created(20).await;
                    fleet.cluster.repair().await;
                    let all = send();
                    eventually("a report for every row", async || {
                        let text = fs::read_to_string(&report_path).unwrap_or_default();
                        text.lines().count() == all
                    })
                    .await;
                }
            },
            async |_| {},
        )
        .await;
    let output = importer.wait_for_exit().await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let reports = reports(&fs::read_to_string(path).unwrap());
    assert_eq!(outcomes(&reports)["registered"], ROWS * 7);
    assert_stored(&setup, &reports).await;
}
