//! Bytes on a socket, for requests that no client would send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::muster::PATIENCE;
use super::secrets;

/// An HTTP/1.1 connection under a test's own hand.
#[derive(Debug)]
pub struct Raw(TcpStream);

impl Raw {
    pub async fn connect(address: &str) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Writes bytes, and may be called again for the next ones.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        secrets::learn(bytes.as_ref());
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self
    }

    /// Says that nothing more will be written.
    pub async fn finish(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Everything that comes until the other side closes the connection.
    pub async fn read_to_end(&mut self) -> String {
        let mut bytes = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.expect("an end").unwrap();
        String::from_utf8(bytes).unwrap()
    }
}
