//! Checks a broker over AMQP without changing anything there. AMQP shows little: whether an exchange or a queue exists,
//! and whether a declaration with these settings is equivalent. A missing queue is therefore only declared passively.

use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::uri::AMQPScheme;
use lapin::{Connection, ErrorKind, ExchangeKind};

use super::server_properties::{self, ServerProperties};
use crate::queue::QueueKind;
use crate::queue::rabbit::Broker;
use crate::queue::rabbit::amqp::QueueSpec;
use crate::queue::rabbit::topology;
use crate::telemetry::finding::{Finding, Severity};

/// Oldest version on which a message's own time limit works in a quorum queue.
const OLDEST: (u32, u32) = (3, 10);
/// Oldest series that its makers still correct.
const SUPPORTED: (u32, u32) = (4, 1);
/// From here on an `x-death` header written by a producer is ignored.
const IGNORES_X_DEATH: (u32, u32) = (4, 0);

/// Longest wait for one exchange or queue. The declaration of a classic queue whose node is down is answered after minutes
/// (110 s on RabbitMQ 4.0.5).
const DECLARE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the close of the connection, which a declaration without a response delays.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

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

/// Checks everything that these settings use.
pub(super) async fn inspect(broker: &Broker) -> Vec<Finding> {
    let mut findings = vec![encryption(broker)];
    match server_properties::read(broker).await {
        Ok(properties) => findings.extend(version(&properties)),
        Err(error) => {
            findings.push(away(broker, &format!("{error:#}")));
            return findings;
        }
    }
    let connection = match broker.connect("doctor").await {
        Ok(connection) => connection,
        Err(error) => {
            findings.push(away(broker, &error.to_string()));
            return findings;
        }
    };
    let client = connection.client();
    let exchanges = topology::exchanges(&broker.names);
    let checks = exchanges.iter().map(|(name, kind)| exchange(client, name, kind.clone()));
    findings.extend(join_all(checks).await);
    // In parallel, so that those without a response together take no longer than one.
    let queues = topology::queues(&broker.names, &broker.settings);
    let checks = queues.iter().map(|spec| queue(broker, client, spec));
    findings.extend(join_all(checks).await.into_iter().flatten());
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await;
    findings
}

fn away(broker: &Broker, why: &str) -> Finding {
    Finding::error(
        "broker",
        format!("{}: {why}", broker.waiting_for()),
        "see whether it runs there, and whether queue.url (MUSTER_QUEUE) and its authority \
         (queue.ca_file) are right",
    )
}

/// Whether the connections are encrypted, or stay on this machine.
fn encryption(broker: &Broker) -> Finding {
    let check = "broker connection";
    let is_local = |host: &str| host == "localhost" || host.starts_with("127.") || host == "::1";
    let clear = broker.endpoints.uris().iter().filter(|uri| uri.scheme == AMQPScheme::AMQP);
    let hosts: Vec<&str> = clear.map(|uri| uri.authority.host.as_str()).collect();
    match hosts.iter().find(|host| !is_local(host)) {
        Some(host) => Finding::warning(
            check,
            format!("not encrypted: the broker's password travels to {host} in clear"),
            "use amqps:// in queue.url (MUSTER_QUEUE), and queue.ca_file for an authority of your own",
        ),
        None if hosts.is_empty() => Finding::ok(check, "encrypted"),
        None => Finding::ok(check, "not encrypted, and does not leave this machine"),
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
    if numbers < IGNORES_X_DEATH {
        findings.push(Finding::note(
            "x-death",
            "before 4.0 a producer may forge the header x-death; muster does not rely on it",
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
        match tokio::time::timeout(DECLARE_TIMEOUT, declared).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return refused(check, name, &error),
            Err(_) => return no_response(check, name),
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
        match tokio::time::timeout(DECLARE_TIMEOUT, declared).await {
            Ok(Ok(counted)) => (waiting, consumers) = counted,
            Ok(Err(error)) => return vec![refused(check, name, &error)],
            Err(_) => return vec![no_response(check, name)],
        }
    }
    let as_declared = format!("{name}: as these settings declare it, {waiting} waiting");
    let mut findings = vec![Finding::ok(check, as_declared)];
    if name == broker.names.dead_queue() && waiting > 0 {
        findings.push(dead_letters(name, waiting, broker.settings.bulk_max_length));
    }
    if name == broker.names.queue(QueueKind::Interactive) && consumers == 0 {
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

fn no_response(check: &'static str, name: &str) -> Finding {
    Finding::error(
        check,
        format!("{name}: no response within 5 s; the nodes that hold it may be down"),
        "muster doctor --management shows which nodes run; docs/cluster.md",
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
    let is_to_be_quorum = argument == "x-queue-type" && values.starts_with("received 'quorum'");
    let why = match argument {
        "x-overflow" => "; without reject-publish a full queue drops its oldest message unseen",
        "x-queue-type" if is_to_be_quorum => "; only a quorum queue survives the loss of its node",
        argument if argument.starts_with("x-dead-letter") => "; what the broker gives up is lost",
        _ => "",
    };
    Finding::with(
        severity,
        check,
        format!("{name} is there with another {argument}: {values}{why}"),
        if is_to_be_quorum {
            "stop fronts and workers, let the queue run empty, and delete it (rabbitmqctl delete_queue): the next \
             start declares it as a quorum queue; docs/cluster.md has the step for the profile queue"
        } else {
            "set what made it to the same values, or stop fronts and workers, let the queue run empty, and \
             delete it: it is made again at the next start"
        },
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
            ("RabbitMQ", "4.0.5", Severity::Note),
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
        let classic = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'r.profile' in vhost '/': \
                       received 'quorum' but current is 'classic'";
        let found = different("queue", "r.profile", classic);
        assert_eq!(found.severity, Severity::Error);
        assert!(found.reason.contains("survives the loss of its node"), "{}", found.reason);
        assert!(found.remedy.unwrap().contains("docs/cluster.md"));
    }
}
