//! Frozen, partitioned and lost brokers in a cluster of three. RabbitMQ detects these faults after a minute or more,
//! so only `./tests/run trials::` runs them. `CLUSTER_FAULT_SECONDS=90` sets the minimum duration of a fault.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::cluster::CONNECTED;
use crate::support::cluster::{ClusterFleet, GapMonitor};
use crate::support::muster::eventually;
use crate::support::proxy::Proxy;
use crate::support::services::report;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "freezes a broker: ./tests/run runs it alone"]
async fn signups_survive_a_freeze_of_the_connected_node() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    fleet
        .assert_survives(
            "connected node frozen",
            async |fleet| fleet.cluster.node("freeze", CONNECTED).await,
            async |fleet| fleet.cluster.repair().await,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "cuts a broker off: ./tests/run runs it alone"]
async fn signups_survive_a_partition_of_the_connected_node() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    fleet
        .assert_survives(
            "connected node cut off from the others (pause_minority)",
            async |fleet| fleet.cluster.node("cut", CONNECTED).await,
            async |fleet| fleet.cluster.repair().await,
        )
        .await;
}

/// Longer than nodes take to declare a silent node down (`net_ticktime`, and a quarter more).
const NODE_DOWN: Duration = Duration::from_secs(80);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "cuts a broker off: ./tests/run runs it alone"]
async fn signups_survive_a_partition_with_ignore() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    fleet.cluster.handle_partitions("ignore").await;
    fleet
        .assert_survives(
            "connected node cut off for 80 s, and 60 s after the partition (ignore)",
            async |fleet| {
                fleet.cluster.node("cut", CONNECTED).await;
                sleep(NODE_DOWN).await;
            },
            async |fleet| {
                fleet.cluster.end_partitions().await;
                sleep(Duration::from_secs(60)).await;
                // Restarts the node, as the documentation requires.
                fleet.cluster.repair().await;
            },
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "raises an alarm on a broker: ./tests/run runs it alone"]
async fn memory_alarm_on_one_node_is_reported_and_signups_resume_after_it() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    let load = fleet.ledger.start_load(&fleet.addresses, 4);
    fleet.ledger.wait_for_created(20).await;
    let started = Instant::now();
    let elsewhere = CONNECTED + 1;
    fleet.cluster.ctl(elsewhere, &["set_vm_memory_high_watermark", "0.00001"]).await;
    let body = fleet.front.wait_for_readiness(false).await;
    let detected = started.elapsed();
    assert!(body.contains("alarm"), "{body}");
    let registration = fleet.ledger.registration();
    let response = fleet.ledger.register(&fleet.front.client(), &registration).await.unwrap();
    assert_eq!(response.status, 503);

    let before = fleet.ledger.created();
    fleet.cluster.ctl(elsewhere, &["set_vm_memory_high_watermark", "0.6"]).await;
    let cleared = Instant::now();
    fleet.wait_for_recovery(before + 1).await;
    let resumed = cleared.elapsed();
    for process in fleet.processes() {
        process.wait_for_readiness(true).await;
    }
    load.finish().await;
    let summary = fleet.repeat_and_compare().await;
    report(&format!(
        "cluster: memory alarm on one node: not ready after {:.1} s; a signup {:.1} s after it is cleared; {summary}",
        detected.as_secs_f64(),
        resumed.as_secs_f64(),
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "freezes a broker: ./tests/run runs it alone"]
async fn signups_survive_a_freeze_of_the_leader_elsewhere() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    // Moves the processes to other brokers. The leaders stay where the queues were declared.
    fleet.proxies_to(CONNECTED, Proxy::cut);
    for process in fleet.processes() {
        eventually("a connection to another broker", async || !process.connected().is_empty())
            .await;
        process.wait_for_readiness(true).await;
    }
    let leader = fleet.cluster.leader(&fleet.queue("interactive"), CONNECTED).await;
    assert_eq!(leader, CONNECTED);
    fleet
        .assert_survives(
            "leader frozen, processes connected to others",
            async |fleet| fleet.cluster.node("freeze", CONNECTED).await,
            async |fleet| {
                fleet.cluster.repair().await;
                fleet.proxies_to(CONNECTED, Proxy::restore);
            },
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stops two brokers: ./tests/run runs it alone"]
async fn lost_majority_is_reported_and_signups_resume() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    let load = fleet.ledger.start_load(&fleet.addresses, 4);
    fleet.ledger.wait_for_created(20).await;
    let started = Instant::now();
    fleet.cluster.node("kill", 1).await;
    fleet.cluster.node("kill", 2).await;
    let body = fleet.front.wait_for_readiness(false).await;
    let detected = started.elapsed();
    let registration = fleet.ledger.registration();
    let response = fleet.ledger.register(&fleet.front.client(), &registration).await.unwrap();
    assert!([500, 503].contains(&response.status), "{}", response.status);

    let (gaps, before) = (GapMonitor::start(&fleet.ledger), fleet.ledger.created());
    fleet.cluster.repair().await;
    fleet.wait_for_recovery(before + 20).await;
    fleet.front.wait_for_readiness(true).await;
    let repaired = gaps.longest();
    load.finish().await;
    let summary = fleet.repeat_and_compare().await;
    report(&format!(
        "cluster: majority lost: not ready after {:.1} s ({body}); a signup {:.1} s after the brokers were started; {summary}",
        detected.as_secs_f64(),
        repaired.as_secs_f64(),
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kills a broker: ./tests/run runs it alone"]
async fn processes_start_without_the_node_of_the_profile_queue() {
    let Some(fleet) = ClusterFleet::at(CONNECTED).await else { return };
    let holder = fleet.cluster.leader(&fleet.queue("profile"), CONNECTED).await;
    fleet
        .assert_survives(
            "node of the profile queue killed, a front and a worker restarted",
            async |fleet| {
                fleet.cluster.node("kill", holder).await;
                let started = Instant::now();
                fleet.workers[0].start().await;
                fleet.front.start().await;
                *fleet.addresses.lock().unwrap() = vec![fleet.front.client()];
                let ready = started.elapsed().as_secs_f64();
                report(&format!(
                    "cluster: node of the profile queue down: started in {ready:.1} s"
                ));
            },
            async |fleet| fleet.cluster.repair().await,
        )
        .await;
}
