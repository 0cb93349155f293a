//! Start and stop of the program: invalid settings and their errors, the precedence of settings, and behaviour while
//! a service is unavailable.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::log_lines::has_event;
use crate::support::muster::{SECRET, TIMEOUT, eventually};
use crate::support::proxy::Proxy;
use crate::support::services::{
    PRODUCTION, amqp_url, mongodb_url, skip_unsupported, unique, unique_address,
};
use crate::support::{Client, Pair, QueueAdapter, Setup, StoreAdapter};

/// Part of every secret in these tests; no output may contain it.
const HIDDEN: &str = "hunter2";

/// Runs the program until it exits. Fails if its output contains a secret.
async fn run(setup: &Setup, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::from(setup.command(arguments));
    command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = tokio::time::timeout(TIMEOUT, command.output()).await;
    let output =
        done.unwrap_or_else(|_| panic!("{arguments:?} did not exit within {TIMEOUT:?}")).unwrap();
    for written in [&output.stdout, &output.stderr] {
        let written = String::from_utf8_lossy(written);
        for secret in [HIDDEN, SECRET] {
            assert!(!written.contains(secret), "the output contains a secret: {written}");
        }
    }
    output
}

/// Runs the program, which must exit with code 2, and returns its error message.
async fn start_error(setup: &Setup, arguments: &[&str]) -> String {
    let output = run(setup, arguments).await;
    let written = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {written}");
    // Standard error also has log lines in JSON, and libraries may log late.
    let message: Vec<&str> = written.lines().filter(|line| !line.starts_with('{')).collect();
    let (first, list) = message.split_first().expect("a message");
    assert!(first.starts_with("muster: "), "{written}");
    assert!(
        list.iter().all(|line| line.starts_with("  - ")),
        "expected one line and a list: {written}"
    );
    assert!(list.is_empty() || first.ends_with("problems in the settings:"), "{written}");
    message.join("\n")
}

fn assert_contains(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
}

fn without(mut setup: Setup, name: &str) -> Setup {
    setup.environment.remove(name);
    setup
}

#[tokio::test]
async fn invalid_settings_stop_the_start() {
    type Change = fn(Setup) -> Setup;
    let cases: [(&str, Change, &[&str]); 13] = [
        (
            "unknown variable",
            |setup| setup.with("MUSTER_COLOUR", "red"),
            &["MUSTER_COLOUR", "unknown setting", "muster config"],
        ),
        (
            "scheme of the queue",
            |setup| setup.with("MUSTER_QUEUE", "kafka://user:hunter2@broker"),
            &["queue.url", "MUSTER_QUEUE", "amqp://"],
        ),
        (
            "scheme of the store",
            |setup| setup.with("MUSTER_STORE", "postgres://user:hunter2@db"),
            &["store.url", "MUSTER_STORE", "mongodb://"],
        ),
        (
            "invalid URL",
            |setup| setup.with("MUSTER_QUEUE", "amqp://user:hunter2@broker:port"),
            &["queue.url", "MUSTER_QUEUE", "not a URL"],
        ),
        (
            "invalid broker parameter",
            |setup| setup.with("MUSTER_QUEUE", "amqp://user:hunter2@broker/v?frame_max=100"),
            &["queue.url", "MUSTER_QUEUE", "frame_max", "4096", "100"],
        ),
        (
            "unknown broker parameter",
            |setup| setup.with("MUSTER_QUEUE", "amqp://user:hunter2@broker/v?abc=1"),
            &["queue.url", "MUSTER_QUEUE", "abc", "unknown parameter"],
        ),
        (
            "short secret",
            |setup| setup.with("JWT_SECRET", "hunter2"),
            &["token.secret", "JWT_SECRET", "32 bytes", "openssl rand"],
        ),
        (
            "weak cost",
            |setup| setup.with("MUSTER_ALLOW_WEAK_COST", "0"),
            &["password.cost", "MUSTER_BCRYPT_COST", "at least 10", "MUSTER_ALLOW_WEAK_COST"],
        ),
        (
            "role front with local:",
            |setup| setup.with("MUSTER_ROLE", "front"),
            &["role", "in-process queue", "MUSTER_QUEUE", "--role all"],
        ),
        (
            "worker without a secret",
            |setup| without(setup, "JWT_SECRET").with("MUSTER_QUEUE", "amqp://broker"),
            &["token.secret", "JWT_SECRET", "JWT_SECRET_FILE", "openssl rand"],
        ),
        (
            "missing secret file",
            |setup| without(setup, "JWT_SECRET").with("JWT_SECRET_FILE", "/no/such/file"),
            &["JWT_SECRET_FILE", "cannot read the file"],
        ),
        (
            "log filter",
            |setup| setup.with("MUSTER_LOG_FILTER", "muster=loud"),
            &["log.filter", "muster=loud"],
        ),
        (
            "several errors",
            |setup| {
                setup.with("MUSTER_LISTEN", "nowhere").with("MUSTER_FRONT_REQUEST_TIMEOUT", "soon")
            },
            &[
                "2 problems in the settings",
                "front.listen",
                "MUSTER_LISTEN",
                "front.request_timeout",
            ],
        ),
    ];
    for (case, change, parts) in cases {
        println!("{case}");
        assert_contains(&start_error(&change(Setup::embedded()), &["serve"]).await, parts);
    }
}

#[tokio::test]
async fn unusable_settings_file_is_rejected() {
    let setup = without(Setup::embedded(), "MUSTER_QUEUE");
    let path = setup.directory().join("muster.toml");
    let file = path.to_str().unwrap();
    for command in ["serve", "config", "healthcheck"] {
        assert_contains(
            &start_error(&setup, &[command, "--config", file]).await,
            &[file, "--config"],
        );
    }
    for (text, parts) in [
        ("[token]\nsecret = \"hunter2", &[":2:", ": not valid TOML"][..]),
        (
            "[token]\nsecret = 2\n[front]\n  colour = \"red\"",
            &[":2:1: token.secret", ":4:3: unknown setting front.colour"],
        ),
        ("colour = \"red\"", &[":1:1: unknown setting colour"]),
        ("[queue]\nurl = \"hunter2\"", &["queue.url", "local:", ":2:1)"]),
        ("front = 3", &["front"]),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = start_error(&setup, &["config", "--config", file]).await;
        assert_contains(&error, parts);
        assert_contains(&error, &[file]);
    }
}

#[tokio::test]
async fn setting_that_names_a_special_file_is_rejected() {
    let setup = Setup::embedded();
    let fifo = setup.directory().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let regular = setup.directory().join("regular");
    std::fs::write(&regular, "").unwrap();
    let regular = regular.to_str().unwrap();
    for path in [fifo.to_str().unwrap(), "/dev/zero"] {
        let list = format!("file:{path}");
        let store = format!("mongodb://127.0.0.1:1/?tls=true&tlsCAFile={path}");
        let cases: [&[(&str, &str)]; 8] = [
            &[("MUSTER_STORE", &store)],
            &[("MUSTER_FRONT_TLS_CERT", path), ("MUSTER_FRONT_TLS_KEY", regular)],
            &[("MUSTER_FRONT_JWKS_FILE", path)],
            &[("MUSTER_PASSWORD_BLOCKLIST", &list)],
            &[("MUSTER_TOKEN_KEY_FILES", path)],
            &[("MUSTER_FRONT_BULK_API_KEY_FILE", path)],
            &[("MUSTER_QUEUE", "amqps://127.0.0.1:1"), ("MUSTER_QUEUE_CA_FILE", path)],
            &[("MUSTER_TRACE_ENDPOINT", "https://127.0.0.1:1"), ("MUSTER_TRACE_CA_FILE", path)],
        ];
        for settings in cases {
            let mut setup = setup.clone();
            for (name, value) in settings {
                setup = setup.with(name, value);
            }
            assert_contains(&start_error(&setup, &["serve"]).await, &["not a regular file"]);
        }
        assert_contains(
            &start_error(&setup, &["serve", "--config", path]).await,
            &["not a regular file"],
        );
    }
}

#[tokio::test]
async fn early_reload_signal_does_not_end_the_process() {
    let setup = Setup::embedded();
    let keys = setup.directory().join("jwks.json");
    std::fs::write(&keys, "{\"keys\":[]}").unwrap();
    let address = unique_address();
    let setup = setup.with("MUSTER_FRONT_JWKS_FILE", keys.to_str().unwrap());
    let setup = setup.with("MUSTER_LISTEN", &address);
    let mut child = tokio::process::Command::from(setup.command(&["serve"]))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let client = Client::new(&address);
    let is_live = async || {
        let live = client.send("GET", "/live", &[], "").await;
        live.is_ok_and(|response| response.status == 200)
    };
    while !is_live().await {
        assert_eq!(child.try_wait().unwrap(), None);
    }
    let signal = |name: &str| {
        let id = child.id().expect("the process runs").to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
    };
    signal("-HUP");
    eventually("a signup to succeed", async || {
        let body = json!({ "username": unique("ann"), "password": "secret-1" });
        client.post("/signup", &body).await.status == 201
    })
    .await;
    signal("-TERM");
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn data_file_or_port_in_use_stops_the_start() {
    let setup = Setup::embedded();
    let _muster = setup.start().await;
    assert_contains(
        &start_error(&setup, &["serve"]).await,
        &["users.redb", "another process has it open", "MUSTER_STORE"],
    );

    let in_use = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = in_use.local_addr().unwrap().to_string();
    for (setup, setting) in [
        (Setup::embedded().with("MUSTER_LISTEN", &address), "MUSTER_LISTEN"),
        (Setup::embedded().with("MUSTER_ADMIN_LISTEN", &address), "MUSTER_ADMIN_LISTEN"),
    ] {
        assert_contains(
            &start_error(&setup, &["serve"]).await,
            &[setting, &address, "in use", "another"],
        );
    }
}

#[tokio::test]
async fn wrong_broker_credentials_stop_the_start() {
    let Some(url) = amqp_url() else { return };
    let mut url = url::Url::parse(&url).unwrap();
    url.set_password(Some(HIDDEN)).unwrap();
    let setup = Setup::new(Pair(QueueAdapter::Rabbit, StoreAdapter::File))
        .with("MUSTER_QUEUE", url.as_str());
    for role in ["front", "worker", "all"] {
        let error = start_error(&setup, &["serve", "--role", role]).await;
        assert_contains(
            &error,
            &["MUSTER_QUEUE", url.host_str().unwrap(), "check user and password"],
        );
    }

    let mut url = url::Url::parse(&amqp_url().unwrap()).unwrap();
    url.set_path(&unique("no-such-vhost"));
    let setup = setup.with("MUSTER_QUEUE", url.as_str());
    assert_contains(&start_error(&setup, &["serve"]).await, &["MUSTER_QUEUE", "check the vhost"]);
}

#[tokio::test]
async fn database_with_a_non_unique_index_stops_the_start() {
    if mongodb_url().is_none() {
        return;
    }
    let setup = Setup::new(Pair(QueueAdapter::Local, StoreAdapter::Mongo));
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    let users = client.default_database().unwrap().collection::<bson::Document>("users");
    let weak = mongodb::IndexModel::builder().keys(bson::doc! { "username": 1 }).build();
    users.create_index(weak).await.unwrap();
    assert_contains(
        &start_error(&setup, &["serve"]).await,
        &["MUSTER_STORE", "index", "username", "drop it"],
    );
}

/// The output of `muster config`.
async fn config(setup: &Setup, flags: &[&str]) -> String {
    let output = run(setup, &[&["config"], flags].concat()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn credentials_are_masked_and_warned_of_on_the_command_line() {
    let setup = without(Setup::embedded(), "MUSTER_STORE");
    for url in ["mongodb://user:hunter2", "mongodb://u:hunter2@h/?tlsCAFile", "mongodb://u:%2@h"] {
        let error = start_error(&setup.clone().with("MUSTER_STORE", url), &["serve"]).await;
        assert_contains(&error, &["store.url", "not a valid MongoDB URL", "MUSTER_STORE"]);
    }
    let flags = ["--queue", "amqp://user:hunter2@broker", "--store", "mongodb://u:hunter2@db"];
    let output = run(&setup, &[&["config"], &flags[..]].concat()).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert_contains(
        &error,
        &["--queue holds a password", "MUSTER_QUEUE_FILE", "--store holds", "MUSTER_STORE"],
    );
    assert!(error.lines().all(|line| line.starts_with("muster: warning: ")), "{error}");
    assert_contains(
        &String::from_utf8(output.stdout).unwrap(),
        &["amqp://user:***@broker", "u:***@db"],
    );
    let harmless = ["--queue", "local:", "--store", "file:./users.redb"];
    let output = run(&setup, &[&["config"], &harmless[..]].concat()).await;
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

fn at<'a>(settings: &'a toml::Table, section: &str, key: &str) -> &'a str {
    settings[section][key].as_str().unwrap()
}

#[tokio::test]
async fn settings_precedence_is_flags_environment_file_defaults() {
    let setup = Setup::embedded();
    let path = setup.directory().join("muster.toml");
    let file = path.to_str().unwrap().to_owned();
    std::fs::write(&path, "[front]\nlisten = \"127.0.0.1:1\"\nrequest_timeout = \"21s\"\n")
        .unwrap();
    let bare = without(setup, "MUSTER_LISTEN");
    let listens = async |setup: &Setup, flags: &[&str]| {
        let settings: toml::Table = config(setup, flags).await.parse().unwrap();
        at(&settings, "front", "listen").to_owned()
    };
    assert_eq!(listens(&bare, &[]).await, "127.0.0.1:3000");
    assert_eq!(listens(&bare, &["--config", &file]).await, "127.0.0.1:1");
    let set = bare.with("MUSTER_LISTEN", "127.0.0.1:2");
    assert_eq!(listens(&set, &["--config", &file]).await, "127.0.0.1:2");
    let flags = ["--config", &file, "--listen", "127.0.0.1:3"];
    assert_eq!(listens(&set, &flags).await, "127.0.0.1:3");

    let settings: toml::Table = config(&set, &flags).await.parse().unwrap();
    assert_eq!(
        at(&settings, "front", "request_timeout"),
        "21s",
        "a flag must not hide other keys of the file"
    );
}

#[tokio::test]
async fn printed_settings_are_a_valid_settings_file() {
    let embedded =
        without(Setup::embedded(), "JWT_SECRET").with("MUSTER_FRONT_REQUEST_TIMEOUT", "21s");
    let production = Setup::embedded()
        .with("MUSTER_QUEUE", "amqp://user:hunter2@broker/%2f")
        .with("MUSTER_STORE", "mongodb://user:hunter2@one,two:27018/users?replicaSet=rs0")
        .with("MUSTER_QUEUE_RETRY_DELAYS", "1s,2s")
        .with("MUSTER_FRONT_CORS_ORIGINS", "https://a.example,https://b.example");
    for setup in [embedded, production] {
        let printed = config(&setup, &[]).await;
        let file = setup.directory().join("printed.toml");
        std::fs::write(&file, &printed).unwrap();
        // Only from the file, and the secrets, which it does not contain, from the environment.
        let mut other = Setup::embedded();
        other.environment.clear();
        for name in ["JWT_SECRET", "MUSTER_QUEUE", "MUSTER_STORE"] {
            if let Some(value) = setup.environment.get(name) {
                other = other.with(name, value);
            }
        }
        let again = config(&other, &["--config", file.to_str().unwrap()]).await;
        assert_eq!(again, printed);
    }
}

#[tokio::test]
async fn masked_secret_is_not_accepted_as_a_secret() {
    let setup = Setup::embedded();
    let file = setup.directory().join("printed.toml");
    std::fs::write(&file, config(&setup, &[]).await).unwrap();
    let setup = without(setup, "JWT_SECRET");
    let error = start_error(&setup, &["serve", "--config", file.to_str().unwrap()]).await;
    assert_contains(&error, &["token.secret"]);
}

/// Registers a user and returns the token.
async fn token(client: &Client) -> String {
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    let response = client.post("/signup", &body).await;
    assert_eq!(response.status, 201, "{:?}", response.json());
    response.json()["token"].as_str().unwrap().to_owned()
}

async fn profile_status(client: &Client, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    client.get("/users/profile", &[("authorization", bearer.as_str())]).await.status
}

#[tokio::test]
async fn secret_is_read_from_a_file() {
    let setup = Setup::embedded();
    let file = setup.directory().join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    let muster = setup.start().await;
    let token = token(muster.client()).await;
    assert!(muster.stop().await.success());

    let setup = without(setup, "JWT_SECRET").with("JWT_SECRET_FILE", file.to_str().unwrap());
    let muster = setup.start().await;
    assert_eq!(profile_status(muster.client(), &token).await, 200, "the secret is the same");
}

#[tokio::test]
async fn embedded_store_creates_its_secret_once() {
    let setup = without(Setup::embedded(), "JWT_SECRET");
    let secret = setup.directory().join("users.redb.secret");
    let mut muster = setup.start().await;
    muster.wait_for_event("signing_secret_created").await;
    let made = std::fs::read_to_string(&secret).unwrap();
    assert!(made.len() >= 32 && !muster.output().contains(&made));
    assert_eq!(mode(&secret), 0o600);
    let token = token(muster.client()).await;
    assert!(muster.stop().await.success());

    let muster = setup.start().await;
    assert_eq!(profile_status(muster.client(), &token).await, 200);
    assert!(!muster.output().contains("signing_secret_created"));
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), made);
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn healthcheck_reports_by_exit_code() {
    let setup = Setup::embedded();
    let muster = setup.start().await;
    let address = muster.client().address().to_owned();
    let check = async |address: &str| run(&setup, &["healthcheck", "--listen", address]).await;
    let healthy = check(&address).await;
    assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
    assert!(muster.stop().await.success());
    let gone = check(&address).await;
    assert_eq!(gone.status.code(), Some(1));
    assert_contains(
        &String::from_utf8_lossy(&gone.stderr),
        &["muster: ", &address, "connection failed"],
    );
}

/// Starts a request without its body. It keeps a soft stop waiting.
async fn begin_request(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "POST /signup HTTP/1.1\r\nhost: muster\r\ncontent-type: application/json\r\n\
        content-length: 100\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line).await.unwrap();
    assert_eq!(&status_line, b"HTTP/1.1 100");
    stream
}

#[tokio::test]
async fn second_signal_stops_at_once() {
    let setup = Setup::embedded();
    let mut muster = setup.start().await;
    let _unfinished = begin_request(muster.client().address()).await;

    let started = Instant::now();
    muster.signal("TERM");
    muster.wait_for_event("stopping").await;
    muster.signal("TERM");
    let status = muster.wait_for_exit().await;
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "a soft stop would take ten seconds or more"
    );
}

#[tokio::test]
async fn new_connections_are_accepted_during_the_stop_delay() {
    let mut muster = Setup::embedded().with("MUSTER_FRONT_STOP_DELAY", "10s").start().await;
    let client = muster.client().clone();
    muster.signal("TERM");
    eventually("/ready to answer 503", async || client.get("/ready", &[]).await.status == 503)
        .await;
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    assert_eq!(client.post("/signup", &body).await.status, 201);
    assert!(muster.wait_for_exit().await.success());
    assert!(client.send("GET", "/live", &[], "").await.is_err());
}

#[tokio::test]
async fn soft_stop_ends_at_the_shutdown_timeout() {
    let setup = Setup::embedded().with("MUSTER_FRONT_SHUTDOWN_TIMEOUT", "500ms");
    let mut muster = setup.start().await;
    let mut unfinished = begin_request(muster.client().address()).await;
    muster.signal("TERM");
    muster.wait_for_event("shutdown_timed_out").await;
    assert!(muster.wait_for_exit().await.success());
    let mut rest = Vec::new();
    // The server closes the connection without a response.
    let _ = unfinished.read_to_end(&mut rest).await;
    assert!(rest.is_empty() || !String::from_utf8_lossy(&rest).contains(" 201 "));
}

/// Starts the program with its broker or database behind a proxy that closes every connection.
async fn start_without(service: &str) -> Option<(crate::support::muster::Muster, Proxy)> {
    let (pair, name, url) = match service {
        "RabbitMQ" => (Pair(QueueAdapter::Rabbit, StoreAdapter::File), "MUSTER_QUEUE", amqp_url()?),
        _ => (Pair(QueueAdapter::Local, StoreAdapter::Mongo), "MUSTER_STORE", mongodb_url()?),
    };
    let proxy = Proxy::to(&url).await;
    proxy.cut();
    let setup = Setup::new(pair).with("MUSTER_STORE_TIMEOUT", "1s");
    let through = proxy.url(&setup.environment[name]);
    let setup = setup.with(name, &through);
    let muster = setup.start_with(&["serve"]).await;
    wait_for_not_ready(&muster, service, &proxy).await;

    let check = run(&setup, &["healthcheck", "--listen", muster.client().address()]).await;
    assert_eq!(check.status.code(), Some(1));
    assert_contains(&String::from_utf8_lossy(&check.stderr), &["not ready", service]);
    Some((muster, proxy))
}

async fn wait_for_not_ready(muster: &crate::support::muster::Muster, service: &str, proxy: &Proxy) {
    let client = muster.client();
    assert_eq!(client.get("/live", &[]).await.status, 200);
    let expected = format!("{service} at {}", proxy.address());
    eventually(&format!("/ready to name {expected}"), async || {
        let ready = client.get("/ready", &[]).await;
        assert_eq!((ready.status, &ready.json()["ready"]), (503, &Value::Bool(false)));
        ready.json()["components"].to_string().contains(&expected)
    })
    .await;
}

#[tokio::test]
async fn process_without_rabbitmq_waits_and_recovers() {
    let Some((muster, proxy)) = start_without("RabbitMQ").await else { return };
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    let response = muster.client().post("/signup", &body).await;
    assert_eq!(response.status, 503, "{:?}", response.json());
    let retry_after = response.header("retry-after").expect("a 503 has Retry-After");
    assert!(retry_after.parse::<u32>().is_ok(), "{retry_after}");
    assert!(response.header("idempotency-key").is_some(), "a 503 has the effective key");
    assert!(response.json()["message"].is_string(), "the response has the contract's shape");

    proxy.restore();
    let muster = muster.ready().await;
    assert_eq!(muster.client().post("/signup", &body).await.status, 201);
    proxy.cut();
    wait_for_loss(&muster).await;
    wait_for_not_ready(&muster, "RabbitMQ", &proxy).await;
    proxy.restore();
    let muster = muster.ready().await;
    token(muster.client()).await;
    assert!(muster.stop().await.success());
}

async fn wait_for_loss(muster: &crate::support::muster::Muster) {
    eventually("/ready to answer 503", async || {
        muster.client().get("/ready", &[]).await.status == 503
    })
    .await;
}

#[tokio::test]
async fn process_without_mongodb_waits_and_recovers() {
    let Some((muster, proxy)) = start_without("MongoDB").await else { return };
    proxy.restore();
    let mut muster = muster.ready().await;
    token(muster.client()).await;

    // The connection is lost after the start.
    proxy.stall();
    let body = json!({ "username": unique("ann"), "password": "secret-1" });
    assert_eq!(muster.client().post("/signup", &body).await.status, 500);
    wait_for_not_ready(&muster, "MongoDB", &proxy).await;
    // Two timeouts of the same length apply; either may end the call.
    muster
        .wait_for_log(|line| {
            has_event(line, "insert_timed_out")
                || (has_event(line, "store_call_timed_out") && line.contains(r#""call":"insert""#))
        })
        .await;
    proxy.restore();
    let muster = muster.ready().await;
    token(muster.client()).await;
    assert!(muster.stop().await.success());
}

#[tokio::test]
async fn process_waiting_for_a_service_stops() {
    for service in ["RabbitMQ", "MongoDB"] {
        if let Some((muster, _proxy)) = start_without(service).await {
            let started = Instant::now();
            assert!(muster.stop().await.success(), "{service}");
            let took = started.elapsed();
            assert!(took < Duration::from_secs(8), "{service}: the stop took {took:?}");
        }
    }
}

#[tokio::test]
async fn worker_reports_the_service_it_waits_for() {
    if !PRODUCTION.is_available() {
        return;
    }
    let proxy = Proxy::to(&mongodb_url().unwrap()).await;
    proxy.cut();
    let setup = Setup::new(PRODUCTION).with("MUSTER_STORE_TIMEOUT", "1s");
    let through = proxy.url(&setup.environment["MUSTER_STORE"]);
    let setup = setup.with("MUSTER_STORE", &through);
    let worker = setup.start_with(&["serve", "--role", "worker"]).await;
    wait_for_not_ready(&worker, "MongoDB", &proxy).await;
    proxy.restore();
    let worker = worker.ready().await;
    let address = worker.client().address().to_owned();
    let check = run(&setup, &["healthcheck", "--role", "worker"]).await;
    assert_eq!(check.status.code(), Some(2));
    assert_contains(&String::from_utf8_lossy(&check.stderr), &["MUSTER_ADMIN_LISTEN"]);
    let setup = setup.with("MUSTER_ADMIN_LISTEN", &address);
    let check = run(&setup, &["healthcheck", "--role", "worker"]).await;
    assert_eq!(check.status.code(), Some(0), "{check:?}");
}

/// Fails unless `/ready` reports the data file whenever a signup fails.
async fn assert_stays_not_ready(client: &Client, mut signup: impl AsyncFnMut() -> u16) {
    let is_reported = async || {
        let ready = client.get("/ready", &[]).await;
        let state = ready.json()["components"]["store"].to_string();
        ready.status == 503 && state.contains("writing failed")
    };
    eventually("/ready to name the data file", &is_reported).await;
    let mut failed = 0;
    while failed < 10 {
        match signup().await {
            500 => {
                failed += 1;
                assert!(is_reported().await, "/ready must answer 503 while signups fail");
            }
            // The file had a free page.
            status => assert_eq!(status, 201),
        }
    }
}

/// A small tmpfs that a test can fill. Dropping it unmounts it. `None` if this user may not mount one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mounted(path: std::path::PathBuf) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=8m", "tmpfs"];
        let mounted = std::process::Command::new("mount").args(options).arg(&path).status();
        if !mounted.is_ok_and(|status| status.success()) {
            skip_unsupported("cannot mount a tmpfs");
            return None;
        }
        Some(Self(path))
    }

    fn enlarge(&self) {
        let options = ["-o", "remount,size=64m"];
        let enlarged = std::process::Command::new("mount").args(options).arg(&self.0).status();
        assert!(enlarged.unwrap().success());
    }

    /// Fills the file system.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn process_on_a_full_disk_is_not_ready_until_space_is_free() {
    let setup = Setup::embedded();
    let Some(disk) = SmallDisk::mounted(setup.directory().join("disk")) else { return };
    let file = disk.0.join("users.redb");
    let setup = setup.with("MUSTER_STORE", &format!("file:{}", file.display()));
    let muster = setup.start().await;
    let client = muster.client().clone();
    let signup = async || {
        let body = json!({ "username": unique("ann"), "password": "secret-1" });
        client.post("/signup", &body).await.status
    };
    assert_eq!(signup().await, 201);
    disk.fill();
    // The data file may have free pages.
    eventually("a signup to fail", async || signup().await == 500).await;
    assert_stays_not_ready(&client, &signup).await;
    disk.enlarge();
    eventually("/ready to answer 200", async || client.get("/ready", &[]).await.status == 200)
        .await;
    assert_eq!(signup().await, 201);
    assert!(muster.stop().await.success());

    // A process that starts on a full disk waits for free space.
    disk.fill();
    let muster = setup.start_with(&["serve"]).await;
    assert_eq!(muster.client().get("/live", &[]).await.status, 200);
    std::fs::remove_file(disk.0.join("filler")).unwrap();
    let muster = muster.ready().await;
    token(muster.client()).await;
    assert!(muster.stop().await.success());
}

#[tokio::test]
async fn lost_or_damaged_data_file_stops_the_start() {
    let setup = without(Setup::embedded(), "JWT_SECRET");
    // A failed first start must not make the next start report a lost file.
    let in_use = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = in_use.local_addr().unwrap().to_string();
    let busy = setup.clone().with("MUSTER_LISTEN", &address);
    assert_contains(&start_error(&busy, &["serve"]).await, &["in use"]);
    let muster = setup.start().await;
    token(muster.client()).await;
    assert!(muster.stop().await.success());

    let file = setup.directory().join("users.redb");
    let whole = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let parts = ["users.redb: missing or empty", "users.redb.secret", "remove", "without users"];
    assert_contains(&start_error(&setup, &["serve"]).await, &parts);
    assert!(!file.exists());
    std::fs::write(&file, "").unwrap();
    assert_contains(&start_error(&setup, &["serve"]).await, &parts);
    std::fs::write(&file, &whole[..whole.len() / 16]).unwrap();
    assert_contains(&start_error(&setup, &["serve"]).await, &["users.redb", "damaged", "backup"]);
    // The store is checked before the address is bound.
    assert_contains(&start_error(&busy, &["serve"]).await, &["users.redb", "damaged"]);
    std::fs::write(&file, &whole).unwrap();
    let muster = setup.start().await;
    assert!(muster.stop().await.success());
}

#[tokio::test]
async fn soft_stop_closes_every_broker_connection() {
    let Some(url) = amqp_url() else { return };
    let proxy = Proxy::to(&url).await;
    let setup = Setup::new(Pair(QueueAdapter::Rabbit, StoreAdapter::File));
    let setup = setup.clone().with("MUSTER_QUEUE", &proxy.url(&url));
    let muster = setup.start().await;
    token(muster.client()).await;
    assert!(muster.stop().await.success());
    // One connection at the start, two for the front, four for the worker.
    assert_eq!(proxy.accepted(), 7);
    eventually("every connection to close", async || proxy.endings().len() == proxy.accepted())
        .await;
    // connection.close-ok: a method frame (1) on channel 0 with four bytes: class 10, method 51.
    let close_ok = [1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 51, 0xce];
    for ending in proxy.endings() {
        assert!(ending.ends_with(&close_ok), "the connection ended with {ending:?}");
    }
}

#[tokio::test]
async fn data_file_is_written_again_after_a_size_limit_is_lifted() {
    let setup = Setup::embedded();
    // Ignores SIGXFSZ, so the limit fails writes like a full disk.
    let mut muster = setup.start_after("trap '' XFSZ").await;
    let client = muster.client().clone();
    let signup = async |number: usize| {
        let document = json!({
            "email": format!("row{number}@example.com"),
            "firstname": "John", "lastname": "Doe", "password": "securePassword123"
        });
        client.post("/users/register", &document).await.status
    };
    assert_eq!(signup(0).await, 201);
    let size = std::fs::metadata(setup.directory().join("users.redb")).unwrap().len();
    muster.limit_file_size(&size.to_string());
    let mut users = 1;
    // Until the file has to grow.
    let refused = loop {
        let statuses = join_all((users..users + 32).map(&signup)).await;
        users += 32;
        if let Some(status) = statuses.into_iter().find(|status| *status != 201) {
            break status;
        }
        assert!(users < 50_000, "the limit has no effect");
    };
    assert_eq!(refused, 500);
    muster.wait_for_event_with("component_not_ready", "writing failed").await;
    assert_stays_not_ready(&client, async || {
        users += 1;
        signup(users).await
    })
    .await;

    muster.limit_file_size("unlimited");
    eventually("a signup to succeed", async || signup(users).await == 201).await;
    eventually("/ready to answer 200", async || client.get("/ready", &[]).await.status == 200)
        .await;
    assert_eq!(signup(0).await, 409, "the first user is still there");
    muster.signal("TERM");
    assert!(muster.wait_for_exit().await.success());
}
