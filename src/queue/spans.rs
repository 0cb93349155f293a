//! Spans of messages, by OpenTelemetry's semantic conventions for messaging and RabbitMQ (version 1.30). Used by the
//! adapters and by `Delivery`.
//!
//! The settlement of a delivery is one span: type `send` if a message is published before the ack, `settle` if there is
//! only the ack. Spans of the local queue have no messaging system and no server.

use super::{Message, MessageKind, QueueKind};
use crate::domain::MessageId;
use crate::telemetry::TraceContext;
use crate::telemetry::trace::{Attribute, Span, SpanKind};

/// Address, exchanges and queues of the broker, for span attributes.
#[derive(Clone, Debug)]
pub struct BrokerNames {
    /// Host of the broker.
    pub host: String,
    /// Port of the broker.
    pub port: u16,
    /// Exchange of registrations.
    pub exchange: String,
    /// Exchange of dead letters.
    pub dead_letter_exchange: String,
    /// Exchange of events.
    pub events_exchange: String,
    /// Names of the queues, in the order of [`QueueKind::ALL`].
    pub queues: [String; QueueKind::ALL.len()],
    /// Queue of each retry, in order.
    pub retry_queues: Vec<String>,
}

/// How a delivery is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SettleOperation {
    Reply,
    Retry,
    DeadLetter,
    Requeue,
}

/// A messaging operation of the semantic conventions.
struct MessagingOperation<'a> {
    /// `messaging.operation.type`; determines the kind of the span.
    kind: OperationType,
    /// `messaging.operation.name`, the start of the span's name.
    name: &'static str,
    /// `messaging.destination.name`.
    destination: &'a str,
    routing_key: &'a str,
    /// Whether the destination is a reply queue (`messaging.destination.temporary`).
    is_temporary: bool,
}

#[derive(Clone, Copy)]
enum OperationType {
    Send,
    Process,
    Settle,
}

impl OperationType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Process => "process",
            Self::Settle => "settle",
        }
    }

    /// The kind of the span. A send is a producer span, because the message carries its context.
    fn span_kind(self) -> SpanKind {
        match self {
            Self::Send => SpanKind::Producer,
            Self::Process => SpanKind::Consumer,
            Self::Settle => SpanKind::Client,
        }
    }
}

impl MessagingOperation<'_> {
    fn start(&self, trace: &TraceContext, broker: &BrokerNames, id: &str) -> Span {
        trace.span_with(self.kind.span_kind(), || {
            let mut attributes = vec![
                Attribute::new("messaging.system", "rabbitmq"),
                Attribute::new("messaging.operation.type", self.kind.as_str()),
                Attribute::new("messaging.operation.name", self.name),
                Attribute::new("messaging.destination.name", self.destination.to_owned()),
                Attribute::new("messaging.message.id", id.to_owned()),
                Attribute::new("server.address", broker.host.clone()),
                Attribute::new("server.port", i64::from(broker.port)),
            ];
            if !self.routing_key.is_empty() {
                let key = self.routing_key.to_owned();
                attributes.push(Attribute::new("messaging.rabbitmq.destination.routing_key", key));
            }
            if self.is_temporary {
                attributes.push(Attribute::new("messaging.destination.temporary", true));
                return (self.name.to_owned(), attributes);
            }
            (format!("{} {}", self.name, self.destination), attributes)
        })
    }
}

impl BrokerNames {
    /// `{exchange}:{routing key}:{queue}`, the destination of a consumer's spans.
    fn consumed(&self, queue: QueueKind) -> String {
        let name = &self.queues[queue as usize];
        format!("{}:{}:{name}", self.exchange, queue.as_str())
    }

    /// Starts the publish span of an event.
    pub(super) fn publish_event(&self, trace: &TraceContext, event: &str, id: &str) -> Span {
        MessagingOperation {
            kind: OperationType::Send,
            name: "publish",
            destination: &format!("{}:{event}", self.events_exchange),
            routing_key: event,
            is_temporary: false,
        }
        .start(trace, self, id)
    }
}

/// Starts the publish span of a message. Without a broker the queue is the local one.
pub(super) fn publish(
    trace: &TraceContext,
    broker: Option<&BrokerNames>,
    queue: QueueKind,
    id: &MessageId,
) -> Span {
    let (name, routing_key) = ("publish", queue.as_str());
    let Some(broker) = broker else { return local(trace, SpanKind::Producer, name, queue, id) };
    MessagingOperation {
        kind: OperationType::Send,
        name,
        destination: &format!("{}:{routing_key}", broker.exchange),
        routing_key,
        is_temporary: false,
    }
    .start(trace, broker, id.as_str())
}

/// Starts a span of the local queue.
fn local(
    trace: &TraceContext,
    kind: SpanKind,
    name: &str,
    queue: QueueKind,
    id: &MessageId,
) -> Span {
    trace.span_with(kind, || {
        let id = Attribute::new("muster.message.id", id.as_str().to_owned());
        let name = format!("{name} {}", queue.as_str());
        (name, vec![id, Attribute::new("muster.queue", queue.as_str())])
    })
}

impl Message {
    /// Starts the process span of the delivery, the parent of all later spans.
    pub(super) fn start_process_span(&mut self, broker: Option<&BrokerNames>) -> Span {
        let (name, queue) = ("process", self.queue);
        let mut span = match broker {
            None => local(&self.trace, SpanKind::Consumer, name, queue, &self.id),
            Some(broker) => MessagingOperation {
                kind: OperationType::Process,
                name,
                destination: &broker.consumed(queue),
                routing_key: queue.as_str(),
                is_temporary: false,
            }
            .start(&self.trace, broker, self.id.as_str()),
        };
        self.trace = span.context().clone();
        if let MessageKind::Register(contract) = self.kind {
            span.set_text("muster.contract", contract.as_str());
        }
        span.set_number("muster.attempt", self.attempt.into());
        span
    }

    /// Starts the span of the settlement, the parent of messages published with it.
    pub(super) fn start_settlement_span(
        &mut self,
        settlement: SettleOperation,
        broker: Option<&BrokerNames>,
    ) -> Span {
        let span = match broker {
            None => self.trace.span(SpanKind::Internal, settlement.name()),
            Some(broker) => self.settlement_span(settlement, broker),
        };
        self.trace = span.context().clone();
        span
    }

    fn settlement_span(&self, settlement: SettleOperation, broker: &BrokerNames) -> Span {
        let consumed = broker.consumed(self.queue);
        let settle = |name| MessagingOperation {
            kind: OperationType::Settle,
            name,
            destination: &consumed,
            routing_key: self.queue.as_str(),
            is_temporary: false,
        };
        let send = |name, destination, routing_key, is_temporary| MessagingOperation {
            kind: OperationType::Send,
            name,
            destination,
            routing_key,
            is_temporary,
        };
        let dead_letter = send(
            SettleOperation::DeadLetter.name(),
            broker.dead_letter_exchange.as_str(),
            "",
            false,
        );
        let operation = match settlement {
            // The name of a reply queue is left out, because with it any client could publish replies.
            SettleOperation::Reply if self.reply_address.reply_to.is_some() => {
                send(settlement.name(), "amq.default", "", true)
            }
            SettleOperation::Reply => settle("ack"),
            // After the last retry the message becomes a dead letter.
            SettleOperation::Retry => broker
                .retry_queues
                .get(self.attempt as usize)
                .map_or(dead_letter, |queue| send(settlement.name(), queue, queue, false)),
            SettleOperation::DeadLetter => dead_letter,
            SettleOperation::Requeue => settle("nack"),
        };
        operation.start(&self.trace, broker, self.id.as_str())
    }
}

impl SettleOperation {
    fn name(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::Retry => "retry",
            Self::DeadLetter => "dead-letter",
            Self::Requeue => "requeue",
        }
    }
}
