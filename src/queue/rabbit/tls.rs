//! Reads the files for amqps:// connections: certificate authorities and the client certificate. Read once, at the
//! start.

use std::path::Path;

use anyhow::Context;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};

use crate::config;

/// Reads the configured files.
///
/// # Errors
/// A file cannot be read or is not a PEM file.
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
    // lapin would report this at each attempt to connect, as if the broker were unavailable.
    anyhow::ensure!(
        text.contains("-----BEGIN "),
        "{setting}: {} is not a PEM file, expected -----BEGIN",
        path.display()
    );
    Ok(text)
}
