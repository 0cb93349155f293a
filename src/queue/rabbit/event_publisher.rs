//! Publishes events to the events exchange. Called between reply and ack, so that an event is confirmed before the
//! message is acked. Without the confirm the message is redelivered, recognised by its id, and its event published
//! then.

use std::time::Duration;

use super::amqp::{OutgoingMessage, Publisher};
use super::{Broker, properties};
use crate::domain::Outcome;
use crate::queue::Message;
use crate::queue::events::Event;

/// Pause between two attempts while the broker refuses the event.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for a confirm before the event is published again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);

/// Publishes the event of an outcome, if there is one. Returns whether the message may be acked: not if the connection
/// was lost before the confirm. Waits during an alarm. While a subscriber's queue is full it retries every second and
/// the delivery stays unsettled.
pub(super) async fn publish_event(
    broker: &Broker,
    publisher: &Publisher,
    message: &Message,
    outcome: &Outcome,
) -> bool {
    let now = broker.clock.now();
    let Some(event) = Event::for_outcome(message, outcome, broker.settings.events, now) else {
        return true;
    };
    let mut span = broker.spans.publish_event(&message.trace, event.name(), event.id().as_str());
    let announcement = OutgoingMessage {
        exchange: broker.names.events_exchange(),
        routing_key: event.name().to_owned(),
        properties: properties::for_event(&event, now, span.context()),
        body: serde_json::to_vec(&event).expect("an event is JSON").into(),
    };
    let mut is_logged = false;
    loop {
        publisher.unblocked(None).await;
        match publisher.announce(announcement.clone(), CONFIRM_TIMEOUT).await {
            Ok(()) => return true,
            Err(error) if publisher.is_closed() => {
                span.fail(error.label());
                return false;
            }
            Err(error) => {
                broker.metrics.event_refused(event.name());
                if !std::mem::replace(&mut is_logged, true) {
                    tracing::warn!(
                        event = "event_refused",
                        id = message.id.as_str(),
                        name = event.name(),
                        exchange = announcement.exchange,
                        %error,
                        "the broker refused an event, so its message stays unsettled; retrying every second; \
                         check whether a queue bound to the exchange is full"
                    );
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
