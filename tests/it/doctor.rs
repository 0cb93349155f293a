//! What `muster doctor` finds: nothing on services as they should be, and each fault that can be made
//! here. It changes nothing.

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

/// A setup that nothing is wrong with.
fn sound(setup: Setup) -> Setup {
    let mut setup =
        setup.with("MUSTER_BCRYPT_COST", "10").with("MUSTER_FRONT_MAX_CONNECTIONS", "200");
    setup.environment.remove("MUSTER_ALLOW_WEAK_COST");
    setup
}

async fn sealed(setup: Setup) -> Setup {
    let keys = run(&setup, &["keygen", "--json"]).await.json();
    let setup = setup.with("MUSTER_QUEUE_SEAL_PUBLIC_KEY", keys["seal_public_key"].as_str().unwrap());
    setup.with("MUSTER_QUEUE_SEAL_PRIVATE_KEYS", keys["seal_private_keys"][0].as_str().unwrap())
}

async fn doctor(setup: &Setup, flags: &[&str]) -> CommandOutput {
    let ended = run(setup, &[&["doctor", "--json"], flags].concat()).await;
    for secret in ["guest:guest", crate::support::muster::SECRET] {
        assert!(!ended.stdout.contains(secret), "a secret is shown");
    }
    ended
}

/// What it says about one thing, warnings and errors first.
async fn found(setup: &Setup, check: &str) -> (String, String) {
    found_with(setup, &[], check).await
}

async fn found_with(setup: &Setup, flags: &[&str], check: &str) -> (String, String) {
    let ended = doctor(setup, flags).await;
    let document = ended.json();
    let findings = document["findings"].as_array().unwrap();
    let of = |finding: &&Value| finding["check"] == check;
    let bad = |finding: &&Value| finding["severity"] == "error" || finding["severity"] == "warning";
    let finding = findings
        .iter()
        .filter(of)
        .find(bad)
        .or_else(|| findings.iter().find(of))
        .unwrap_or_else(|| panic!("nothing about {check}: {document}"));
    if bad(&finding) {
        assert_eq!(ended.code, Some(3));
        assert!(finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
    }
    let text = |name: &str| finding[name].as_str().unwrap().to_owned();
    (text("severity"), text("reason"))
}

fn is(found: &(String, String), severity: &str, part: &str) {
    assert!(found.0 == severity && found.1.contains(part), "{found:?} is not {severity}: {part}");
}

#[tokio::test]
async fn all_is_well_on_services_as_they_should_be() {
    let mut setups = vec![sound(Setup::embedded())];
    if PRODUCTION.is_available() {
        setups.push(sealed(sound(Setup::new(PRODUCTION))).await);
    }
    for setup in setups {
        assert!(setup.start().await.stop().await.success());
        let ended = doctor(&setup, &[]).await;
        let document = ended.json();
        assert_eq!(ended.code, Some(0), "{document:#}");
        assert_eq!(document["warnings"], 0);
        let text = run(&setup, &["doctor"]).await.expect_stdout();
        assert!(text.ends_with("0 errors, 0 warnings\n"), "{text}");
    }
}

#[tokio::test]
async fn nothing_is_made_by_looking() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = sealed(sound(Setup::new(PRODUCTION))).await;
    let ended = doctor(&setup, &[]).await;
    assert_eq!(ended.code, Some(0), "what is not there yet is no fault: {}", ended.stdout);
    is(&found(&setup, "queue").await, "note", "is not there yet");
    is(&found(&setup, "exchange").await, "note", "is not there yet");
    is(&found(&setup, "indexes").await, "note", "does not exist yet");
    let broker =
        Connection::connect(&amqp_url().unwrap(), ConnectionProperties::default()).await.unwrap();
    for queue in ["interactive", "bulk", "profile", "dead", "retry.1000"] {
        let channel = broker.create_channel().await.unwrap();
        let name = format!("{}.{queue}", setup.namespace());
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let there =
            channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await;
        assert!(there.is_err(), "{name} was made");
    }
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    let names = client.default_database().unwrap().list_collection_names().await.unwrap();
    assert!(names.is_empty(), "{names:?}");
}

#[tokio::test]
async fn queues_that_differ() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = sealed(sound(Setup::new(PRODUCTION))).await;
    assert!(setup.start().await.stop().await.success());
    let other = setup.clone().with("MUSTER_QUEUE_MAX_LENGTH", "5");
    is(&found(&other, "queue").await, "warning", "another x-max-length: received '5'");

    // Somebody made it before muster, without what keeps messages.
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
        let found = found(&setup, "queue").await;
        match missing {
            "" => is(&found, "ok", "as these settings declare it"),
            missing => is(&found, "error", &format!("{bulk} is there with another {missing}")),
        }
    }
    channel.queue_delete(bulk.as_str().into(), QueueDeleteOptions::default()).await.unwrap();

    // As earlier versions declared it.
    let profile = format!("{}.profile", setup.namespace());
    channel.queue_delete(profile.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let classic = table([
        ("x-queue-type", text("classic")),
        ("x-max-length", AMQPValue::LongLongInt(10_000)),
        ("x-overflow", text("reject-publish")),
        ("x-message-ttl", AMQPValue::LongLongInt(60_000)),
    ]);
    channel.queue_declare(profile.as_str().into(), options, classic).await.unwrap();
    is(
        &found(&setup, "queue").await,
        "error",
        &format!("{profile} is there with another x-queue-type"),
    );

    let dead = format!("{}.dlx", setup.namespace());
    channel.exchange_delete(dead.as_str().into(), Default::default()).await.unwrap();
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let none = FieldTable::default();
    channel
        .exchange_declare(dead.as_str().into(), ExchangeKind::Direct, durable, none)
        .await
        .unwrap();
    is(&found(&setup, "exchange").await, "error", "another type");
}

#[tokio::test]
async fn what_only_the_http_api_shows() {
    if !PRODUCTION.is_available() {
        return;
    }
    let (Some(url), Some(_)) = (provided("MANAGEMENT_URL"), provided("RABBITMQCTL")) else {
        return;
    };
    let setup = sealed(sound(Setup::new(PRODUCTION))).await;
    let fresh = doctor(&setup, &["--management", &url]).await;
    assert!(!fresh.stdout.contains("not bound"), "{}", fresh.stdout);
    assert!(setup.start().await.stop().await.success());
    // The user is the queue's, unless the URL names one.
    let bare = url.replace("guest:guest@", "");
    for url in [&url, &bare] {
        let ended = doctor(&setup, &["--management", url]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    }
    let found = async |check: &str| found_with(&setup, &["--management", &bare], check).await;
    is(&found("broker alarms").await, "ok", "none");
    is(&found("bindings").await, "ok", "bound to");
    is(&found("policies").await, "ok", "none that changes it");

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
    is(&found("bindings").await, "error", &format!("{bulk}: not bound to {namespace} with bulk"));

    let pattern = format!("^{namespace}\\.dead$");
    let policy = r#"{"message-ttl":1000}"#;
    rabbitmqctl(&["set_policy", namespace, &pattern, policy, "--apply-to", "queues"])
        .await
        .unwrap();
    // The broker applies a policy to a queue some time after it took it.
    let applied = async |severity: &str, part: &str| {
        let what = format!("{severity}: {part}");
        eventually(&what, async || {
            let found = found("policies").await;
            found.0 == severity && found.1.contains(part)
        })
        .await;
    };
    applied("error", &format!("{namespace}.dead: changed to message-ttl 1000 by {namespace}"))
        .await;
    rabbitmqctl(&["clear_policy", namespace]).await.unwrap();
    applied("ok", "none that changes it").await;
    let pattern = format!("^{namespace}\\.(interactive|bulk)$");
    let policy = r#"{"delivery-limit":2}"#;
    rabbitmqctl(&["set_operator_policy", namespace, &pattern, policy, "--apply-to", "queues"])
        .await
        .unwrap();
    // An error where the broker says that it applies; this one keeps no statistics and does not say so.
    applied("warning", "operator policies would change it").await;
    rabbitmqctl(&["clear_operator_policy", namespace]).await.unwrap();
    applied("ok", "none that changes it").await;
    is(&found("queue members").await, "ok", "1 online");
    is(&found("feature flags").await, "ok", "enabled");
    is(&found("broker nodes").await, "ok", "1 running");

    let stranger = bare.replace("http://", "http://nobody:hunter2@");
    let refused = doctor(&setup, &["--management", &stranger]).await;
    assert!(refused.stdout.contains("answers 401"), "{}", refused.stdout);
    assert!(!refused.stdout.contains("hunter2"));
    let away = found_with(&setup, &["--management", "http://127.0.0.1:1"], "management").await;
    is(&away, "error", "127.0.0.1:1");
    let elsewhere = format!("{bare}/elsewhere");
    let nothing = found_with(&setup, &["--management", &elsewhere], "management").await;
    is(&nothing, "error", "there is no /api/health/checks/alarms");
    // Whatever is wrong there, the rest is told.
    let over_tls = setup.with("MUSTER_QUEUE", "amqps://guest:hunter2@127.0.0.1:1/%2f");
    let clear = found_with(&over_tls, &["--management", &bare], "management").await;
    is(&clear, "error", "not sent over http://");
    is(&found_with(&over_tls, &["--management", &bare], "broker").await, "error", "127.0.0.1:1");
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
async fn letters_that_died_are_told() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION).with("MUSTER_QUEUE_BULK_MAX_LENGTH", "2");
    let setup = sealed(sound(setup)).await;
    assert!(setup.start().await.stop().await.success());
    let broker = Broker::connect().await;
    for (letters, severity, told) in [(1, "note", "1 in "), (2, "warning", "which takes 2")] {
        broker.publish_dead_letter(setup.namespace()).await;
        let queue = format!("{}.dead", setup.namespace());
        eventually("the letter to be counted", async || broker.count(&queue).await == letters)
            .await;
        is(&found(&setup, "dead letters").await, severity, told);
    }
    is(&found(&setup, "workers").await, "note", "nobody consumes");
}

#[tokio::test]
async fn an_index_that_keeps_nothing_unique() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = sealed(sound(Setup::new(PRODUCTION))).await;
    assert!(setup.start().await.stop().await.success());
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    let users = client.default_database().unwrap().collection::<mongodb::bson::Document>("users");
    users.drop_index("registrationId_1").await.unwrap();
    is(&found(&setup, "indexes").await, "ok", "is unique");
    let same_keys = IndexModel::builder().keys(doc! { "registrationId": 1 }).build();
    users.create_index(same_keys).await.unwrap();
    is(&found(&setup, "indexes").await, "error", "registrationId");
}

#[tokio::test]
async fn services_that_are_away() {
    let setup = sound(Setup::embedded());
    let away = setup
        .with("MUSTER_QUEUE", "amqp://guest:hunter2@127.0.0.1:1/%2f")
        .with("MUSTER_STORE", "mongodb://guest:hunter2@127.0.0.1:1/x")
        .with("MUSTER_STORE_TIMEOUT", "500ms");
    is(&found(&away, "broker").await, "error", "127.0.0.1:1");
    is(&found(&away, "database").await, "error", "127.0.0.1:1");
    assert!(!doctor(&away, &[]).await.stdout.contains("hunter2"));
    is(&found(&away, "sealed passwords").await, "warning", "in clear");
    // Of an address range that is for documentation.
    let far = away.clone().with("MUSTER_QUEUE", "amqp://guest:hunter2@[2001:db8::1]:5672/%2f");
    is(&found(&far, "broker").await, "error", "RabbitMQ at [2001:db8::1]:5672");
    let far = away.with("MUSTER_QUEUE", "amqp://guest:hunter2@broker.invalid/%2f");
    is(&found(&far, "broker connection").await, "warning", "not encrypted");
}

#[tokio::test]
async fn what_is_wrong_here() {
    let setup = sound(Setup::embedded());
    let weak = setup.clone().with("JWT_SECRET", &"password".repeat(4));
    is(&found(&weak, "signing secret").await, "warning", "repeats itself");
    let cheap = setup.clone().with("MUSTER_BCRYPT_COST", "4").with("MUSTER_ALLOW_WEAK_COST", "1");
    is(&found(&cheap, "bcrypt cost").await, "warning", "4");
    let many = setup.clone().with("MUSTER_FRONT_MAX_CONNECTIONS", "1000000");
    let limited = found(&many, "file limit").await;
    assert!(limited.0 == "ok" || limited.1.contains("1000000"), "{limited:?}");
    is(&found(&setup, "hashing").await, "ok", "agree");
    is(&found(&setup, "data file").await, "note", "does not exist yet");
    let nowhere = setup.clone().with("MUSTER_STORE", "file:/no/such/place/users.redb");
    is(&found(&nowhere, "data file").await, "error", "directory");

    let [one, two] = ["one.pem", "two.pem"].map(|name| setup.directory().join(name));
    for path in [&one, &two] {
        run(&setup, &["keys", "make", "--output", path.to_str().unwrap()]).await.expect_stdout();
    }
    let keyed = setup.clone().with("MUSTER_TOKEN_KEY_FILES", one.to_str().unwrap());
    is(&found(&keyed, "signing key").await, "ok", "EdDSA");
    let file = setup.directory().join("jwks.json");
    let published = keyed.clone().with("MUSTER_FRONT_JWKS_FILE", file.to_str().unwrap());
    is(&found(&published, "public keys").await, "error", "front.jwks_file");
    std::fs::write(&file, run(&setup, &["keys", "jwks", two.to_str().unwrap()]).await.expect_stdout())
        .unwrap();
    is(&found(&published, "public keys").await, "error", "cannot be verified");
    std::fs::write(&file, run(&setup, &["keys", "jwks", one.to_str().unwrap()]).await.expect_stdout())
        .unwrap();
    is(&found(&published, "public keys").await, "ok", "1 in");
    std::fs::set_permissions(&one, std::fs::Permissions::from_mode(0o644)).unwrap();
    is(&found(&keyed, "signing key").await, "warning", "other users");
    let slow = setup.clone().with("MUSTER_STORE_TIMEOUT", "9s");
    is(&found(&slow, "settings").await, "error", "store.timeout");
    let listed = setup.clone().with("MUSTER_PASSWORD_BLOCKLIST", "file:/no/such/list");
    is(&found(&listed, "password list").await, "error", "/no/such/list");
    let missing = setup.clone().with("MUSTER_TOKEN_KEY_FILES", "/no/such/key");
    is(&found(&missing, "signing key").await, "error", "/no/such/key");

    let certs = setup.directory().join("certs");
    run(&setup, &["cert", "--directory", certs.to_str().unwrap()]).await.expect_stdout();
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| certs.join(name));
    let tls = |cert: &std::path::Path| {
        let setup = setup.clone().with("MUSTER_FRONT_TLS_CERT", cert.to_str().unwrap());
        setup.with("MUSTER_FRONT_TLS_KEY", key.to_str().unwrap())
    };
    is(&found(&tls(&cert), "certificate").await, "ok", "fits its key");
    is(&found(&tls(&ca), "certificate").await, "error", "do not fit");
    is(&found(&setup, "data directory").await, "ok", "only its owner");

    let wrong = run(&setup.with("MUSTER_LISTEN", "nowhere"), &["doctor"]).await;
    assert_eq!(wrong.code, Some(2), "settings that are wrong are told as everywhere");
}

#[tokio::test]
async fn certificates_that_no_client_accepts() {
    let setup = sound(Setup::embedded());
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
        is(&found(&tls, "certificate").await, severity, part);
    }
}

#[tokio::test]
async fn data_files_and_folders_that_others_can_change() {
    let setup = sound(Setup::embedded());
    let folder = setup.directory().join("data");
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("users.redb");
    let setup = setup.with("MUSTER_STORE", &format!("file:{}", file.display()));
    assert!(setup.start().await.stop().await.success());
    is(&found(&setup, "data file").await, "ok", "KiB");
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&file, 0o644);
    is(&found(&setup, "data file").await, "warning", "can be read by others");
    mode(&file, 0o600);
    mode(&folder, 0o777);
    is(&found(&setup, "data directory").await, "warning", "replace the data file");
    mode(&folder, 0o755);
    if std::os::unix::fs::chown(&folder, Some(12_345), None).is_ok() {
        is(&found(&setup, "data directory").await, "warning", "belongs to user 12345");
        std::os::unix::fs::chown(&file, Some(12_345), None).unwrap();
        is(&found(&setup, "data file").await, "warning", "belongs to user 12345");
    }
    std::fs::write(&file, "x".repeat(4096)).unwrap();
    is(&found(&setup, "data file").await, "error", "is not a data file of muster");
}

#[tokio::test]
async fn worker_alone_is_warned_of_a_slow_store() {
    let setup = sound(Setup::embedded())
        .with("MUSTER_ROLE", "worker")
        .with("MUSTER_QUEUE", "amqp://127.0.0.1:1/%2f")
        .with("MUSTER_STORE_TIMEOUT", "6s");
    is(&found(&setup, "store timeout").await, "warning", "12s or less");
}

#[tokio::test]
async fn a_front_for_everybody_without_limits() {
    let open = sound(Setup::embedded()).with("MUSTER_LISTEN", "0.0.0.0:3000");
    is(&found(&open, "rate limits").await, "note", "0.0.0.0:3000");
    let limited = open.with("MUSTER_LIMITS_PER_ADDRESS", "10/1m");
    is(&found(&limited, "rate limits").await, "ok", "each client");
}
