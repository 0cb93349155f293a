//! Services that stop, are killed, or raise an alarm. Every other test would notice, so
//! `./tests/run` runs these by themselves, one after the other.

use futures_util::future::join_all;

use crate::support::Rig;
use crate::support::broker::rabbitmqctl;
use crate::support::command::run;
use crate::support::muster::eventually;
use crate::support::services::{command, provided};

/// So that whoever waits for its deadline is noticed.
const LONG: (&str, &str) = ("MUSTER_FRONT_DEADLINE", "60s");

async fn the_broker_goes_and_comes(how: &str) {
    if provided("TEST_BROKER").is_none() {
        return;
    }
    let Some(mut rig) = Rig::new(1, 2, &[LONG]).await else { return };
    // What is accepted lies in the queue, whatever its clients are told.
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked: Vec<_> = (0..10).map(|_| ledger.registration()).collect();
    let answers = join_all(asked.iter().map(|asked| ledger.ask(&client, asked)));
    let stopped = async {
        eventually("all to wait", async || rig.messages("interactive").await >= 10).await;
        command("TEST_BROKER", &[how]).await.unwrap();
    };
    let (answers, ()) = tokio::join!(answers, stopped);
    assert!(answers.into_iter().all(|answer| answer.unwrap().status == 500));
    command("TEST_BROKER", &["start"]).await.unwrap();
    rig.fronts[0].is_ready(true).await;
    // Counted when the queue has its leader again, and nobody sends any that is missing. A probe of the front may be
    // among them.
    eventually("all to be there again", async || rig.messages("interactive").await >= 10).await;
    for worker in &mut rig.workers {
        worker.start().await;
    }
    eventually("all to be registered", async || rig.users().await.len() == 10).await;

    rig.under_load(async |rig| {
        command("TEST_BROKER", &[how]).await.unwrap();
        rig.fronts[0].is_ready(false).await;
        command("TEST_BROKER", &["start"]).await.unwrap();
        for node in rig.fronts.iter().chain(&rig.workers) {
            node.is_ready(true).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "restarts the broker: ./tests/run runs it alone"]
async fn a_broker_that_is_stopped_keeps_what_it_took() {
    the_broker_goes_and_comes("stop").await;
}

#[tokio::test]
#[ignore = "kills the broker: ./tests/run runs it alone"]
async fn a_broker_that_is_killed_keeps_what_it_took() {
    the_broker_goes_and_comes("kill").await;
}

#[tokio::test]
#[ignore = "kills the store: ./tests/run runs it alone"]
async fn a_store_that_is_killed_comes_back_with_every_user() {
    if provided("TEST_STORE").is_none() {
        return;
    }
    let Some(rig) = Rig::running(&[LONG]).await else { return };
    rig.under_load(async |rig| {
        command("TEST_STORE", &["stop"]).await.unwrap();
        let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
        let asked = ledger.registration();
        assert_eq!(ledger.ask(&client, &asked).await.unwrap().status, 500);
        command("TEST_STORE", &["start"]).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[ignore = "raises the broker's alarm: ./tests/run runs it alone"]
async fn a_broker_with_an_alarm_is_told_at_once_and_waited_for() {
    if provided("RABBITMQCTL").is_none() {
        return;
    }
    let Some(rig) = Rig::running(&[LONG]).await else { return };
    rig.under_load(async |rig| {
        rabbitmqctl(&["-q", "set_vm_memory_high_watermark", "0.0001"]).await.unwrap();
        // The broker tells it to connections that publish.
        rig.fronts[0].is_ready(false).await;
        if let Some(url) = provided("MANAGEMENT_URL") {
            let told = run(&rig.setup, &["doctor", "--role", "front", "--management", &url]).await;
            assert_eq!(told.code, Some(3));
            assert!(told.stdout.contains("broker alarms: memory on "), "{}", told.stdout);
        }
        let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
        let asked = ledger.registration();
        let answer = ledger.ask(&client, &asked).await.unwrap();
        assert_eq!(answer.status, 503);
        assert!(answer.header("retry-after").is_some());
        rabbitmqctl(&["-q", "set_vm_memory_high_watermark", "0.4"]).await.unwrap();
        rig.fronts[0].is_ready(true).await;
    })
    .await;
}
