//! Reads and checks everything that a start needs from this machine, before an address is bound or a
//! connection is made. `App::start` uses the result and refuses to start with all that is wrong;
//! `muster doctor` runs the same checks and reports them.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use secrecy::SecretString;
use tokio::net::TcpListener;

use super::policy::policy;
use crate::config::{Problems, QueueUrl, Role, Settings, StoreUrl, secret_file};
use crate::contract::Policy;
use crate::front::jwks::PublicKeys;
use crate::front::tls::Tls;
use crate::front::{self, ReloadableFiles};
use crate::http_client::trust;
use crate::queue::seal::{Opener, Sealer};
use crate::domain::Clock;
use crate::telemetry::{export, logs};
use crate::token::{self, TokenKey, Signer, ClaimRules};

/// The settings of addresses, by which people know them.
const FRONT: &str = "front.listen (MUSTER_LISTEN)";
const ADMIN: &str = "admin.listen (MUSTER_ADMIN_LISTEN)";

/// What a start needs, read and checked.
pub(super) struct StartInputs {
    /// Signs tokens; none for a front alone, and where the secret has to be created first.
    pub(super) signer: Option<Signer>,
    /// The files of the front.
    pub(super) files: ReloadableFiles,
    pub(super) policy: Policy,
    pub(super) opener: Opener,
}

/// A reason not to start.
#[derive(Debug)]
pub struct Refusal {
    /// What was checked.
    pub check: &'static str,
    /// Names the setting and what is wrong with it.
    pub error: anyhow::Error,
    /// What to do about it.
    pub remedy: &'static str,
}

/// The addresses of this process, bound.
pub(super) struct Listeners {
    pub(super) front: Option<TcpListener>,
    pub(super) admin: Option<TcpListener>,
}

/// What to do where the signing secret of a data file is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MissingSecret {
    Create,
    Omit,
}

/// Returns why a start with these settings would be refused, creating nothing. What only the broker,
/// the database or the data file can tell is checked by `queue::inspect` and `store::inspect`.
pub fn refusals(settings: &Settings) -> Vec<Refusal> {
    match check(settings, &Clock::system()) {
        Ok(_) => Vec::new(),
        Err(refusals) => refusals,
    }
}

/// Everything that is needed, or an error that names all that is wrong.
pub(super) fn require(settings: &Settings, clock: &Clock) -> anyhow::Result<StartInputs> {
    check(settings, clock).map_err(|refusals| {
        let mut problems = Problems::default();
        refusals.iter().for_each(|refusal| problems.add(format!("{:#}", refusal.error)));
        anyhow::Error::new(problems)
    })
}

fn check(settings: &Settings, clock: &Clock) -> Result<StartInputs, Vec<Refusal>> {
    let mut checks = Checks(Vec::new());
    let role = settings.role;
    checks.add(
        "log filter",
        "set it as in \"info,muster=debug\"",
        logs::filter(&settings.log.filter),
    );
    if let Some(trace) = &settings.trace {
        let ca_file = trust::authorities(trace.ca_file.as_deref());
        let ca_file = ca_file.context("trace.ca_file (MUSTER_TRACE_CA_FILE)");
        checks.add("trace collector", "name a PEM file with certificates", ca_file);
        checks.add("trace collector", "correct the endpoint", export::check(trace));
    }
    let policy =
        checks.add("password list", "give a file with one password a line", policy(settings));
    let signer = match role.has_worker() {
        true => {
            let signer = signer(settings, clock, MissingSecret::Omit);
            checks.add(
                "signing key",
                "give files that this user can read; `muster keys make` makes one",
                signer,
            )
        }
        false => Some(None),
    };
    let opener = checks.add(
        "sealed passwords",
        "set both halves of one pair; `muster keygen` makes one",
        opener(settings),
    );
    let mut files = ReloadableFiles::default();
    if role.has_front() {
        let tls = settings.front.tls.as_ref().map(Tls::read).transpose();
        let tls = checks.add(
            "certificate",
            "give the certificate and the private key that belongs to it; `muster cert` makes a pair",
            tls,
        );
        let own = signer.as_ref().and_then(Option::as_ref).and_then(Signer::public_keys);
        let keys = PublicKeys::open(settings.front.jwks_file.as_deref(), own.as_ref());
        let keys = checks.add("public keys", "muster keys jwks > FILE", keys);
        files = ReloadableFiles::new(tls.flatten(), keys.flatten());
    }
    match (signer, policy, opener) {
        (Some(signer), Some(policy), Some(opener)) if checks.0.is_empty() => {
            Ok(StartInputs { signer, files, policy, opener })
        }
        _ => Err(checks.0),
    }
}

/// The addresses that a start binds: each with the name of its setting, and whether it speaks https.
pub fn addresses(settings: &Settings) -> Vec<(SocketAddr, &'static str, bool)> {
    let has_front = settings.role.has_front();
    let front = has_front.then_some((settings.front.listen, FRONT, settings.front.tls.is_some()));
    front.into_iter().chain(settings.admin.map(|address| (address, ADMIN, false))).collect()
}

/// Binds the addresses that the settings name.
pub(super) async fn bind(settings: &Settings) -> anyhow::Result<Listeners> {
    let mut listeners = Listeners { front: None, admin: None };
    for (address, setting, _) in addresses(settings) {
        let bound = front::bind(address, setting).await?;
        if setting == FRONT { &mut listeners.front } else { &mut listeners.admin }.replace(bound);
    }
    Ok(listeners)
}

/// Collects what is refused.
struct Checks(Vec<Refusal>);

impl Checks {
    fn add<T>(
        &mut self,
        check: &'static str,
        remedy: &'static str,
        checked: anyhow::Result<T>,
    ) -> Option<T> {
        checked.map_err(|error| self.0.push(Refusal { check, error, remedy })).ok()
    }
}

/// The keys that the settings name, in their order, and after them the secret. `None` only where the
/// secret would be created.
pub(super) fn signer(
    settings: &Settings,
    clock: &Clock,
    missing: MissingSecret,
) -> anyhow::Result<Option<Signer>> {
    let token = &settings.token;
    let read = token.key_files.iter().map(|path| TokenKey::read(path)).collect::<anyhow::Result<Vec<_>>>();
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

/// The given secret; for the embedded default the one kept next to the data file, unless keys sign and
/// none was made before.
fn signing_secret(settings: &Settings, missing: MissingSecret) -> anyhow::Result<Option<SecretString>> {
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
    let (secret, made) = token::load_or_create(&path)?;
    if made {
        tracing::info!(path = %path.display(), "made a signing secret; set JWT_SECRET to use another");
    }
    Ok(Some(secret))
}

/// Opens what fronts seal. A front and a worker in one process must have the two halves of a pair; a
/// front elsewhere with another key shows only when its first message arrives.
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
