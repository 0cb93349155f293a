//! A minimal HTTP/1.1 client: one connection for each request.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::secrets;

/// A client for one address.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
}

/// A response with its whole body.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub bytes: Bytes,
}

impl HttpResponse {
    /// The body as JSON; null if there is none.
    pub fn json(&self) -> Value {
        if self.bytes.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Client {
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into() }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends one request on a new connection.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<HttpResponse> {
        let body = body.into();
        secrets::learn(&body);
        let stream = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes())?)
            .uri(path)
            .header("host", &self.address);
        for (name, value) in headers {
            // As bytes, because tests send values that are not ASCII.
            request = request.header(*name, value.as_bytes());
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status();
        let headers = response.headers().clone();
        let bytes = response.into_body().collect().await?.to_bytes();
        driver.abort();
        Ok(HttpResponse { status: StatusCode::as_u16(&status), headers, bytes })
    }

    /// Posts JSON.
    pub async fn post(&self, path: &str, body: &Value) -> HttpResponse {
        let headers = [("content-type", "application/json")];
        self.send("POST", path, &headers, body.to_string()).await.unwrap()
    }

    /// Posts JSON with an idempotency key.
    pub async fn post_with_key(&self, path: &str, body: &Value, key: &str) -> HttpResponse {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        self.send("POST", path, &headers, body.to_string()).await.unwrap()
    }

    /// Sends a GET request.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> HttpResponse {
        self.send("GET", path, headers, Bytes::new()).await.unwrap()
    }
}
