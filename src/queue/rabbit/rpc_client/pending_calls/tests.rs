//! Tests that every way a request can end leaves the map empty, with a hundred thousand requests.

use std::time::Duration;

use futures_util::future::join_all;

use super::*;
use crate::domain::{FailureCode, Outcome};
use Fate::*;

/// How one request ends.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Replied,
    /// The reply arrives before the confirm.
    RepliedEarly,
    RepliedTwice,
    /// Replies to other requests, then its own.
    OthersFirst,
    /// Only a reply with its correlation id and another message id.
    WrongId,
    Unreadable,
    /// The reply arrives after the deadline.
    Late,
    /// Returned, or refused by a full queue.
    NotAccepted,
    NoConfirm,
    NeverPublished,
    /// The client disconnects before the confirm, or after it.
    DroppedPublishing,
    DroppedWaiting,
    /// The connection is lost before the confirm, or after it.
    LostPublishing,
    LostWaiting,
}

const FATES: [Fate; 14] = [
    Replied,
    RepliedEarly,
    RepliedTwice,
    OthersFirst,
    WrongId,
    Unreadable,
    Late,
    NotAccepted,
    NoConfirm,
    NeverPublished,
    DroppedPublishing,
    DroppedWaiting,
    LostPublishing,
    LostWaiting,
];

const SESSIONS: usize = 10;
const CALLS: usize = 10_000;
const DEADLINE: Duration = Duration::from_secs(10);
/// A delay after which everything else of the same millisecond has run.
const TICK: Duration = Duration::from_millis(2);

fn reply() -> Vec<u8> {
    serde_json::to_vec(&Outcome::from(FailureCode::Overloaded)).unwrap()
}

/// One request as its client sees it; `None` if the client disconnected.
async fn call(calls: &PendingCalls, n: usize, fate: Fate) -> Option<Result<Reply, RpcError>> {
    let id = MessageId::random();
    let pending = calls.add(QueueKind::Interactive, &id);
    let correlation = pending.correlation_id().to_owned();
    let (id, correlation) = (id.as_str(), correlation.as_str());
    let moment = Duration::from_millis(n as u64 % 1000);
    let deadline = match fate {
        LostPublishing | LostWaiting => Instant::now() + DEADLINE * 100,
        _ => Instant::now() + DEADLINE,
    };
    let publish = async {
        match fate {
            NotAccepted => return Err(PublishError::Rejected),
            NoConfirm => return Err(PublishError::Indeterminate),
            NeverPublished | DroppedPublishing | LostPublishing => std::future::pending().await,
            RepliedEarly => {
                assert!(calls.settle(correlation, id, &reply(), Stages::default()).is_some())
            }
            _ => {}
        }
        tokio::time::sleep(moment).await;
        Ok(())
    };
    let answers = async {
        tokio::time::sleep(moment * 2).await;
        let right = || calls.settle(correlation, id, &reply(), Stages::default());
        match fate {
            Replied => assert!(right().is_some()),
            RepliedTwice => assert!(right().is_some() && right().is_none()),
            OthersFirst => {
                assert!(calls.settle(&random_hex(), id, &reply(), Stages::default()).is_none());
                assert!(
                    calls.settle(correlation, "another", &reply(), Stages::default()).is_none()
                );
                assert!(right().is_some());
            }
            WrongId => {
                assert!(calls.settle(correlation, "another", &reply(), Stages::default()).is_none())
            }
            Unreadable => assert!(
                calls.settle(correlation, id, b"{\"outcome\":", Stages::default()).is_some()
            ),
            Late => {
                tokio::time::sleep_until(deadline + moment + TICK).await;
                assert!(right().is_none());
            }
            _ => {}
        }
    };
    let answer = pending.reply(publish, Some(deadline));
    let answer = async {
        match fate {
            DroppedPublishing | DroppedWaiting => {
                tokio::time::timeout(moment * 3, answer).await.ok()
            }
            _ => Some(answer.await),
        }
    };
    tokio::join!(answer, answers).0
}

/// Whether a request ended as its fate requires.
fn is_right(fate: Fate, answer: &Option<Result<Reply, RpcError>>) -> bool {
    match fate {
        Replied | RepliedEarly | RepliedTwice | OthersFirst => matches!(answer, Some(Ok(_))),
        WrongId | Late | NeverPublished => *answer == Some(Err(RpcError::Timeout)),
        NotAccepted => *answer == Some(Err(RpcError::Rejected)),
        Unreadable | NoConfirm | LostPublishing | LostWaiting => {
            *answer == Some(Err(RpcError::Indeterminate))
        }
        DroppedPublishing | DroppedWaiting => answer.is_none(),
    }
}

#[tokio::test(start_paused = true)]
async fn ended_requests_leave_the_map_empty() {
    for session in 0..SESSIONS {
        let calls = PendingCalls::default();
        let fates = || FATES.into_iter().cycle().take(CALLS);
        let all = fates().enumerate().map(async |(n, fate)| {
            let answer = call(&calls, n, fate).await;
            assert!(is_right(fate, &answer), "{fate:?}: {answer:?}");
        });
        let loss = async {
            // By then every other request has ended.
            tokio::time::sleep(DEADLINE + Duration::from_secs(2)).await;
            let left = fates().filter(|fate| matches!(fate, LostPublishing | LostWaiting)).count();
            assert_eq!(calls.lock().by_correlation_id.len(), left);
            // An alarm, or the loss of the connection.
            if session % 2 == 0 { calls.fail_interactive() } else { calls.close() }
        };
        tokio::join!(join_all(all), loss);
        assert!(calls.lock().by_correlation_id.is_empty(), "the map is empty");
    }
}

#[tokio::test(start_paused = true)]
async fn request_after_connection_loss_ends_immediately() {
    let calls = PendingCalls::default();
    calls.close();
    let started = Instant::now();
    let answer = call(&calls, 1, LostWaiting).await;
    assert_eq!(answer, Some(Err(RpcError::Indeterminate)));
    assert!(started.elapsed() < DEADLINE && calls.lock().by_correlation_id.is_empty());
}
