//! Declares exchanges and queues. An existing one is not changed; if its arguments differ, it is used as it is.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

/// AMQP's reply code for a missing queue.
const NOT_FOUND: u16 = 404;
/// AMQP's reply code for a declaration with other arguments.
const PRECONDITION_FAILED: u16 = 406;
/// Most different arguments that are adopted. With more the queue is used and its arguments stay unknown.
const LEARNT_MAX: usize = 16;

/// Exchanges and queues that were logged as different; each is logged once.
static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A queue to declare: name, arguments and binding.
pub(in super::super) struct QueueSpec {
    pub(in super::super) name: String,
    pub(in super::super) arguments: FieldTable,
    /// The exchange and the routing key.
    pub(in super::super) bound_to: Option<(String, &'static str)>,
}

/// Declares a durable exchange. One with another type is used as it is.
pub(in super::super) async fn declare_exchange(
    connection: &Connection,
    name: &str,
    kind: ExchangeKind,
) -> lapin::Result<()> {
    let options = |passive| ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    for passive in [false, true] {
        let channel = connection.create_channel().await?;
        let declared = channel
            .exchange_declare(name.into(), kind.clone(), options(passive), FieldTable::default())
            .await;
        match declared {
            Err(error) if !passive && has_reply_code(&error, PRECONDITION_FAILED) => {
                log_different(name)
            }
            declared => {
                close(&channel).await;
                return declared;
            }
        }
    }
    Ok(())
}

/// Declares a queue, and binds it if it is new. A queue with other arguments is used as it is. With `learn` its
/// arguments are determined first: each refused declaration names one of them. Returns the arguments in effect, if
/// known.
///
/// An existing queue is not bound again. While a node of a cluster is frozen or cut off, the other nodes do not change
/// metadata, not even for an existing binding, until `net_ticktime` has passed (60 s by default; RabbitMQ up to 4.0
/// without Khepri; rabbitmq-server#10099 is similar).
pub(in super::super) async fn declare_queue(
    connection: &Connection,
    spec: &QueueSpec,
    learn: bool,
) -> lapin::Result<FieldTable> {
    let options = |passive| QueueDeclareOptions { passive, durable: true, ..Default::default() };
    let name = spec.name.as_str();
    let channel = connection.create_channel().await?;
    let is_new =
        match channel.queue_declare(name.into(), options(true), FieldTable::default()).await {
            Ok(_) => {
                close(&channel).await;
                false
            }
            Err(error) if has_reply_code(&error, NOT_FOUND) => true,
            Err(error) => return Err(error),
        };
    let (mut arguments, mut learnt) = (spec.arguments.clone(), 0);
    let mut passive = false;
    loop {
        let channel = connection.create_channel().await?;
        match channel.queue_declare(name.into(), options(passive), arguments.clone()).await {
            Err(error) if !passive && has_reply_code(&error, PRECONDITION_FAILED) => {
                log_different(name);
                learnt += 1;
                passive = !learn || learnt > LEARNT_MAX || !adopt(&mut arguments, &error);
                if passive {
                    arguments = FieldTable::default();
                }
            }
            Err(error) => return Err(error),
            Ok(_) => {
                close(&channel).await;
                if is_new {
                    bind_queue(connection, spec).await?;
                }
                return Ok(arguments);
            }
        }
    }
}

/// Binds a queue, if its specification has a binding.
pub(in super::super) async fn bind_queue(
    connection: &Connection,
    spec: &QueueSpec,
) -> lapin::Result<()> {
    let Some((exchange, key)) = &spec.bound_to else { return Ok(()) };
    let channel = connection.create_channel().await?;
    let (queue, exchange) = (spec.name.as_str(), exchange.as_str());
    let (options, table) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.into(), exchange.into(), (*key).into(), options, table).await?;
    close(&channel).await;
    Ok(())
}

/// Replaces the argument that differs by the broker's value. Returns false if the error does not name it.
fn adopt(arguments: &mut FieldTable, error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    let Some((name, current)) = difference(error.get_message().as_str()) else { return false };
    let mut adopted = FieldTable::default();
    for (other, value) in arguments.inner().iter().filter(|(other, _)| other.as_str() != name) {
        adopted.insert(other.clone(), value.clone());
    }
    if let Some(current) = current {
        let value = current
            .parse()
            .map_or_else(|_| AMQPValue::LongString(current.into()), AMQPValue::LongLongInt);
        adopted.insert(name.into(), value);
    }
    *arguments = adopted;
    true
}

/// Parses the argument and its value on the broker from "inequivalent arg 'x-max-length' for queue 'a' in vhost '/':
/// received '5' but current is '6'", "... but current is the value '6' of type 'long'", or "... but current is none".
fn difference(message: &str) -> Option<(&str, Option<&str>)> {
    let name = message.split('\'').nth(1).filter(|name| name.starts_with("x-"))?;
    let (_, current) = message.rsplit_once("but current is ")?;
    let value = current.split('\'').nth(1);
    (value.is_some() || current.starts_with("none")).then_some((name, value))
}

async fn close(channel: &Channel) {
    let _ = channel.close(200, "declared".into()).await;
}

fn has_reply_code(error: &lapin::Error, code: u16) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == code)
}

fn log_different(name: &str) {
    if LOGGED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
        tracing::warn!(
            event = "declaration_differs",
            name,
            "the exchange or queue exists with other arguments than in these settings; it is used as it is; \
             `muster doctor` shows the difference"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_argument_is_parsed_from_the_refusal() {
        let message = |rest: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'r.dead' in vhost '/': {rest}"
            )
        };
        for (rest, current) in [
            ("received '5' but current is '6'", Some("6")),
            ("received none but current is the value '6' of type 'signedint'", Some("6")),
            ("received the value '5' of type 'long' but current is none", None),
        ] {
            assert_eq!(difference(&message(rest)), Some(("x-max-length", current)), "{rest}");
        }
        assert_eq!(
            difference("inequivalent arg 'durable' for queue 'r': received 'a' but current is 'b'"),
            None
        );
        assert_eq!(difference("something else"), None);
    }
}
