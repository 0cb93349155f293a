//! Three brokers, of which one is killed, silent, stopped or missing while clients are at work. `./tests/run` runs
//! these by themselves, one after the other, and lists what they measure. Faults that take minutes are in `trials`.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use muster::signup::ContractId;

use crate::support::Setup;
use crate::support::cluster::{Cluster, ClusterRig, Member};
use crate::support::importer::{Importer, assert_stored, ndjson, outcomes, reports, user};
use crate::support::muster::eventually;
use crate::support::proxy::Proxy;
use crate::support::services::{PRODUCTION, report};

/// The broker that every process is connected to at first, and that holds what lies on one node only.
pub const CONNECTED: usize = 0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kills a broker: ./tests/run runs it alone"]
async fn signups_survive_a_kill_of_the_connected_node() {
    let Some(rig) = ClusterRig::at(CONNECTED).await else { return };
    rig.survives(
        "connected node killed",
        async |rig| {
            rig.cluster.node("kill", CONNECTED).await;
            rig.profile_is_answered().await;
        },
        async |rig| rig.cluster.mend().await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs three brokers: ./tests/run runs it alone"]
async fn signups_survive_silence_between_clients_and_the_connected_node() {
    let Some(rig) = ClusterRig::at(CONNECTED).await else { return };
    rig.survives(
        "connected node silent to its clients",
        async |rig| rig.links(CONNECTED, Proxy::stall),
        async |rig| rig.links(CONNECTED, Proxy::heal),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stops a broker: ./tests/run runs it alone"]
async fn queues_are_declared_while_a_node_is_down() {
    if !PRODUCTION.is_there() {
        return;
    }
    let Some(cluster) = Cluster::whole().await else { return };
    cluster.node("stop", 2).await;
    let setup = Setup::on(PRODUCTION, cluster.url(0).to_owned());
    let started = std::time::Instant::now();
    let mut worker = Member::new(&cluster, "worker", &setup).await;
    worker.start().await;
    let mut front = Member::new(&cluster, "front", &setup).await;
    front.start().await;
    report(&format!(
        "cluster: queues declared while a node is down: ready after {:.1} s",
        started.elapsed().as_secs_f64()
    ));
    let body = serde_json::json!({ "username": "ann", "password": "never-seen-outside-1" });
    let headers = [("content-type", "application/json")];
    let answer = front.client().send("POST", "/signup", &headers, body.to_string()).await.unwrap();
    assert_eq!(answer.status, 201);
    cluster.mend().await;
    front.is_ready(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "restarts every broker: ./tests/run runs it alone"]
async fn a_rolling_restart_loses_no_signup_and_no_row_of_an_import() {
    const ROWS: usize = 200;
    let Some(rig) = ClusterRig::at(CONNECTED).await else { return };
    let importing = Member::new(&rig.cluster, "import", &rig.setup).await;
    let arguments = ["-", "--format", "ndjson", "--contract", "flat-name", "--in-flight", "32"];
    let arguments = [&arguments[..], &["--output", "report.ndjson"]].concat();
    let (input, mut rows) = std::io::pipe().unwrap();
    let importer = Importer::start_from(&importing.setup, &arguments, Stdio::from(input));
    // Rows go in before, during and after the stop of each node.
    let mut sent = 0;
    let mut send = move || {
        let users = (sent..sent + ROWS).map(|n| user(ContractId::FlatName, n));
        rows.write_all(ndjson(users).as_bytes()).unwrap();
        sent += ROWS;
        sent
    };
    send();
    let path = rig.setup.directory().join("report.ndjson");
    let setup = rig.setup.clone();
    let reported = path.clone();
    rig.survives(
        "every node drained and restarted in turn, with an import",
        async move |rig| {
            for n in 0..rig.cluster.len() {
                rig.cluster.stop_for_upgrade(n).await;
                send();
                rig.ledger.goes_on(20).await;
                rig.cluster.mend().await;
                let all = send();
                eventually("every row", async || {
                    let text = fs::read_to_string(&reported).unwrap_or_default();
                    text.lines().count() == all
                })
                .await;
            }
        },
        async |_| {},
    )
    .await;
    let ended = importer.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    let reports = reports(&fs::read_to_string(path).unwrap());
    assert_eq!(outcomes(&reports)["registered"], ROWS * 7);
    assert_stored(&setup, &reports).await;
}
