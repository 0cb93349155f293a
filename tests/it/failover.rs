//! Several broker addresses in one URL, queues that cannot be declared, and unknown reply queues. Proxies act as
//! the nodes of a cluster; `cluster` uses real nodes.

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use serde_json::json;
use tokio::net::TcpListener;

use crate::flow::five_requests;
use crate::support::broker::Broker;
use crate::support::muster::{Muster, eventually};
use crate::support::proxy::Proxy;
use crate::support::services::amqp_url;
use crate::support::{Client, Pair, QueueAdapter, Setup, StoreAdapter};

const PAIR: Pair = Pair(QueueAdapter::Rabbit, StoreAdapter::File);

/// A setup whose broker URL has these addresses.
fn setup(addresses: &[String]) -> Setup {
    let setup = Setup::new(PAIR);
    let mut url = url::Url::parse(&setup.environment["MUSTER_QUEUE"]).unwrap();
    let replaced = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672));
    url.set_port(Some(url.port().unwrap_or(5672))).unwrap();
    let url = url.to_string().replace(&replaced, &addresses.join(","));
    setup.with("MUSTER_QUEUE", &url)
}

async fn is_ready(client: &Client) -> bool {
    client.get("/ready", &[]).await.status == 200
}

/// Repeats a signup with one key until it succeeds.
async fn sign_up(client: &Client) {
    let (path, body, _) = five_requests().remove(0);
    let key = crate::support::services::unique("a-key-of-16-signs");
    let mut body = body;
    if let Some(email) = body.get_mut("email") {
        *email = json!(format!("{key}@example.com"));
    }
    if let Some(name) = body.get_mut("username") {
        *name = json!(format!("u{}", &muster::domain::id::random_hex()[..12]));
    }
    eventually("a signup to succeed", async || {
        client.post_with_key(path, &body, &key).await.status == 201
    })
    .await;
}

/// Causes a fault on each address in turn. Signups must succeed over the other address.
async fn assert_moves_to_the_other_address(fault: impl Fn(&Proxy)) {
    let Some(url) = amqp_url() else { return };
    let proxies = [Proxy::to(&url).await, Proxy::to(&url).await];
    let muster = setup(&proxies.each_ref().map(Proxy::address)).start().await;
    sign_up(muster.client()).await;
    for proxy in &proxies {
        let other = proxies.iter().find(|other| other.address() != proxy.address()).unwrap();
        let (own, before) = (proxy.accepted(), other.accepted());
        assert!(own + before > 0);
        fault(proxy);
        sign_up(muster.client()).await;
        eventually("a front and a worker on the other address", async || {
            other.accepted() > 0 && is_ready(muster.client()).await
        })
        .await;
        sign_up(muster.client()).await;
        proxy.restore();
    }
}

#[tokio::test]
async fn cut_connection_moves_to_the_other_address() {
    assert_moves_to_the_other_address(Proxy::cut).await;
}

#[tokio::test]
async fn stalled_connection_moves_to_the_other_address() {
    assert_moves_to_the_other_address(Proxy::stall).await;
}

#[tokio::test]
async fn connection_without_responses_moves_to_the_other_address() {
    assert_moves_to_the_other_address(Proxy::drop_responses).await;
}

#[tokio::test]
async fn silent_address_only_delays_the_start() {
    let Some(url) = amqp_url() else { return };
    // No process accepts: the kernel completes the connections, as for a frozen node.
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = Proxy::to(&url).await;
    let addresses =
        [frozen.local_addr().unwrap().to_string(), refused.to_string(), proxy.address()];
    let muster = setup(&addresses).start().await;
    sign_up(muster.client()).await;
}

async fn ready_report(muster: &Muster) -> serde_json::Value {
    muster.client().get("/ready", &[]).await.json()
}

#[tokio::test]
async fn signups_succeed_while_the_profile_queue_cannot_be_declared() {
    if !PAIR.is_available() {
        return;
    }
    let setup = Setup::new(PAIR);
    let broker = Broker::connect().await;
    let profile = format!("{}.profile", setup.namespace());
    // Exclusive to another connection, so every declaration and consumer fails.
    broker.declare_exclusive_queue(&profile).await;
    let muster = setup.start_with(&["serve"]).await;
    let client = muster.client();
    sign_up(client).await;
    let report = ready_report(&muster).await;
    assert!(report["warnings"]["profile"].is_string(), "{report}");
    assert_ne!(report["components"]["profile"], json!("up"), "{report}");
    assert_eq!(report["components"]["queue"], json!("up"), "{report}");
    assert_eq!(report["components"]["interactive"], json!("up"), "{report}");
    let headers = [("authorization", "Bearer a.b.c")];
    assert!(client.get("/users/profile", &headers).await.status >= 500);

    broker
        .channel
        .queue_delete(profile.as_str().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    eventually("the process to be ready", async || is_ready(client).await).await;
    eventually("no warnings", async || ready_report(&muster).await.get("warnings").is_none()).await;
    assert_eq!(client.get("/users/profile", &headers).await.status, 401);
}

#[tokio::test]
async fn front_is_not_ready_while_the_interactive_queue_cannot_be_declared() {
    if !PAIR.is_available() {
        return;
    }
    let setup = Setup::new(PAIR);
    let broker = Broker::connect().await;
    let interactive = format!("{}.interactive", setup.namespace());
    broker.declare_exclusive_queue(&interactive).await;
    let muster = setup.start_with(&["serve"]).await;
    let client = muster.client();
    eventually("the reason in /ready", async || {
        let report = ready_report(&muster).await;
        report["components"]["queue"].to_string().contains("RESOURCE_LOCKED")
    })
    .await;
    let (path, body, _) = five_requests().remove(0);
    assert_eq!(client.post(path, &body).await.status, 503);
    broker
        .channel
        .queue_delete(interactive.as_str().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    sign_up(client).await;
    eventually("the process to be ready again", async || is_ready(client).await).await;
}

#[tokio::test]
async fn worker_replies_to_probes_only_on_reply_queues_of_fronts() {
    if !PAIR.is_available() {
        return;
    }
    let setup = Setup::new(PAIR);
    let _worker = setup.start_role("worker").await;
    let broker = Broker::connect().await;
    let (own, foreign) = (
        format!("{}.reply.a-test", setup.namespace()),
        crate::support::services::unique("no-reply-queue"),
    );
    for queue in [&foreign, &own] {
        broker.declare_exclusive_queue(queue).await;
        let probe = BasicProperties::default()
            .with_type("probe".into())
            .with_reply_to(queue.as_str().into());
        broker.publish_unchecked(setup.namespace(), "interactive", probe, b"").await;
    }
    // The worker handles probes in order, so it has handled the first one.
    let reply = broker.fetch_unchecked(&own).await;
    assert_eq!(reply.properties.kind().as_ref().unwrap().as_str(), "probe");
    assert_eq!(broker.count(&foreign).await, 0);
    let dead = format!("{}.dead", setup.namespace());
    assert_eq!(broker.count(&dead).await, 0);
}

#[tokio::test]
async fn reply_queue_is_replaced_when_probes_get_no_reply() {
    if !PAIR.is_available() {
        return;
    }
    let setup = Setup::new(PAIR);
    let mut front = setup.start_role("front").await;
    let broker = Broker::connect().await;
    let queue = format!("{}.interactive", setup.namespace());
    // Consumes everything without a reply, like a worker that does not find the reply queue.
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let table = FieldTable::default();
    let mut consumer = broker
        .channel
        .basic_consume(queue.as_str().into(), "".into(), options, table)
        .await
        .unwrap();
    let mut reply_queues = std::collections::BTreeSet::new();
    while reply_queues.len() < 2 {
        let probe = consumer.next().await.unwrap().unwrap();
        if let Some(queue) = probe.properties.reply_to() {
            reply_queues.insert(queue.to_string());
        }
    }
    front.wait_for_event_with("component_not_ready", "replies do not arrive").await;
    broker.channel.basic_cancel(consumer.tag().as_str().into(), Default::default()).await.unwrap();
    let _worker = setup.start_role("worker").await;
    sign_up(front.client()).await;
}
