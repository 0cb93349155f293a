//! An HTTP/1.1 connection for requests that no client library sends.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::muster::TIMEOUT;
use super::secrets;

/// A TCP connection whose bytes the test writes itself.
#[derive(Debug)]
pub struct RawConnection(TcpStream);

impl RawConnection {
    pub async fn connect(address: &str) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Writes bytes.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        secrets::learn(bytes.as_ref());
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self
    }

    /// Closes the sending direction.
    pub async fn finish(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Reads until the server closes the connection.
    pub async fn read_to_end(&mut self) -> String {
        let mut bytes = Vec::new();
        timeout(TIMEOUT, self.0.read_to_end(&mut bytes))
            .await
            .expect("the server did not close the connection")
            .unwrap();
        String::from_utf8(bytes).unwrap()
    }
}
