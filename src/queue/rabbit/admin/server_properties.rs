//! Reads the server properties that a broker sends before the login: product and version. lapin does not expose them
//! (4.12.3; no issue filed), so `doctor` reads them on a separate connection.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use lapin::types::parsing::parse_field_table;
use lapin::types::{AMQPValue, FieldTable};

use crate::queue::rabbit::{Broker, amqp};

/// Longest time for connecting and reading together.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The protocol header with which a client opens a connection (AMQP 0-9-1, 4.2.2).
const PROTOCOL: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Bytes of type, channel and length of a frame (4.2.3).
const FRAME_HEADER: usize = 7;
/// Class and method of `connection.start` (1.4.2.1).
const START: [u8; 4] = [0, 10, 0, 10];
/// Bytes of the protocol version that follows.
const VERSION: usize = 2;
/// Largest frame that is read, in bytes; RabbitMQ's has about 500.
const FRAME_MAX: usize = 64 << 10;

/// Product and version of a broker.
pub(super) struct ServerProperties {
    /// Such as `RabbitMQ`.
    pub(super) product: String,
    /// As the broker sends it.
    pub(super) version: String,
}

impl ServerProperties {
    /// Major and minor version.
    pub(super) fn numbers(&self) -> Option<(u32, u32)> {
        let mut parts = self.version.split(['.', '-', '+']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// Connects, reads the properties and closes.
pub(super) async fn read(broker: &Broker) -> anyhow::Result<ServerProperties> {
    tokio::time::timeout(TIMEOUT, connect_and_read(broker))
        .await
        .context("no AMQP response (connection.start) within 5 s")?
}

/// Connects to the first address that accepts the connection.
async fn dial(broker: &Broker) -> anyhow::Result<amqp::BrokerStream> {
    let mut failure = None;
    for endpoint in broker.endpoints.in_order().await? {
        match tokio::time::timeout(endpoint.timeout, amqp::dial(&endpoint)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = Some(error.into()),
            Err(timeout) => failure = Some(timeout.into()),
        }
    }
    Err(failure.context("no address to connect to")?)
}

async fn connect_and_read(broker: &Broker) -> anyhow::Result<ServerProperties> {
    let mut stream = dial(broker).await?;
    stream.write_all(PROTOCOL).await?;
    stream.flush().await?;
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header).await?;
    let length = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
    ensure!(length <= FRAME_MAX, "its first frame is not connection.start of AMQP 0-9-1");
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    let table = frame.strip_prefix(&START).and_then(|rest| rest.get(VERSION..));
    let table = table.context("its first frame is not connection.start of AMQP 0-9-1")?;
    let Ok((_, table)) = parse_field_table(table) else {
        anyhow::bail!("its server properties cannot be parsed")
    };
    Ok(ServerProperties { product: text(&table, "product"), version: text(&table, "version") })
}

fn text(table: &FieldTable, name: &str) -> String {
    match table.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_parsed_into_numbers() {
        let of = |version: &str| {
            ServerProperties { product: String::new(), version: version.into() }.numbers()
        };
        assert_eq!(of("3.10.8"), Some((3, 10)));
        assert_eq!(of("4.0-beta"), Some((4, 0)));
        assert_eq!(of("x"), None);
    }
}
