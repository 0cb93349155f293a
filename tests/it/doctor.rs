//! `muster doctor`: no findings on correct services, a finding for each fault, and no changes.

use std::os::unix::fs::PermissionsExt;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use mongodb::IndexModel;
use mongodb::bson::doc;
use serde_json::Value;

use crate::support::Setup;
use crate::support::broker::{Broker, rabbitmqctl};
use crate::support::command::{CommandOutput, run};
use crate::support::muster::eventually;
use crate::support::services::{PRODUCTION, amqp_url, provided};

/// A setup without warnings.
fn correct(setup: Setup) -> Setup {
    let mut setup =
        setup.with("MUSTER_BCRYPT_COST", "10").with("MUSTER_FRONT_MAX_CONNECTIONS", "200");
    setup.environment.remove("MUSTER_ALLOW_WEAK_COST");
    setup
}

async fn sealed(setup: Setup) -> Setup {
    let keys = run(&setup, &["keygen", "--json"]).await.json();
    let setup =
        setup.with("MUSTER_QUEUE_SEAL_PUBLIC_KEY", keys["seal_public_key"].as_str().unwrap());
    setup.with("MUSTER_QUEUE_SEAL_PRIVATE_KEYS", keys["seal_private_keys"][0].as_str().unwrap())
}

async fn doctor(setup: &Setup, flags: &[&str]) -> CommandOutput {
    let output = run(setup, &[&["doctor", "--json"], flags].concat()).await;
    for secret in ["guest:guest", crate::support::muster::SECRET] {
        assert!(!output.stdout.contains(secret), "the output contains a secret");
    }
    output
}

/// Severity and reason of a check's first error or warning, or else of its first finding.
async fn finding(setup: &Setup, check: &str) -> (String, String) {
    finding_with(setup, &[], check).await
}

async fn finding_with(setup: &Setup, flags: &[&str], check: &str) -> (String, String) {
    let output = doctor(setup, flags).await;
    let document = output.json();
    let findings = document["findings"].as_array().unwrap();
    let is_of_check = |finding: &&Value| finding["check"] == check;
    let bad = |finding: &&Value| finding["severity"] == "error" || finding["severity"] == "warning";
    let finding = findings
        .iter()
        .filter(is_of_check)
        .find(bad)
        .or_else(|| findings.iter().find(is_of_check))
        .unwrap_or_else(|| panic!("no finding for {check}: {document}"));
    if bad(&finding) {
        assert_eq!(output.code, Some(3));
        assert!(finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
    }
    let text = |name: &str| finding[name].as_str().unwrap().to_owned();
    (text("severity"), text("reason"))
}

fn assert_finding(finding: &(String, String), severity: &str, part: &str) {
    assert!(
        finding.0 == severity && finding.1.contains(part),
        "expected {severity}: {part}, got {finding:?}"
    );
}

#[tokio::test]
async fn doctor_finds_nothing_on_correct_services() {
    let mut setups = vec![correct(Setup::embedded())];
    if PRODUCTION.is_available() {
        setups.push(sealed(correct(Setup::new(PRODUCTION))).await);
    }
    for setup in setups {
        assert!(setup.start().await.stop().await.success());
        let output = doctor(&setup, &[]).await;
        let document = output.json();
        assert_eq!(output.code, Some(0), "{document:#}");
        assert_eq!(document["warnings"], 0);
        let text = run(&setup, &["doctor"]).await.expect_stdout();
        assert!(text.ends_with("0 errors, 0 warnings\n"), "{text}");
    }
}

#[tokio::test]
async fn doctor_creates_nothing() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = sealed(correct(Setup::new(PRODUCTION))).await;
    let output = doctor(&setup, &[]).await;
    assert_eq!(
        output.code,
        Some(0),
        "missing queues and indexes are not errors: {}",
        output.stdout
    );
    assert_finding(&finding(&setup, "queue").await, "note", "does not exist yet");
    assert_finding(&finding(&setup, "exchange").await, "note", "does not exist yet");
    assert_finding(&finding(&setup, "indexes").await, "note", "does not exist yet");
    let broker =
        Connection::connect(&amqp_url().unwrap(), ConnectionProperties::default()).await.unwrap();
    for queue in ["interactive", "bulk", "profile", "dead", "retry.1000"] {
        let channel = broker.create_channel().await.unwrap();
        let name = format!("{}.{queue}", setup.namespace());
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared =
            channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await;
        assert!(declared.is_err(), "{name} was declared");
    }
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    let names = client.default_database().unwrap().list_collection_names().await.unwrap();
    assert!(names.is_empty(), "{names:?}");
}

#[tokio::test]
async fn queues_with_other_arguments_are_reported() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = sealed(correct(Setup::new(PRODUCTION))).await;
    assert!(setup.start().await.stop().await.success());
    let other = setup.clone().with("MUSTER_QUEUE_MAX_LENGTH", "5");
    assert_finding(
        &finding(&other, "queue").await,
        "warning",
        "another x-max-length: received '5'",
    );

    // The queue existed before muster, without arguments that keep messages.
    let broker =
        Connection::connect(&amqp_url().unwrap(), ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let bulk = format!("{}.bulk", setup.namespace());
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let all = || {
        let number = AMQPValue::LongLongInt;
        vec![
            ("x-queue-type", text("quorum")),
            ("x-max-length", number(1_000_000)),
            ("x-max-length-bytes", number(1_073_741_824)),
            ("x-overflow", text("reject-publish")),
            ("x-delivery-limit", number(100)),
            ("x-dead-letter-exchange", text(&format!("{}.dlx", setup.namespace()))),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]
    };
    for missing in ["", "x-overflow", "x-dead-letter-exchange"] {
        channel.queue_delete(bulk.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        let table = table(all().into_iter().filter(|(name, _)| *name != missing));
        channel.queue_declare(bulk.as_str().into(), options, table).await.unwrap();
        let finding = finding(&setup, "queue").await;
        match missing {
            "" => assert_finding(&finding, "ok", "declared as in these settings"),
            missing => {
                assert_finding(&finding, "error", &format!("{bulk} exists with another {missing}"))
            }
        }
    }
    channel.queue_delete(bulk.as_str().into(), QueueDeleteOptions::default()).await.unwrap();

    // A queue as an earlier version declared it.
    let profile = format!("{}.profile", setup.namespace());
    channel.queue_delete(profile.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let classic = table([
        ("x-queue-type", text("classic")),
        ("x-max-length", AMQPValue::LongLongInt(10_000)),
        ("x-overflow", text("reject-publish")),
        ("x-message-ttl", AMQPValue::LongLongInt(60_000)),
    ]);
    channel.queue_declare(profile.as_str().into(), options, classic).await.unwrap();
    assert_finding(
        &finding(&setup, "queue").await,
        "error",
        &format!("{profile} exists with another x-queue-type"),
    );

    let dead = format!("{}.dlx", setup.namespace());
    channel.exchange_delete(dead.as_str().into(), Default::default()).await.unwrap();
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let none = FieldTable::default();
    channel
        .exchange_declare(dead.as_str().into(), ExchangeKind::Direct, durable, none)
        .await
        .unwrap();
    assert_finding(&finding(&setup, "exchange").await, "error", "another type");
}

#[tokio::test]
async fn management_api_findings_are_reported() {
    if !PRODUCTION.is_available() {
        return;
    }
    let (Some(url), Some(_)) = (provided("MANAGEMENT_URL"), provided("RABBITMQCTL")) else {
        return;
    };
    let setup = sealed(correct(Setup::new(PRODUCTION))).await;
    let unused = doctor(&setup, &["--management", &url]).await;
    assert!(!unused.stdout.contains("not bound"), "{}", unused.stdout);
    assert!(setup.start().await.stop().await.success());
    // Without a user in the URL, the user of `queue.url` is used.
    let bare = url.replace("guest:guest@", "");
    for url in [&url, &bare] {
        let output = doctor(&setup, &["--management", url]).await;
        assert_eq!(output.code, Some(0), "{}", output.stdout);
    }
    let finding = async |check: &str| finding_with(&setup, &["--management", &bare], check).await;
    assert_finding(&finding("broker alarms").await, "ok", "none");
    assert_finding(&finding("bindings").await, "ok", "bound to");
    assert_finding(&finding("policies").await, "ok", "no policy changes it");

    let namespace = setup.namespace();
    let bulk = format!("{namespace}.bulk");
    let broker =
        Connection::connect(&amqp_url().unwrap(), ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let none = FieldTable::default();
    channel
        .queue_unbind(bulk.as_str().into(), namespace.into(), "bulk".into(), none)
        .await
        .unwrap();
    assert_finding(
        &finding("bindings").await,
        "error",
        &format!("{bulk}: not bound to {namespace} with bulk"),
    );

    let pattern = format!("^{namespace}\\.dead$");
    let policy = r#"{"message-ttl":1000}"#;
    rabbitmqctl(&["set_policy", namespace, &pattern, policy, "--apply-to", "queues"])
        .await
        .unwrap();
    // The broker applies a policy with a delay.
    let applied = async |severity: &str, part: &str| {
        let what = format!("{severity}: {part}");
        eventually(&what, async || {
            let finding = finding("policies").await;
            finding.0 == severity && finding.1.contains(part)
        })
        .await;
    };
    applied("error", &format!("{namespace}.dead: changed to message-ttl 1000 by {namespace}"))
        .await;
    rabbitmqctl(&["clear_policy", namespace]).await.unwrap();
    applied("ok", "no policy changes it").await;
    let pattern = format!("^{namespace}\\.(interactive|bulk)$");
    let policy = r#"{"delivery-limit":2}"#;
    rabbitmqctl(&["set_operator_policy", namespace, &pattern, policy, "--apply-to", "queues"])
        .await
        .unwrap();
    // A warning, because this broker keeps no statistics and does not report whether the policy applies.
    applied("warning", "operator policies change it").await;
    rabbitmqctl(&["clear_operator_policy", namespace]).await.unwrap();
    applied("ok", "no policy changes it").await;
    assert_finding(&finding("queue members").await, "ok", "1 online");
    assert_finding(&finding("feature flags").await, "ok", "enabled");
    assert_finding(&finding("broker nodes").await, "ok", "1 running");

    let wrong_user = bare.replace("http://", "http://unknown:hunter2@");
    let refused = doctor(&setup, &["--management", &wrong_user]).await;
    assert!(refused.stdout.contains("responds 401"), "{}", refused.stdout);
    assert!(!refused.stdout.contains("hunter2"));
    let unavailable =
        finding_with(&setup, &["--management", "http://127.0.0.1:1"], "management").await;
    assert_finding(&unavailable, "error", "127.0.0.1:1");
    let elsewhere = format!("{bare}/elsewhere");
    let not_found = finding_with(&setup, &["--management", &elsewhere], "management").await;
    assert_finding(&not_found, "error", "expected /api/health/checks/alarms, got 404");
    // The other findings are still reported.
    let over_tls = setup.with("MUSTER_QUEUE", "amqps://guest:hunter2@127.0.0.1:1/%2f");
    let clear = finding_with(&over_tls, &["--management", &bare], "management").await;
    assert_finding(&clear, "error", "not sent over http://");
    assert_finding(
        &finding_with(&over_tls, &["--management", &bare], "broker").await,
        "error",
        "127.0.0.1:1",
    );
}

fn table(entries: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[tokio::test]
async fn dead_letters_are_reported() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_QUEUE_BULK_MAX_LENGTH", "2");
    let setup = sealed(correct(setup)).await;
    assert!(setup.start().await.stop().await.success());
    let broker = Broker::connect().await;
    for (count, severity, text) in [(1, "note", "1 in "), (2, "warning", "of at most 2")] {
        broker.publish_dead_letter(setup.namespace()).await;
        let queue = format!("{}.dead", setup.namespace());
        eventually("the dead letter to be counted", async || broker.count(&queue).await == count)
            .await;
        assert_finding(&finding(&setup, "dead letters").await, severity, text);
    }
    assert_finding(&finding(&setup, "workers").await, "note", "has no consumer");
}

#[tokio::test]
async fn non_unique_index_is_an_error() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = sealed(correct(Setup::new(PRODUCTION))).await;
    assert!(setup.start().await.stop().await.success());
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    let users = client.default_database().unwrap().collection::<mongodb::bson::Document>("users");
    users.drop_index("registrationId_1").await.unwrap();
    assert_finding(&finding(&setup, "indexes").await, "ok", "is unique");
    let same_keys = IndexModel::builder().keys(doc! { "registrationId": 1 }).build();
    users.create_index(same_keys).await.unwrap();
    assert_finding(&finding(&setup, "indexes").await, "error", "registrationId");
}

#[tokio::test]
async fn unavailable_services_are_errors() {
    let setup = correct(Setup::embedded());
    let unavailable = setup
        .with("MUSTER_QUEUE", "amqp://guest:hunter2@127.0.0.1:1/%2f")
        .with("MUSTER_STORE", "mongodb://guest:hunter2@127.0.0.1:1/x")
        .with("MUSTER_STORE_TIMEOUT", "500ms");
    assert_finding(&finding(&unavailable, "broker").await, "error", "127.0.0.1:1");
    assert_finding(&finding(&unavailable, "database").await, "error", "127.0.0.1:1");
    assert!(!doctor(&unavailable, &[]).await.stdout.contains("hunter2"));
    assert_finding(&finding(&unavailable, "sealed passwords").await, "warning", "in clear");
    // An address for documentation (RFC 3849).
    let unresolved =
        unavailable.clone().with("MUSTER_QUEUE", "amqp://guest:hunter2@[2001:db8::1]:5672/%2f");
    assert_finding(
        &finding(&unresolved, "broker").await,
        "error",
        "RabbitMQ at [2001:db8::1]:5672",
    );
    let unresolved = unavailable.with("MUSTER_QUEUE", "amqp://guest:hunter2@broker.invalid/%2f");
    assert_finding(&finding(&unresolved, "broker connection").await, "warning", "not encrypted");
}

#[tokio::test]
async fn local_problems_are_reported() {
    let setup = correct(Setup::embedded());
    let weak = setup.clone().with("JWT_SECRET", &"password".repeat(4));
    assert_finding(&finding(&weak, "signing secret").await, "warning", "repetitive");
    let cheap = setup.clone().with("MUSTER_BCRYPT_COST", "4").with("MUSTER_ALLOW_WEAK_COST", "1");
    assert_finding(&finding(&cheap, "bcrypt cost").await, "warning", "4");
    let many = setup.clone().with("MUSTER_FRONT_MAX_CONNECTIONS", "1000000");
    let limited = finding(&many, "file limit").await;
    assert!(limited.0 == "ok" || limited.1.contains("1000000"), "{limited:?}");
    assert_finding(&finding(&setup, "hashing").await, "ok", "agree");
    assert_finding(&finding(&setup, "data file").await, "note", "does not exist yet");
    let nowhere = setup.clone().with("MUSTER_STORE", "file:/no/such/place/users.redb");
    assert_finding(&finding(&nowhere, "data file").await, "error", "directory");

    let [one, two] = ["one.pem", "two.pem"].map(|name| setup.directory().join(name));
    for path in [&one, &two] {
        run(&setup, &["keys", "make", "--output", path.to_str().unwrap()]).await.expect_stdout();
    }
    let keyed = setup.clone().with("MUSTER_TOKEN_KEY_FILES", one.to_str().unwrap());
    assert_finding(&finding(&keyed, "signing key").await, "ok", "EdDSA");
    let file = setup.directory().join("jwks.json");
    let published = keyed.clone().with("MUSTER_FRONT_JWKS_FILE", file.to_str().unwrap());
    assert_finding(&finding(&published, "public keys").await, "error", "front.jwks_file");
    std::fs::write(
        &file,
        run(&setup, &["keys", "jwks", two.to_str().unwrap()]).await.expect_stdout(),
    )
    .unwrap();
    assert_finding(&finding(&published, "public keys").await, "error", "cannot be verified");
    std::fs::write(
        &file,
        run(&setup, &["keys", "jwks", one.to_str().unwrap()]).await.expect_stdout(),
    )
    .unwrap();
    assert_finding(&finding(&published, "public keys").await, "ok", "1 in");
    std::fs::set_permissions(&one, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_finding(&finding(&keyed, "signing key").await, "warning", "other users");
    let slow = setup.clone().with("MUSTER_STORE_TIMEOUT", "9s");
    assert_finding(&finding(&slow, "settings").await, "error", "store.timeout");
    let listed = setup.clone().with("MUSTER_PASSWORD_BLOCKLIST", "file:/no/such/list");
    assert_finding(&finding(&listed, "password list").await, "error", "/no/such/list");
    let missing = setup.clone().with("MUSTER_TOKEN_KEY_FILES", "/no/such/key");
    assert_finding(&finding(&missing, "signing key").await, "error", "/no/such/key");

    let certs = setup.directory().join("certs");
    run(&setup, &["cert", "--directory", certs.to_str().unwrap()]).await.expect_stdout();
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| certs.join(name));
    let tls = |cert: &std::path::Path| {
        let setup = setup.clone().with("MUSTER_FRONT_TLS_CERT", cert.to_str().unwrap());
        setup.with("MUSTER_FRONT_TLS_KEY", key.to_str().unwrap())
    };
    assert_finding(&finding(&tls(&cert), "certificate").await, "ok", "matches its key");
    assert_finding(&finding(&tls(&ca), "certificate").await, "error", "cannot be used together");
    assert_finding(&finding(&setup, "data directory").await, "ok", "only its owner");

    let wrong = run(&setup.with("MUSTER_LISTEN", "nowhere"), &["doctor"]).await;
    assert_eq!(wrong.code, Some(2), "invalid settings exit with 2, as in every command");
}

#[tokio::test]
async fn invalid_certificates_are_errors() {
    let setup = correct(Setup::embedded());
    let now = muster::domain::Clock::system().now().seconds();
    let now = time::OffsetDateTime::from_unix_timestamp(now).unwrap();
    let day = std::time::Duration::from_secs(86_400);
    for (name, from, until, severity, part) in [
        ("expired", now - 400 * day, now - 2 * day, "error", "expired"),
        ("early", now + 2 * day, now + 400 * day, "error", "not valid yet"),
        ("ending", now - 2 * day, now + 5 * day, "warning", "expires in"),
        ("sound", now - 2 * day, now + 90 * day, "ok", "valid for"),
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (from, until);
        let certificate = params.self_signed(&key).unwrap();
        let path = |ending: &str| setup.directory().join(format!("{name}.{ending}"));
        std::fs::write(path("crt"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let tls = setup.clone().with("MUSTER_FRONT_TLS_CERT", path("crt").to_str().unwrap());
        let tls = tls.with("MUSTER_FRONT_TLS_KEY", path("key").to_str().unwrap());
        assert_finding(&finding(&tls, "certificate").await, severity, part);
    }
}

#[tokio::test]
async fn accessible_data_files_and_directories_are_reported() {
    let setup = correct(Setup::embedded());
    let folder = setup.directory().join("data");
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("users.redb");
    let setup = setup.with("MUSTER_STORE", &format!("file:{}", file.display()));
    assert!(setup.start().await.stop().await.success());
    assert_finding(&finding(&setup, "data file").await, "ok", "KiB");
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&file, 0o644);
    assert_finding(&finding(&setup, "data file").await, "warning", "other users can read it");
    mode(&file, 0o600);
    mode(&folder, 0o777);
    assert_finding(&finding(&setup, "data directory").await, "warning", "replace the data file");
    mode(&folder, 0o755);
    if std::os::unix::fs::chown(&folder, Some(12_345), None).is_ok() {
        assert_finding(
            &finding(&setup, "data directory").await,
            "warning",
            "belongs to user 12345",
        );
        std::os::unix::fs::chown(&file, Some(12_345), None).unwrap();
        assert_finding(&finding(&setup, "data file").await, "warning", "belongs to user 12345");
    }
    std::fs::write(&file, "x".repeat(4096)).unwrap();
    assert_finding(&finding(&setup, "data file").await, "error", "is not a data file of muster");
}

#[tokio::test]
async fn worker_with_a_long_store_timeout_gets_a_warning() {
    let setup = correct(Setup::embedded())
        .with("MUSTER_ROLE", "worker")
        .with("MUSTER_QUEUE", "amqp://127.0.0.1:1/%2f")
        .with("MUSTER_STORE_TIMEOUT", "6s");
    assert_finding(&finding(&setup, "store timeout").await, "warning", "12s or less");
}

#[tokio::test]
async fn public_front_without_rate_limits_gets_a_note() {
    let open = correct(Setup::embedded()).with("MUSTER_LISTEN", "0.0.0.0:3000");
    assert_finding(&finding(&open, "rate limits").await, "note", "0.0.0.0:3000");
    let limited = open.with("MUSTER_LIMITS_PER_ADDRESS", "10/1m");
    assert_finding(&finding(&limited, "rate limits").await, "ok", "each client");
}
