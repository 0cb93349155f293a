//! From when until when a certificate is valid, for `doctor` and the metrics. Clients check it, this
//! program does not: a server with an expired certificate starts, and no client connects.

use std::path::Path;

use anyhow::Context;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::file;

/// Both in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from: i64,
    /// The last second.
    pub until: i64,
}

impl Validity {
    /// Reads a PEM file: when all certificates in it are valid.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let pem = file::read_text(path)?;
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes());
        Self::of(&chain.collect::<Result<Vec<_>, _>>()?)
    }

    /// When all certificates of a chain are valid.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> anyhow::Result<Self> {
        let mut all: Option<Self> = None;
        for certificate in chain {
            let (_, certificate) =
                X509Certificate::from_der(certificate).context("not an X.509 certificate")?;
            let validity = certificate.validity();
            let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
            let all = all.get_or_insert(Self { from, until });
            *all = Self { from: all.from.max(from), until: all.until.min(until) };
        }
        all.context("no certificate in PEM")
    }
}
