//! `doctor` and `serve` agree: `serve` starts exactly with the settings in which `doctor` finds no error.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;

use crate::support::command::run;
use crate::support::log_lines::has_event;
use crate::support::muster::TIMEOUT;
use crate::support::services::{PRODUCTION, amqp_url, mongodb_url, unique};
use crate::support::{Pair, QueueAdapter, Setup, StoreAdapter};

/// Whether `serve` starts. Otherwise it must exit with code 2.
async fn serve_starts(setup: &Setup) -> bool {
    let mut command = tokio::process::Command::from(setup.command(&["serve"]));
    command.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let outcome = async {
        let mut written = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            if has_event(&line, "front_listening") || has_event(&line, "admin_listening") {
                return true;
            }
            written.push(line);
        }
        assert_eq!(child.wait().await.unwrap().code(), Some(2), "{}", written.join("\n"));
        false
    };
    tokio::time::timeout(TIMEOUT, outcome).await.expect("serve neither started nor exited")
}

/// Whether `doctor` reports no error.
async fn doctor_finds_no_error(setup: &Setup) -> bool {
    let output = run(setup, &["doctor", "--json"]).await;
    match output.code {
        Some(2) => false,
        Some(0 | 3) => output.json()["errors"] == 0,
        code => panic!("doctor ended with {code:?}: {}", output.stderr),
    }
}

/// An embedded setup with helpers to write files for it.
struct LocalSetup(Setup);

impl LocalSetup {
    fn new() -> Self {
        Self(Setup::embedded())
    }

    /// Writes a file and returns its path.
    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.directory().join(name)
    }

    fn with(&self, name: &str, value: &str) -> Setup {
        self.0.clone().with(name, value)
    }

    fn with_file(&self, name: &str, text: impl AsRef<[u8]>) -> Setup {
        self.with(name, &self.file("file", text))
    }

    fn without_secret(mut self) -> Self {
        self.0.environment.remove("JWT_SECRET");
        self
    }

    async fn key(&self) -> String {
        let path = self.path("key.pem").to_str().unwrap().to_owned();
        run(&self.0, &["keys", "make", "--output", &path]).await.expect_stdout();
        path
    }

    async fn certificate(&self) -> (String, String) {
        let directory = self.path("certs");
        let directory = directory.to_str().unwrap();
        run(&self.0, &["cert", "--directory", directory]).await.expect_stdout();
        (format!("{directory}/cert.pem"), format!("{directory}/key.pem"))
    }
}

/// Setups that need no service, each with whether `serve` starts.
async fn local_setups() -> Vec<(&'static str, bool, Setup)> {
    let new = LocalSetup::new;
    let key = new();
    let private = key.key().await;
    let jwks = run(&key.0, &["keys", "jwks", &private]).await.expect_stdout();
    let tls = new();
    let (certificate, certificate_key) = tls.certificate().await;
    let other = new().certificate().await;
    let with_tls = |certificate: &str, key: &str| {
        tls.with("MUSTER_FRONT_TLS_CERT", certificate).with("MUSTER_FRONT_TLS_KEY", key)
    };
    let bom = |text: &str| format!("\u{feff}{text}");
    let directory = |local: &LocalSetup| local.path(".").to_str().unwrap().to_owned();
    let here = new();
    let store =
        |local: &LocalSetup, path: &str| local.with("MUSTER_STORE", &format!("file:{path}"));
    let text_file = here.file("notes.txt", "these are notes and no database at all".repeat(300));
    let empty_file = here.file("empty.redb", "");
    let (weak_secret, kept_secret) = (new().without_secret(), new().without_secret());
    for local in [&weak_secret, &kept_secret] {
        // Creates the data file; a secret without it would mean that the file is lost.
        assert!(local.0.start().await.stop().await.success());
    }
    weak_secret.file("users.redb.secret", "short");
    kept_secret.file("users.redb.secret", bom("0123456789012345678901234567890123456789\r\n"));
    let lost_data = new().without_secret();
    lost_data.file("users.redb.secret", "0123456789012345678901234567890123456789");
    let secret = "0123456789012345678901234567890123456789";
    vec![
        ("valid settings", true, new().0),
        ("an unknown setting", false, new().with("MUSTER_COLOUR", "red")),
        ("a file of settings that is not TOML", false, new().with("MUSTER_LISTEN", "nowhere")),
        ("a short secret", false, new().with("JWT_SECRET", "short")),
        ("a carriage return in a secret", false, new().with("JWT_SECRET", &format!("{secret}\r"))),
        ("a byte order mark before a secret", false, new().with("JWT_SECRET", &bom(secret))),
        (
            "a secret from two sources",
            false,
            new().with("JWT_SECRET_FILE", &new().file("s", secret)),
        ),
        (
            "a secret from a missing file",
            false,
            new().without_secret().with("JWT_SECRET_FILE", "/no/such"),
        ),
        (
            "a secret from a file with a byte order mark",
            true,
            new().without_secret().with_file("JWT_SECRET_FILE", bom(&format!("{secret}\r\n"))),
        ),
        ("a stored secret that is too short", false, weak_secret.0),
        ("a stored secret", true, kept_secret.0),
        ("a stored secret without its data file", false, lost_data.0),
        ("a secret that is generated", true, new().without_secret().0),
        ("an invalid log filter", false, new().with("MUSTER_LOG_FILTER", "muster=loud")),
        (
            "a missing authority file of a collector",
            false,
            new()
                .with("MUSTER_TRACE_ENDPOINT", "https://127.0.0.1:1")
                .with("MUSTER_TRACE_CA_FILE", "/no/such"),
        ),
        ("an invalid collector address", false, new().with("MUSTER_TRACE_ENDPOINT", "collector")),
        (
            "an invalid collector header",
            false,
            new()
                .with("MUSTER_TRACE_ENDPOINT", "http://127.0.0.1:1")
                .with("MUSTER_TRACE_HEADERS", "a b=c"),
        ),
        (
            "an unavailable collector",
            true,
            new().with("MUSTER_TRACE_ENDPOINT", "http://127.0.0.1:1"),
        ),
        (
            "an unsupported collector protocol",
            false,
            new().with("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ),
        ("an unknown sampler", false, new().with("OTEL_TRACES_SAMPLER", "jaeger_remote")),
        ("a missing signing key", false, key.with("MUSTER_TOKEN_KEY_FILES", "/no/such")),
        ("an invalid signing key", false, key.with_file("MUSTER_TOKEN_KEY_FILES", "no key")),
        ("a signing key", true, key.with("MUSTER_TOKEN_KEY_FILES", &private)),
        (
            "a signing key with a byte order mark",
            true,
            key.with(
                "MUSTER_TOKEN_KEY_FILES",
                &key.file("marked.pem", bom(&std::fs::read_to_string(&private).unwrap())),
            ),
        ),
        (
            "a path with a carriage return",
            false,
            key.with("MUSTER_STORE", &format!("file:{}\r", key.path("cr.redb").display())),
        ),
        ("missing public keys", false, key.with("MUSTER_FRONT_JWKS_FILE", "/no/such")),
        (
            "private keys in the public key file",
            false,
            key.with_file("MUSTER_FRONT_JWKS_FILE", r#"{"keys":[{"kty":"OKP","d":"x"}]}"#),
        ),
        (
            "public keys",
            true,
            key.with("MUSTER_FRONT_JWKS_FILE", &key.file("jwks.json", bom(&jwks))),
        ),
        ("a certificate", true, with_tls(&certificate, &certificate_key)),
        (
            "a certificate with a byte order mark",
            true,
            with_tls(
                &tls.file("marked.pem", bom(&std::fs::read_to_string(&certificate).unwrap())),
                &certificate_key,
            ),
        ),
        ("a certificate of another key", false, with_tls(&certificate, &other.1)),
        ("a missing certificate", false, with_tls("/no/such", &certificate_key)),
        ("an invalid certificate", false, with_tls(&text_file, &certificate_key)),
        ("a certificate without its key", false, tls.with("MUSTER_FRONT_TLS_CERT", &certificate)),
        ("a missing blocklist", false, new().with("MUSTER_PASSWORD_BLOCKLIST", "file:/no/such")),
        (
            "an empty blocklist",
            false,
            new().with("MUSTER_PASSWORD_BLOCKLIST", &format!("file:{empty_file}")),
        ),
        ("an address of another machine", false, new().with("MUSTER_LISTEN", "192.0.2.1:3000")),
        ("a missing directory", false, store(&here, "/no/such/place/users.redb")),
        ("a directory without write access", false, store(&here, "/proc/users.redb")),
        ("a directory instead of a data file", false, store(&here, &directory(&here))),
        ("a file that is not a data file", false, store(&here, &text_file)),
        ("an empty file", true, store(&here, &empty_file)),
        ("role front without a broker", false, new().with("MUSTER_ROLE", "front")),
        ("a store timeout that is too long", false, new().with("MUSTER_STORE_TIMEOUT", "9s")),
        (
            "an invalid database URL",
            false,
            new().with("MUSTER_STORE", "mongodb://127.0.0.1:1/?w=banana&tls=maybe"),
        ),
        (
            "a missing authority file of a database",
            false,
            new().with("MUSTER_STORE", "mongodb://127.0.0.1:1/?tls=true&tlsCAFile=/no/such"),
        ),
    ]
}

/// Setups that need a broker or a database, each with whether `serve` starts.
async fn setups_with_services() -> Vec<(&'static str, bool, Setup)> {
    let mut setups = Vec::new();
    if let Some(url) = amqp_url() {
        let new = || Setup::new(Pair(QueueAdapter::Rabbit, StoreAdapter::File));
        let mut pairs = Vec::new();
        for _ in 0..2 {
            pairs.push(run(&new(), &["keygen", "--json"]).await.json());
        }
        let sealed = |public: usize, private: usize| {
            let setup = new().with(
                "MUSTER_QUEUE_SEAL_PUBLIC_KEY",
                pairs[public]["seal_public_key"].as_str().unwrap(),
            );
            setup.with(
                "MUSTER_QUEUE_SEAL_PRIVATE_KEYS",
                pairs[private]["seal_private_keys"][0].as_str().unwrap(),
            )
        };
        let mut wrong_password = url::Url::parse(&url).unwrap();
        wrong_password.set_password(Some("another")).unwrap();
        let mut wrong_vhost = url::Url::parse(&url).unwrap();
        wrong_vhost.set_path(&unique("no-such-vhost"));
        let deadline =
            new().with("MUSTER_ROLE", "front").with("MUSTER_FRONT_REQUEST_TIMEOUT", "4s");
        setups.extend([
            ("a broker", true, new()),
            ("sealing keys of one pair", true, sealed(0, 0)),
            ("sealing keys of two pairs", false, sealed(0, 1)),
            (
                "required sealing without keys",
                false,
                new().with("MUSTER_QUEUE_REQUIRE_SEALED", "1"),
            ),
            ("a wrong broker password", false, new().with("MUSTER_QUEUE", wrong_password.as_str())),
            ("an unknown broker vhost", false, new().with("MUSTER_QUEUE", wrong_vhost.as_str())),
            (
                "a missing authority file of a broker",
                false,
                new().with("MUSTER_QUEUE_CA_FILE", "/no/such"),
            ),
            ("a front with a short request timeout", true, deadline),
            (
                "a front with a weak token secret",
                true,
                new().with("MUSTER_ROLE", "front").with("JWT_SECRET", "short"),
            ),
        ]);
    }
    if mongodb_url().is_some() {
        let setup = Setup::new(Pair(QueueAdapter::Local, StoreAdapter::Mongo));
        setups.push(("a database", true, setup.clone()));
        let unsigned = {
            let mut setup = setup.clone();
            setup.environment.remove("JWT_SECRET");
            setup
        };
        setups.push(("a database without a secret", false, unsigned));
        let index = Setup::new(Pair(QueueAdapter::Local, StoreAdapter::Mongo));
        let client =
            mongodb::Client::with_uri_str(&index.environment["MUSTER_STORE"]).await.unwrap();
        let users = client.default_database().unwrap().collection::<bson::Document>("users");
        let weak = mongodb::IndexModel::builder().keys(bson::doc! { "username": 1 }).build();
        users.create_index(weak).await.unwrap();
        setups.push(("an index that is not unique", false, index));
    }
    setups
}

#[tokio::test]
async fn doctor_and_serve_agree() {
    let mut setups = local_setups().await;
    let in_use = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = in_use.local_addr().unwrap().to_string();
    for name in ["MUSTER_LISTEN", "MUSTER_ADMIN_LISTEN"] {
        setups.push(("an address in use", false, Setup::embedded().with(name, &address)));
    }
    // A free address for two settings.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let same_address =
        Setup::embedded().with("MUSTER_LISTEN", &free).with("MUSTER_ADMIN_LISTEN", &free);
    setups.push(("one address for two settings", false, same_address));
    setups.extend(setups_with_services().await);
    let invalid = setups.iter().filter(|(_, starts, _)| !starts).count();
    assert!(invalid >= 25, "{invalid}");
    let mut failures = Vec::new();
    for (what, starts, setup) in setups {
        // `doctor` first, because `serve` may create missing files.
        let found = (doctor_finds_no_error(&setup).await, serve_starts(&setup).await);
        if found != (starts, starts) {
            failures.push(format!(
                "{what}: expected {starts}, got (doctor finds no error, serve starts) = {found:?}"
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn running_process_is_not_an_error() {
    let setup = Setup::embedded();
    let muster = setup.start().await;
    let running = setup.with("MUSTER_LISTEN", muster.client().address());
    let output = run(&running, &["doctor", "--json"]).await;
    let document = output.json();
    assert_eq!(document["errors"], 0, "{document:#}");
    let notes = document["findings"].to_string();
    assert!(
        notes.contains("a muster runs at") && notes.contains("is open in another muster process"),
        "{notes}"
    );
    assert!(muster.stop().await.success());
}

#[tokio::test]
async fn doctor_creates_no_file() {
    let local = LocalSetup::new().without_secret();
    let before = std::fs::read_dir(local.0.directory()).unwrap().count();
    assert!(doctor_finds_no_error(&local.0).await);
    assert_eq!(
        std::fs::read_dir(local.0.directory()).unwrap().count(),
        before,
        "doctor created a file"
    );
    if PRODUCTION.is_available() {
        assert!(doctor_finds_no_error(&Setup::new(PRODUCTION)).await);
    }
}
