//! More than can be done: what could not be answered in time is refused before it is queued, and
//! what is accepted is answered.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::services::{EMBEDDED, PRODUCTION, unique};
use crate::support::{Answer, Client, Setup};

/// How many come, and how soon after each other: several times what two cores hash at cost 10.
const CROWD: u32 = 600;
const EVERY: Duration = Duration::from_millis(5);

async fn sign_up(client: &Client) -> (Value, Answer) {
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    let answer = client.post("/signup", &body).await;
    (body, answer)
}

#[tokio::test]
async fn what_cannot_be_answered_in_time_is_refused_at_once() {
    for pair in [EMBEDDED, PRODUCTION].into_iter().filter(|pair| pair.is_there()) {
        let setup = Setup::new(pair)
            .with("MUSTER_BCRYPT_COST", "10")
            .with("MUSTER_FRONT_DEADLINE", "6s")
            .with("MUSTER_STORE_TIMEOUT", "2s");
        let muster = setup.start().await;
        let client = muster.client();
        // So that the front learns how fast this machine hashes while it does everything else.
        join_all((0..24).map(|_| sign_up(client))).await;

        let arriving = (0..CROWD).map(|n| async move {
            tokio::time::sleep(EVERY * n).await;
            sign_up(client).await
        });
        let answers = join_all(arriving).await;
        let (created, refused): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|(_, answer)| answer.status == 201);
        assert!(!created.is_empty() && !refused.is_empty());
        for (_, answer) in &refused {
            assert_eq!(answer.status, 503, "{pair:?}: an accepted request is answered");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=120).contains(&wait), "{wait}");
        }
        // The refusal promised that nothing happened and that its key can be used again.
        let (body, answer) = &refused[0];
        let key = answer.header("idempotency-key").unwrap();
        let again = client.post_with_key("/signup", body, key).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, None));
        assert!(muster.memory_kib() < 100 << 10, "{} KiB", muster.memory_kib());
    }
}
