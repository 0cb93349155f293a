//! Faults of connections, services and queues: checks the responses to clients and compares a ledger of them
//! with the store.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use muster::app::App;
use muster::domain::{Clock, Outcome};
use tokio::sync::oneshot;

use crate::flow::five_requests;
use crate::support::broker::{Broker, rabbitmqctl};
use crate::support::muster::eventually;
use crate::support::proxy::Proxy;
use crate::support::services::{amqp_url, unique};
use crate::support::{Fleet, Pair, QueueAdapter, Setup, StoreAdapter};

/// Limit for a response that must not wait for the request timeout; generous for a busy machine.
const PROMPT_LIMIT: Duration = Duration::from_secs(10);
/// Long enough to show in the measured time if a request waits for it.
const LONG_REQUEST_TIMEOUT: (&str, &str) = ("MUSTER_FRONT_REQUEST_TIMEOUT", "60s");
/// Keeps a worker waiting for a stalled store while the test continues.
const LONG_STORE_TIMEOUT: (&str, &str) = ("MUSTER_STORE_TIMEOUT", "4s");

#[tokio::test]
async fn pending_requests_fail_when_the_front_loses_the_broker() {
    let Some(mut fleet) = Fleet::new(1, 2, &[LONG_REQUEST_TIMEOUT]).await else { return };
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registrations: Vec<_> = (0..20).map(|_| ledger.registration()).collect();
    let waiting =
        join_all(registrations.iter().map(|registration| ledger.register(&client, registration)));
    let cut = async {
        eventually("20 queued messages", async || fleet.messages("interactive").await >= 20).await;
        fleet.fronts[0].broker.cut();
        Instant::now()
    };
    let (responses, cut) = tokio::join!(waiting, cut);
    assert!(cut.elapsed() < PROMPT_LIMIT, "responses after {:?}", cut.elapsed());
    for response in responses {
        assert!([500, 503].contains(&response.unwrap().status));
    }

    fleet.fronts[0].wait_for_readiness(false).await;
    let (started, refused) = (Instant::now(), ledger.registration());
    let response = ledger.register(&client, &refused).await.unwrap();
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some() && started.elapsed() < PROMPT_LIMIT);

    // The workers handle the queued messages too, so most of the repeated requests are replays.
    fleet.fronts[0].broker.restore();
    fleet.fronts[0].wait_for_readiness(true).await;
    for worker in &mut fleet.workers {
        worker.start().await;
    }
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn profile_request_is_resent_after_a_lost_connection() {
    let Some(mut fleet) = Fleet::new(1, 1, &[LONG_REQUEST_TIMEOUT]).await else { return };
    fleet.workers[0].start().await;
    let client = fleet.fronts[0].client();
    let (path, body, _) = five_requests().remove(0);
    let token = client.post(path, &body).await.json()["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    // Without a worker the message waits in the queue.
    fleet.workers[0].stop().await;
    let lost = async {
        eventually("a queued message", async || fleet.messages("profile").await >= 1).await;
        fleet.fronts[0].broker.cut();
        fleet.fronts[0].wait_for_readiness(false).await;
        fleet.fronts[0].broker.restore();
        fleet.workers[0].start().await;
    };
    let (response, ()) = tokio::join!(client.get("/users/profile", &headers), lost);
    assert_eq!(response.status, 200, "{:?}", response.json());

    // A request without a connection waits for the next connection.
    fleet.fronts[0].broker.cut();
    fleet.fronts[0].wait_for_readiness(false).await;
    let mut profile = std::pin::pin!(client.get("/users/profile", &headers));
    // A later registration gets its 503 while the profile request still waits.
    let refused = client.post(path, &body);
    tokio::select! {
        response = &mut profile => panic!("{response:?}"),
        refused = refused => assert_eq!(refused.status, 503),
    }
    fleet.fronts[0].broker.restore();
    let response = profile.await;
    assert_eq!(response.status, 200, "{:?}", response.json());
}

#[tokio::test]
async fn profile_request_without_a_broker_gets_503_at_its_deadline() {
    let settings = [("MUSTER_FRONT_REQUEST_TIMEOUT", "3s"), ("MUSTER_STORE_TIMEOUT", "1s")];
    let Some(fleet) = Fleet::new(1, 0, &settings).await else { return };
    fleet.fronts[0].broker.cut();
    fleet.fronts[0].wait_for_readiness(false).await;
    let headers = [("authorization", "Bearer a.b.c")];
    let response = fleet.fronts[0].client().get("/users/profile", &headers).await;
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some());
}

#[tokio::test]
async fn broker_lost_while_hashing_fails_no_request() {
    // Slow enough to cut the connection while the worker hashes.
    let settings = [("MUSTER_BCRYPT_COST", "13"), LONG_REQUEST_TIMEOUT];
    let Some(mut fleet) = Fleet::new(1, 2, &settings).await else { return };
    fleet.workers[0].start().await;
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registration = ledger.registration();
    let cut = async {
        fleet.workers[0].wait_for_event("hash_started").await;
        fleet.workers[0].broker.cut();
        fleet.workers[1].start().await;
    };
    let (response, ()) = tokio::join!(ledger.register(&client, &registration), cut);
    assert_eq!(response.unwrap().status, 201);
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn broker_lost_after_the_insert_causes_a_replay() {
    let Some(mut fleet) = Fleet::new(1, 2, &[LONG_STORE_TIMEOUT]).await else { return };
    fleet.workers[0].start().await;
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registration = ledger.registration_without_key();
    fleet.workers[0].store.stall();
    let cut = async {
        fleet.workers[0].wait_for_event("hash_started").await;
        fleet.workers[0].broker.stall();
        fleet.workers[0].store.restore();
        // The proxy holds the reply, which never arrives.
        fleet.workers[0].wait_for_event("registration_handled").await;
        fleet.workers[0].broker.cut();
        fleet.workers[1].start().await;
    };
    let (response, ()) = tokio::join!(ledger.register(&client, &registration), cut);
    let response = response.unwrap();
    assert_eq!((response.status, response.header("idempotency-replayed")), (201, Some("true")));
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn lost_insert_gets_500_in_time_and_can_be_repeated() {
    let Some(mut fleet) = Fleet::new(1, 2, &[LONG_REQUEST_TIMEOUT]).await else { return };
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    for (n, cut) in [false, true].into_iter().enumerate() {
        fleet.workers[n].start().await;
        let registration = ledger.registration_without_key();
        fleet.workers[n].store.stall();
        let started = Instant::now();
        let fault = async {
            fleet.workers[n].wait_for_event("hash_started").await;
            if cut {
                fleet.workers[n].store.cut();
            }
        };
        let (response, ()) = tokio::join!(ledger.register(&client, &registration), fault);
        assert_eq!(response.unwrap().status, 500);
        assert!(started.elapsed() < PROMPT_LIMIT);
        fleet.workers[n].kill().await;
        assert!(!fleet.users().await.contains_key(&registration.username));
        fleet.workers[n].store.cut();
        fleet.workers[n].store.restore();
    }
    fleet.workers[0].start().await;
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn insert_without_a_response_is_replayed_when_repeated() {
    let Some(mut fleet) = Fleet::new(1, 1, &[LONG_REQUEST_TIMEOUT]).await else { return };
    fleet.workers[0].start().await;
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registration = ledger.registration_without_key();
    fleet.workers[0].store.drop_responses();
    let response = ledger.register(&client, &registration).await.unwrap();
    assert_eq!(response.status, 500);
    let users = fleet.users().await;
    assert!(users.contains_key(&registration.username), "the user is in the store");
    fleet.workers[0].store.restore();
    let key = response.header("idempotency-key").unwrap();
    eventually("the repeated request to succeed", async || {
        let response = client.post_with_key("/signup", &registration.body(), key).await;
        assert!([500, 201].contains(&response.status), "{:?}", response.json());
        response.status == 201 && response.header("idempotency-replayed").is_some()
    })
    .await;
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn front_reconnects_after_a_stalled_broker_connection() {
    let Some(fleet) = Fleet::running(&[LONG_REQUEST_TIMEOUT]).await else { return };
    fleet
        .under_load(async |fleet| {
            fleet.fronts[0].broker.stall();
            fleet.fronts[0].wait_for_readiness(false).await;
            fleet.fronts[0].broker.restore();
            fleet.fronts[0].wait_for_readiness(true).await;
        })
        .await;
}

#[tokio::test]
async fn message_held_by_a_stalled_worker_is_redelivered() {
    let Some(fleet) = Fleet::running(&[LONG_REQUEST_TIMEOUT]).await else { return };
    fleet
        .under_load(async |fleet| {
            fleet.workers[0].broker.stall();
            fleet.workers[0].wait_for_readiness(false).await;
            fleet.ledger.wait_for_created(20).await;
            fleet.workers[0].broker.restore();
            fleet.workers[0].wait_for_readiness(true).await;
        })
        .await;
}

#[tokio::test]
async fn signups_continue_while_one_worker_has_a_stalled_store() {
    let Some(fleet) = Fleet::running(&[LONG_REQUEST_TIMEOUT]).await else { return };
    fleet
        .under_load(async |fleet| {
            fleet.workers[0].store.stall();
            fleet.workers[0].wait_for_event("store_call_timed_out").await;
            fleet.ledger.wait_for_created(20).await;
            fleet.workers[0].store.restore();
        })
        .await;
}

#[tokio::test]
async fn every_contract_reports_an_unavailable_store_in_time() {
    let Some(fleet) = Fleet::running(&[LONG_REQUEST_TIMEOUT]).await else { return };
    for worker in &fleet.workers {
        worker.store.cut();
    }
    let (client, started) = (fleet.fronts[0].client(), Instant::now());
    let requests = five_requests();
    let responses = join_all(requests.iter().map(|(path, body, _)| client.post(path, body))).await;
    assert!(started.elapsed() < PROMPT_LIMIT, "responses after {:?}", started.elapsed());
    for worker in &fleet.workers {
        worker.store.restore();
    }
    for ((path, body, _), response) in requests.iter().zip(responses) {
        assert_eq!(response.status, 500, "{path}: {:?}", response.json());
        let key = response.header("idempotency-key").unwrap();
        eventually("the store to be available", async || {
            let again = client.post_with_key(path, body, key).await;
            assert!([500, 201].contains(&again.status), "{path}: {:?}", again.json());
            again.status == 201
        })
        .await;
    }
}

#[tokio::test]
async fn deleted_queue_is_declared_again() {
    let Some(fleet) = Fleet::running(&[LONG_REQUEST_TIMEOUT]).await else { return };
    fleet
        .under_load(async |fleet| {
            let broker = Broker::connect().await;
            for queue in ["interactive", "profile", "bulk"] {
                let name = format!("{}.{queue}", fleet.setup.namespace());
                let options = QueueDeleteOptions::default();
                broker.channel.queue_delete(name.as_str().into(), options).await.unwrap();
                eventually("both workers to consume it", async || {
                    fleet.consumers(queue).await == 2
                })
                .await;
                fleet.ledger.wait_for_created(20).await;
            }
        })
        .await;
}

#[tokio::test]
async fn failed_queue_sample_fails_no_request() {
    let Some(mut fleet) = Fleet::new(1, 1, &[LONG_REQUEST_TIMEOUT]).await else { return };
    let broker = Broker::connect().await;
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registration = ledger.registration();
    let call = tokio::spawn(async move { ledger.register(&client, &registration).await.unwrap() });
    eventually("a queued message", async || fleet.messages("interactive").await >= 1).await;
    let dead = format!("{}.dead", fleet.setup.namespace());
    broker.channel.queue_delete(dead.as_str().into(), Default::default()).await.unwrap();
    // The failed sample also declares the queue again.
    fleet.fronts[0].wait_for_event("sampling_failed").await;
    eventually("the queue to exist again", async || {
        let other = Broker::connect().await;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        other.channel.queue_declare(dead.as_str().into(), options, Default::default()).await.is_ok()
    })
    .await;
    fleet.workers[0].start().await;
    let response = call.await.unwrap();
    assert_eq!(response.status, 201, "{:?}", response.json());
}

#[tokio::test]
async fn missing_permission_is_retried_with_growing_pauses() {
    if amqp_url().is_none() {
        return;
    }
    let setup = Setup::new(Pair(QueueAdapter::Rabbit, StoreAdapter::File));
    assert!(setup.start_role("front").await.stop().await.success());
    let (user, namespace) = (unique("worker"), setup.namespace().to_owned());
    if rabbitmqctl(&["add_user", &user, "a-password"]).await.is_none() {
        return;
    }
    // All permissions except read access to the interactive queue.
    let read = format!("^{namespace}(|\\.dlx|\\.events|\\.bulk|\\.profile|\\.dead|\\.retry.*)$");
    rabbitmqctl(&["set_permissions", &user, ".*", ".*", &read]).await;
    let proxy = Proxy::to(&amqp_url().unwrap()).await;
    let mut url = url::Url::parse(&proxy.url(&amqp_url().unwrap())).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("a-password")).unwrap();
    let setup = setup.with("MUSTER_QUEUE", url.as_str());
    let mut worker = setup.start_with(&["serve", "--role", "worker"]).await;
    let queue = format!("{namespace}.interactive");
    let line = worker.wait_for_event_with("component_not_ready", "missing permission").await;
    assert!(line.contains(&queue) && !line.contains("password"), "{line}");
    // The pauses grow from 100 ms; jitter shortens each by half at most.
    const ATTEMPTS: usize = 7;
    let (began, first) = (Instant::now(), proxy.accepted());
    eventually("more attempts", async || proxy.accepted() >= first + ATTEMPTS).await;
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    drop(worker);
    rabbitmqctl(&["delete_user", &user]).await;
}

#[tokio::test]
async fn deleted_retry_queue_is_declared_again() {
    let Some(mut fleet) = Fleet::new(0, 1, &[]).await else { return };
    fleet.workers[0].start().await;
    let broker = Broker::connect().await;
    let name = format!("{}.retry.1000", fleet.setup.namespace());
    broker.channel.queue_delete(name.as_str().into(), Default::default()).await.unwrap();
    fleet.workers[0].store.cut();
    let mut replies = broker.direct_replies().await;
    // Several rows, because the broker may combine their confirms.
    const ROWS: usize = 40;
    for _ in 0..ROWS {
        broker.publish_row(fleet.setup.namespace()).await;
    }
    fleet.workers[0].wait_for_event("republish_failed").await;
    fleet.workers[0].store.restore();
    for _ in 0..ROWS {
        let reply = replies.next().await.unwrap().unwrap();
        let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(outcome.label(), "registered");
    }
}

#[tokio::test]
async fn full_queue_gets_503_with_retry_after() {
    let settings = [("MUSTER_QUEUE_MAX_LENGTH", "3"), LONG_REQUEST_TIMEOUT];
    let Some(mut fleet) = Fleet::new(1, 1, &settings).await else { return };
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let (mut waiting, mut refused) = (Vec::new(), None);
    // The broker updates the queue length with a delay, so fill the queue until it rejects a message.
    while refused.is_none() {
        assert!(waiting.len() < 200, "the queue accepts more than its limit of 3");
        let (client, ledger) = (client.clone(), ledger.clone());
        let mut one = tokio::spawn(async move {
            let registration = ledger.registration();
            ledger.register(&client, &registration).await.unwrap()
        });
        match tokio::time::timeout(Duration::from_millis(50), &mut one).await {
            Ok(response) => refused = Some(response.unwrap()),
            Err(_) => waiting.push(one),
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());

    fleet.workers[0].start().await;
    let responses = join_all(waiting).await;
    let created =
        responses.iter().filter(|response| response.as_ref().unwrap().status == 201).count();
    assert!(created >= 3, "{created}");
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn reply_to_a_killed_front_is_dropped_and_its_message_acked() {
    let Some(mut fleet) = Fleet::new(2, 1, &[LONG_STORE_TIMEOUT]).await else { return };
    fleet.workers[0].start().await;
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let registration = ledger.registration();
    fleet.workers[0].store.stall();
    let gone = async {
        fleet.workers[0].wait_for_event("delivery_started").await;
        fleet.fronts[0].kill().await;
        fleet.update_addresses();
        fleet.workers[0].store.restore();
        fleet.workers[0].wait_for_event("reply_unroutable").await;
    };
    let (response, ()) = tokio::join!(ledger.register(&client, &registration), gone);
    assert!(response.is_none(), "no response, because the front was killed");
    assert!(fleet.users().await.contains_key(&registration.username));
    // A soft stop lets the worker publish the event and ack. A message without an ack would be ready again.
    fleet.workers[0].stop().await;
    for queue in ["interactive", "dead"] {
        assert_eq!(fleet.messages(queue).await, 0, "{queue}");
    }
    fleet.workers[0].start().await;
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn clock_skew_of_five_minutes_fails_no_request() {
    let Some(fleet) = Fleet::new(1, 0, &[LONG_REQUEST_TIMEOUT]).await else { return };
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    for skew in [-300_000, 300_000] {
        let settings = fleet.setup.clone().with("MUSTER_ROLE", "worker").settings();
        let worker = App::start(&settings, Clock::skewed(skew)).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
        for _ in 0..10 {
            let registration = ledger.registration();
            let response = ledger.register(&client, &registration).await.unwrap();
            assert_eq!(response.status, 201, "{skew}: {:?}", response.json());
            let bearer = format!("Bearer {}", response.json()["token"].as_str().unwrap());
            let headers = [("authorization", bearer.as_str())];
            assert_eq!(client.get("/users/profile", &headers).await.status, 200, "{skew}");
        }
        if skew > 0 {
            fleet.repeat_and_compare().await.assert_consistent();
        }
        stop.send(()).unwrap();
        worker.await.unwrap();
    }
}

#[tokio::test]
async fn prefetch_is_restored_after_a_reconnect() {
    let settings = [("MUSTER_QUEUE_PREFETCH", "7"), LONG_REQUEST_TIMEOUT];
    let Some(fleet) = Fleet::running(&settings).await else { return };
    let consumers = async || {
        let listing =
            rabbitmqctl(&["-q", "list_consumers", "queue_name", "prefetch_count"]).await?;
        let own = listing
            .lines()
            .filter(|line| line.starts_with(fleet.setup.namespace()) && !line.contains(".reply."));
        let mut own: Vec<String> = own
            .map(|line| line.trim_start_matches(fleet.setup.namespace()).replace('\t', " "))
            .collect();
        own.sort();
        Some(own)
    };
    if consumers().await.is_none() {
        return;
    }
    let each = [".bulk 7", ".interactive 7", ".profile 64"];
    let before: Vec<_> = each.into_iter().flat_map(|line| [line; 2].map(str::to_owned)).collect();
    // A new worker starts with a bulk prefetch of one row.
    eventually("all consumers with their prefetch", async || consumers().await.unwrap() == before)
        .await;
    for worker in &fleet.workers {
        worker.broker.cut();
        worker.wait_for_readiness(false).await;
        worker.broker.restore();
        worker.wait_for_readiness(true).await;
    }
    // The broker may list closed consumers for a moment.
    eventually("the same consumers", async || consumers().await.unwrap() == before).await;
}

#[tokio::test]
async fn bulk_row_is_retried_while_the_store_is_unavailable() {
    let Some(mut fleet) = Fleet::new(1, 1, &[]).await else { return };
    fleet.workers[0].start().await;
    fleet.workers[0].store.cut();
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    for _ in 0..5 {
        broker.publish_row(fleet.setup.namespace()).await;
    }
    fleet.workers[0]
        .wait_for_event_with("registration_handled", "\"outcome\":\"store_unavailable\"")
        .await;
    fleet.workers[0].store.restore();
    for _ in 0..5 {
        let reply = replies.next().await.unwrap().unwrap();
        let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(outcome.label(), "registered");
    }
    assert_eq!(fleet.messages("dead").await, 0);
}

#[tokio::test]
async fn profile_requests_use_no_capacity_for_registrations() {
    let settings = [("MUSTER_FRONT_MAX_IN_FLIGHT", "5"), LONG_REQUEST_TIMEOUT];
    let Some(mut fleet) = Fleet::new(1, 1, &settings).await else { return };
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    let headers = [("authorization", "Bearer x")];
    let profile_requests = join_all((0..5).map(|_| client.get("/users/profile", &headers)));
    let registering = async {
        eventually("5 queued messages", async || fleet.messages("profile").await >= 5).await;
        assert_eq!(client.get("/users/profile", &headers).await.status, 503);
        let registration = ledger.registration();
        let registering = async {
            let response = ledger.register(&client, &registration).await.unwrap();
            assert_eq!(response.status, 201);
        };
        let started = async {
            eventually("a queued message", async || fleet.messages("interactive").await >= 1).await;
            fleet.workers[0].start().await;
        };
        tokio::join!(registering, started);
    };
    let (profiles, ()) = tokio::join!(profile_requests, registering);
    assert!(profiles.iter().all(|response| response.status == 401));
    fleet.repeat_and_compare().await.assert_consistent();
}

#[tokio::test]
async fn abandoned_requests_still_count_as_in_flight() {
    let settings = [("MUSTER_FRONT_MAX_IN_FLIGHT", "5"), LONG_REQUEST_TIMEOUT];
    let Some(mut fleet) = Fleet::new(1, 1, &settings).await else { return };
    let (client, ledger) = (fleet.fronts[0].client(), fleet.ledger.clone());
    for n in 1..=5 {
        let registration = ledger.registration();
        let request = ledger.register(&client, &registration);
        let mut request = std::pin::pin!(request);
        let queued = eventually("the message to be queued", async || {
            fleet.messages("interactive").await >= n
        });
        tokio::select! {
            response = &mut request => panic!("{response:?}"),
            () = queued => {}
        }
    }
    // Otherwise clients that disconnect could fill the memory.
    let refused = ledger.register(&client, &ledger.registration()).await.unwrap();
    assert_eq!(refused.status, 503);
    // At least, because a probe may be among them.
    assert!(fleet.messages("interactive").await >= 5);
    fleet.workers[0].start().await;
    fleet.repeat_and_compare().await.assert_consistent();
}
