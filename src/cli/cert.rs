//! `muster cert`: generates a TLS certificate for development and a certificate authority that signs it. The private
//! key of the authority is discarded, so that it cannot sign anything else.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::keys::write_private;
use super::{EXIT_FAILED, print_error, stdout};
use crate::domain::Clock;

/// The certificate is valid from this long before now, because clocks differ.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60 * 60);
/// Longest validity in days: the limit of browsers (CA/Browser Forum, before 2026).
const DAYS_MAX: u32 = 397;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    muster cert\n  \
    muster cert --directory certs --name muster.test --name 192.168.1.20\n  \
    MUSTER_FRONT_TLS_CERT=cert.pem MUSTER_FRONT_TLS_KEY=key.pem muster\n  \
    curl --cacert ca.pem https://localhost:3000/live\n\n\
    Clients must trust ca.pem. The certificate is valid for TLS servers and clients.")]
pub(super) struct CertArgs {
    /// Directory for ca.pem, cert.pem and key.pem.
    #[arg(long, default_value = ".", value_name = "DIRECTORY")]
    directory: PathBuf,
    /// Additional host name or IP address, next to localhost, 127.0.0.1 and ::1; repeatable.
    #[arg(long = "name", value_name = "NAME", value_parser = host)]
    names: Vec<String>,
    /// Validity in days.
    #[arg(long, default_value_t = 90, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX as i64))]
    days: u32,
}

pub(super) fn run(flags: &CertArgs) -> u8 {
    match generate(flags) {
        Ok(summary) => stdout::print_or_fail(&summary),
        Err(error) => {
            print_error(&error);
            EXIT_FAILED
        }
    }
}

/// Parses a host name or IP address as clients compare it with the host of a URL.
fn host(text: &str) -> Result<String, &'static str> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len())
            && label.bytes().all(is_valid)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = name.len() <= 253 && name.split('.').all(is_label);
    if is_name || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(
        "expected a host name such as muster.test or *.muster.test (an international one in its xn-- form), or an \
         IP address",
    )
}

fn generate(flags: &CertArgs) -> anyhow::Result<String> {
    let [authority, certificate, key] =
        ["ca.pem", "cert.pem", "key.pem"].map(|name| flags.directory.join(name));
    // If one file exists, none is written: an old key would not match a new certificate.
    if let Some(existing) = [&authority, &certificate, &key].into_iter().find(|path| path.exists())
    {
        bail!(
            "{}: already exists; remove it, or give --directory another directory",
            existing.display()
        );
    }
    let certificates = DevCertificates::new(&flags.names, flags.days)?;
    std::fs::create_dir_all(&flags.directory)
        .with_context(|| format!("{}: cannot create the directory", flags.directory.display()))?;
    write(&authority, &certificates.authority)?;
    write(&certificate, &certificates.certificate)?;
    write_private(&key, certificates.key.as_bytes())?;
    Ok(format!(
        "{}: the certificate authority that clients must trust\n\
         MUSTER_FRONT_TLS_CERT={}\n\
         MUSTER_FRONT_TLS_KEY={}\n",
        authority.display(),
        certificate.display(),
        key.display()
    ))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("{}: cannot write the file", path.display()))
}

/// Certificates and key in PEM format.
struct DevCertificates {
    authority: String,
    certificate: String,
    key: Zeroizing<String>,
}

impl DevCertificates {
    fn new(names: &[String], days: u32) -> anyhow::Result<Self> {
        let now = OffsetDateTime::from_unix_timestamp(Clock::system().now().seconds())?;
        let (from, until) =
            (now - CLOCK_TOLERANCE, now + Duration::from_secs(86_400 * u64::from(days)));
        let set_validity_and_name = |params: &mut CertificateParams, name: &str| {
            (params.not_before, params.not_after) = (from, until);
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
        };

        let mut params = CertificateParams::default();
        set_validity_and_name(&mut params, "muster development authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority_key = KeyPair::generate()?;
        let authority = params.self_signed(&authority_key)?;
        let issuer = Issuer::new(params, authority_key);

        let mut all_names: Vec<String> =
            ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        all_names.extend_from_slice(names);
        let mut params = CertificateParams::new(all_names)
            .context("--name: expected a host name or IP address")?;
        set_validity_and_name(&mut params, "muster development");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Self {
            authority: authority.pem(),
            certificate: certificate.pem(),
            key: Zeroizing::new(key.serialize_pem()),
        })
    }
}
