//! Checks a broker over AMQP without changing it: whether each exchange and queue exists, and whether the declaration
//! with these settings is equivalent. A missing queue is only declared passively, so it is not created.

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

/// Oldest version whose quorum queues support per-message expiration.
const OLDEST: (u32, u32) = (3, 10);
/// Oldest series that is still supported by RabbitMQ.
const SUPPORTED: (u32, u32) = (4, 1);
/// First version that ignores an `x-death` header from a producer.
const IGNORES_X_DEATH: (u32, u32) = (4, 0);

/// Longest wait for one exchange or queue. The broker responds to the declaration of a classic queue whose node is down
/// after 110 s (RabbitMQ 4.0.5; rabbitmq-server#10099 reports slow declarations in a degraded cluster).
const DECLARE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the close of the connection, which a pending declaration delays.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// AMQP's reply code for a missing permission.
const ACCESS_REFUSED: u16 = 403;
/// AMQP's reply code for a missing exchange or queue.
const NOT_FOUND: u16 = 404;
/// AMQP's reply code for a declaration with other arguments.
const PRECONDITION_FAILED: u16 = 406;

/// Arguments that cause message loss or wrong results if they differ. The others only set limits.
const CRITICAL: [&str; 7] = [
    "x-queue-type",
    "x-overflow",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "durable",
    "type",
];

/// Fill ratio of the dead-letter queue above which `doctor` warns.
const NEARLY_FULL: f64 = 0.8;

/// Checks everything that these settings use.
pub(super) async fn inspect(broker: &Broker) -> Vec<Finding> {
    let mut findings = vec![encryption(broker)];
    match server_properties::read(broker).await {
        Ok(properties) => findings.extend(version(&properties)),
        Err(error) => {
            findings.push(unavailable(broker, &format!("{error:#}")));
            return findings;
        }
    }
    let connection = match broker.connect("doctor").await {
        Ok(connection) => connection,
        Err(error) => {
            findings.push(unavailable(broker, &error.to_string()));
            return findings;
        }
    };
    let client = connection.client();
    let exchanges = topology::exchanges(&broker.names);
    let checks = exchanges.iter().map(|(name, kind)| exchange(client, name, kind.clone()));
    findings.extend(join_all(checks).await);
    // In parallel, so that several queues without a response take no longer than one.
    let queues = topology::queues(&broker.names, &broker.settings);
    let checks = queues.iter().map(|spec| queue(broker, client, spec));
    findings.extend(join_all(checks).await.into_iter().flatten());
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close()).await;
    findings
}

fn unavailable(broker: &Broker, why: &str) -> Finding {
    Finding::error(
        "broker",
        format!("{}: {why}", broker.description()),
        "check that the broker runs there, and that queue.url (MUSTER_QUEUE) and queue.ca_file \
         (MUSTER_QUEUE_CA_FILE) are right",
    )
}

/// Checks whether the connections are encrypted or local.
fn encryption(broker: &Broker) -> Finding {
    let check = "broker connection";
    let is_local = |host: &str| host == "localhost" || host.starts_with("127.") || host == "::1";
    let clear = broker.endpoints.uris().iter().filter(|uri| uri.scheme == AMQPScheme::AMQP);
    let hosts: Vec<&str> = clear.map(|uri| uri.authority.host.as_str()).collect();
    match hosts.iter().find(|host| !is_local(host)) {
        Some(host) => Finding::warning(
            check,
            format!("not encrypted: the broker's password is sent to {host} in clear"),
            "use amqps:// in queue.url (MUSTER_QUEUE), and queue.ca_file for a private certificate authority",
        ),
        None if hosts.is_empty() => Finding::ok(check, "encrypted"),
        None => Finding::ok(check, "not encrypted, but local to this machine"),
    }
}

fn version(server: &ServerProperties) -> Vec<Finding> {
    let check = "broker version";
    let named = format!("{} {}", server.product, server.version);
    if server.product != "RabbitMQ" {
        return vec![Finding::warning(
            check,
            format!("{named}: muster is tested with RabbitMQ only"),
            "expect differences in quorum queues, confirms and dead letters",
        )];
    }
    let Some(numbers) = server.numbers() else {
        return vec![Finding::note(
            check,
            named,
            "check that it is 3.10 or newer: older quorum queues ignore the expiration of a registration",
        )];
    };
    if numbers < OLDEST {
        return vec![Finding::error(
            check,
            format!("{named}: quorum queues ignore the expiration of a registration"),
            "upgrade to 3.10 or newer",
        )];
    }
    let mut findings = vec![Finding::ok(check, named.clone())];
    if numbers < SUPPORTED {
        findings.push(Finding::note(
            check,
            format!("{named}: this series gets no more fixes"),
            "plan the upgrade to a supported series (https://www.rabbitmq.com/release-information)",
        ));
    }
    if numbers < IGNORES_X_DEATH {
        findings.push(Finding::note(
            "x-death",
            "before 4.0 a producer may forge the header x-death; muster does not rely on it",
            "no action is required; 4.x ignores such a header",
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
    let as_declared = format!("{name}: declared as in these settings, {waiting} ready");
    let mut findings = vec![Finding::ok(check, as_declared)];
    if name == broker.names.dead_letter_queue() && waiting > 0 {
        findings.push(dead_letters(name, waiting, broker.settings.bulk_max_length));
    }
    if name == broker.names.queue(QueueKind::Interactive) && consumers == 0 {
        findings.push(Finding::note(
            "workers",
            format!("{name} has no consumer"),
            "start a worker: muster serve --role worker",
        ));
    }
    findings
}

/// Reports the number of dead letters; a warning when the queue is nearly full.
fn dead_letters(name: &str, waiting: u32, max_length: u32) -> Finding {
    let check = "dead letters";
    if f64::from(waiting) < NEARLY_FULL * f64::from(max_length) {
        let remedy = "muster dead-letters list; docs/operations.md explains each reason";
        return Finding::note(check, format!("{waiting} in {name}"), remedy);
    }
    Finding::warning(
        check,
        format!(
            "{waiting} in {name}, of at most {max_length}; when it is full, workers hold the bulk rows that they \
             should dead-letter"
        ),
        "muster dead-letters export, then muster dead-letters requeue or discard",
    )
}

fn no_response(check: &'static str, name: &str) -> Finding {
    Finding::error(
        check,
        format!("{name}: no response within 5 s; the nodes that hold it may be down"),
        "muster doctor --management shows which nodes run; docs/cluster.md",
    )
}

/// The finding for a refused declaration.
fn refused(check: &'static str, name: &str, error: &lapin::Error) -> Finding {
    let ErrorKind::ProtocolError(refusal) = error.kind() else {
        return Finding::error(check, format!("{name}: {error}"), "run this again");
    };
    match refusal.get_id() {
        NOT_FOUND => Finding::note(
            check,
            format!("{name} does not exist yet"),
            "no action is required: the first front or worker that connects declares it",
        ),
        ACCESS_REFUSED => Finding::error(
            check,
            format!("{name}: the account has no permission to declare it"),
            "rabbitmqctl set_permissions; muster needs configure, write and read on its namespace",
        ),
        PRECONDITION_FAILED => different(check, name, refusal.get_message().as_str()),
        _ => Finding::error(check, format!("{name}: {}", refusal.get_message()), "run this again"),
    }
}

/// The finding for an exchange or queue that exists with another argument. The broker names the first that differs.
fn different(check: &'static str, name: &str, message: &str) -> Finding {
    let argument = message.split('\'').nth(1).unwrap_or("an argument");
    let values = message.rsplit_once("': ").map_or(message, |(_, values)| values);
    let severity = if CRITICAL.contains(&argument) { Severity::Error } else { Severity::Warning };
    let is_to_be_quorum = argument == "x-queue-type" && values.starts_with("received 'quorum'");
    let why = match argument {
        "x-overflow" => "; without reject-publish a full queue silently drops its oldest message",
        "x-queue-type" if is_to_be_quorum => "; only a quorum queue survives the loss of its node",
        argument if argument.starts_with("x-dead-letter") => {
            "; messages that the broker dead-letters are lost"
        }
        _ => "",
    };
    Finding::with(
        severity,
        check,
        format!("{name} exists with another {argument}: {values}{why}"),
        if is_to_be_quorum {
            "stop the fronts, wait until the queue is empty, stop the workers and delete the queue (rabbitmqctl \
             delete_queue): the next start declares it as a quorum queue; docs/cluster.md has the step for the profile \
             queue"
        } else {
            "use the settings with which it was declared; or stop the fronts, wait until the queue is empty, stop the \
             workers and delete the queue: the next start declares it again"
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_or_unknown_broker_versions_are_reported() {
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
    fn different_argument_is_named_with_its_severity() {
        let message = |argument: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'r.bulk' in vhost '/': \
                 received '5' but current is '6'"
            )
        };
        let found = different("queue", "r.bulk", &message("x-max-length"));
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.reason.contains("x-max-length: received '5' but current is '6'"));
        assert_eq!(different("queue", "r.bulk", &message("x-overflow")).severity, Severity::Error);
        let classic = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'r.profile' in vhost '/': \
                       received 'quorum' but current is 'classic'";
        let found = different("queue", "r.profile", classic);
        assert_eq!(found.severity, Severity::Error);
        assert!(found.reason.contains("survives the loss of its node"), "{}", found.reason);
        assert!(found.remedy.unwrap().contains("docs/cluster.md"));
    }
}
