//! Brokers that are frozen, cut off or without a majority: faults that RabbitMQ itself notices after a minute
//! or more, so they are measured by hand and not in each run.
//!
//! `./tests/run trials::`; `CLUSTER_FAULT_SECONDS=90` makes each fault last at least so long.

use crate::cluster::CONNECTED;
use crate::support::cluster::{ClusterRig, Gaps};
use crate::support::muster::eventually;
use crate::support::proxy::Proxy;
use crate::support::services::report;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "freezes a broker: ./tests/run runs it alone"]
async fn signups_survive_a_freeze_of_the_connected_node() {
    let Some(rig) = ClusterRig::at(CONNECTED).await else { return };
    rig.survives(
        "connected node frozen",
        async |rig| rig.cluster.node("freeze", CONNECTED).await,
        async |rig| rig.cluster.mend().await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "cuts a broker off: ./tests/run runs it alone"]
async fn signups_survive_a_partition_of_the_connected_node() {
    let Some(rig) = ClusterRig::at(CONNECTED).await else { return };
    rig.survives(
        "connected node cut off from the others (pause_minority)",
        async |rig| rig.cluster.node("cut", CONNECTED).await,
        async |rig| rig.cluster.mend().await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "freezes a broker: ./tests/run runs it alone"]
async fn signups_survive_a_freeze_of_the_leader_elsewhere() {
    let Some(rig) = ClusterRig::at(CONNECTED).await else { return };
    // Processes are elsewhere than the leaders, which are where the queues were declared.
    rig.links(CONNECTED, Proxy::cut);
    for member in rig.members() {
        eventually("a connection elsewhere", async || !member.connected().is_empty()).await;
        member.is_ready(true).await;
    }
    let leader = rig.cluster.leader(&rig.queue("interactive"), CONNECTED).await;
    assert_eq!(leader, CONNECTED);
    rig.survives(
        "leader frozen, processes connected to others",
        async |rig| rig.cluster.node("freeze", CONNECTED).await,
        async |rig| {
            rig.cluster.mend().await;
            rig.links(CONNECTED, Proxy::heal);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stops two brokers: ./tests/run runs it alone"]
async fn a_lost_majority_is_reported_and_signups_resume_after_it() {
    let Some(rig) = ClusterRig::at(CONNECTED).await else { return };
    let load = rig.ledger.drive(&rig.addresses, 4);
    rig.ledger.goes_on(20).await;
    let started = std::time::Instant::now();
    rig.cluster.node("kill", 1).await;
    rig.cluster.node("kill", 2).await;
    let body = rig.front.is_ready(false).await;
    let noticed = started.elapsed();
    let asked = rig.ledger.registration();
    let answer = rig.ledger.ask(&rig.front.client(), &asked).await.unwrap();
    assert!([500, 503].contains(&answer.status), "{}", answer.status);

    let (gaps, before) = (Gaps::watch(&rig.ledger), rig.ledger.created());
    rig.cluster.mend().await;
    rig.resumes(before + 20).await;
    rig.front.is_ready(true).await;
    let repaired = gaps.longest();
    load.finish().await;
    let figures = rig.settle().await;
    report(&format!(
        "cluster: majority lost: not ready after {:.1} s ({body}); a signup {:.1} s after the brokers were started; {figures}",
        noticed.as_secs_f64(),
        repaired.as_secs_f64(),
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "kills a broker: ./tests/run runs it alone"]
async fn processes_start_without_the_node_that_held_the_profile_queue() {
    let Some(rig) = ClusterRig::at(CONNECTED).await else { return };
    let holder = rig.cluster.leader(&rig.queue("profile"), CONNECTED).await;
    rig.survives(
        "node of the profile queue killed, a front and a worker start anew",
        async |rig| {
            rig.cluster.node("kill", holder).await;
            let started = std::time::Instant::now();
            rig.workers[0].start().await;
            rig.front.start().await;
            *rig.addresses.lock().unwrap() = vec![rig.front.client()];
            let ready = started.elapsed().as_secs_f64();
            report(&format!("cluster: node of the profile queue down: started in {ready:.1} s"));
        },
        async |rig| rig.cluster.mend().await,
    )
    .await;
}
