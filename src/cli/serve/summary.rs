//! The summary that `muster serve` prints on a terminal after the start: five lines with the addresses to open.

use std::net::SocketAddr;

use secrecy::ExposeSecret;

use super::super::reachable;
use crate::app::Addresses;
use crate::config::{QueueUrl, Role, Settings, StoreUrl, without_credentials};

/// Returns whether this start will create the data file. Must be called before the start.
pub(super) fn is_new(settings: &Settings) -> bool {
    matches!(&settings.store.url, StoreUrl::File(path) if !path.exists())
}

/// Formats the five lines.
pub(super) fn text(settings: &Settings, addresses: Addresses, is_new: bool) -> String {
    let serves = match settings.role {
        Role::All => "front and worker in this process",
        Role::Front => "the front; workers are other processes",
        Role::Worker => "a worker; fronts are other processes",
    };
    let front = addresses.front.map(|address| url(address, settings.front.tls.is_some()));
    let probes = addresses.admin.map(|address| url(address, false)).or_else(|| front.clone());
    let (first, second) = match &front {
        Some(front) if settings.front.ui => (
            format!("sign up   {front}/"),
            format!("status    {front}/status   docs  {front}/docs"),
        ),
        Some(front) => (
            format!("sign up   {front}{}", paths(settings)),
            format!("health    {}/ready   API  {front}/openapi.json", probes.unwrap_or_default()),
        ),
        None => (
            format!(
                "hashing   {} threads, cost {}",
                settings.password.threads, settings.password.cost
            ),
            match probes {
                Some(probes) => format!("health    {probes}/ready"),
                None => "health    not served; set MUSTER_ADMIN_LISTEN to serve /ready".to_owned(),
            },
        ),
    };
    format!(
        "muster {} is running: {serves}\n  {first}\n  {second}\n  users     {}   queue  {}\n  \
         stop      Ctrl-C finishes requests in progress, a second Ctrl-C aborts them\n",
        env!("CARGO_PKG_VERSION"),
        users(settings, is_new),
        queue(settings),
    )
}

fn url(address: SocketAddr, is_tls: bool) -> String {
    let scheme = if is_tls { "https" } else { "http" };
    format!("{scheme}://{}", reachable(address))
}

/// Formats the paths of all mounts.
fn paths(settings: &Settings) -> String {
    let path = |mount: &crate::config::Mount| {
        let prefix = if mount.any_prefix { "…" } else { "" };
        format!("{prefix}{}", if mount.path.is_empty() { "/" } else { &mount.path })
    };
    let mut paths = settings.front.mounts.iter();
    let first = paths.next().map(path).unwrap_or_default();
    paths.fold(first, |all, mount| format!("{all}, {}", path(mount)))
}

fn users(settings: &Settings, is_new: bool) -> String {
    match &settings.store.url {
        _ if !settings.role.has_worker() => "stored by workers".to_owned(),
        StoreUrl::File(path) => {
            format!("{}{}", path.display(), if is_new { " (new)" } else { "" })
        }
        StoreUrl::Mongo(url) => without_credentials(url.expose_secret()),
    }
}

fn queue(settings: &Settings) -> String {
    match &settings.queue.url {
        QueueUrl::Local => "in this process".to_owned(),
        QueueUrl::Amqp(url) => {
            format!("{} ({})", without_credentials(url.expose_secret()), settings.queue.namespace)
        }
    }
}
