//! How each delivery ends: a table.

use crate::queue::{Delivery, Door, Reason, Reply};
use crate::signup::{FailureCode, Outcome};
use crate::telemetry::{Metrics, Stages};

/// One of a delivery's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Reply,
    Retry,
    Bury(Reason),
}

/// Settles a delivery by its door and its outcome.
pub(super) async fn settle(
    metrics: &Metrics,
    delivery: Delivery,
    result: Result<Outcome, Reason>,
    stages: Stages,
) {
    let message = delivery.message();
    let end = end(message.door, message.unsettled.reply_to.is_some(), &result);
    match (end, result) {
        (End::Reply, Ok(outcome)) => {
            if message.door == Door::Bulk {
                metrics.bulk_row(outcome.word());
            }
            delivery.reply(Reply::new(outcome, stages)).await;
        }
        (End::Retry, _) => delivery.retry().await,
        (End::Bury(reason), _) => delivery.bury(reason).await,
        (End::Reply, Err(reason)) => delivery.bury(reason).await,
    }
}

fn end(door: Door, replies: bool, result: &Result<Outcome, Reason>) -> End {
    match (door, result) {
        (_, Err(reason)) => End::Bury(*reason),
        // Somebody waits and repeats it with the same key.
        (Door::Interactive | Door::Profile, Ok(_)) => End::Reply,
        // Nobody would repeat it.
        (Door::Bulk, Ok(Outcome::Failed(failure))) if failure.retryable => End::Retry,
        // The producer still has the row, with the password that a dead letter loses.
        (Door::Bulk, Ok(Outcome::Failed(failure)))
            if replies && failure.code == FailureCode::StoreConflict =>
        {
            End::Reply
        }
        (Door::Bulk, Ok(Outcome::Failed(_))) => End::Bury(Reason::Failed),
        (Door::Bulk, Ok(_)) => End::Reply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signup::RejectionCode;

    #[test]
    fn every_door_and_outcome_has_its_end() {
        let failed = |code: FailureCode| Ok(Outcome::from(code));
        let end = |door, result: &_| super::end(door, false, result);
        let away = failed(FailureCode::StoreUnavailable);
        let rejected = Ok(Outcome::from(RejectionCode::Duplicate));
        for door in [Door::Interactive, Door::Profile] {
            assert_eq!(end(door, &away), End::Reply);
            assert_eq!(end(door, &rejected), End::Reply);
        }
        assert_eq!(end(Door::Bulk, &away), End::Retry);
        assert_eq!(end(Door::Bulk, &failed(FailureCode::UnknownKey)), End::Retry);
        assert_eq!(end(Door::Bulk, &failed(FailureCode::Internal)), End::Bury(Reason::Failed));
        assert_eq!(end(Door::Bulk, &rejected), End::Reply);
        let conflict = failed(FailureCode::StoreConflict);
        assert_eq!(end(Door::Bulk, &conflict), End::Bury(Reason::Failed));
        assert_eq!(super::end(Door::Bulk, true, &conflict), End::Reply);
        for door in Door::ALL {
            for reason in [Reason::Unreadable, Reason::BadSeal, Reason::NotSealed] {
                assert_eq!(end(door, &Err(reason)), End::Bury(reason));
            }
        }
    }
}
