//! The validity period of certificates, for `muster doctor` and the metrics. Only clients enforce it: a server with an
//! expired certificate starts, but its clients refuse to connect.

use std::path::Path;

use anyhow::Context;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::file;

/// A validity period, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from: i64,
    /// The last second.
    pub until: i64,
}

impl Validity {
    /// The period in which all certificates of a PEM file are valid.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let pem = file::read_text(path)?;
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes());
        Self::of_chain(&chain.collect::<Result<Vec<_>, _>>()?)
    }

    /// The period in which all certificates of a chain are valid.
    pub(super) fn of_chain(chain: &[CertificateDer<'_>]) -> anyhow::Result<Self> {
        let mut all: Option<Self> = None;
        for certificate in chain {
            let (_, certificate) =
                X509Certificate::from_der(certificate).context("not an X.509 certificate")?;
            let validity = certificate.validity();
            let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
            let all = all.get_or_insert(Self { from, until });
            *all = Self { from: all.from.max(from), until: all.until.min(until) };
        }
        all.context("expected at least one PEM certificate, got none")
    }
}
