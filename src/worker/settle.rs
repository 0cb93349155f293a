//! Selects how to settle a delivery, from its queue and its outcome.

use crate::domain::{FailureCode, Outcome};
use crate::queue::{DeadLetterReason, Delivery, QueueKind, Reply};
use crate::telemetry::{Metrics, Stages};

/// How to settle a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settlement {
    Reply,
    Retry,
    DeadLetter(DeadLetterReason),
}

/// Settles a delivery according to its queue and its outcome.
pub(super) async fn settle(
    metrics: &Metrics,
    delivery: Delivery,
    result: Result<Outcome, DeadLetterReason>,
    stages: Stages,
) {
    let message = delivery.message();
    let has_reply_to = message.reply_address.reply_to.is_some();
    match (settlement(message.queue, has_reply_to, &result), result) {
        (Settlement::Reply, Ok(outcome)) => {
            if message.queue == QueueKind::Bulk {
                metrics.bulk_row_finished(outcome.label());
            }
            delivery.reply(Reply::new(outcome, stages)).await;
        }
        (Settlement::Retry, _) => delivery.retry().await,
        (Settlement::DeadLetter(reason), _) => delivery.dead_letter(reason).await,
        // `settlement` never selects this.
        (Settlement::Reply, Err(reason)) => delivery.dead_letter(reason).await,
    }
}

fn settlement(
    queue: QueueKind,
    has_reply_to: bool,
    result: &Result<Outcome, DeadLetterReason>,
) -> Settlement {
    match (queue, result) {
        (_, Err(reason)) => Settlement::DeadLetter(*reason),
        // A client waits for the reply and can retry with the same idempotency key.
        (QueueKind::Interactive | QueueKind::Profile, Ok(_)) => Settlement::Reply,
        // No client waits that could retry it, so the worker does.
        (QueueKind::Bulk, Ok(Outcome::Failed(failure))) if failure.retryable => Settlement::Retry,
        // The producer still has the row with its password, which a dead letter would not keep.
        (QueueKind::Bulk, Ok(Outcome::Failed(failure)))
            if has_reply_to && failure.code == FailureCode::StoreConflict =>
        {
            Settlement::Reply
        }
        (QueueKind::Bulk, Ok(Outcome::Failed(_))) => {
            Settlement::DeadLetter(DeadLetterReason::Failed)
        }
        (QueueKind::Bulk, Ok(_)) => Settlement::Reply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::RejectionCode;

    #[test]
    fn settlement_depends_on_queue_and_outcome() {
        let failed = |code: FailureCode| Ok(Outcome::from(code));
        let settlement = |queue, result: &_| super::settlement(queue, false, result);
        let unavailable = failed(FailureCode::StoreUnavailable);
        let rejected = Ok(Outcome::from(RejectionCode::Duplicate));
        for queue in [QueueKind::Interactive, QueueKind::Profile] {
            assert_eq!(settlement(queue, &unavailable), Settlement::Reply);
            assert_eq!(settlement(queue, &rejected), Settlement::Reply);
        }
        assert_eq!(settlement(QueueKind::Bulk, &unavailable), Settlement::Retry);
        assert_eq!(
            settlement(QueueKind::Bulk, &failed(FailureCode::UnknownKey)),
            Settlement::Retry
        );
        assert_eq!(
            settlement(QueueKind::Bulk, &failed(FailureCode::Internal)),
            Settlement::DeadLetter(DeadLetterReason::Failed)
        );
        assert_eq!(settlement(QueueKind::Bulk, &rejected), Settlement::Reply);
        let conflict = failed(FailureCode::StoreConflict);
        assert_eq!(
            settlement(QueueKind::Bulk, &conflict),
            Settlement::DeadLetter(DeadLetterReason::Failed)
        );
        assert_eq!(super::settlement(QueueKind::Bulk, true, &conflict), Settlement::Reply);
        for queue in QueueKind::ALL {
            for reason in [
                DeadLetterReason::Unreadable,
                DeadLetterReason::BadSeal,
                DeadLetterReason::NotSealed,
            ] {
                assert_eq!(settlement(queue, &Err(reason)), Settlement::DeadLetter(reason));
            }
        }
    }
}
