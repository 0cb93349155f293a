//! Requests to RabbitMQ's HTTP API. `queue` decides which, and what the responses mean.

use anyhow::{Context, bail, ensure};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use crate::config::{self, QueueUrl};
use crate::http_client::{Connection, trust};
use crate::queue;
use crate::telemetry::finding::Finding;

/// What to do where it cannot be asked.
pub(super) const MEND: &str = "see whether the plugin rabbitmq_management runs there, whether the URL is \
    right, and whether its user has the tag management";

/// What only this API shows; without its URL, what that would be.
pub(super) async fn look(
    settings: &config::Queue,
    url: Option<&Url>,
) -> anyhow::Result<Vec<Finding>> {
    match (url, &settings.url) {
        (Some(url), _) => {
            let mut api = Api::open(url, settings).await?;
            queue::inspect_management(settings, async |path| api.get(path).await).await
        }
        (None, QueueUrl::Local) => Ok(Vec::new()),
        (None, QueueUrl::Amqp(_)) => Ok(vec![Finding::note(
            "bindings, policies, alarms",
            "AMQP does not show them; every front and worker makes the bindings when it connects, but a \
             policy of somebody else can still change a queue",
            "muster doctor --management http://HOST:15672; or rabbitmqctl list_policies, rabbitmqctl status",
        )]),
    }
}

/// One connection to it, logged in.
struct Api {
    base: Url,
    connection: Connection,
}

impl Api {
    /// Connects. Who asks is in `url`, or else the user of the queue.
    async fn open(url: &Url, settings: &config::Queue) -> anyhow::Result<Self> {
        let host = url.host_str().context("--management: a host wanted")?;
        let port = url.port_or_known_default().context("--management: a port wanted")?;
        let encrypted = url.scheme() == "https";
        ensure!(encrypted || url.scheme() == "http", "--management: http:// or https:// wanted");
        let ca_file = settings.ca_file.as_deref();
        let trust = encrypted.then(|| trust::authorities(ca_file)).transpose()?;
        let (user, password) = match (login(url)?, &settings.url) {
            (Some(login), _) => login,
            (None, QueueUrl::Amqp(amqp)) => {
                let amqp = Url::parse(amqp.expose_secret())?;
                ensure!(
                    encrypted || amqp.scheme() == "amqp",
                    "--management: the password of an amqps:// queue is not sent over http://; \
                     take https://, or name a user in the URL"
                );
                let wanted =
                    "--management: user and password wanted, as in http://user:password@host";
                login(&amqp)?.context(wanted)?
            }
            (None, QueueUrl::Local) => bail!("--management: the queue is local:, not RabbitMQ"),
        };
        let mut connection = Connection::open_to(host, port, trust).await?;
        connection.log_in(&user, &password)?;
        Ok(Self { base: url.clone(), connection })
    }
}

/// Who is named in a URL.
fn login(url: &Url) -> anyhow::Result<Option<(String, SecretString)>> {
    let text = |encoded| anyhow::Ok(percent_decode_str(encoded).decode_utf8()?.into_owned());
    let Some(password) = url.password() else { return Ok(None) };
    Ok(Some((text(url.username())?, SecretString::from(text(password)?))))
}

impl Api {
    /// The document at these segments of a path below `/api/`; `None` on 404.
    async fn get(&mut self, path: &[&str]) -> anyhow::Result<Option<Value>> {
        let mut url = self.base.clone();
        let segments = url.path_segments_mut();
        let mut segments = segments.map_err(|()| anyhow::anyhow!("--management: not a base"))?;
        segments.pop_if_empty().push("api").extend(path);
        drop(segments);
        let (status, body) = self.connection.get(url.path()).await?;
        let host = self.base.host_str().unwrap_or_default();
        match status {
            // A check that failed answers 503, and says what it found.
            200 | 503 => Ok(Some(serde_json::from_slice(&body).context("its answer is no JSON")?)),
            404 => Ok(None),
            401 | 403 => {
                bail!("{host} answers {status}: this user may not ask for /api/{}", path[0])
            }
            _ => bail!("{host} answers {status} to /api/{}", path[0]),
        }
    }
}
