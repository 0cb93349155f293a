//! Announces outcomes on the events' exchange. Called between the reply and the ack, so that an event is
//! confirmed before the message is gone; where it is not, the message comes again, is recognised by its
//! id, and is announced then.

use std::time::Duration;

use super::amqp::{Outgoing, Publisher};
use super::{Broker, properties};
use crate::queue::Message;
use crate::queue::events::Event;
use crate::domain::Outcome;

/// Between two attempts, while the broker refuses.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for a confirm before the event is published again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);

/// Announces the outcome of a message, if it is to be. Whether the message may be acked now: not if the
/// connection is gone without a confirm. An alarm of the broker's delays it; as long as a listener's queue
/// is full and refuses more, this tries again and keeps the delivery.
pub(super) async fn publish_event(
    broker: &Broker,
    publisher: &Publisher,
    message: &Message,
    outcome: &Outcome,
) -> bool {
    let now = broker.clock.now();
    let Some(event) = Event::of(message, outcome, broker.settings.events, now) else { return true };
    let mut span = broker.spans.publish_event(&message.trace, event.name(), event.id().as_str());
    let announcement = Outgoing {
        exchange: broker.names.events_exchange(),
        routing_key: event.name().to_owned(),
        properties: properties::of_event(&event, now, span.context()),
        body: serde_json::to_vec(&event).expect("an event is JSON").into(),
    };
    let mut told = false;
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
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(
                        id = message.id.as_str(),
                        event = event.name(),
                        exchange = announcement.exchange,
                        %error,
                        "an event is refused, so its message is held; is a queue bound there full?"
                    );
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
