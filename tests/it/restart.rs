//! Stops and kills of the services, and a broker alarm. They affect every test, so `./tests/run` runs these tests
//! alone, one after the other.

use futures_util::future::join_all;

use crate::support::Fleet;
use crate::support::broker::rabbitmqctl;
use crate::support::command::run;
use crate::support::muster::eventually;
use crate::support::services::{command, provided};

/// Long enough that a request that waits for it fails the test.
const LONG_REQUEST_TIMEOUT: (&str, &str) = ("MUSTER_FRONT_REQUEST_TIMEOUT", "60s");

async fn assert_survives_broker_restart(stop: &str) {
    if provided("TEST_BROKER").is_none() {
        return;
    }
    let Some(mut fleet) = Fleet::new(1, 2, &[LONG_REQUEST_TIMEOUT]).await else { return };
    // Accepted messages stay in the queue, although their clients get 500.
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registrations: Vec<_> = (0..10).map(|_| ledger.registration()).collect();
    let responses =
        join_all(registrations.iter().map(|registration| ledger.register(&client, registration)));
    let stopped = async {
        eventually("10 queued messages", async || fleet.messages("interactive").await >= 10).await;
        command("TEST_BROKER", &[stop]).await.unwrap();
    };
    let (responses, ()) = tokio::join!(responses, stopped);
    assert!(responses.into_iter().all(|response| response.unwrap().status == 500));
    command("TEST_BROKER", &["start"]).await.unwrap();
    fleet.fronts[0].wait_for_readiness(true).await;
    // The count is right once the queue has a leader again. It may include a probe from the front.
    eventually("10 queued messages again", async || fleet.messages("interactive").await >= 10)
        .await;
    for worker in &mut fleet.workers {
        worker.start().await;
    }
    eventually("10 users in the store", async || fleet.users().await.len() == 10).await;

    fleet
        .under_load(async |fleet| {
            command("TEST_BROKER", &[stop]).await.unwrap();
            fleet.fronts[0].wait_for_readiness(false).await;
            command("TEST_BROKER", &["start"]).await.unwrap();
            for node in fleet.fronts.iter().chain(&fleet.workers) {
                node.wait_for_readiness(true).await;
            }
        })
        .await;
}

#[tokio::test]
#[ignore = "restarts the broker: ./tests/run runs it alone"]
async fn broker_stop_keeps_accepted_messages() {
    assert_survives_broker_restart("stop").await;
}

#[tokio::test]
#[ignore = "kills the broker: ./tests/run runs it alone"]
async fn broker_kill_keeps_accepted_messages() {
    assert_survives_broker_restart("kill").await;
}

#[tokio::test]
#[ignore = "kills the store: ./tests/run runs it alone"]
async fn store_kill_loses_no_user() {
    if provided("TEST_STORE").is_none() {
        return;
    }
    let Some(fleet) = Fleet::running(&[LONG_REQUEST_TIMEOUT]).await else { return };
    fleet
        .under_load(async |fleet| {
            command("TEST_STORE", &["stop"]).await.unwrap();
            let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
            let registration = ledger.registration();
            assert_eq!(ledger.register(&client, &registration).await.unwrap().status, 500);
            command("TEST_STORE", &["start"]).await.unwrap();
        })
        .await;
}

#[tokio::test]
#[ignore = "raises the broker's alarm: ./tests/run runs it alone"]
async fn broker_alarm_gets_503_until_it_ends() {
    if provided("RABBITMQCTL").is_none() {
        return;
    }
    let Some(fleet) = Fleet::running(&[LONG_REQUEST_TIMEOUT]).await else { return };
    fleet
        .under_load(async |fleet| {
            rabbitmqctl(&["-q", "set_vm_memory_high_watermark", "0.0001"]).await.unwrap();
            // The broker sends `connection.blocked` to publishing connections.
            fleet.fronts[0].wait_for_readiness(false).await;
            if let Some(url) = provided("MANAGEMENT_URL") {
                let output =
                    run(&fleet.setup, &["doctor", "--role", "front", "--management", &url]).await;
                assert_eq!(output.code, Some(3));
                assert!(output.stdout.contains("broker alarms: memory on "), "{}", output.stdout);
            }
            let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
            let registration = ledger.registration();
            let response = ledger.register(&client, &registration).await.unwrap();
            assert_eq!(response.status, 503);
            assert!(response.header("retry-after").is_some());
            rabbitmqctl(&["-q", "set_vm_memory_high_watermark", "0.4"]).await.unwrap();
            fleet.fronts[0].wait_for_readiness(true).await;
        })
        .await;
}
