//! Metrics of components, of the process and of bulk rows.

use std::collections::BTreeMap;

use muster::domain::ContractId;
use serde_json::json;

use super::samples;
use crate::support::Setup;
use crate::support::broker::{Broker, registration};
use crate::support::importer::{ndjson, user};
use crate::support::muster::eventually;
use crate::support::services::{EMBEDDED, PRODUCTION, unique};

const KEY: &str = "an-api-key-of-thirty-two-characters";

#[tokio::test]
async fn component_metrics_show_readiness() {
    let ready = |samples: &BTreeMap<String, f64>, component: &str| {
        samples[&format!("muster_component_ready{{component=\"{component}\"}}")]
    };
    let muster = Setup::embedded().start().await;
    let metrics = samples(muster.client()).await;
    for component in ["process", "queue", "store", "worker"] {
        assert_eq!(ready(&metrics, component), 1.0, "{component}");
    }
    // A store that is unavailable.
    let setup =
        Setup::embedded().with("MUSTER_STORE", "mongodb://127.0.0.1:1/?directConnection=true");
    let setup = setup.with("JWT_SECRET", &"0123456789abcdef".repeat(4));
    let muster = setup.start_with(&["serve"]).await;
    let metrics = samples(muster.client()).await;
    assert_eq!((ready(&metrics, "store"), ready(&metrics, "queue")), (0.0, 1.0));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn process_metrics_have_the_standard_names() {
    let muster = Setup::embedded().start().await;
    let before = samples(muster.client()).await;
    let mut after = BTreeMap::new();
    eventually("processor time to be counted", async || {
        let email = format!("{}@example.com", unique("process"));
        let user = json!({ "firstname": "Ann", "email": email, "password": "Correct-horse-7" });
        assert_eq!(muster.client().post("/users/register", &user).await.status, 201);
        after = samples(muster.client()).await;
        after["process_cpu_seconds_total"] > before["process_cpu_seconds_total"]
    })
    .await;
    let resident = after["process_resident_memory_bytes"];
    let shown = muster.memory_kib() as f64 * 1024.0;
    assert!(
        (shown / 2.0..shown * 2.0).contains(&resident),
        "metric: {resident} bytes, /proc: {shown} bytes"
    );
    assert!(after["process_virtual_memory_bytes"] >= resident);
    let (open, max) = (after["process_open_fds"], after["process_max_fds"]);
    assert!(open >= 3.0 && open <= max, "{open} of {max}");
    assert_eq!(after["process_start_time_seconds"], before["process_start_time_seconds"]);
    // A time before this test was written.
    assert!(after["process_start_time_seconds"] > 1_700_000_000.0);
}

#[tokio::test]
async fn bulk_rows_are_counted_by_outcome_from_any_entry_point() {
    for pair in [EMBEDDED, PRODUCTION] {
        if !pair.is_available() {
            continue;
        }
        let setup = Setup::new(pair).with("MUSTER_FRONT_BULK_API_KEY", KEY);
        let muster = setup.start().await;
        let users: Vec<_> = (0..3).map(|n| user(ContractId::Register, n)).collect();
        let rows =
            [users[0].clone(), users[0].clone(), users[1].clone(), json!({ "email": "jo@" })];
        let bearer = format!("Bearer {KEY}");
        let headers = [("content-type", "application/x-ndjson"), ("authorization", &*bearer)];
        let path = "/registrations?contract=register";
        let sent = muster.client().send("POST", path, &headers, ndjson(rows.into_iter()));
        assert_eq!(sent.await.unwrap().status, 200);
        let mut expected = [("registered", 2.0), ("duplicate", 1.0), ("invalid", 1.0)].to_vec();
        if pair == PRODUCTION {
            // Two rows of another system: one is valid, the other is unreadable.
            let broker = Broker::connect().await;
            let row = registration("register").with_message_id(unique("row").into());
            let body = users[2].to_string();
            broker.publish(setup.namespace(), "bulk", row, body.as_bytes()).await;
            let unreadable = registration("register");
            broker.publish_unchecked(setup.namespace(), "bulk", unreadable, b"{}").await;
            expected =
                [("registered", 3.0), ("duplicate", 1.0), ("invalid", 1.0), ("dead_letter", 1.0)]
                    .to_vec();
        }
        let mut found = BTreeMap::new();
        eventually("every row to be counted", async || {
            found = samples(muster.client()).await;
            let count_of = |outcome: &str| {
                found.get(&format!("muster_bulk_rows_total{{outcome=\"{outcome}\"}}")).copied()
            };
            expected.iter().all(|(outcome, count)| count_of(outcome) == Some(*count))
        })
        .await;
        let all = found.iter().filter(|(name, _)| name.starts_with("muster_bulk_rows_total"));
        let rows: f64 = all.map(|(_, count)| count).sum();
        assert_eq!(
            rows,
            expected.iter().map(|(_, count)| count).sum::<f64>(),
            "each row is counted once"
        );
    }
}
