//! Spans of messages, with the attributes of OpenTelemetry's semantic conventions for messaging and RabbitMQ
//! (version 1.30). Called by the adapters and by `Delivery`.
//!
//! Each end of a delivery is one span: of type `send` where a message is published before the ack, `settle` where
//! there is only the ack. Spans of the queue within this process name neither a messaging system nor a server,
//! because there is none.

use super::{Door, Kind, Message};
use crate::signup::MessageId;
use crate::telemetry::TraceContext;
use crate::telemetry::trace::{Attribute, Kind as SpanKind, Span};

/// Address and names of a broker, as its spans have them.
#[derive(Clone, Debug)]
pub struct SpanNames {
    /// Host of the broker.
    pub host: String,
    /// Port of the broker.
    pub port: u16,
    /// Exchange of registrations.
    pub exchange: String,
    /// Exchange of dead letters.
    pub dead_exchange: String,
    /// Exchange of events.
    pub events_exchange: String,
    /// Names of the queues, in the order of [`Door::ALL`].
    pub queues: [String; Door::ALL.len()],
    /// Queue of each retry, in order.
    pub retry_queues: Vec<String>,
}

/// How a delivery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Reply,
    Retry,
    DeadLetter,
    Requeue,
}

/// An operation as the conventions describe it.
struct Operation<'a> {
    /// `messaging.operation.type`, and with it the kind of the span.
    kind: OperationType,
    /// `messaging.operation.name`: how the span's name begins.
    name: &'static str,
    /// `messaging.destination.name`.
    destination: &'a str,
    routing_key: &'a str,
    /// Whether the destination is a reply queue, which is gone soon.
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

    /// A sent message carries the context of its span, which makes the span a producer's.
    fn span_kind(self) -> SpanKind {
        match self {
            Self::Send => SpanKind::Producer,
            Self::Process => SpanKind::Consumer,
            Self::Settle => SpanKind::Client,
        }
    }
}

impl Operation<'_> {
    fn begin(&self, trace: &TraceContext, broker: &SpanNames, id: &str) -> Span {
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

impl SpanNames {
    /// `{exchange}:{routing key}:{queue}`, the destination of a consumer's spans.
    fn consumed(&self, queue: Door) -> String {
        let name = &self.queues[queue as usize];
        format!("{}:{}:{name}", self.exchange, queue.as_str())
    }

    /// Begins the span of an event.
    pub(super) fn publish_event(&self, trace: &TraceContext, event: &str, id: &str) -> Span {
        Operation {
            kind: OperationType::Send,
            name: "publish",
            destination: &format!("{}:{event}", self.events_exchange),
            routing_key: event,
            is_temporary: false,
        }
        .begin(trace, self, id)
    }
}

/// Begins the span of sending a message to a queue; without a broker, to one within this process.
pub(super) fn publish(
    trace: &TraceContext,
    broker: Option<&SpanNames>,
    queue: Door,
    id: &MessageId,
) -> Span {
    let (name, routing_key) = ("publish", queue.as_str());
    let Some(broker) = broker else { return local(trace, SpanKind::Producer, name, queue, id) };
    Operation {
        kind: OperationType::Send,
        name,
        destination: &format!("{}:{routing_key}", broker.exchange),
        routing_key,
        is_temporary: false,
    }
    .begin(trace, broker, id.as_str())
}

/// Begins the span of a message of the queue within this process.
fn local(trace: &TraceContext, kind: SpanKind, name: &str, queue: Door, id: &MessageId) -> Span {
    trace.span_with(kind, || {
        let id = Attribute::new("muster.message.id", id.as_str().to_owned());
        let name = format!("{name} {}", queue.as_str());
        (name, vec![id, Attribute::new("muster.queue", queue.as_str())])
    })
}

impl Message {
    /// Begins the span of its delivery, the parent of all later spans.
    pub(super) fn begin(&mut self, broker: Option<&SpanNames>) -> Span {
        let (name, queue) = ("process", self.door);
        let mut span = match broker {
            None => local(&self.trace, SpanKind::Consumer, name, queue, &self.id),
            Some(broker) => Operation {
                kind: OperationType::Process,
                name,
                destination: &broker.consumed(queue),
                routing_key: queue.as_str(),
                is_temporary: false,
            }
            .begin(&self.trace, broker, self.id.as_str()),
        };
        self.trace = span.context().clone();
        if let Kind::Register(contract) = self.kind {
            span.text("muster.contract", contract.as_str());
        }
        span.number("muster.attempt", self.attempt.into());
        span
    }

    /// Begins the span of its end, the parent of what is sent then.
    pub(super) fn end(&mut self, end: End, broker: Option<&SpanNames>) -> Span {
        let span = match broker {
            None => self.trace.span(SpanKind::Internal, end.name()),
            Some(broker) => self.end_on(end, broker),
        };
        self.trace = span.context().clone();
        span
    }

    fn end_on(&self, end: End, broker: &SpanNames) -> Span {
        let consumed = broker.consumed(self.door);
        let settle = |name| Operation {
            kind: OperationType::Settle,
            name,
            destination: &consumed,
            routing_key: self.door.as_str(),
            is_temporary: false,
        };
        let send = |name, destination, routing_key, is_temporary| Operation {
            kind: OperationType::Send,
            name,
            destination,
            routing_key,
            is_temporary,
        };
        let dead_letter = send(End::DeadLetter.name(), broker.dead_exchange.as_str(), "", false);
        let operation = match end {
            // A client that knows the name of a reply queue can send replies, so the name is left out.
            End::Reply if self.unsettled.reply_to.is_some() => {
                send(end.name(), "amq.default", "", true)
            }
            End::Reply => settle("ack"),
            // After the last retry a message becomes a dead letter.
            End::Retry => broker
                .retry_queues
                .get(self.attempt as usize)
                .map_or(dead_letter, |queue| send(end.name(), queue, queue, false)),
            End::DeadLetter => dead_letter,
            End::Requeue => settle("nack"),
        };
        operation.begin(&self.trace, broker, self.id.as_str())
    }
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::Retry => "retry",
            Self::DeadLetter => "dead-letter",
            Self::Requeue => "requeue",
        }
    }
}
