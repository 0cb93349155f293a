//! The front's certificate and public keys: files that are read at the start and again on SIGHUP.

use std::sync::Arc;

use super::jwks::PublicKeys;
use super::tls::Tls;
use crate::config;
use crate::telemetry::Metrics;

/// The contents of the files. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ReloadableFiles {
    /// None: the front serves plain HTTP.
    pub(super) tls: Option<Tls>,
    /// None: no JWK set is published.
    pub(super) keys: Option<Arc<PublicKeys>>,
}

impl ReloadableFiles {
    /// Combines the certificate and the public keys; both are optional.
    pub fn new(tls: Option<Tls>, keys: Option<PublicKeys>) -> Self {
        Self { tls, keys: keys.map(Arc::new) }
    }

    /// Whether the settings name at least one of the files, so that SIGHUP reloads it.
    pub fn are_configured(settings: &config::FrontSettings) -> bool {
        settings.tls.is_some() || settings.jwks_file.is_some()
    }

    /// Exports the expiry of the current certificate at each scrape.
    pub fn export_expiry(&self, metrics: &Metrics) {
        let Some(tls) = self.tls.clone() else { return };
        metrics.at_scrape(move |metrics| {
            if let Some(at) = tls.expires() {
                metrics.set_certificate_expiry("front", at);
            }
        });
    }

    /// Reloads every file. A file that fails to load is logged, and its previous contents stay in use.
    pub fn reload(&self) {
        let results = [
            ("certificate", self.tls.as_ref().map(Tls::reload)),
            ("public keys", self.keys.as_ref().map(|keys| keys.reload())),
        ];
        for (file, result) in results {
            match result {
                Some(Ok(())) => {
                    tracing::info!(event = "file_reloaded", file, "a file was reloaded");
                }
                Some(Err(error)) => tracing::error!(
                    event = "reload_failed",
                    file,
                    error = format!("{error:#}"),
                    "a file cannot be reloaded; its previous contents stay in use"
                ),
                None => {}
            }
        }
    }
}
