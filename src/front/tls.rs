//! TLS: loads the certificate and its key, reloads them while connections are open, and does the handshake. `server`
//! limits the time of a handshake.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::protocol::{HTTP2_PREFACE, Protocol};
use super::validity::Validity;
use crate::config::{CertificateFiles, file};
use crate::contract::problem;

/// The record type with which every TLS connection starts (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
/// ALPN protocol identifiers (RFC 7301, section 6).
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The server's TLS configuration. Clones share it.
#[derive(Clone, Debug)]
pub struct Tls(Arc<SharedCertificate>);

#[derive(Debug)]
struct SharedCertificate {
    files: CertificateFiles,
    /// Replaced by a reload.
    loaded: RwLock<LoadedCertificate>,
}

/// The contents of the files when they were last loaded.
#[derive(Clone, Debug)]
struct LoadedCertificate {
    config: Arc<ServerConfig>,
    /// The earliest expiry in the certificate chain, in seconds since 1970.
    expires: Option<i64>,
}

impl Tls {
    /// Loads the certificate and its key.
    pub fn read(files: &CertificateFiles) -> anyhow::Result<Self> {
        let loaded = RwLock::new(load(files)?);
        Ok(Self(Arc::new(SharedCertificate { files: files.clone(), loaded })))
    }

    /// Reloads both for new connections. After an error the previous ones stay in use.
    pub fn reload(&self) -> anyhow::Result<()> {
        let loaded = load(&self.0.files)?;
        *self.0.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// When the current certificate chain expires, in seconds since 1970.
    pub(super) fn expires(&self) -> Option<i64> {
        self.loaded().expires
    }

    fn loaded(&self) -> LoadedCertificate {
        self.0.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does the handshake. On HTTP/2 it also waits for the connection preface.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(Protocol, EncryptedStream)> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
            refuse_plain(stream, first[0]).await?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        let config = self.loaded().config;
        let mut stream = TlsAcceptor::from(config).accept(stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Ok((Protocol::Http1, Box::new(stream)));
        }
        // hyper 1.12.0 waits for the preface without a timeout (hyperium/hyper#4172).
        let mut preface = [0; HTTP2_PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        let (read, write) = tokio::io::split(stream);
        let read = io::Cursor::new(preface).chain(read);
        Ok((Protocol::Http2, Box::new(tokio::io::join(read, write))))
    }
}

/// A connection after its handshake.
pub(super) type EncryptedStream = Box<dyn Duplex>;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

fn load(files: &CertificateFiles) -> anyhow::Result<LoadedCertificate> {
    let CertificateFiles { certificate, key } = files;
    let shown = |setting: &str, path: &Path| format!("{setting}: {}", path.display());
    let chain = certificates(certificate)
        .with_context(|| shown("front.tls_cert (MUSTER_FRONT_TLS_CERT)", certificate))?;
    let expires = Validity::of_chain(&chain).ok().map(|validity| validity.until);
    let private = file::read_text(key).map(Zeroizing::new).map_err(anyhow::Error::new);
    let private = private.and_then(|pem| Ok(PrivateKeyDer::from_pem_slice(pem.as_bytes())?));
    let private = private.with_context(|| shown("front.tls_key (MUSTER_FRONT_TLS_KEY)", key))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private);
    let mut config = config.with_context(|| {
        format!(
            "front.tls_cert and front.tls_key: {} and {} cannot be used together",
            certificate.display(),
            key.display()
        )
    })?;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Ok(LoadedCertificate { config: Arc::new(config), expires })
}

/// The certificates of a PEM file. Returns an error if there is none.
fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = file::read_text(path)?;
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    anyhow::ensure!(!chain.is_empty(), "expected at least one PEM certificate, got none");
    Ok(chain)
}

/// Responds 400 to a client that speaks plain HTTP. Other clients get no response.
async fn refuse_plain(mut stream: TcpStream, first: u8) -> io::Result<()> {
    if !first.is_ascii_uppercase() {
        return Ok(());
    }
    let status = StatusCode::BAD_REQUEST;
    let title = status.canonical_reason().unwrap_or_default();
    let detail = "This port serves HTTPS only; the request was sent in plain HTTP.";
    let body = problem::problem(status.as_u16(), title, detail).to_string();
    let response = format!(
        "HTTP/1.1 {} {title}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        status.as_u16(),
        problem::MEDIA_TYPE,
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    // Unread data would make the kernel reset the connection before the client reads the response.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
