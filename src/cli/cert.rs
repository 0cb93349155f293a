//! `muster cert`: a certificate for development, with an authority of its own that nobody else can
//! use, because its private key is thrown away. Not for the internet.

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
use super::{EXIT_FAILED, complain, stdout};
use crate::domain::Clock;

/// Clocks of development machines differ too.
const EARLIER: Duration = Duration::from_secs(60 * 60);
/// Longest validity in days: what browsers take (CA/Browser Forum, before 2026).
const DAYS_MAX: u32 = 397;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    muster cert\n  \
    muster cert --directory certs --name muster.test --name 192.168.1.20\n  \
    MUSTER_FRONT_TLS_CERT=cert.pem MUSTER_FRONT_TLS_KEY=key.pem muster\n  \
    curl --cacert ca.pem https://localhost:3000/live\n\n\
    ca.pem is what clients have to trust. The certificate serves as a client's too.")]
pub(super) struct Flags {
    /// Where to write ca.pem, cert.pem and key.pem.
    #[arg(long, default_value = ".", value_name = "DIRECTORY")]
    directory: PathBuf,
    /// A host name or address besides localhost, 127.0.0.1 and ::1; may be given several times.
    #[arg(long = "name", value_name = "NAME", value_parser = host)]
    names: Vec<String>,
    /// How many days it is valid.
    #[arg(long, default_value_t = 90, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX as i64))]
    days: u32,
}

pub(super) fn run(flags: &Flags) -> u8 {
    match make(flags) {
        Ok(told) => stdout::printed(&told),
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}

/// Accepts what clients compare with the host of a URL.
fn host(text: &str) -> Result<String, &'static str> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        let may_be_in = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len())
            && label.bytes().all(may_be_in)
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

fn make(flags: &Flags) -> anyhow::Result<String> {
    let [authority, certificate, key] =
        ["ca.pem", "cert.pem", "key.pem"].map(|name| flags.directory.join(name));
    // All or nothing, because an old key beside a new certificate would not do.
    if let Some(there) = [&authority, &certificate, &key].into_iter().find(|path| path.exists()) {
        bail!(
            "{}: is there already; remove it, or give --directory another place",
            there.display()
        );
    }
    let made = Made::new(&flags.names, flags.days)?;
    std::fs::create_dir_all(&flags.directory)
        .with_context(|| format!("{}: cannot be made", flags.directory.display()))?;
    write(&authority, &made.authority)?;
    write(&certificate, &made.certificate)?;
    write_private(&key, made.key.as_bytes())?;
    Ok(format!(
        "{}: the authority, for clients to trust\n\
         MUSTER_FRONT_TLS_CERT={}\n\
         MUSTER_FRONT_TLS_KEY={}\n",
        authority.display(),
        certificate.display(),
        key.display()
    ))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("{}: cannot be written", path.display()))
}

/// Three PEM texts.
struct Made {
    authority: String,
    certificate: String,
    key: Zeroizing<String>,
}

impl Made {
    fn new(names: &[String], days: u32) -> anyhow::Result<Self> {
        let now = OffsetDateTime::from_unix_timestamp(Clock::system().now().seconds())?;
        let (from, until) = (now - EARLIER, now + Duration::from_secs(86_400 * u64::from(days)));
        let valid = |params: &mut CertificateParams, name: &str| {
            (params.not_before, params.not_after) = (from, until);
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
        };

        let mut params = CertificateParams::default();
        valid(&mut params, "muster development authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority_key = KeyPair::generate()?;
        let authority = params.self_signed(&authority_key)?;
        let issuer = Issuer::new(params, authority_key);

        let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        all.extend_from_slice(names);
        let mut params =
            CertificateParams::new(all).context("--name: not a host name or address")?;
        valid(&mut params, "muster development");
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
