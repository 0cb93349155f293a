//! The status page: live counts of signups and bulk rows, and reasons for warnings.

use serde_json::Value;

use super::{assert_accessible, assert_no_console_errors, start_with_browser};
use crate::flow::five_requests;
use crate::support::broker::{Broker, registration};
use crate::support::fleet::Fleet;
use crate::support::importer::{ndjson, user};
use crate::support::muster::eventually;
use crate::support::services::{PRODUCTION, unique};
use crate::support::{Browser, Client, Setup};
use muster::domain::ContractId;

const KEY: &str = "an-api-key-of-thirty-two-characters";

async fn snapshot(client: &Client) -> Value {
    client.get("/status.json", &[]).await.json()
}

/// Waits until the status has this state and this reason; an empty reason means none.
async fn reasons(client: &Client, state: &str, reason: &str) {
    eventually(&format!("{state}, {reason:?}"), async || {
        let snapshot = snapshot(client).await;
        let reasons = snapshot["reasons"].as_array().unwrap();
        let is_given = reasons.iter().any(|one| one.as_str().unwrap().contains(reason));
        snapshot["state"] == state && (is_given || (reasons.is_empty() && reason.is_empty()))
    })
    .await;
}

/// The browser's layout shift score, without shifts after user input.
async fn layout_shift(browser: &Browser) -> f64 {
    let script = "const done = arguments[arguments.length - 1];
        let sum = 0;
        new PerformanceObserver((list) => {
            for (const { value, hadRecentInput } of list.getEntries()) sum += hadRecentInput ? 0 : value;
        }).observe({ type: 'layout-shift', buffered: true });
        requestAnimationFrame(() => setTimeout(() => done(sum), 100))";
    browser.run_async(script).await.as_f64().unwrap()
}

#[tokio::test]
async fn status_shows_a_signup_within_seconds() {
    let Some((muster, browser)) = start_with_browser(&Setup::embedded(), "/status").await else {
        return;
    };
    browser.wait_for_text("#ready", "ready").await;
    browser.wait_for_text("#reasons", "nothing needs attention").await;
    browser.wait_for_text("#workers", "1").await;
    browser.wait_for_text("#rate-summary", "0 done, 0 rejected, 0 failed").await;
    let (path, body, _) = five_requests().remove(0);
    assert_eq!(muster.client().post(path, &body).await.status, 201);
    assert_eq!(muster.client().post(path, &body).await.status, 403);
    browser.wait_for_text("#rate-summary", "1 done, 1 rejected, 0 failed").await;
    browser.wait_for_text("#time-summary", "p50 and p95").await;
    // One signup is a single point, which needs a dot.
    for series in ["p50", "p95"] {
        let dots = format!("return document.querySelectorAll('#time-chart .dot.{series}').length");
        assert_eq!(browser.run(&dots).await, 1, "{series}");
        let drawn = format!(
            "return document.querySelector('#time-chart .dot.{series}').getBoundingClientRect().height"
        );
        assert!(browser.run(&drawn).await.as_f64().unwrap() >= 0.0);
    }
    for (chart, unit) in [("rate", "/s"), ("time", "ms"), ("bulk-rows", "/s")] {
        let top = browser.text(&format!("#{chart}-scale li")).await;
        assert!(top.ends_with(unit), "{chart}: {top}");
    }
    let legends = "return [...document.querySelectorAll('figure')]
        .map((figure) => figure.querySelectorAll('.legend li').length)";
    assert_eq!(browser.run(legends).await, serde_json::json!([3, 2, 1, 1, 2]));
    for part in ["process", "queue", "store", "worker"] {
        browser.wait_for_text("#components", part).await;
    }
    let response = muster.client().get("/status.json", &[]).await;
    assert_eq!(response.header("cache-control"), Some("no-cache"));
    for series in ["registered", "queued", "bulkRows"] {
        let values = &response.json()["seconds"][series];
        assert_eq!(values.as_array().unwrap().len(), 120, "{series}");
    }
    assert_no_console_errors(&browser).await;
    drop(muster);
    browser.wait_for_text("#ready", "no response").await;
}

#[tokio::test]
async fn status_shows_a_bulk_upload() {
    const ROWS: usize = 300;
    let setup = Setup::embedded()
        .with("MUSTER_FRONT_BULK_API_KEY", KEY)
        .with("MUSTER_QUEUE_PREFETCH", "4")
        .with("MUSTER_BCRYPT_COST", "11");
    let Some((muster, browser)) = start_with_browser(&setup, "/status").await else { return };
    browser.wait_for_text("#bulk-summary", "No bulk rows are queued").await;
    assert_eq!(browser.text("#bulk-remaining").await, "–");
    let client = muster.client().clone();
    let upload = tokio::spawn(async move {
        let bearer = format!("Bearer {KEY}");
        let headers = [("content-type", "application/x-ndjson"), ("authorization", &*bearer)];
        let rows = ndjson((0..ROWS).map(|n| user(ContractId::Register, n)));
        client.send("POST", "/registrations?contract=register", &headers, rows).await.unwrap()
    });
    browser.wait_for_text("#bulk-summary", "One upload to this front; one worker").await;
    let positive = async |selector: &str| {
        let figure = browser.text(selector).await;
        figure.parse::<f64>().is_ok_and(|figure| figure > 0.0)
    };
    eventually("backlog and rate", async || {
        positive("#bulk-ready").await && positive("#bulk-rate").await
    })
    .await;
    eventually("the time left", async || {
        let left = browser.text("#bulk-remaining").await;
        left.ends_with(" s") || left.ends_with(" min")
    })
    .await;
    assert_accessible(&browser, "/status with an upload").await;
    assert_eq!(upload.await.unwrap().status, 200);
    browser.wait_for_text("#bulk-rows-summary", &format!("{ROWS} finished")).await;
    // The upload caused no layout shift.
    for (width, height) in [(1280, 900), (320, 800)] {
        browser.resize(width, height).await;
        browser.run("scrollTo(0, 0)").await;
        browser.open(&format!("http://{}/status", muster.client().address())).await;
        browser.wait_for_text("#bulk-rows-summary", &format!("{ROWS} finished")).await;
        let shift = layout_shift(&browser).await;
        assert!(shift < 0.01, "{width}: {shift}");
        let scrolled = browser.run("return document.documentElement.scrollWidth").await;
        assert_eq!(scrolled, width);
    }
    assert_no_console_errors(&browser).await;
}

#[tokio::test]
async fn status_is_amber_without_workers() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_FRONT_UI", "on");
    let front = setup.start_role("front").await;
    reasons(front.client(), "warning", "No worker consumes the queue").await;
    let Some(browser) = Browser::start().await else { return };
    browser.open(&format!("http://{}/status", front.client().address())).await;
    browser.wait_for_text("#ready", "ready, with a warning").await;
    browser.wait_for_text("#reasons", "No worker consumes the queue").await;
    let class = "return document.getElementById('state').className";
    assert!(browser.run(class).await.as_str().unwrap().contains("warning"));
    assert_accessible(&browser, "/status without workers").await;
    browser.resize(320, 800).await;
    assert_accessible(&browser, "/status without workers, on a phone").await;
    let _worker = setup.start_role("worker").await;
    browser.wait_for_text("#reasons", "nothing needs attention").await;
    assert_eq!(browser.text("#ready").await, "ready");
    let shift = layout_shift(&browser).await;
    assert!(shift < 0.01, "{shift}");
}

#[tokio::test]
async fn status_is_amber_while_workers_cannot_reach_the_store() {
    let settings = [
        ("MUSTER_FRONT_UI", "on"),
        ("MUSTER_QUEUE_RETRY_DELAYS", "60s"),
        ("MUSTER_STORE_TIMEOUT", "1s"),
    ];
    let Some(fleet) = Fleet::running(&settings).await else { return };
    let client = fleet.fronts[0].client();
    reasons(&client, "ready", "").await;
    fleet.workers.iter().for_each(|worker| worker.store.cut());
    let (path, body, _) = five_requests().remove(0);
    eventually("a failure", async || client.post(path, &body).await.status >= 500).await;
    reasons(&client, "warning", "cannot reach the store").await;
    // Bulk rows are retried without any signup.
    let properties = registration("flat-name").with_message_id(unique("row").into());
    let row = user(ContractId::FlatName, 0).to_string();
    let broker = Broker::connect().await;
    broker.publish(fleet.setup.namespace(), "bulk", properties, row.as_bytes()).await;
    eventually("a retry", async || snapshot(&client).await["bulk"]["retrying"] == 1).await;
    reasons(&client, "warning", "wait for a retry").await;
    fleet.workers.iter().for_each(|worker| worker.store.restore());
}

#[tokio::test]
async fn status_is_amber_when_the_dead_letter_queue_is_full() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION)
        .with("MUSTER_FRONT_UI", "on")
        .with("MUSTER_QUEUE_BULK_MAX_LENGTH", "1");
    let muster = setup.start().await;
    let dead = async || snapshot(muster.client()).await["deadLetters"].clone();
    eventually("a sample", async || dead().await == 0).await;
    let broker = Broker::connect().await;
    for _ in 0..2 {
        let properties = registration("flat-name").with_message_id(unique("row").into());
        broker.publish_unchecked(setup.namespace(), "bulk", properties, b"no JSON").await;
    }
    // A queue with a limit of one may accept two messages.
    eventually("a dead letter", async || dead().await.as_u64() >= Some(1)).await;
    reasons(muster.client(), "warning", "The dead-letter queue is full").await;
}
