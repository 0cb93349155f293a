//! Parses the URL of a broker. Unknown or invalid parameters are errors. Errors contain no part of the URL except a
//! parameter's name, because an incorrectly escaped password may be anywhere in it.

use std::ops::RangeInclusive;

use lapin::uri::{AMQPUri, SASLMechanism};
use url::{Host, Url};

/// Frame size in bytes: from AMQP's minimum. The maximum limits memory, because lapin allocates dozens of frames for
/// each connection.
const FRAME_MAX: RangeInclusive<u64> = 4096..=1 << 20;
/// Channels of one connection. Declarations use more than one.
const CHANNEL_MAX: RangeInclusive<u64> = 16..=u16::MAX as u64;
/// Heartbeat interval in seconds; 0 leaves it to the broker.
const HEARTBEAT: RangeInclusive<u64> = 0..=u16::MAX as u64;
/// Timeout of an attempt to connect, in milliseconds.
const CONNECTION_TIMEOUT: RangeInclusive<u64> = 1..=60_000;

/// Parses the URL of a broker.
///
/// # Errors
/// A text for the operator, without any secret of the URL.
pub(in super::super) fn parse(text: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    // An unescaped #, / or ? in a password ends the authority, so the rest of the password would be parsed as another
    // part of the URL.
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
        // For IP addresses amq-protocol-uri returns localhost (10.6.3; no issue filed).
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
                let mechanisms = "plain, amqplain, external, anonymous or rabbit-cr-demo";
                return Err(format!("auth_mechanism: expected {mechanisms}"));
            }
            _ => return Err(unknown(&name)),
        };
        if let Some(range) = range {
            let number = value.parse().ok();
            if !number.is_some_and(|number: u64| range.contains(&number)) {
                let got = number.map_or("another text".to_owned(), |number| number.to_string());
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
    fn invalid_parameter_is_named() {
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
    fn unescaped_password_is_refused_and_not_repeated() {
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
