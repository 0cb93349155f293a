//! What can be seen of a broker without changing anything there. AMQP shows little: whether something
//! is there, and whether a declaration with these settings would be the same. A queue that is missing
//! is therefore never declared, only asked for.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ErrorKind, ExchangeKind};

use super::server_properties::{self, ServerProperties};
use crate::queue::Door;
use crate::queue::rabbit::Broker;
use crate::queue::rabbit::link::Link;
use crate::queue::rabbit::topology::{self, QueueSpec};
use crate::telemetry::finding::{Finding, Severity};

/// Oldest version on which a message's own time limit works in a quorum queue.
const OLDEST: (u32, u32) = (3, 10);
/// Oldest series that its makers still correct.
const SUPPORTED: (u32, u32) = (4, 1);
/// From here on the delivery limit counts only deliveries that failed, and strangers' `x-death` is
/// ignored.
const COUNTS_RIGHT: (u32, u32) = (4, 0);

/// AMQP's reply codes: not this user's to do, not there, there and different.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// Arguments without which messages are lost or answers are wrong; the others are a matter of size.
const GRAVE: [&str; 7] = [
    "x-queue-type",
    "x-overflow",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "durable",
    "type",
];

/// From this part of their room on, dead letters are worth a warning.
const NEARLY_FULL: f64 = 0.8;

/// Looks at everything that these settings would use.
pub(super) async fn inspect(broker: &Broker) -> Vec<Finding> {
    let mut findings = vec![encryption(broker)];
    match server_properties::read(broker).await {
        Ok(properties) => findings.extend(version(&properties)),
        Err(error) => {
            findings.push(away(broker, &format!("{error:#}")));
            return findings;
        }
    }
    let link = match Link::open(broker, "doctor").await {
        Ok(link) => link,
        Err(error) => {
            findings.push(away(broker, &error.to_string()));
            return findings;
        }
    };
    for (name, kind) in topology::exchanges(&broker.names) {
        findings.push(exchange(link.connection(), &name, kind).await);
    }
    for spec in topology::queues(&broker.names, &broker.settings) {
        findings.extend(queue(broker, link.connection(), &spec).await);
    }
    link.close().await;
    findings
}

fn away(broker: &Broker, why: &str) -> Finding {
    Finding::error(
        "broker",
        format!("RabbitMQ at {}: {why}", broker.address),
        "see whether it runs there, and whether queue.url (MUSTER_QUEUE) and its authority \
         (queue.ca_file) are right",
    )
}

/// Whether what goes to the broker can be read on the way.
fn encryption(broker: &Broker) -> Finding {
    let check = "broker connection";
    let host = broker.uri.authority.host.as_str();
    let local = host == "localhost" || host.starts_with("127.") || host == "[::1]" || host == "::1";
    if broker.uri.scheme == lapin::uri::AMQPScheme::AMQPS {
        Finding::ok(check, "encrypted")
    } else if local {
        Finding::ok(check, "not encrypted, and does not leave this machine")
    } else {
        Finding::warning(
            check,
            format!("not encrypted: the broker's password travels to {host} in clear"),
            "use amqps:// in queue.url (MUSTER_QUEUE), and queue.ca_file for an authority of your own",
        )
    }
}

fn version(server: &ServerProperties) -> Vec<Finding> {
    let check = "broker version";
    let named = format!("{} {}", server.product, server.version);
    if server.product != "RabbitMQ" {
        return vec![Finding::warning(
            check,
            format!("{named}: not RabbitMQ, with which muster is tested"),
            "expect differences in quorum queues, confirms and dead letters",
        )];
    }
    let Some(numbers) = server.numbers() else {
        return vec![Finding::note(
            check,
            named,
            "see that it is 3.10 or newer: older quorum queues ignore how long a registration may wait",
        )];
    };
    if numbers < OLDEST {
        return vec![Finding::error(
            check,
            format!("{named}: quorum queues ignore how long a registration may wait"),
            "upgrade to 3.10 or newer",
        )];
    }
    let mut findings = vec![Finding::ok(check, named.clone())];
    if numbers < SUPPORTED {
        findings.push(Finding::note(
            check,
            format!("{named}: this series gets no more corrections from its makers"),
            "plan the upgrade to a supported series (https://www.rabbitmq.com/release-information)",
        ));
    }
    if numbers < COUNTS_RIGHT {
        findings.push(Finding::note(
            "delivery limit",
            "before 4.0 every return of a message counts as a delivery, and a producer may forge \
             x-death; muster allows for both",
            "nothing, or upgrade to 4.x",
        ));
    }
    findings
}

async fn exchange(connection: &Connection, name: &str, kind: ExchangeKind) -> Finding {
    let check = "exchange";
    for passive in [true, false] {
        let declared = async {
            let channel = connection.create_channel().await?;
            let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
            let table = FieldTable::default();
            channel.exchange_declare(name.into(), kind.clone(), options, table).await?;
            channel.close(200, "seen".into()).await
        };
        if let Err(error) = declared.await {
            return refused(check, name, &error);
        }
    }
    Finding::ok(check, name)
}

async fn queue(broker: &Broker, connection: &Connection, spec: &QueueSpec) -> Vec<Finding> {
    let (check, name) = ("queue", spec.name.as_str());
    let (mut waiting, mut consumers) = (0, 0);
    for passive in [true, false] {
        let declared = async {
            let channel = connection.create_channel().await?;
            let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
            let table = spec.arguments.clone();
            let declared = channel.queue_declare(name.into(), options, table).await?;
            channel.close(200, "seen".into()).await?;
            Ok::<_, lapin::Error>((declared.message_count(), declared.consumer_count()))
        };
        match declared.await {
            Ok(counted) => (waiting, consumers) = counted,
            Err(error) => return vec![refused(check, name, &error)],
        }
    }
    let told = format!("{name}: as these settings declare it, {waiting} waiting");
    let mut findings = vec![Finding::ok(check, told)];
    if name == broker.names.dead_queue() && waiting > 0 {
        findings.push(dead_letters(name, waiting, broker.settings.bulk_max_length));
    }
    if name == broker.names.queue(Door::Interactive) && consumers == 0 {
        findings.push(Finding::note(
            "workers",
            format!("nobody consumes {name}"),
            "start a worker: muster serve --role worker",
        ));
    }
    findings
}

/// Letters in a queue that takes so many and refuses the next.
fn dead_letters(name: &str, waiting: u32, room: u32) -> Finding {
    let check = "dead letters";
    if f64::from(waiting) < NEARLY_FULL * f64::from(room) {
        let remedy = "muster dead list; docs/operations.md says what each reason means";
        return Finding::note(check, format!("{waiting} in {name}"), remedy);
    }
    Finding::warning(
        check,
        format!(
            "{waiting} in {name}, which takes {room}; beyond, workers keep what they should put aside"
        ),
        "muster dead export, then muster dead requeue or discard",
    )
}

/// What the broker's refusal of a declaration means.
fn refused(check: &'static str, name: &str, error: &lapin::Error) -> Finding {
    let ErrorKind::ProtocolError(told) = error.kind() else {
        return Finding::error(check, format!("{name}: {error}"), "run this again");
    };
    match told.get_id() {
        NOT_FOUND => Finding::note(
            check,
            format!("{name} is not there yet"),
            "nothing: the first front or worker to connect makes it",
        ),
        ACCESS_REFUSED => Finding::error(
            check,
            format!("{name}: this user may not declare it"),
            "rabbitmqctl set_permissions; muster needs configure, write and read on its namespace",
        ),
        PRECONDITION_FAILED => different(check, name, told.get_message().as_str()),
        _ => Finding::error(check, format!("{name}: {}", told.get_message()), "run this again"),
    }
}

/// It is there with another argument. The broker names the first that differs.
fn different(check: &'static str, name: &str, told: &str) -> Finding {
    let argument = told.split('\'').nth(1).unwrap_or("an argument");
    let values = told.rsplit_once("': ").map_or(told, |(_, values)| values);
    let severity = if GRAVE.contains(&argument) { Severity::Error } else { Severity::Warning };
    let why = match argument {
        "x-overflow" => "; without reject-publish a full queue drops its oldest message unseen",
        "x-queue-type" if values.starts_with("received 'quorum'") => {
            "; only a quorum queue survives the loss of a machine"
        }
        argument if argument.starts_with("x-dead-letter") => "; what the broker gives up is lost",
        _ => "",
    };
    Finding::with(
        severity,
        check,
        format!("{name} is there with another {argument}: {values}{why}"),
        "set what made it to the same values, or stop fronts and workers, let the queue run empty, and \
         delete it: it is made again at the next start",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_their_traps() {
        for (product, number, worst) in [
            ("RabbitMQ", "3.9.29", Severity::Error),
            ("RabbitMQ", "3.13.7", Severity::Note),
            ("RabbitMQ", "4.1.0", Severity::Ok),
            ("RabbitMQ", "unknown", Severity::Note),
            ("LavinMQ", "2.0.0", Severity::Warning),
        ] {
            let server = ServerProperties { product: product.into(), version: number.into() };
            let found = version(&server).into_iter().map(|finding| finding.severity).max();
            assert_eq!(found, Some(worst), "{product} {number}");
        }
    }

    #[test]
    fn a_difference_is_named_and_weighed() {
        let told = |argument: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'r.bulk' in vhost '/': \
                 received '5' but current is '6'"
            )
        };
        let found = different("queue", "r.bulk", &told("x-max-length"));
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.reason.contains("x-max-length: received '5' but current is '6'"));
        assert_eq!(different("queue", "r.bulk", &told("x-overflow")).severity, Severity::Error);
    }
}
