//! Requests to RabbitMQ's HTTP API for `muster doctor`. `queue` selects the requests and interprets the responses.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::config::{self, QueueUrl};
use crate::http_client::HttpConnection;
use crate::http_client::trust::{self, Trust};
use crate::queue;
use crate::telemetry::finding::Finding;

/// Timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of all requests together.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(20);

/// Checks what only the HTTP API shows. Without its URL, returns a note that names the omitted checks.
pub(super) async fn check(
    settings: &config::QueueSettings,
    url: Option<&Url>,
) -> anyhow::Result<Vec<Finding>> {
    match (url, &settings.url) {
        (Some(url), _) => {
            let mut api = ManagementClient::new(url, settings)?;
            queue::inspect_management(settings, async |path| api.get(path).await).await
        }
        (None, QueueUrl::Local) => Ok(Vec::new()),
        (None, QueueUrl::Amqp(_)) => Ok(vec![Finding::note(
            "cluster, bindings, policies, alarms",
            "not checked, because AMQP does not show them; fronts and workers declare the bindings when they connect, \
             but a policy of another system can change a queue",
            "muster doctor --management http://HOST:15672; or rabbitmqctl list_policies, rabbitmqctl status",
        )]),
    }
}

/// Client of the HTTP API. Opens a new connection after a failure.
struct ManagementClient {
    base: Url,
    host: String,
    port: u16,
    trust: Option<Trust>,
    user: String,
    password: SecretString,
    connection: Option<HttpConnection>,
    deadline: Instant,
}

impl ManagementClient {
    /// Checks the URL. The credentials are those in `url`, or else the queue's.
    fn new(url: &Url, settings: &config::QueueSettings) -> anyhow::Result<Self> {
        let host = url.host_str().context("--management: expected a host")?.to_owned();
        let port = url.port_or_known_default().context("--management: expected a port")?;
        let encrypted = url.scheme() == "https";
        ensure!(
            encrypted || url.scheme() == "http",
            "--management: expected http:// or https://, got {}://",
            url.scheme()
        );
        let ca_file = settings.ca_file.as_deref();
        let trust = encrypted.then(|| trust::authorities(ca_file)).transpose()?;
        let (user, password) = match (login(url)?, &settings.url) {
            (Some(login), _) => login,
            (None, QueueUrl::Amqp(amqp)) => {
                let amqp = credentials(amqp.expose_secret())?;
                ensure!(
                    encrypted || amqp.scheme() == "amqp",
                    "--management: the password of an amqps:// queue is not sent over http://; \
                     use https://, or give the URL credentials"
                );
                let expected =
                    "--management: expected user and password, as in http://user:password@host";
                login(&amqp)?.context(expected)?
            }
            (None, QueueUrl::Local) => bail!("--management: the queue is local:, not RabbitMQ"),
        };
        let deadline = Instant::now() + TOTAL_TIMEOUT;
        let base = url.clone();
        Ok(Self { base, host, port, trust, user, password, connection: None, deadline })
    }

    /// Requests the JSON document at a path below `/api/`, given as segments. `None` on 404.
    async fn get(&mut self, path: &[&str]) -> anyhow::Result<Option<Value>> {
        let mut url = self.base.clone();
        let segments = url.path_segments_mut();
        let mut segments =
            segments.map_err(|()| anyhow::anyhow!("--management: expected a URL with a path"))?;
        segments.pop_if_empty().push("api").extend(path);
        drop(segments);
        let until = self.deadline.min(Instant::now() + REQUEST_TIMEOUT);
        let (status, body) = match timeout_at(until, self.request(url.path())).await {
            Ok(response) => response?,
            Err(_) => {
                bail!("{}: no response to /api/{} before the timeout", self.host, path.join("/"))
            }
        };
        let host = &self.host;
        match status {
            // A failed health check responds with 503 and a description.
            200 | 503 => {
                let document = serde_json::from_slice(&body);
                Ok(Some(document.with_context(|| format!("{host}: expected JSON"))?))
            }
            404 => Ok(None),
            401 | 403 => bail!("{host} responds {status}: this user may not read /api/{}", path[0]),
            _ => bail!("{host} responds {status} to /api/{}", path[0]),
        }
    }

    /// Sends a request on the open connection or on a new one, and keeps the connection after a complete response.
    async fn request(&mut self, path: &str) -> anyhow::Result<(u16, Bytes)> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let trust = self.trust.clone();
                let mut connection = HttpConnection::open_to(&self.host, self.port, trust).await?;
                connection.set_basic_auth(&self.user, &self.password)?;
                connection
            }
        };
        let response = connection.get(path).await?;
        self.connection = Some(connection);
        Ok(response)
    }
}

/// Returns a URL with the scheme and credentials of `amqp`, which may name several hosts.
fn credentials(amqp: &str) -> anyhow::Result<Url> {
    let before_hosts = amqp.split('@').next().filter(|_| amqp.contains('@'));
    Ok(Url::parse(
        &before_hosts.map_or_else(|| amqp.to_owned(), |before| format!("{before}@host")),
    )?)
}

/// Returns user and password of a URL, percent-decoded. `None` without a password.
fn login(url: &Url) -> anyhow::Result<Option<(String, SecretString)>> {
    let text = |encoded| anyhow::Ok(percent_decode_str(encoded).decode_utf8()?.into_owned());
    let Some(password) = url.password() else { return Ok(None) };
    Ok(Some((text(url.username())?, SecretString::from(text(password)?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_several_hosts_are_read() {
        for amqp in ["amqp://ann:p%40ss@a:5672,b,c/vhost", "amqp://ann:p%40ss@a/%2f"] {
            let (user, password) = login(&credentials(amqp).unwrap()).unwrap().unwrap();
            assert_eq!((&*user, password.expose_secret()), ("ann", "p@ss"), "{amqp}");
        }
        assert!(login(&credentials("amqp://a/%2f").unwrap()).unwrap().is_none());
    }
}
