//! The files that the front reads besides its settings, and reads again when it is told to.

use std::sync::Arc;

use super::jwks::PublicKeys;
use super::tls::Tls;
use crate::config;
use crate::telemetry::Metrics;

/// What they hold. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// None: plain http.
    pub(super) tls: Option<Tls>,
    /// None: nothing is published.
    pub(super) keys: Option<Arc<PublicKeys>>,
}

impl Files {
    /// The certificate and the public keys, where there are any.
    pub fn new(tls: Option<Tls>, keys: Option<PublicKeys>) -> Self {
        Self { tls, keys: keys.map(Arc::new) }
    }

    /// Whether the settings name any: then SIGHUP reads them again.
    pub fn are_named(settings: &config::Front) -> bool {
        settings.tls.is_some() || settings.jwks.is_some()
    }

    /// Reports the expiry of the certificate in use at each scrape from now on.
    pub fn show(&self, metrics: &Metrics) {
        let Some(tls) = self.tls.clone() else { return };
        metrics.at_scrape(move |metrics| {
            if let Some(at) = tls.expires() {
                metrics.certificate_expires("front", at);
            }
        });
    }

    /// Reads them again. What cannot be used is told in the log, and the old one stays.
    pub fn reload(&self) {
        let read = [
            ("certificate", self.tls.as_ref().map(Tls::reload)),
            ("public keys", self.keys.as_ref().map(|keys| keys.reload())),
        ];
        for (what, read) in read {
            match read {
                Some(Ok(())) => tracing::info!(what, "read again"),
                Some(Err(error)) => tracing::error!(
                    what,
                    error = format!("{error:#}"),
                    "cannot be used; what was read before stays in use"
                ),
                None => {}
            }
        }
    }
}
