//! TLS: HTTPS with certificate reload, and the broker and the database over mutual TLS.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use muster::front::validity::Validity;
use muster::http_client::{HttpConnection, trust};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

use crate::support::broker::rabbitmqctl;
use crate::support::collector::Collector;
use crate::support::command::run;
use crate::support::muster::{TIMEOUT, eventually};
use crate::support::services::{PRODUCTION, amqp_url, provided, unique};
use crate::support::{Muster, Pair, QueueAdapter, RawConnection, Setup, StoreAdapter};

/// Certificates from `muster cert`.
struct Certificates(PathBuf);

impl Certificates {
    async fn generate(setup: &Setup, name: &str) -> Self {
        Self::valid_for(setup, name, "90").await
    }

    async fn valid_for(setup: &Setup, name: &str, days: &str) -> Self {
        let directory = setup.directory().join(name);
        let arguments = ["cert", "--directory", directory.to_str().unwrap(), "--days", days];
        run(setup, &arguments).await.expect_stdout();
        Self(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn trust(&self) -> Arc<ClientConfig> {
        trust::authorities(Some(Path::new(&self.path("ca.pem")))).unwrap()
    }

    /// Overwrites these files with others.
    fn replace_with(&self, other: &Self) {
        for name in ["cert.pem", "key.pem"] {
            std::fs::copy(other.path(name), self.path(name)).unwrap();
        }
    }
}

async fn start_with_tls(setup: Setup, certificates: &Certificates) -> Muster {
    let setup = setup
        .with("MUSTER_FRONT_TLS_CERT", &certificates.path("cert.pem"))
        .with("MUSTER_FRONT_TLS_KEY", &certificates.path("key.pem"));
    setup.start_with(&["serve"]).await
}

fn port(muster: &Muster) -> u16 {
    muster.client().address().rsplit_once(':').unwrap().1.parse().unwrap()
}

async fn connect(muster: &Muster, trust: Arc<ClientConfig>) -> anyhow::Result<HttpConnection> {
    HttpConnection::open_to("localhost", port(muster), Some(trust)).await
}

/// A connection after the TLS handshake.
async fn handshake(muster: &Muster, trust: &ClientConfig, alpn: &[u8]) -> TlsStream<TcpStream> {
    let mut config = trust.clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(muster.client().address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

fn registration() -> Bytes {
    let email = format!("{}@example.com", unique("tls"));
    let body =
        json!({ "fullname": { "firstname": "Ann" }, "email": email, "password": "a password" });
    Bytes::from(body.to_string())
}

#[tokio::test]
async fn signup_works_over_https_with_both_protocols() {
    let setup = Setup::embedded();
    let certificates = Certificates::generate(&setup, "certs").await;
    let muster = start_with_tls(setup.clone(), &certificates).await;
    let trust = certificates.trust();
    let mut http1 = connect(&muster, trust.clone()).await.unwrap();
    assert_eq!(http1.post("/register", registration()).await.unwrap().0, 201);

    let stream = handshake(&muster, &trust, b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = TokioIo::new(stream);
    let (mut http2, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(driver);
    let request = hyper::Request::post("https://localhost/register")
        .header("content-type", "application/json")
        .body(Full::new(registration()))
        .unwrap();
    let response = http2.send_request(request).await.unwrap();
    assert_eq!(response.status(), 201);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("token"));

    // A client without the authority refuses the connection.
    assert!(connect(&muster, trust::authorities(None).unwrap()).await.is_err());
    // The health check uses the same port.
    let address = muster.client().address().to_owned();
    let setup = setup
        .with("MUSTER_LISTEN", &address)
        .with("MUSTER_FRONT_TLS_CERT", &certificates.path("cert.pem"))
        .with("MUSTER_FRONT_TLS_KEY", &certificates.path("key.pem"));
    run(&setup, &["healthcheck"]).await.expect_stdout();
    // The signup command uses it too.
    let url = format!("https://localhost:{}", port(&muster));
    let ca = certificates.path("ca.pem");
    let email = format!("{}@example.com", unique("tls"));
    let arguments =
        ["signup", "--url", &url, "--ca-file", &ca, "--firstname", "Ann", "--email", &email];
    let arguments: Vec<&str> = arguments.into_iter().chain(["--password-stdin"]).collect();
    crate::support::command::run_with(&setup, &arguments, "a password\n").await.expect_stdout();
}

/// Starts a TLS proxy to an address and returns its port.
async fn start_tls_proxy(address: String, certificates: &Certificates) -> u16 {
    let chain = CertificateDer::pem_file_iter(certificates.path("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.path("key.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust the certificate closes the connection.
            let Ok(mut inner) = acceptor.accept(stream).await else { continue };
            let mut outer = TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut inner, &mut outer).await });
        }
    });
    port
}

#[tokio::test]
async fn spans_are_exported_over_https() {
    let collector = Collector::start().await;
    let setup = Setup::embedded().with("OTEL_BSP_SCHEDULE_DELAY", "50");
    let certificates = Certificates::generate(&setup, "certs").await;
    let port = start_tls_proxy(collector.address.clone(), &certificates).await;
    let setup = setup.with("MUSTER_TRACE_ENDPOINT", &format!("https://localhost:{port}"));
    let sign_up = async |muster: &Muster| {
        let address = muster.client().address().parse().unwrap();
        let mut connection = HttpConnection::open(address).await.unwrap();
        assert_eq!(connection.post("/register", registration()).await.unwrap().0, 201);
    };

    let mut untrusting = setup.start().await;
    sign_up(&untrusting).await;
    let expected = format!("localhost:{port}: TLS handshake failed: invalid peer certificate");
    untrusting.wait_for_event_with("span_export_failed", &expected).await;
    assert!(collector.spans().is_empty());
    assert!(untrusting.stop().await.success());

    let muster = setup.with("MUSTER_TRACE_CA_FILE", &certificates.path("ca.pem")).start().await;
    sign_up(&muster).await;
    eventually("a span to arrive", async || !collector.spans().is_empty()).await;
}

#[tokio::test]
async fn plain_http_on_the_https_port_gets_400() {
    let setup = Setup::embedded();
    let certificates = Certificates::generate(&setup, "certs").await;
    let muster = start_with_tls(setup, &certificates).await;
    let mut raw = RawConnection::connect(muster.client().address()).await;
    raw.write("POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await;
    raw.finish().await;
    let response = raw.read_to_end().await;
    assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{response}");
    assert!(response.contains("application/problem+json"), "{response}");
    assert!(response.contains("This port serves HTTPS only"), "{response}");
    // Bytes that are neither TLS nor HTTP get no response.
    let mut stream = TcpStream::connect(muster.client().address()).await.unwrap();
    stream.write_all(b"\0\0\0").await.unwrap();
    assert!(read_until_closed(&mut stream).await.is_empty());
}

#[tokio::test]
async fn unfinished_handshake_times_out() {
    let setup = Setup::embedded().with("MUSTER_FRONT_HEADER_TIMEOUT", "300ms");
    let certificates = Certificates::generate(&setup, "certs").await;
    let muster = start_with_tls(setup, &certificates).await;
    // Silent before and during the handshake.
    for bytes in [&b""[..], b"\x16\x03\x01"] {
        let mut stream = TcpStream::connect(muster.client().address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        read_until_closed(&mut stream).await;
    }
    // Silent after it, with either protocol.
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let mut stream = handshake(&muster, &certificates.trust(), protocol).await;
        read_until_closed(&mut stream).await;
    }
}

/// Reads until the server closes the connection in any way, and returns the bytes.
async fn read_until_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("the server did not close the connection");
    bytes
}

#[tokio::test]
async fn sighup_replaces_the_certificate_and_keeps_connections() {
    let setup = Setup::embedded();
    let certificates = Certificates::generate(&setup, "certs").await;
    let new = Certificates::valid_for(&setup, "new", "30").await;
    let (old_trust, new_trust) = (certificates.trust(), new.trust());
    let mut muster = start_with_tls(setup, &certificates).await;
    let mut open = connect(&muster, old_trust.clone()).await.unwrap();
    assert_eq!(open.get("/live").await.unwrap().0, 200);
    assert_eq!(expiry_metric(&mut open).await, expiry(&certificates));

    certificates.replace_with(&new);
    muster.signal("HUP");
    eventually("the new certificate", async || connect(&muster, new_trust.clone()).await.is_ok())
        .await;
    let stream = handshake(&muster, &new_trust, b"h2").await;
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_eq!(shown, CertificateDer::from_pem_file(new.path("cert.pem")).unwrap());
    assert!(connect(&muster, old_trust).await.is_err(), "the old certificate must not be used");
    assert_eq!(
        open.post("/register", registration()).await.unwrap().0,
        201,
        "the open connection must still work"
    );
    let expires = expiry(&new);
    assert_eq!(expiry_metric(&mut open).await, expires);

    // A certificate that does not match its key is logged, and the old one stays.
    std::fs::copy(certificates.path("ca.pem"), certificates.path("cert.pem")).unwrap();
    muster.signal("HUP");
    muster.wait_for_event_with("reload_failed", "cannot be used together").await;
    assert_eq!(connect(&muster, new_trust).await.unwrap().get("/live").await.unwrap().0, 200);
    assert_eq!(expiry_metric(&mut open).await, expires, "the metric shows the certificate in use");
    assert!(muster.stop().await.success());
}

/// Expiry of the certificate, in seconds since 1970.
fn expiry(certificates: &Certificates) -> i64 {
    Validity::read(Path::new(&certificates.path("cert.pem"))).unwrap().until
}

/// Expiry of the certificate according to the metrics.
async fn expiry_metric(connection: &mut HttpConnection) -> i64 {
    let (status, metrics) = connection.get("/metrics").await.unwrap();
    assert_eq!(status, 200);
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    let name = "muster_tls_certificate_expiry_timestamp_seconds{certificate=\"front\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn reload_of_a_special_file_keeps_the_certificate() {
    let setup = Setup::embedded();
    let certificates = Certificates::generate(&setup, "certs").await;
    let trust = certificates.trust();
    let muster = start_with_tls(setup, &certificates).await;
    let certificate = certificates.path("cert.pem");
    // A read of the first would block; a read of the second would not end.
    for (n, replacement) in ["mkfifo", "ln -s /dev/zero"].into_iter().enumerate() {
        std::fs::remove_file(&certificate).unwrap();
        let script = format!("{replacement} '{certificate}'");
        let generate = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
        assert!(generate.success(), "{script}");
        muster.signal("HUP");
        eventually("the error in the log", async || {
            muster.output().matches("not a regular file").count() == n + 1
        })
        .await;
        let mut open = connect(&muster, trust.clone()).await.unwrap();
        assert_eq!(open.get("/live").await.unwrap().0, 200);
    }
    assert!(muster.stop().await.success());
}

#[tokio::test]
async fn unusable_certificate_stops_the_start() {
    let setup = Setup::embedded();
    let [one, two] =
        [Certificates::generate(&setup, "one").await, Certificates::generate(&setup, "two").await];
    assert_eq!(std::fs::metadata(one.path("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    let again = run(&setup, &["cert", "--directory", one.0.to_str().unwrap()]).await;
    assert_eq!(again.code, Some(1), "an existing key is never overwritten");
    let with = |certificate: &str, key: &str| {
        setup.clone().with("MUSTER_FRONT_TLS_CERT", certificate).with("MUSTER_FRONT_TLS_KEY", key)
    };
    for (setup, expected) in [
        (with(&one.path("cert.pem"), &two.path("key.pem")), "cannot be used together"),
        (with(&one.path("cert.pem"), "/no/such/file"), "MUSTER_FRONT_TLS_KEY"),
        (with("/no/such/file", &one.path("key.pem")), "MUSTER_FRONT_TLS_CERT"),
        (with(&one.path("cert.pem"), ""), "front.tls_key"),
    ] {
        let output = run(&setup, &["serve"]).await;
        assert_eq!(output.code, Some(2), "{}", output.stderr);
        assert!(output.stderr.contains(expected), "{expected}: {}", output.stderr);
    }
}

/// A port that is free at the moment.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn broker_with_mutual_tls_works() {
    let pair = Pair(QueueAdapter::Rabbit, StoreAdapter::File);
    if !pair.is_available() {
        return;
    }
    let setup = Setup::new(pair);
    let certificates = Certificates::generate(&setup, "certs").await;
    let others = Certificates::generate(&setup, "others").await;
    let port = free_port();
    let options = format!(
        r#"[{{cacertfile,"{}"}},{{certfile,"{}"}},{{keyfile,"{}"}},{{verify,verify_peer}},{{fail_if_no_peer_cert,true}}]"#,
        certificates.path("ca.pem"),
        certificates.path("cert.pem"),
        certificates.path("key.pem"),
    );
    let listen = format!(
        r#"rabbit_networking:ensure_ssl(), ok = rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, {options}, 1)."#
    );
    if rabbitmqctl(&["eval", &listen]).await.is_none() {
        return;
    }
    let plain = url::Url::parse(&amqp_url().unwrap()).unwrap();
    let user = format!("{}:{}", plain.username(), plain.password().unwrap_or_default());
    let amqps = setup
        .with("MUSTER_QUEUE", &format!("amqps://{user}@localhost:{port}{}", plain.path()))
        .with("MUSTER_QUEUE_CERT_FILE", &certificates.path("cert.pem"))
        .with("MUSTER_QUEUE_KEY_FILE", &certificates.path("key.pem"))
        .with("MUSTER_QUEUE_CA_FILE", &certificates.path("ca.pem"));
    let muster = amqps.start().await;
    let body: serde_json::Value = serde_json::from_slice(&registration()).unwrap();
    assert_eq!(muster.client().post("/register", &body).await.status, 201);
    assert!(muster.stop().await.success());

    // muster refuses a broker with an unknown authority, and the broker refuses muster without a certificate.
    let mut unknown = amqps.clone();
    unknown.environment.remove("MUSTER_QUEUE_CERT_FILE");
    unknown.environment.remove("MUSTER_QUEUE_KEY_FILE");
    let untrusted = amqps.clone().with("MUSTER_QUEUE_CA_FILE", &others.path("ca.pem"));
    for setup in [unknown, untrusted] {
        let setup = run(&setup, &["doctor", "--json"]).await;
        assert_eq!(setup.code, Some(3));
        let findings = setup.json()["findings"].as_array().unwrap().clone();
        let found = findings.iter().find(|finding| finding["check"] == "broker").unwrap();
        assert_eq!(found["severity"], "error", "{found}");
    }
    let no_pem = amqps.with("MUSTER_QUEUE_CA_FILE", "/dev/null");
    let output = run(&no_pem, &["serve"]).await;
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("queue.ca_file"), "{}", output.stderr);
}

/// A server of the MongoDB protocol. Dropping it kills the process.
struct Database(Child);

impl Drop for Database {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn database_with_mutual_tls_works() {
    if !PRODUCTION.is_available() {
        return;
    }
    let Some(program) = provided("TEST_STORE_PROGRAM") else { return };
    let setup = Setup::embedded();
    let certificates = Certificates::generate(&setup, "certs").await;
    let (port, data) = (free_port().to_string(), setup.directory().join("data"));
    let empty = setup.directory().join("empty.toml");
    std::fs::write(&empty, "").unwrap();
    let mut command = Command::new(program);
    command.args(["--config", empty.to_str().unwrap(), "--host", "127.0.0.1", "--port", &port]);
    command.args(["--storage-path", data.to_str().unwrap(), "--log-level", "WARNING"]);
    command.args(["--log-file-max", "64MB", "--cache-size", "256MB", "--tls-require-client-cert"]);
    command.args(["--tls-cert-file", &certificates.path("cert.pem")]);
    command.args(["--tls-key-file", &certificates.path("key.pem")]);
    command.args(["--tls-ca-file", &certificates.path("ca.pem")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _database = Database(command.spawn().unwrap());

    // The driver reads the certificate and its key from one file.
    let both = setup.directory().join("both.pem");
    let [certificate, key] = ["cert.pem", "key.pem"]
        .map(|name| std::fs::read_to_string(certificates.path(name)).unwrap());
    std::fs::write(&both, certificate + &key).unwrap();
    let base =
        format!("mongodb://localhost:{port}/{}?directConnection=true&tls=true", unique("test"));
    let with_ca = format!("{base}&tlsCAFile={}", certificates.path("ca.pem"));
    let with_both = format!("{with_ca}&tlsCertificateKeyFile={}", both.display());

    let muster = setup.clone().with("MUSTER_STORE", &with_both).start().await;
    let body: serde_json::Value = serde_json::from_slice(&registration()).unwrap();
    assert_eq!(muster.client().post("/register", &body).await.status, 201);
    assert!(muster.stop().await.success());

    for refused in [base, with_ca] {
        let setup = setup.clone().with("MUSTER_STORE", &refused).with("MUSTER_STORE_TIMEOUT", "1s");
        let setup = run(&setup, &["doctor", "--json"]).await;
        let findings = setup.json()["findings"].as_array().unwrap().clone();
        let found = findings.iter().find(|finding| finding["check"] == "database").unwrap();
        assert_eq!(found["severity"], "error", "{found}");
    }
}
