//! Things worth telling, each a function: its log line and its counters together. Called by whatever part
//! it happens to. No field of a line holds a password, hash, token or address, and no label comes from
//! outside.

use std::fmt::Display;

use super::metrics::Metrics;
use super::stages::{Stage, Stages};
use super::terminal;
use crate::domain::ContractId;

/// Label of the queue of bulk rows.
const BULK: &str = "bulk";

/// A registration that was answered over HTTP.
#[derive(Debug)]
pub struct SignupFields<'a> {
    /// The message's id; none where nothing was sent, because the request could not be read.
    pub id: Option<&'a str>,
    /// The contract that answered.
    pub contract: ContractId,
    /// One word.
    pub outcome: &'static str,
    /// The status of the answer.
    pub status: u16,
    /// What is known of its times.
    pub stages: &'a Stages,
}

/// Fields logged for a message that a worker holds.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryFields<'a> {
    /// The message's id.
    pub id: &'a str,
    /// The queue it came from.
    pub queue: &'static str,
    /// The contract of its document; none for a profile.
    pub contract: Option<&'static str>,
    /// How often it was delivered before.
    pub deliveries: u32,
    /// How often it was retried.
    pub attempt: u32,
}

/// A registration that a worker handled.
#[derive(Debug)]
pub struct RegistrationFields<'a> {
    /// The message's id.
    pub id: &'a str,
    /// Through which door it came.
    pub queue: &'static str,
    /// Whose document it was.
    pub contract: ContractId,
    /// One word: the outcome, or why it was put aside.
    pub outcome: &'static str,
    /// Whether a front sent it, and logs it when it answers.
    pub is_from_front: bool,
    /// What is known of its times.
    pub stages: &'a Stages,
}

/// Counts itself for as long as it lives.
#[derive(Debug)]
pub struct GaugeGuard(prometheus::IntGauge);

impl GaugeGuard {
    fn new(gauge: prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// At a front.
impl Metrics {
    /// A registration was answered over HTTP. The one line a signup has at the front.
    pub fn request_answered(&self, signup: &SignupFields<'_>) {
        let SignupFields { id, contract, outcome, status, stages } = *signup;
        self.signups_total.with_label_values(&[contract.as_str(), outcome]).inc();
        self.observe_stages(stages, &[Stage::Read, Stage::Queue, Stage::Reply]);
        if let Some(total) = stages.get(Stage::Total) {
            let class = match status {
                ..300 => "2xx",
                300..400 => "3xx",
                400..500 => "4xx",
                500.. => "5xx",
            };
            self.signup_duration_seconds.with_label_values(&[class]).observe(total.as_secs_f64());
        }
        tracing::info!(
            target: "muster::signup",
            id,
            contract = contract.as_str(),
            outcome,
            status,
            read_ms = stages.ms(Stage::Read),
            queue_ms = stages.ms(Stage::Queue),
            slot_ms = stages.ms(Stage::Slot),
            hash_ms = stages.ms(Stage::Hash),
            insert_ms = stages.ms(Stage::Insert),
            reply_ms = stages.ms(Stage::Reply),
            total_ms = stages.ms(Stage::Total),
            "answered"
        );
    }

    /// A registration was refused with 503 and is in no queue.
    pub fn request_shed(&self, reason: &'static str) {
        self.shed_total.with_label_values(&[reason]).inc();
    }

    /// A connection was opened; it is, until what this returns is dropped.
    pub fn connection_opened(&self) -> GaugeGuard {
        GaugeGuard::new(self.connections.clone())
    }

    /// A request waits for a worker until what this returns is dropped.
    pub fn request_in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(self.requests_in_flight.clone())
    }

    /// A reply came, and its call was over.
    pub fn reply_orphaned(&self) {
        self.orphan_replies_total.inc();
        tracing::debug!("a reply came too late");
    }
}

/// At a worker.
impl Metrics {
    /// A message is in the worker's hands until what this returns is dropped.
    pub fn delivery_started(&self, message: &DeliveryFields<'_>) -> GaugeGuard {
        let DeliveryFields { id, queue, contract, deliveries, attempt } = *message;
        tracing::debug!(id, queue, contract, deliveries, attempt, "taken");
        GaugeGuard::new(self.deliveries_in_flight.with_label_values(&[queue]))
    }

    /// A registration came to its outcome. The one line it has at a worker.
    pub fn registration_handled(&self, registration: &RegistrationFields<'_>) {
        let RegistrationFields { id, queue: door, contract, outcome, is_from_front, stages } = *registration;
        self.registrations_total.with_label_values(&[door, contract.as_str(), outcome]).inc();
        self.observe_stages(stages, &[Stage::Slot, Stage::Hash, Stage::Insert, Stage::Work]);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "muster::registration",
                    id,
                    queue = door,
                    contract = contract.as_str(),
                    outcome,
                    slot_ms = stages.ms(Stage::Slot),
                    hash_ms = stages.ms(Stage::Hash),
                    insert_ms = stages.ms(Stage::Insert),
                    work_ms = stages.ms(Stage::Work),
                    "handled"
                )
            };
        }
        if is_from_front && terminal::has_one_line_per_signup() {
            log!(debug);
        } else {
            log!(info);
        }
    }

    /// A unique index of another program refused a user. Its name comes from the database's operator, and a
    /// collection has 64 at most.
    pub fn foreign_index_conflict(&self, id: &str, index: &str) {
        self.foreign_index_conflicts_total.with_label_values(&[index]).inc();
        tracing::error!(
            event = "foreign_index_conflict",
            id,
            index,
            "a unique index of another program refused a user; drop it, or see `muster doctor`"
        );
    }

    /// A token's owner was looked up.
    pub fn profile_looked_up(&self, id: &str, outcome: &'static str) {
        self.profiles_total.with_label_values(&[outcome]).inc();
        tracing::debug!(id, outcome, "looked up");
    }

    /// A registration was told of and its message acked.
    pub fn delivery_settled(&self, stages: &Stages) {
        self.observe_stages(stages, &[Stage::Settle]);
    }

    /// A reply has nowhere to go. Whoever waited is gone, or will ask again with the same key.
    pub fn reply_unroutable(&self, id: &str, error: &dyn Display) {
        self.unroutable_replies_total.inc();
        tracing::info!(id, %error, "a reply was not delivered");
    }

    /// Exports the counter of refused events from now on, so that the first refusal is a change.
    pub fn init_events_refused(&self, event: &'static str) {
        self.events_refused_total.with_label_values(&[event]);
    }

    /// The broker did not accept an event. It is published again, and its message is held until then.
    pub fn event_refused(&self, event: &'static str) {
        self.events_refused_total.with_label_values(&[event]).inc();
    }

    /// A message is put back, to be tried again.
    pub fn delivery_retried(&self, message: &DeliveryFields<'_>) {
        self.retries_total.inc();
        let DeliveryFields { id, queue, contract, deliveries, attempt } = *message;
        tracing::debug!(id, queue, contract, deliveries, attempt, "to be tried again");
    }

    /// A message may be put among the dead letters for this reason: shown from now on, so that the first
    /// time is seen as a change.
    pub fn init_dead_letters(&self, reason: &'static str) {
        self.dead_letters_total.with_label_values(&[reason]);
    }

    /// A dead letter of this queue may be dropped; see [`Self::may_bury`].
    pub fn init_dead_letters_dropped(&self, queue: &'static str) {
        self.dead_letters_dropped_total.with_label_values(&[queue]);
    }

    /// A message is put among the dead letters.
    pub fn dead_lettered(&self, message: &DeliveryFields<'_>, reason: &'static str) {
        self.count_dead_letter(message.queue, reason);
        let DeliveryFields { id, queue, contract, deliveries, attempt } = *message;
        tracing::warn!(
            id,
            queue,
            contract,
            reason,
            deliveries,
            attempt,
            "a message was put aside among the dead letters"
        );
    }

    /// A message would have become a dead letter, and was dropped because there is no room for them.
    pub fn dead_letter_dropped(&self, queue: &'static str) {
        self.dead_letters_dropped_total.with_label_values(&[queue]).inc();
        tracing::debug!(event = "dead_letter_dropped", queue, "a dead letter was dropped: no room");
    }

    /// The same with one whose properties cannot be read.
    pub fn unreadable_dead_lettered(&self, queue: &'static str, what: &str) {
        let reason = "unreadable";
        self.count_dead_letter(queue, reason);
        tracing::warn!(queue, reason, what, "an unreadable message was put aside");
    }
}

/// At both.
impl Metrics {
    /// A bulk row has its final outcome.
    pub fn bulk_row_finished(&self, outcome: &'static str) {
        self.bulk_rows_total.with_label_values(&[outcome]).inc();
    }

    fn count_dead_letter(&self, queue: &'static str, reason: &'static str) {
        self.dead_letters_total.with_label_values(&[reason]).inc();
        if queue == BULK {
            self.bulk_row_finished("dead_letter");
        }
    }

    /// A connection to the broker was made again after one was lost.
    pub fn broker_reconnected(&self, connection: &'static str) {
        self.broker_reconnects_total.with_label_values(&[connection]).inc();
        tracing::info!(connection, "connected to the broker again");
    }

    fn observe_stages(&self, stages: &Stages, observed: &[Stage]) {
        for stage in observed {
            if let Some(took) = stages.get(*stage) {
                let seconds = self.stage_duration_seconds.with_label_values(&[stage.as_str()]);
                seconds.observe(took.as_secs_f64());
            }
        }
    }
}
