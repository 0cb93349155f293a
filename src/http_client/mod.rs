//! An HTTP/1.1 client on one connection, plain or over TLS. Used by commands, which call a muster or a broker's HTTP
//! API, and by the exporter of traces (`collector`). The front serves HTTP and never uses it.

pub mod collector;
pub mod probe;
pub mod trust;

use std::net::SocketAddr;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use trust::Trust;

/// Largest response body that is read, in bytes (4 MiB).
const RESPONSE_MAX: usize = 4 << 20;

/// An HTTP/1.1 connection that stays open between requests.
pub struct HttpConnection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    authorization: Option<HeaderValue>,
}

impl HttpConnection {
    /// Connects without TLS.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("{address}: connection failed; is the server running?"))?;
        stream.set_nodelay(true)?;
        Self::on(stream, address.to_string()).await
    }

    /// Connects to a host by name or IP address, with TLS if `trust` is given.
    pub async fn open_to(host: &str, port: u16, trust: Option<Trust>) -> anyhow::Result<Self> {
        // An IPv6 address has brackets only in a URL.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, port))
            .await
            .with_context(|| format!("{host}:{port}: connection failed"))?;
        stream.set_nodelay(true)?;
        let shown = format!("{host}:{port}");
        let Some(trust) = trust else { return Self::on(stream, shown).await };
        let name = ServerName::try_from(bare.to_owned()).with_context(|| shown.clone())?;
        let stream = TlsConnector::from(trust).connect(name, stream).await;
        Self::on(stream.with_context(|| format!("{shown}: TLS handshake failed"))?, shown).await
    }

    async fn on(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        host: String,
    ) -> anyhow::Result<Self> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host, authorization: None })
    }

    /// Adds credentials to every request (HTTP Basic, RFC 7617).
    pub fn set_basic_auth(&mut self, user: &str, password: &SecretString) -> anyhow::Result<()> {
        let login = STANDARD.encode(format!("{user}:{}", password.expose_secret()));
        let mut value = HeaderValue::from_str(&format!("Basic {login}"))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(())
    }

    /// Sends a GET request and returns the status and the body.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<(u16, Bytes)> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Sends a POST request with a JSON body and returns the status and the body.
    pub async fn post(&mut self, path: &str, body: Bytes) -> anyhow::Result<(u16, Bytes)> {
        self.request(Method::POST, path, body).await
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(u16, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, "application/json")
            .body(body)?;
        let response = self.send(request).await?;
        Ok((response.status().as_u16(), response.into_body()))
    }

    /// Sends a request with the connection's `Host` and credentials, and reads the whole response.
    pub async fn send(&mut self, request: Request<Bytes>) -> anyhow::Result<Response<Bytes>> {
        let mut request = request.map(Full::new);
        request.headers_mut().insert(HOST, HeaderValue::from_str(&self.host)?);
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(path) = request.uri().path_and_query() {
            *request.uri_mut() = path.clone().into();
        }
        let ready = self.sender.ready().await;
        ready.with_context(|| {
            format!(
                "{}: the server closed the connection; check that it is an HTTP server",
                self.host
            )
        })?;
        let sent = self.sender.send_request(request).await;
        let sent = sent.map_err(|error| {
            if error.is_parse() {
                return anyhow::anyhow!(
                    "{}: the response is not HTTP; check the port and the scheme",
                    self.host
                );
            }
            error.into()
        });
        let (head, body) = sent?.into_parts();
        let body = Limited::new(body, RESPONSE_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}
