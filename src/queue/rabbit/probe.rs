//! A front's probes of the interactive queue, and a worker's replies to them: messages without a body that register nothing.

use lapin::BasicProperties;

use super::Broker;
use super::properties::{NAME_MAX, TRANSIENT};

/// The `type` of a probe and of the reply to it.
const PROBE: &str = "probe";
/// Milliseconds that a probe for a worker waits in its queue.
const PROBE_TTL: u32 = 5_000;

/// The properties of a front's probe of the interactive queue. With a reply queue it asks a worker for a reply;
/// without, it is dropped as soon as the queue has confirmed it, unless a worker happens to take it.
pub(super) fn properties(reply_to: Option<&str>) -> BasicProperties {
    let properties =
        BasicProperties::default().with_type(PROBE.into()).with_delivery_mode(TRANSIENT);
    match reply_to {
        Some(queue) => {
            let properties = properties.with_reply_to(queue.into());
            properties.with_expiration(PROBE_TTL.to_string().into())
        }
        None => properties.with_expiration("0".into()),
    }
}

/// Whether a message or a reply is a probe.
pub(super) fn is_probe(properties: &BasicProperties) -> bool {
    properties.kind().as_ref().is_some_and(|kind| kind.as_str() == PROBE)
}

/// Where to send the reply to a probe, and its properties. Only a front's own reply queue is answered.
pub(super) fn reply(probe: &BasicProperties, broker: &Broker) -> Option<(String, BasicProperties)> {
    let reply_to = probe.reply_to().as_ref()?.as_str();
    let is_allowed =
        reply_to.starts_with(&broker.names.reply_prefix()) && reply_to.len() <= NAME_MAX;
    let properties =
        BasicProperties::default().with_type(PROBE.into()).with_delivery_mode(TRANSIENT);
    is_allowed.then(|| (reply_to.to_owned(), properties))
}
