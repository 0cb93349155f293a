//! How each delivery ends: a table.

use crate::queue::{Delivery, QueueKind, DeadLetterReason, Reply};
use crate::domain::{FailureCode, Outcome};
use crate::telemetry::{Metrics, Stages};

/// One of a delivery's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settlement {
    Reply,
    Retry,
    DeadLetter(DeadLetterReason),
}

/// Settles a delivery by its door and its outcome.
pub(super) async fn settle(
    metrics: &Metrics,
    delivery: Delivery,
    result: Result<Outcome, DeadLetterReason>,
    stages: Stages,
) {
    let message = delivery.message();
    let end = end(message.queue, message.reply_address.reply_to.is_some(), &result);
    match (end, result) {
        (Settlement::Reply, Ok(outcome)) => {
            if message.queue == QueueKind::Bulk {
                metrics.bulk_row_finished(outcome.label());
            }
            delivery.reply(Reply::new(outcome, stages)).await;
        }
        (Settlement::Retry, _) => delivery.retry().await,
        (Settlement::DeadLetter(reason), _) => delivery.dead_letter(reason).await,
        (Settlement::Reply, Err(reason)) => delivery.dead_letter(reason).await,
    }
}

fn end(queue: QueueKind, replies: bool, result: &Result<Outcome, DeadLetterReason>) -> Settlement {
    match (queue, result) {
        (_, Err(reason)) => Settlement::DeadLetter(*reason),
        // Somebody waits and repeats it with the same key.
        (QueueKind::Interactive | QueueKind::Profile, Ok(_)) => Settlement::Reply,
        // Nobody would repeat it.
        (QueueKind::Bulk, Ok(Outcome::Failed(failure))) if failure.retryable => Settlement::Retry,
        // The producer still has the row, with the password that a dead letter loses.
        (QueueKind::Bulk, Ok(Outcome::Failed(failure)))
            if replies && failure.code == FailureCode::StoreConflict =>
        {
            Settlement::Reply
        }
        (QueueKind::Bulk, Ok(Outcome::Failed(_))) => Settlement::DeadLetter(DeadLetterReason::Failed),
        (QueueKind::Bulk, Ok(_)) => Settlement::Reply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::RejectionCode;

    #[test]
    fn every_door_and_outcome_has_its_end() {
        let failed = |code: FailureCode| Ok(Outcome::from(code));
        let end = |queue, result: &_| super::end(queue, false, result);
        let away = failed(FailureCode::StoreUnavailable);
        let rejected = Ok(Outcome::from(RejectionCode::Duplicate));
        for door in [QueueKind::Interactive, QueueKind::Profile] {
            assert_eq!(end(queue, &away), Settlement::Reply);
            assert_eq!(end(queue, &rejected), Settlement::Reply);
        }
        assert_eq!(end(QueueKind::Bulk, &away), Settlement::Retry);
        assert_eq!(end(QueueKind::Bulk, &failed(FailureCode::UnknownKey)), Settlement::Retry);
        assert_eq!(end(QueueKind::Bulk, &failed(FailureCode::Internal)), Settlement::DeadLetter(DeadLetterReason::Failed));
        assert_eq!(end(QueueKind::Bulk, &rejected), Settlement::Reply);
        let conflict = failed(FailureCode::StoreConflict);
        assert_eq!(end(QueueKind::Bulk, &conflict), Settlement::DeadLetter(DeadLetterReason::Failed));
        assert_eq!(super::end(QueueKind::Bulk, true, &conflict), Settlement::Reply);
        for door in QueueKind::ALL {
            for reason in [DeadLetterReason::Unreadable, DeadLetterReason::BadSeal, DeadLetterReason::NotSealed] {
                assert_eq!(end(queue, &Err(reason)), Settlement::DeadLetter(reason));
            }
        }
    }
}
