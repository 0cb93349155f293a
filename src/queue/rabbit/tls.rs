//! What amqps:// needs besides the URL: more authorities to trust, and who one is oneself. The files
//! are read once, at the start.

use std::path::Path;

use anyhow::Context;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};

use crate::config;

/// Reads the files that the settings name.
pub(super) fn load(settings: &config::QueueSettings) -> anyhow::Result<OwnedTLSConfig> {
    let cert_chain = match &settings.ca_file {
        Some(path) => Some(read("queue.ca_file (MUSTER_QUEUE_CA_FILE)", path)?),
        None => None,
    };
    let identity = match &settings.certificate {
        Some(files) => Some(OwnedIdentity::PKCS8 {
            pem: read("queue.cert_file (MUSTER_QUEUE_CERT_FILE)", &files.certificate)?.into(),
            key: read("queue.key_file (MUSTER_QUEUE_KEY_FILE)", &files.key)?.into(),
        }),
        None => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

fn read(setting: &str, path: &Path) -> anyhow::Result<String> {
    let text = config::file::read_text(path);
    let text = text.with_context(|| format!("{setting}: {}", path.display()))?;
    // The client would say so at each attempt, as if the broker were away.
    anyhow::ensure!(text.contains("-----BEGIN "), "{setting}: {} is no PEM file", path.display());
    Ok(text)
}
