//! An HTTP/2 client that writes its frames itself, for behaviour that no library offers, such as a closed
//! flow-control window.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::muster::TIMEOUT;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 connection.
#[derive(Debug)]
pub struct Http2Connection {
    stream: TcpStream,
    next: u32,
}

impl Http2Connection {
    /// Connects with an initial flow-control window of `window` bytes for each stream.
    pub async fn connect(address: &str, window: u32) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // SETTINGS_INITIAL_WINDOW_SIZE
        bytes.extend(frame(SETTINGS, 0, 0, &[&[0, 4], &window.to_be_bytes()[..]].concat()));
        bytes.extend(frame(SETTINGS, 1, 0, &[]));
        stream.write_all(&bytes).await.unwrap();
        Self { stream, next: 1 }
    }

    /// Sends a request and returns its stream id.
    pub async fn request(&mut self, method: &str, path: &str, body: &str) -> u32 {
        let stream = self.next;
        self.next += 2;
        let mut block = vec![0x86];
        for (index, value) in [(2, method), (4, path), (1, "x")] {
            literal(&mut block, index, value);
        }
        literal(&mut block, 31, "application/json");
        let last = if body.is_empty() { END_STREAM } else { 0 };
        let mut bytes = frame(HEADERS, END_HEADERS | last, stream, &block);
        if !body.is_empty() {
            bytes.extend(frame(DATA, END_STREAM, stream, body.as_bytes()));
        }
        self.stream.write_all(&bytes).await.unwrap();
        stream
    }

    /// Sends WINDOW_UPDATE for a stream. Returns false if the connection is closed.
    pub async fn open_window(&mut self, stream: u32, bytes: u32) -> bool {
        self.send(&frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())).await
    }

    /// Sends PING. Returns false if the connection is closed.
    pub async fn ping(&mut self) -> bool {
        self.send(&frame(PING, 0, 0, &[0; 8])).await
    }

    async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Reads frames until none arrives for `quiet` or the server closes the connection. Returns the types of
    /// the frames and whether the connection is closed.
    pub async fn frames(&mut self, quiet: Duration) -> (Vec<u8>, bool) {
        let mut types = Vec::new();
        loop {
            let mut head = [0; 9];
            match timeout(quiet, self.stream.read_exact(&mut head)).await {
                Err(_) => return (types, false),
                Ok(Err(_)) => return (types, true),
                Ok(Ok(_)) => {}
            }
            types.push(head[3]);
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            let read = timeout(TIMEOUT, self.stream.read_exact(&mut payload)).await.unwrap();
            if read.is_err() {
                return (types, true);
            }
        }
    }

    /// Waits until the server closes the connection, and returns the types of the frames before.
    pub async fn wait_for_close(&mut self) -> Vec<u8> {
        let (types, closed) = self.frames(TIMEOUT).await;
        assert!(closed, "the server did not close the connection: {types:?}");
        types
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Appends a header with a name from the static table and a literal value (RFC 7541, 6.2.2).
fn literal(block: &mut Vec<u8>, index: u8, value: &str) {
    match index.checked_sub(15) {
        None => block.push(index),
        Some(rest) => block.extend([15, rest]),
    }
    block.push(u8::try_from(value.len()).unwrap());
    block.extend(value.as_bytes());
}
