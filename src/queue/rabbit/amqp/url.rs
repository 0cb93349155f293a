//! Reads a broker's URL, and refuses what could not be honoured as it is written. No error repeats more
//! of the URL than a known parameter's name, because a badly written password may be anywhere in it.

use std::ops::RangeInclusive;

use lapin::uri::{AMQPUri, SASLMechanism};
use url::{Host, Url};

/// Frames in bytes: AMQP's smallest, and what the buffers of dozens of them may take.
const FRAME_MAX: RangeInclusive<u64> = 4096..=1 << 20;
/// Channels of one connection; declarations take one after the other besides those in use.
const CHANNEL_MAX: RangeInclusive<u64> = 16..=u16::MAX as u64;
/// Seconds; 0 leaves it to the broker.
const HEARTBEAT: RangeInclusive<u64> = 0..=u16::MAX as u64;
/// Milliseconds.
const CONNECTION_TIMEOUT: RangeInclusive<u64> = 1..=60_000;

/// Reads the URL of a broker, or says what is wrong with it.
pub(in super::super) fn parse(text: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    // Written so in a password, these end it, and the rest of it would be something else.
    if url.fragment().is_some() {
        return Err("contains a #; in a user name or password write it %23".into());
    }
    if url.cannot_be_a_base() || url.path().contains('@') {
        return Err(
            "contains an @ after the host; in a user name or password write / as %2F".into()
        );
    }
    if url.query().is_some_and(|query| query.contains('@')) {
        return Err("contains an @ after the ?; in a user name or password write ? as %3F".into());
    }
    check_parameters(&url)?;
    let mut uri: AMQPUri = text.parse()?;
    match url.host() {
        // amq-protocol-uri 10.6.3 takes localhost in place of these.
        Some(Host::Ipv6(address)) => uri.authority.host = address.to_string(),
        Some(Host::Ipv4(address)) => uri.authority.host = address.to_string(),
        Some(Host::Domain(name)) if !name.is_empty() => {}
        Some(Host::Domain(_)) | None => return Err("names no host".into()),
    }
    Ok(uri)
}

fn check_parameters(url: &Url) -> Result<(), String> {
    let mut seen = Vec::new();
    for (name, value) in url.query_pairs() {
        let range = match name.as_ref() {
            "frame_max" => Some(FRAME_MAX),
            "channel_max" => Some(CHANNEL_MAX),
            "heartbeat" => Some(HEARTBEAT),
            "connection_timeout" => Some(CONNECTION_TIMEOUT),
            "auth_mechanism" if value.parse::<SASLMechanism>().is_ok() => None,
            "auth_mechanism" => {
                let known = "plain, amqplain, external, anonymous or rabbit-cr-demo";
                return Err(format!("auth_mechanism: expected {known}"));
            }
            _ => return Err(unknown(&name)),
        };
        if let Some(range) = range {
            let number = value.parse().ok();
            if !number.is_some_and(|number: u64| range.contains(&number)) {
                let got = number.map_or("no such number".to_owned(), |number| number.to_string());
                let (least, most) = (range.start(), range.end());
                return Err(format!("{name}: expected a number from {least} to {most}, got {got}"));
            }
        }
        if seen.contains(&name) {
            return Err(format!("{name} is given twice"));
        }
        seen.push(name);
    }
    Ok(())
}

fn unknown(name: &str) -> String {
    let is_word = |name: &str| {
        name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let name = if is_word(name) { name } else { "after the ?" };
    format!(
        "{name}: unknown parameter, expected frame_max, channel_max, heartbeat, connection_timeout or \
         auth_mechanism"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        parse(url).unwrap_err()
    }

    #[test]
    fn ipv6_literal_is_the_host() {
        for (url, host, port) in [
            ("amqp://u:p@[2001:db8::1]:5672/v", "2001:db8::1", 5672),
            ("amqps://[::1]", "::1", 5671),
            ("amqp://u:p@127.0.0.1:1/v", "127.0.0.1", 1),
            ("amqp://broker", "broker", 5672),
        ] {
            let uri = parse(url).unwrap();
            assert_eq!((uri.authority.host.as_str(), uri.authority.port), (host, port), "{url}");
        }
        for url in ["amqp:///v", "amqp://u:p@/v", "amqp://[fe80::1%25eth0]/v"] {
            refused(url);
        }
    }

    #[test]
    fn parameter_that_cannot_be_honoured_is_named() {
        for parameter in [
            "frame_max=100",
            "frame_max=x",
            "frame_max=4294967296",
            "channel_max=1",
            "heartbeat=-1",
            "connection_timeout=0",
            "abc=1",
            "abc",
            "heartbeat=1&heartbeat=2",
        ] {
            let error = refused(&format!("amqp://broker/v?{parameter}"));
            let name = parameter.split('=').next().unwrap();
            assert!(error.contains(name), "{parameter}: {error}");
        }
        let all =
            "frame_max=8192&channel_max=16&heartbeat=0&connection_timeout=500&auth_mechanism=plain";
        assert_eq!(parse(&format!("amqp://b/v?{all}")).unwrap().query.frame_max, Some(8192));
    }

    #[test]
    fn badly_written_password_is_refused_and_not_repeated() {
        for url in [
            "amqp://user:12#hunter2@broker/v",
            "amqp://user:12/hunter2@broker/v",
            "amqp://user:12?hunter2@broker/v",
            "amqp://user:12?a=hunter2@broker/v",
            "amqp://user:12?heartbeat=hunter2@broker/v",
            "amqp://user:hunter2?x@broker/v",
            "amqp://user:hunter2/x@broker/v",
            "amqp://user:p@broker/v?auth_mechanism=hunter2",
        ] {
            let error = refused(url);
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }
}
