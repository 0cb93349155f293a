//! Reads and checks all local inputs of a start, before it binds an address or opens a connection.
//!
//! `App::start` uses the inputs, or fails with one error that lists all problems. `muster doctor` runs the same
//! checks and reports the problems.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use secrecy::SecretString;
use tokio::net::TcpListener;

use super::policy::policy;
use crate::config::{Problems, QueueUrl, Role, Settings, StoreUrl, secret_file};
use crate::contract::Policy;
use crate::domain::Clock;
use crate::front::jwks::PublicKeys;
use crate::front::tls::Tls;
use crate::front::{self, ReloadableFiles};
use crate::http_client::trust;
use crate::queue::seal::{Opener, Sealer};
use crate::telemetry::{export, logs};
use crate::token::{self, ClaimRules, Signer, TokenKey};

/// Names of the address settings, for messages.
const FRONT: &str = "front.listen (MUSTER_LISTEN)";
const ADMIN: &str = "admin.listen (MUSTER_ADMIN_LISTEN)";

/// The checked inputs of a start.
pub(super) struct StartInputs {
    /// Signs tokens. `None` without a worker, and if the signing secret has yet to be created.
    pub(super) signer: Option<Signer>,
    /// Files that the front can reload.
    pub(super) files: ReloadableFiles,
    pub(super) policy: Policy,
    pub(super) opener: Opener,
}

/// A problem that prevents a start.
#[derive(Debug)]
pub struct StartProblem {
    /// Name of the check.
    pub check: &'static str,
    /// The error, which names the setting.
    pub error: anyhow::Error,
    /// How to fix it.
    pub remedy: &'static str,
}

/// The bound listeners of this process.
pub(super) struct Listeners {
    pub(super) front: Option<TcpListener>,
    pub(super) admin: Option<TcpListener>,
}

/// Whether to create the signing secret of a data file if it does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MissingSecret {
    Create,
    Omit,
}

/// Returns the problems that would prevent a start with these settings. Creates nothing.
///
/// `queue::inspect` and `store::inspect` check the broker, the database and the data file.
pub fn start_problems(settings: &Settings) -> Vec<StartProblem> {
    match check(settings, &Clock::system()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems,
    }
}

/// Returns the inputs of a start, or one error that lists all problems.
pub(super) fn require(settings: &Settings, clock: &Clock) -> anyhow::Result<StartInputs> {
    check(settings, clock).map_err(|found| {
        let mut problems = Problems::default();
        found.iter().for_each(|problem| problems.add(format!("{:#}", problem.error)));
        anyhow::Error::new(problems)
    })
}

fn check(settings: &Settings, clock: &Clock) -> Result<StartInputs, Vec<StartProblem>> {
    let mut checks = Checks(Vec::new());
    let role = settings.role;
    checks.add(
        "log filter",
        "set a filter such as \"info,muster=debug\"",
        logs::filter(&settings.log.filter),
    );
    if let Some(trace) = &settings.trace {
        let ca_file = trust::authorities(trace.ca_file.as_deref());
        let ca_file = ca_file.context("trace.ca_file (MUSTER_TRACE_CA_FILE)");
        checks.add("trace collector", "name a PEM file with certificates", ca_file);
        checks.add("trace collector", "correct the endpoint", export::check(trace));
    }
    let policy =
        checks.add("password list", "name a file with one password per line", policy(settings));
    let signer = match role.has_worker() {
        true => {
            let signer = signer(settings, clock, MissingSecret::Omit);
            checks.add(
                "signing key",
                "name key files that this user can read; `muster keys make` creates one",
                signer,
            )
        }
        false => Some(None),
    };
    let opener = checks.add(
        "sealed passwords",
        "set both keys of one pair; `muster keygen` creates a pair",
        opener(settings),
    );
    let mut files = ReloadableFiles::default();
    if role.has_front() {
        let tls = settings.front.tls.as_ref().map(Tls::read).transpose();
        let tls = checks.add(
            "certificate",
            "name a certificate and its private key; `muster cert` creates a pair",
            tls,
        );
        let own = signer.as_ref().and_then(Option::as_ref).and_then(Signer::public_keys);
        let keys = PublicKeys::open(settings.front.jwks_file.as_deref(), own.as_ref());
        let keys =
            checks.add("public keys", "create the file with `muster keys jwks > FILE`", keys);
        files = ReloadableFiles::new(tls.flatten(), keys.flatten());
    }
    match (signer, policy, opener) {
        (Some(signer), Some(policy), Some(opener)) if checks.0.is_empty() => {
            Ok(StartInputs { signer, files, policy, opener })
        }
        _ => Err(checks.0),
    }
}

/// Lists the addresses that a start binds, each with the name of its setting and whether it serves HTTPS.
pub fn addresses(settings: &Settings) -> Vec<(SocketAddr, &'static str, bool)> {
    let has_front = settings.role.has_front();
    let front = has_front.then_some((settings.front.listen, FRONT, settings.front.tls.is_some()));
    front.into_iter().chain(settings.admin.map(|address| (address, ADMIN, false))).collect()
}

/// Binds the configured addresses.
pub(super) async fn bind(settings: &Settings) -> anyhow::Result<Listeners> {
    let mut listeners = Listeners { front: None, admin: None };
    for (address, setting, _) in addresses(settings) {
        let bound = front::bind(address, setting).await?;
        if setting == FRONT { &mut listeners.front } else { &mut listeners.admin }.replace(bound);
    }
    Ok(listeners)
}

/// Collects the problems of all checks.
struct Checks(Vec<StartProblem>);

impl Checks {
    fn add<T>(
        &mut self,
        check: &'static str,
        remedy: &'static str,
        result: anyhow::Result<T>,
    ) -> Option<T> {
        result.map_err(|error| self.0.push(StartProblem { check, error, remedy })).ok()
    }
}

/// Returns a signer with the configured keys in their order, followed by the secret. Returns `None` if the secret does
/// not exist and `missing` is `Omit`.
pub(super) fn signer(
    settings: &Settings,
    clock: &Clock,
    missing: MissingSecret,
) -> anyhow::Result<Option<Signer>> {
    let token = &settings.token;
    let read =
        token.key_files.iter().map(|path| TokenKey::read(path)).collect::<anyhow::Result<Vec<_>>>();
    let mut keys = read.context("token.key_files (MUSTER_TOKEN_KEY_FILES)")?;
    let secret = signing_secret(settings, missing)?;
    keys.extend(secret.as_ref().map(TokenKey::secret));
    let is_file = matches!(settings.store.url, StoreUrl::File(_));
    if keys.is_empty() && is_file && missing == MissingSecret::Omit {
        return Ok(None);
    }
    if keys.is_empty() {
        bail!("token.secret: JWT_SECRET is not set")
    }
    let claim_rules = ClaimRules {
        lifetime: token.lifetime,
        issuer: token.issuer.clone(),
        audience: token.audience.clone(),
    };
    let others = keys.split_off(1);
    Ok(Some(Signer::new(keys.remove(0), others, claim_rules, clock.clone())))
}

/// Returns the configured secret, or else the secret next to the data file.
///
/// If neither exists, creates the latter, unless key files are configured or `missing` is `Omit`.
fn signing_secret(
    settings: &Settings,
    missing: MissingSecret,
) -> anyhow::Result<Option<SecretString>> {
    if let Some(secret) = &settings.token.secret {
        return Ok(Some(secret.clone()));
    }
    let StoreUrl::File(path) = &settings.store.url else { return Ok(None) };
    let path = secret_file(path);
    if !path.exists() && (missing == MissingSecret::Omit || !settings.token.key_files.is_empty()) {
        return Ok(None);
    }
    if missing == MissingSecret::Omit {
        return token::load(&path).map(Some);
    }
    let (secret, is_new) = token::load_or_create(&path)?;
    if is_new {
        tracing::info!(
            event = "signing_secret_created",
            path = %path.display(),
            "created a signing secret; set JWT_SECRET to use another"
        );
    }
    Ok(Some(secret))
}

/// Returns the opener of sealed passwords. Returns an error if the front and the worker of this process have keys of
/// different pairs. A front in another process with a wrong key is detected only when its first message arrives.
fn opener(settings: &Settings) -> anyhow::Result<Opener> {
    let opener = Opener::new(&settings.queue);
    if let (Role::All, QueueUrl::Amqp(_), Some(key)) =
        (settings.role, &settings.queue.url, settings.queue.seal_public_key)
        && !opener.has_key(Sealer::new(key).key_id())
    {
        bail!(
            "queue.seal_public_key (MUSTER_QUEUE_SEAL_PUBLIC_KEY): the worker in this process could open nothing, \
             its queue.seal_private_keys (MUSTER_QUEUE_SEAL_PRIVATE_KEYS) do not hold the private half"
        );
    }
    Ok(opener)
}
