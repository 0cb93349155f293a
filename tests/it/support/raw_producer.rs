//! An AMQP producer that writes its frames itself, for properties that no client library sends.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use super::broker::rabbitmqctl;
use super::services::{amqp_url, unique};

/// RabbitMQ's default `frame_max` in bytes.
pub const FRAME_MAX: usize = 128 << 10;

/// Frame types.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// A connection with a channel in confirm mode.
pub struct RawProducer(TcpStream);

impl RawProducer {
    /// Connects with an account that may only publish to the namespace's exchange. Uses the account in
    /// `AMQP_URL` if the tests cannot create accounts.
    pub async fn with_least_privilege(namespace: &str) -> Self {
        let mut url = Url::parse(&amqp_url().unwrap()).unwrap();
        let user = unique("producer");
        if rabbitmqctl(&["add_user", &user, "a-password"]).await.is_some() {
            let write = format!("^{namespace}$");
            rabbitmqctl(&["set_permissions", &user, "^$", &write, "^$"]).await;
            url.set_username(&user).unwrap();
            url.set_password(Some("a-password")).unwrap();
        }
        let mut producer = Self::connect(&url).await;
        producer.open(&url).await;
        producer
    }

    async fn connect(url: &Url) -> Self {
        let address = (url.host_str().unwrap(), url.port().unwrap_or(5672));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
        Self(stream)
    }

    async fn open(&mut self, url: &Url) {
        self.expect(10, 10).await;
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap_or_default());
        let start_ok =
            [&long(b"")[..], &short(b"PLAIN"), &long(login.as_bytes()), &short(b"en_US")];
        self.call(0, 10, 11, &start_ok.concat()).await;
        let tune = self.expect(10, 30).await;
        // The broker's channel_max and frame_max, no heartbeat.
        self.call(0, 10, 31, &[&tune[..6], &[0, 0]].concat()).await;
        let vhost = url.path().strip_prefix('/').unwrap_or("%2f").replace("%2f", "/");
        let vhost = vhost.replace("%2F", "/");
        self.call(0, 10, 40, &[&short(vhost.as_bytes())[..], &[0, 0]].concat()).await;
        self.expect(10, 41).await;
        self.call(1, 20, 10, &[0]).await;
        self.expect(20, 11).await;
        self.call(1, 85, 10, &[0]).await;
        self.expect(85, 11).await;
    }

    /// Publishes a mandatory message. Fails unless the broker confirms it without a return.
    pub async fn publish(&mut self, exchange: &str, key: &[u8], properties: &[u8], body: &[u8]) {
        let mandatory = [1];
        let publish = [&[0, 0][..], &short(exchange.as_bytes()), &short(key), &mandatory].concat();
        self.call(1, 60, 40, &publish).await;
        let size = (body.len() as u64).to_be_bytes();
        self.write(HEADER, 1, &[&[0, 60, 0, 0][..], &size, properties].concat()).await;
        self.write(BODY, 1, body).await;
        self.expect(60, 80).await;
    }

    async fn call(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.write(METHOD, channel, &payload).await;
    }

    async fn write(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let size = (payload.len() as u32).to_be_bytes();
        let frame = [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xCE]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    /// Reads the next frame, which must be this method, and returns its arguments.
    async fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        let mut start = [0; 7];
        self.0.read_exact(&mut start).await.unwrap();
        let size = u32::from_be_bytes(start[3..].try_into().unwrap()) as usize;
        let mut payload = vec![0; size + 1];
        self.0.read_exact(&mut payload).await.unwrap();
        let id = [class.to_be_bytes(), method.to_be_bytes()].concat();
        let shown = String::from_utf8_lossy(&payload);
        assert_eq!((start[0], &payload[..4]), (METHOD, &id[..]), "{shown}");
        payload[4..size].to_vec()
    }
}

/// Encodes a short string.
pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text].concat()
}

/// Encodes a long string, or a table or an array with these entries.
pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// Encodes properties with one header.
pub fn one_header(name: &[u8], value: &[u8]) -> Vec<u8> {
    let table = long(&[&short(name)[..], value].concat());
    [&(1u16 << 13).to_be_bytes()[..], &table].concat()
}

/// Encodes a header value of nested arrays (`A`) or tables (`F`).
pub fn nested(kind: u8, levels: usize) -> Vec<u8> {
    let mut value = Vec::new();
    for inner in (0..levels).rev() {
        value.push(kind);
        value.extend(u32::try_from(inner * level_size(kind)).unwrap().to_be_bytes());
        // An empty name.
        value.extend((kind == b'F' && inner > 0).then_some(0));
    }
    value
}

/// The most levels that fit into one frame next to the other properties.
pub fn max_levels(kind: u8) -> usize {
    (FRAME_MAX - 100) / level_size(kind)
}

fn level_size(kind: u8) -> usize {
    if kind == b'F' { 6 } else { 5 }
}
