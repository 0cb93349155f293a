//! What clients are told while wires are cut, silent or deaf, while services are away, and while
//! others send rubbish; and that a ledger of it agrees with the store in the end.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use muster::app::App;
use muster::signup::{Clock, Outcome};
use tokio::sync::oneshot;

use crate::flow::five_requests;
use crate::support::broker::{Broker, rabbitmqctl};
use crate::support::muster::eventually;
use crate::support::proxy::Proxy;
use crate::support::services::{amqp_url, unique};
use crate::support::{Pair, QueueKind, Rig, Setup, StoreKind};

/// Far less than the deadline in these tests, and enough for a machine that is busy.
const AT_ONCE: Duration = Duration::from_secs(10);
/// So that whoever waits for its deadline is noticed.
const LONG: (&str, &str) = ("MUSTER_FRONT_DEADLINE", "60s");
/// Long enough to hold a worker at a call to the store while the test does something else.
const HELD: (&str, &str) = ("MUSTER_STORE_TIMEOUT", "4s");

#[tokio::test]
async fn a_cut_between_front_and_broker_ends_every_waiting_call_at_once() {
    let Some(mut rig) = Rig::new(1, 2, &[LONG]).await else { return };
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked: Vec<_> = (0..20).map(|_| ledger.registration()).collect();
    let waiting = join_all(asked.iter().map(|asked| ledger.ask(&client, asked)));
    let cut = async {
        eventually("all to wait", async || rig.messages("interactive").await >= 20).await;
        rig.fronts[0].broker.cut();
        Instant::now()
    };
    let (answers, cut) = tokio::join!(waiting, cut);
    assert!(cut.elapsed() < AT_ONCE, "they waited {:?}", cut.elapsed());
    for answer in answers {
        assert!([500, 503].contains(&answer.unwrap().status));
    }

    rig.fronts[0].is_ready(false).await;
    let (started, refused) = (Instant::now(), ledger.registration());
    let answer = ledger.ask(&client, &refused).await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some() && started.elapsed() < AT_ONCE);

    // What was in the queue is done as well, so that most of the repeated calls find their user.
    rig.fronts[0].broker.heal();
    rig.fronts[0].is_ready(true).await;
    for worker in &mut rig.workers {
        worker.start().await;
    }
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn profile_look_up_is_sent_again_after_a_lost_connection() {
    let Some(mut rig) = Rig::new(1, 1, &[LONG]).await else { return };
    rig.workers[0].start().await;
    let client = rig.fronts[0].client();
    let (path, body, _) = five_requests().remove(0);
    let token = client.post(path, &body).await.json()["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    // Without a worker it waits in the queue.
    rig.workers[0].stop().await;
    let lost = async {
        eventually("it to wait", async || rig.messages("profile").await >= 1).await;
        rig.fronts[0].broker.cut();
        rig.fronts[0].is_ready(false).await;
        rig.fronts[0].broker.heal();
        rig.workers[0].start().await;
    };
    let (answer, ()) = tokio::join!(client.get("/users/profile", &headers), lost);
    assert_eq!(answer.status, 200, "{:?}", answer.json());

    // One that finds no connection waits for the next.
    rig.fronts[0].broker.cut();
    rig.fronts[0].is_ready(false).await;
    let mut look_up = std::pin::pin!(client.get("/users/profile", &headers));
    // A registration that comes after it is refused by the time it would have been.
    let refused = client.post(path, &body);
    tokio::select! {
        answer = &mut look_up => panic!("{answer:?}"),
        refused = refused => assert_eq!(refused.status, 503),
    }
    rig.fronts[0].broker.heal();
    let answer = look_up.await;
    assert_eq!(answer.status, 200, "{:?}", answer.json());
}

#[tokio::test]
async fn profile_look_up_without_a_broker_is_503_at_its_deadline() {
    let settings = [("MUSTER_FRONT_DEADLINE", "3s"), ("MUSTER_STORE_TIMEOUT", "1s")];
    let Some(rig) = Rig::new(1, 0, &settings).await else { return };
    rig.fronts[0].broker.cut();
    rig.fronts[0].is_ready(false).await;
    let headers = [("authorization", "Bearer a.b.c")];
    let answer = rig.fronts[0].client().get("/users/profile", &headers).await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
}

#[tokio::test]
async fn a_cut_between_worker_and_broker_while_hashing_goes_unseen() {
    // Expensive enough that the wire is cut while it hashes.
    let settings = [("MUSTER_BCRYPT_COST", "13"), LONG];
    let Some(mut rig) = Rig::new(1, 2, &settings).await else { return };
    rig.workers[0].start().await;
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked = ledger.registration();
    let cut = async {
        rig.workers[0].says("hashing").await;
        rig.workers[0].broker.cut();
        rig.workers[1].start().await;
    };
    let (answer, ()) = tokio::join!(ledger.ask(&client, &asked), cut);
    assert_eq!(answer.unwrap().status, 201);
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn a_cut_between_worker_and_broker_after_the_insert_is_a_replay() {
    let Some(mut rig) = Rig::new(1, 2, &[HELD]).await else { return };
    rig.workers[0].start().await;
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked = ledger.registration_without_key();
    rig.workers[0].store.stall();
    let cut = async {
        rig.workers[0].says("hashing").await;
        rig.workers[0].broker.stall();
        rig.workers[0].store.heal();
        // Its reply is in the wire now, and never arrives.
        rig.workers[0].says("handled").await;
        rig.workers[0].broker.cut();
        rig.workers[1].start().await;
    };
    let (answer, ()) = tokio::join!(ledger.ask(&client, &asked), cut);
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (201, Some("true")));
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn an_insert_that_never_arrived_is_told_in_time_and_can_be_repeated() {
    let Some(mut rig) = Rig::new(1, 2, &[LONG]).await else { return };
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    for (n, cut_too) in [false, true].into_iter().enumerate() {
        rig.workers[n].start().await;
        let asked = ledger.registration_without_key();
        rig.workers[n].store.stall();
        let started = Instant::now();
        let cut = async {
            rig.workers[n].says("hashing").await;
            if cut_too {
                rig.workers[n].store.cut();
            }
        };
        let (answer, ()) = tokio::join!(ledger.ask(&client, &asked), cut);
        assert_eq!(answer.unwrap().status, 500);
        assert!(started.elapsed() < AT_ONCE);
        rig.workers[n].kill().await;
        assert!(!rig.users().await.contains_key(&asked.username));
        rig.workers[n].store.cut();
        rig.workers[n].store.heal();
    }
    rig.workers[0].start().await;
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn an_insert_whose_answer_was_lost_is_found_by_whoever_repeats_it() {
    let Some(mut rig) = Rig::new(1, 1, &[LONG]).await else { return };
    rig.workers[0].start().await;
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked = ledger.registration_without_key();
    rig.workers[0].store.mute();
    let answer = ledger.ask(&client, &asked).await.unwrap();
    assert_eq!(answer.status, 500);
    let users = rig.users().await;
    assert!(users.contains_key(&asked.username), "it was written all the same");
    rig.workers[0].store.heal();
    let key = answer.header("idempotency-key").unwrap();
    eventually("the store to be heard", async || {
        let answer = client.post_with_key("/signup", &asked.body(), key).await;
        assert!([500, 201].contains(&answer.status), "{:?}", answer.json());
        answer.status == 201 && answer.header("idempotency-replayed").is_some()
    })
    .await;
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn a_silent_wire_between_front_and_broker_is_given_up() {
    let Some(rig) = Rig::running(&[LONG]).await else { return };
    rig.under_load(async |rig| {
        rig.fronts[0].broker.stall();
        rig.fronts[0].is_ready(false).await;
        rig.fronts[0].broker.heal();
        rig.fronts[0].is_ready(true).await;
    })
    .await;
}

#[tokio::test]
async fn what_a_worker_on_a_silent_wire_holds_another_does() {
    let Some(rig) = Rig::running(&[LONG]).await else { return };
    rig.under_load(async |rig| {
        rig.workers[0].broker.stall();
        rig.workers[0].is_ready(false).await;
        rig.ledger.goes_on(20).await;
        rig.workers[0].broker.heal();
        rig.workers[0].is_ready(true).await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_whose_store_is_silent_says_so_and_another_does_it() {
    let Some(rig) = Rig::running(&[LONG]).await else { return };
    rig.under_load(async |rig| {
        rig.workers[0].store.stall();
        rig.workers[0].says("the store did not answer in time").await;
        rig.ledger.goes_on(20).await;
        rig.workers[0].store.heal();
    })
    .await;
}

#[tokio::test]
async fn a_store_that_is_away_is_told_by_every_contract_in_time() {
    let Some(rig) = Rig::running(&[LONG]).await else { return };
    for worker in &rig.workers {
        worker.store.cut();
    }
    let (client, started) = (rig.fronts[0].client(), Instant::now());
    let asked = five_requests();
    let answers = join_all(asked.iter().map(|(path, body, _)| client.post(path, body))).await;
    assert!(started.elapsed() < AT_ONCE, "it took {:?}", started.elapsed());
    for worker in &rig.workers {
        worker.store.heal();
    }
    for ((path, body, _), answer) in asked.iter().zip(answers) {
        assert_eq!(answer.status, 500, "{path}: {:?}", answer.json());
        let key = answer.header("idempotency-key").unwrap();
        eventually("the store to be back", async || {
            let again = client.post_with_key(path, body, key).await;
            assert!([500, 201].contains(&again.status), "{path}: {:?}", again.json());
            again.status == 201
        })
        .await;
    }
}

#[tokio::test]
async fn a_queue_that_is_deleted_is_made_again() {
    let Some(rig) = Rig::running(&[LONG]).await else { return };
    rig.under_load(async |rig| {
        let broker = Broker::connect().await;
        for door in ["interactive", "profile", "bulk"] {
            let name = format!("{}.{door}", rig.setup.namespace());
            let options = QueueDeleteOptions::default();
            broker.channel.queue_delete(name.as_str().into(), options).await.unwrap();
            eventually("both workers to consume it", async || rig.consumers(door).await == 2).await;
            rig.ledger.goes_on(20).await;
        }
    })
    .await;
}

#[tokio::test]
async fn failed_sample_of_a_queue_ends_no_call() {
    let Some(mut rig) = Rig::new(1, 1, &[LONG]).await else { return };
    let broker = Broker::connect().await;
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked = ledger.registration();
    let call = tokio::spawn(async move { ledger.ask(&client, &asked).await.unwrap() });
    eventually("the call to wait", async || rig.messages("interactive").await >= 1).await;
    let dead = format!("{}.dead", rig.setup.namespace());
    broker.channel.queue_delete(dead.as_str().into(), Default::default()).await.unwrap();
    // Sampling it fails, and makes it again.
    rig.fronts[0].says("sampling a queue failed").await;
    eventually("the queue to be there again", async || {
        let other = Broker::connect().await;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        other.channel.queue_declare(dead.as_str().into(), options, Default::default()).await.is_ok()
    })
    .await;
    rig.workers[0].start().await;
    let response = call.await.unwrap();
    assert_eq!(response.status, 201, "{:?}", response.json());
}

#[tokio::test]
async fn refusal_after_connecting_is_reported_and_not_hurried() {
    if amqp_url().is_none() {
        return;
    }
    let setup = Setup::new(Pair(QueueKind::Rabbit, StoreKind::File));
    assert!(setup.start_role("front").await.stop().await.success());
    let (user, namespace) = (unique("worker"), setup.namespace().to_owned());
    if rabbitmqctl(&["add_user", &user, "a-password"]).await.is_none() {
        return;
    }
    // Everything but reading one queue.
    let read = format!("^{namespace}(|\\.dlx|\\.events|\\.bulk|\\.profile|\\.dead|\\.retry.*)$");
    rabbitmqctl(&["set_permissions", &user, ".*", ".*", &read]).await;
    let proxy = Proxy::to(&amqp_url().unwrap()).await;
    let mut url = url::Url::parse(&proxy.url(&amqp_url().unwrap())).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("a-password")).unwrap();
    let setup = setup.with("MUSTER_QUEUE", url.as_str());
    let mut worker = setup.start_with(&["serve", "--role", "worker"]).await;
    let queue = format!("{namespace}.interactive");
    let line = worker.wait_for_log(|line| line.contains("missing permission")).await;
    assert!(line.contains(&queue) && !line.contains("password"), "{line}");
    // The pauses grow from 100 ms, each cut to a half at most.
    const ATTEMPTS: usize = 7;
    let (began, first) = (Instant::now(), proxy.accepted());
    eventually("more attempts", async || proxy.accepted() >= first + ATTEMPTS).await;
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    drop(worker);
    rabbitmqctl(&["delete_user", &user]).await;
}

#[tokio::test]
async fn a_queue_for_retries_that_is_deleted_is_made_again() {
    let Some(mut rig) = Rig::new(0, 1, &[]).await else { return };
    rig.workers[0].start().await;
    let broker = Broker::connect().await;
    let name = format!("{}.retry.1000", rig.setup.namespace());
    broker.channel.queue_delete(name.as_str().into(), Default::default()).await.unwrap();
    rig.workers[0].store.cut();
    let mut replies = broker.direct_replies().await;
    // Several, so that confirms come together and the client could take one's for another's.
    const ROWS: usize = 40;
    for _ in 0..ROWS {
        broker.publish_row(rig.setup.namespace()).await;
    }
    rig.workers[0].says("republish_failed").await;
    rig.workers[0].store.heal();
    for _ in 0..ROWS {
        let reply = replies.next().await.unwrap().unwrap();
        let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(outcome.word(), "registered");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let settings = [("MUSTER_QUEUE_MAX_LENGTH", "3"), LONG];
    let Some(mut rig) = Rig::new(1, 1, &settings).await else { return };
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let (mut waiting, mut refused) = (Vec::new(), None);
    // The broker counts with a little delay, so it is filled until it refuses.
    while refused.is_none() {
        assert!(waiting.len() < 200, "it takes any number");
        let (client, ledger) = (client.clone(), ledger.clone());
        let mut one = tokio::spawn(async move {
            let asked = ledger.registration();
            ledger.ask(&client, &asked).await.unwrap()
        });
        match tokio::time::timeout(Duration::from_millis(50), &mut one).await {
            Ok(answer) => refused = Some(answer.unwrap()),
            Err(_) => waiting.push(one),
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());

    rig.workers[0].start().await;
    let answers = join_all(waiting).await;
    let created = answers.iter().filter(|answer| answer.as_ref().unwrap().status == 201).count();
    assert!(created >= 3, "{created}");
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn a_reply_to_a_front_that_is_gone_is_dropped_and_its_message_done() {
    let Some(mut rig) = Rig::new(2, 1, &[HELD]).await else { return };
    rig.workers[0].start().await;
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let asked = ledger.registration();
    rig.workers[0].store.stall();
    let gone = async {
        rig.workers[0].says("taken").await;
        rig.fronts[0].kill().await;
        rig.tell_addresses();
        rig.workers[0].store.heal();
        rig.workers[0].says("a reply was not delivered").await;
    };
    let (answer, ()) = tokio::join!(ledger.ask(&client, &asked), gone);
    assert!(answer.is_none(), "its front is gone");
    assert!(rig.users().await.contains_key(&asked.username));
    // It finishes what it does: between the reply and the ack there is an event. Whatever it had not acked
    // then would come back now.
    rig.workers[0].stop().await;
    for queue in ["interactive", "dead"] {
        assert_eq!(rig.messages(queue).await, 0, "{queue}");
    }
    rig.workers[0].start().await;
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn clocks_that_differ_by_five_minutes_do_no_harm() {
    let Some(rig) = Rig::new(1, 0, &[LONG]).await else { return };
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    for skew in [-300_000, 300_000] {
        let settings = rig.setup.clone().with("MUSTER_ROLE", "worker").settings();
        let worker = App::start(&settings, Clock::skewed(skew)).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
        for _ in 0..10 {
            let asked = ledger.registration();
            let answer = ledger.ask(&client, &asked).await.unwrap();
            assert_eq!(answer.status, 201, "{skew}: {:?}", answer.json());
            let bearer = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
            let headers = [("authorization", bearer.as_str())];
            assert_eq!(client.get("/users/profile", &headers).await.status, 200, "{skew}");
        }
        if skew > 0 {
            rig.settle().await.assert_kept();
        }
        stop.send(()).unwrap();
        worker.await.unwrap();
    }
}

#[tokio::test]
async fn prefetch_is_the_same_after_a_reconnection() {
    let settings = [("MUSTER_QUEUE_PREFETCH", "7"), LONG];
    let Some(rig) = Rig::running(&settings).await else { return };
    let consumers = async || {
        let listed = rabbitmqctl(&["-q", "list_consumers", "queue_name", "prefetch_count"]).await?;
        let own = listed
            .lines()
            .filter(|line| line.starts_with(rig.setup.namespace()) && !line.contains(".reply."));
        let mut own: Vec<String> = own
            .map(|line| line.trim_start_matches(rig.setup.namespace()).replace('\t', " "))
            .collect();
        own.sort();
        Some(own)
    };
    if consumers().await.is_none() {
        return;
    }
    let each = [".bulk 7", ".interactive 7", ".profile 64"];
    let before: Vec<_> = each.into_iter().flat_map(|line| [line; 2].map(str::to_owned)).collect();
    // A worker looks at the first bulk row before it takes more.
    eventually("the consumers", async || consumers().await.unwrap() == before).await;
    for worker in &rig.workers {
        worker.broker.cut();
        worker.is_ready(false).await;
        worker.broker.heal();
        worker.is_ready(true).await;
    }
    // The broker may list what it lost for a moment longer.
    eventually("the same consumers", async || consumers().await.unwrap() == before).await;
}

#[tokio::test]
async fn a_bulk_row_waits_for_a_store_that_is_away() {
    let Some(mut rig) = Rig::new(1, 1, &[]).await else { return };
    rig.workers[0].start().await;
    rig.workers[0].store.cut();
    let broker = Broker::connect().await;
    let mut replies = broker.direct_replies().await;
    for _ in 0..5 {
        broker.publish_row(rig.setup.namespace()).await;
    }
    rig.workers[0].says("\"outcome\":\"store_unavailable\"").await;
    rig.workers[0].store.heal();
    for _ in 0..5 {
        let reply = replies.next().await.unwrap().unwrap();
        let outcome: Outcome = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(outcome.word(), "registered");
    }
    assert_eq!(rig.messages("dead").await, 0);
}

#[tokio::test]
async fn a_flood_of_profile_requests_leaves_room_for_registrations() {
    let settings = [("MUSTER_FRONT_MAX_IN_FLIGHT", "5"), LONG];
    let Some(mut rig) = Rig::new(1, 1, &settings).await else { return };
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    let headers = [("authorization", "Bearer x")];
    let looking_up = join_all((0..5).map(|_| client.get("/users/profile", &headers)));
    let registering = async {
        eventually("all to wait", async || rig.messages("profile").await >= 5).await;
        assert_eq!(client.get("/users/profile", &headers).await.status, 503);
        let asked = ledger.registration();
        let registering = async {
            let answer = ledger.ask(&client, &asked).await.unwrap();
            assert_eq!(answer.status, 201);
        };
        let started = async {
            eventually("it to wait", async || rig.messages("interactive").await >= 1).await;
            rig.workers[0].start().await;
        };
        tokio::join!(registering, started);
    };
    let (profiles, ()) = tokio::join!(looking_up, registering);
    assert!(profiles.iter().all(|answer| answer.status == 401));
    rig.settle().await.assert_kept();
}

#[tokio::test]
async fn calls_whose_clients_have_gone_keep_their_places() {
    let settings = [("MUSTER_FRONT_MAX_IN_FLIGHT", "5"), LONG];
    let Some(mut rig) = Rig::new(1, 1, &settings).await else { return };
    let (client, ledger) = (rig.fronts[0].client(), rig.ledger.clone());
    for n in 1..=5 {
        let asked = ledger.registration();
        let asking = ledger.ask(&client, &asked);
        let mut asking = std::pin::pin!(asking);
        let gone = eventually("it to wait", async || rig.messages("interactive").await >= n);
        tokio::select! {
            answer = &mut asking => panic!("{answer:?}"),
            () = gone => {}
        }
    }
    // Otherwise clients that come and go could fill the memory.
    let refused = ledger.ask(&client, &ledger.registration()).await.unwrap();
    assert_eq!(refused.status, 503);
    assert_eq!(rig.messages("interactive").await, 5);
    rig.workers[0].start().await;
    rig.settle().await.assert_kept();
}
