//! Telemetry events. Each is one method of [`Metrics`] that updates the metrics and writes the log line, if the event
//! has one. No log field holds a password, hash, token or email address, and no label value comes from a client.

use std::fmt::Display;

use super::metrics::Metrics;
use super::stages::{Stage, Stages};
use super::terminal;
use crate::domain::ContractId;

/// Label value of the bulk queue.
const BULK: &str = "bulk";

/// Fields logged for an HTTP response to a signup.
#[derive(Debug)]
pub struct SignupFields<'a> {
    /// Message id. `None` if nothing was published, because the request could not be read.
    pub id: Option<&'a str>,
    /// Contract that rendered the response.
    pub contract: ContractId,
    /// Label of the outcome.
    pub outcome: &'static str,
    /// HTTP status of the response.
    pub status: u16,
    /// Durations measured so far.
    pub stages: &'a Stages,
}

/// Fields logged for a delivery that a worker has received.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryFields<'a> {
    /// Message id.
    pub id: &'a str,
    /// Queue that delivered it.
    pub queue: &'static str,
    /// Contract of the document. `None` for a profile request.
    pub contract: Option<&'static str>,
    /// Number of earlier deliveries.
    pub deliveries: u32,
    /// Number of retries so far.
    pub attempt: u32,
}

/// Fields logged for a registration that a worker handled.
#[derive(Debug)]
pub struct RegistrationFields<'a> {
    /// Message id.
    pub id: &'a str,
    /// Queue that delivered it.
    pub queue: &'static str,
    /// Contract of the document.
    pub contract: ContractId,
    /// Label of the outcome, or of the reason for dead-lettering.
    pub outcome: &'static str,
    /// Whether a front published it. The front logs the response too.
    pub is_from_front: bool,
    /// Durations measured so far.
    pub stages: &'a Stages,
}

/// Adds one to a gauge until it is dropped.
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

/// Events at a front.
impl Metrics {
    /// A signup got its HTTP response. This is the only log line of a signup at the front.
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
            event = "request_answered",
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
            "signup answered"
        );
    }

    /// A signup was refused with 503 and not published.
    pub fn request_shed(&self, reason: &'static str) {
        self.shed_total.with_label_values(&[reason]).inc();
    }

    /// An HTTP connection was opened. It counts as open until the guard is dropped.
    pub fn connection_opened(&self) -> GaugeGuard {
        GaugeGuard::new(self.connections.clone())
    }

    /// A request waits for a worker's reply. It counts as waiting until the guard is dropped.
    pub fn request_in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(self.requests_in_flight.clone())
    }

    /// A reply arrived after its request had ended.
    pub fn reply_orphaned(&self) {
        self.orphan_replies_total.inc();
        tracing::debug!(event = "reply_orphaned", "a reply arrived after its request had ended");
    }
}

/// Events at a worker.
impl Metrics {
    /// A worker received a delivery. It counts as in flight until the guard is dropped.
    pub fn delivery_started(&self, message: &DeliveryFields<'_>) -> GaugeGuard {
        let DeliveryFields { id, queue, contract, deliveries, attempt } = *message;
        tracing::debug!(
            event = "delivery_started",
            id,
            queue,
            contract,
            deliveries,
            attempt,
            "delivery started"
        );
        GaugeGuard::new(self.deliveries_in_flight.with_label_values(&[queue]))
    }

    /// A registration has its outcome. This is the only log line of a registration at a worker, apart from debug
    /// lines.
    pub fn registration_handled(&self, registration: &RegistrationFields<'_>) {
        let RegistrationFields { id, queue, contract, outcome, is_from_front, stages } =
            *registration;
        self.registrations_total.with_label_values(&[queue, contract.as_str(), outcome]).inc();
        self.observe_stages(stages, &[Stage::Slot, Stage::Hash, Stage::Insert, Stage::Work]);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "muster::registration",
                    event = "registration_handled",
                    id,
                    queue,
                    contract = contract.as_str(),
                    outcome,
                    slot_ms = stages.ms(Stage::Slot),
                    hash_ms = stages.ms(Stage::Hash),
                    insert_ms = stages.ms(Stage::Insert),
                    work_ms = stages.ms(Stage::Work),
                    "registration handled"
                )
            };
        }
        if is_from_front && terminal::has_one_line_per_signup() {
            log!(debug);
        } else {
            log!(info);
        }
    }

    /// A unique index that another program created refused a user. The label is safe: index names come from the
    /// database operator, and a collection has at most 64 indexes.
    pub fn foreign_index_conflict(&self, id: &str, index: &str) {
        self.foreign_index_conflicts_total.with_label_values(&[index]).inc();
        tracing::error!(
            event = "foreign_index_conflict",
            id,
            index,
            "a unique index that another program created refused a user; drop the index or run `muster doctor`"
        );
    }

    /// The profile of a token's owner was looked up.
    pub fn profile_looked_up(&self, id: &str, outcome: &'static str) {
        self.profiles_total.with_label_values(&[outcome]).inc();
        tracing::debug!(event = "profile_looked_up", id, outcome, "profile looked up");
    }

    /// The reply was published and the message acked.
    pub fn delivery_settled(&self, stages: &Stages) {
        self.observe_stages(stages, &[Stage::Settle]);
    }

    /// The reply queue no longer exists. The client disconnected, or repeats the request with the same key.
    pub fn reply_unroutable(&self, id: &str, error: &dyn Display) {
        self.unroutable_replies_total.inc();
        tracing::info!(
            event = "reply_unroutable",
            id,
            %error,
            "the reply was not delivered, because the reply queue no longer exists"
        );
    }

    /// Exports the counter of refused events as zero, so that a rate includes the first refusal.
    pub fn init_events_refused(&self, event: &'static str) {
        self.events_refused_total.with_label_values(&[event]);
    }

    /// The broker did not confirm an event. The worker holds the message and publishes the event again.
    pub fn event_refused(&self, event: &'static str) {
        self.events_refused_total.with_label_values(&[event]).inc();
    }

    /// A message was scheduled for a retry.
    pub fn delivery_retried(&self, message: &DeliveryFields<'_>) {
        self.retries_total.inc();
        let DeliveryFields { id, queue, contract, deliveries, attempt } = *message;
        tracing::debug!(
            event = "delivery_retried",
            id,
            queue,
            contract,
            deliveries,
            attempt,
            "the message was scheduled for a retry"
        );
    }

    /// Exports the counter of dead letters with this reason as zero, so that a rate includes the first one.
    pub fn init_dead_letters(&self, reason: &'static str) {
        self.dead_letters_total.with_label_values(&[reason]);
    }

    /// Exports the counter of dropped dead letters from this queue as zero, so that a rate includes the first one.
    pub fn init_dead_letters_dropped(&self, queue: &'static str) {
        self.dead_letters_dropped_total.with_label_values(&[queue]);
    }

    /// A message was dead-lettered.
    pub fn dead_lettered(&self, message: &DeliveryFields<'_>, reason: &'static str) {
        self.count_dead_letter(message.queue, reason);
        let DeliveryFields { id, queue, contract, deliveries, attempt } = *message;
        tracing::warn!(
            event = "dead_lettered",
            id,
            queue,
            contract,
            reason,
            deliveries,
            attempt,
            "the message was dead-lettered"
        );
    }

    /// A message was dropped instead of dead-lettered, because the dead-letter queue is full.
    pub fn dead_letter_dropped(&self, queue: &'static str) {
        self.dead_letters_dropped_total.with_label_values(&[queue]).inc();
        tracing::debug!(
            event = "dead_letter_dropped",
            queue,
            "a message was dropped, because the dead-letter queue is full"
        );
    }

    /// A message with unreadable properties was dead-lettered. `what` is the property and the expected value.
    pub fn unreadable_dead_lettered(&self, queue: &'static str, what: &str) {
        let reason = "unreadable";
        self.count_dead_letter(queue, reason);
        tracing::warn!(
            event = "dead_lettered",
            queue,
            reason,
            what,
            "a message with unreadable properties was dead-lettered"
        );
    }
}

/// Events at a front and at a worker.
impl Metrics {
    /// A bulk row got its final outcome.
    pub fn bulk_row_finished(&self, outcome: &'static str) {
        self.bulk_rows_total.with_label_values(&[outcome]).inc();
    }

    fn count_dead_letter(&self, queue: &'static str, reason: &'static str) {
        self.dead_letters_total.with_label_values(&[reason]).inc();
        if queue == BULK {
            self.bulk_row_finished("dead_letter");
        }
    }

    /// A lost connection to the broker was replaced.
    pub fn broker_reconnected(&self, connection: &'static str) {
        self.broker_reconnects_total.with_label_values(&[connection]).inc();
        tracing::info!(event = "broker_reconnected", connection, "reconnected to the broker");
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
