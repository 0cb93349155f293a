//! Tests of the settings: which values are accepted and rejected.

use super::*;
use crate::config::{Blocklist, RootSampler, Sources};
use crate::domain::ContractId;
use secrecy::ExposeSecret;

fn load(environment: &[(&str, &str)]) -> Result<Settings, String> {
    let environment =
        environment.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    Settings::load(&Sources { environment, ..Sources::default() })
        .map_err(|problems| problems.to_string())
}

#[test]
fn defaults_are_valid() {
    let settings = load(&[]).unwrap();
    assert_eq!(settings.front.listen.port(), 3000);
    assert_eq!(settings.password.cost, 12);
    assert_eq!(settings.front.mounts.len(), 4);
    assert!(settings.is_embedded());
    assert_eq!(settings.front.mounts[1].contracts, [ContractId::NestedName, ContractId::FlatName]);
    assert!(settings.front.mounts[3].any_prefix);
}

#[test]
fn all_problems_are_reported_together() {
    let error = load(&[
        ("MUSTER_LISTEN", "nowhere"),
        ("MUSTER_BCRYPT_COST", "4"),
        ("MUSTER_FRONT_REQUEST_TIMEOUT", "soon"),
        ("MUSTER_FRONT_BODY_LIMIT", "many"),
        ("MUSTER_COLOUR", "red"),
        ("JWT_SECRET", "short"),
    ])
    .unwrap_err();
    for part in [
        "front.listen",
        "password.cost",
        "front.request_timeout",
        "BODY_LIMIT",
        "COLOUR",
        "token.secret",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(!error.contains("short"), "contains a secret: {error}");
}

#[test]
fn kubernetes_service_variables_are_ignored() {
    for (name, text) in [
        ("MUSTER_SERVICE_HOST", "10.0.0.1"),
        ("MUSTER_SERVICE_PORT", "3000"),
        ("MUSTER_PORT", "tcp://10.0.0.1:3000"),
        ("MUSTER_FRONT_PORT", "udp://[fd00::1]:3000"),
        ("MUSTER_FRONT_PORT_3000_TCP_ADDR", "10.0.0.1"),
    ] {
        assert!(load(&[(name, text)]).is_ok(), "{name}");
    }
    for name in ["MUSTER_PORT", "MUSTER_FRONT_PORT"] {
        let error = load(&[(name, "8080")]).unwrap_err();
        assert!(error.contains(&format!("{name}: unknown setting")), "{error}");
    }
}

#[test]
fn unreachable_mounts_are_rejected() {
    let mounts = |text| load(&[("MUSTER_FRONT_MOUNTS", text)]);
    assert!(mounts("/r = flat-name | nested-name, /s = username").is_ok());
    for bad in ["", "/r = register, /r = username", "/r = username | register", "r = register"] {
        assert!(mounts(bad).unwrap_err().contains("front.mounts"), "{bad}");
    }
}

#[test]
fn origin_that_never_matches_is_rejected() {
    let origins = |text| load(&[("MUSTER_FRONT_CORS_ORIGINS", text)]);
    for good in ["", "*", "https://app.example.com, http://localhost:5173"] {
        assert!(origins(good).is_ok(), "{good}");
    }
    for bad in ["https://app.example.com/", "app.example.com", "*, https://app.example.com"] {
        assert!(origins(bad).unwrap_err().contains("front.cors_origins"), "{bad}");
    }
}

#[test]
fn setting_with_two_variables_is_rejected() {
    let error = load(&[("MUSTER_LISTEN", "127.0.0.1:1"), ("MUSTER_FRONT_LISTEN", "127.0.0.1:2")]);
    assert!(error.unwrap_err().contains("MUSTER_LISTEN and MUSTER_FRONT_LISTEN"));
    let error = load(&[("JWT_SECRET", "x"), ("JWT_SECRET_FILE", "/dev/null")]);
    assert!(error.unwrap_err().contains("JWT_SECRET and JWT_SECRET_FILE"));
}

#[test]
fn impossible_roles_are_rejected() {
    assert!(load(&[("MUSTER_ROLE", "front")]).unwrap_err().contains("in-process queue"));
    let front = [("MUSTER_ROLE", "front"), ("MUSTER_QUEUE", "amqp://broker")];
    assert!(load(&front).is_ok(), "a front end needs no secret");
    let worker = [("MUSTER_ROLE", "worker"), ("MUSTER_QUEUE", "amqp://broker")];
    assert!(load(&worker).unwrap_err().contains("JWT_SECRET"));
}

#[test]
fn seal_keys_have_32_bytes_and_private_keys_can_be_several() {
    let one = BASE64.encode([1; 32]);
    let two = BASE64.encode([2; 32]);
    let amqp = ("MUSTER_QUEUE", "amqp://broker");
    let front = [amqp, ("MUSTER_ROLE", "front"), ("MUSTER_QUEUE_SEAL_PUBLIC_KEY", &one)];
    assert_eq!(load(&front).unwrap().queue.seal_public_key, Some([1; 32]));
    let several = format!("{two}, {one}\n");
    let settings = load(&[("MUSTER_QUEUE_SEAL_PRIVATE_KEYS", &several)]).unwrap();
    assert_eq!(settings.queue.seal_private_keys[0].expose_secret(), [2; 32]);
    assert_eq!(settings.queue.seal_private_keys[1].expose_secret(), [1; 32]);
    let shown = settings.to_toml();
    assert!(shown.contains("seal_private_keys = [\"***\", \"***\"]"), "{shown}");
    for bad in ["hunter2", "aHVudGVyMg==", &one[..43]] {
        for key in ["MUSTER_QUEUE_SEAL_PUBLIC_KEY", "MUSTER_QUEUE_SEAL_PRIVATE_KEYS"] {
            let error = load(&[(key, bad)]).unwrap_err();
            assert!(error.contains(key) && !error.contains(bad), "{error}");
        }
    }
    let no_private_key =
        [amqp, ("JWT_SECRET", several.as_str()), ("MUSTER_QUEUE_REQUIRE_SEALED", "1")];
    assert!(load(&no_private_key).unwrap_err().contains("queue.require_sealed"));
}

#[test]
fn limits_and_policy_are_off_by_default_and_checked() {
    let settings = load(&[]).unwrap();
    assert_eq!((settings.limits.per_address, settings.limits.per_email), (None, None));
    assert_eq!((settings.policy.min_length, settings.policy.blocklist), (0, Blocklist::None));
    let settings = load(&[
        ("MUSTER_LIMITS_TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
        ("MUSTER_PASSWORD_BLOCKLIST", "file:a.txt"),
    ]);
    let settings = settings.unwrap();
    assert_eq!(settings.limits.trusted_proxies.len(), 2);
    assert_eq!(settings.policy.blocklist, Blocklist::File("a.txt".into()));
    let wrong = [
        ("MUSTER_LIMITS_PER_ADDRESS", "10"),
        ("MUSTER_LIMITS_PER_EMAIL", "10/soon"),
        ("MUSTER_LIMITS_PROFILE_PER_ADDRESS", "0/1m"),
        ("MUSTER_LIMITS_TRUSTED_PROXIES", "proxy"),
        ("MUSTER_LIMITS_PROXY_HEADER", "x-real-ip"),
        ("MUSTER_PASSWORD_MIN_LENGTH", "65"),
        ("MUSTER_PASSWORD_BLOCKLIST", "all"),
    ];
    let error = load(&wrong).unwrap_err();
    assert!(wrong.iter().all(|(name, _)| error.contains(name)), "{error}");
}

#[test]
fn secrets_are_redacted() {
    let secret = "0123456789abcdef0123456789abcdef";
    let settings = load(&[
        ("JWT_SECRET", secret),
        ("MUSTER_QUEUE", "amqp://user:hunter2@broker/%2f"),
        ("MUSTER_STORE", "mongodb://user:hunter2@db/x"),
    ])
    .unwrap();
    let shown = settings.to_toml();
    assert!(!shown.contains(secret) && !shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("amqp://user:***@broker/%2f"), "{shown}");
    assert!(!format!("{settings:?}").contains("hunter2"));
}

#[test]
fn trace_settings_are_read_and_headers_redacted() {
    assert!(load(&[]).unwrap().trace.is_none());
    let named = load(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/"),
        ("MUSTER_TRACE_HEADERS", "authorization=Bearer hunter2=, x-tenant=1"),
        ("MUSTER_TRACE_SAMPLE_RATIO", "0.25"),
        ("OTEL_SERVICE_NAME", "signups"),
    ]);
    let settings = named.unwrap();
    let trace = settings.trace.as_ref().unwrap();
    assert_eq!(trace.endpoint, "https://collector:4318/v1/traces");
    assert_eq!((trace.sample_ratio, &*trace.service_name), (0.25, "signups"));
    assert_eq!(trace.headers[0].1.expose_secret(), "Bearer hunter2=");
    assert_eq!(trace.headers[1].0, "x-tenant");
    assert!(
        !settings.to_toml().contains("hunter2") && !format!("{settings:?}").contains("hunter2")
    );
    for (name, bad) in [
        ("MUSTER_TRACE_ENDPOINT", "collector:4318"),
        ("MUSTER_TRACE_ENDPOINT", "https://user:hunter2@collector"),
        ("MUSTER_TRACE_SAMPLE_RATIO", "1.5"),
        ("MUSTER_TRACE_SAMPLE_RATIO", "half"),
        ("MUSTER_TRACE_HEADERS", "hunter2"),
    ] {
        let error = load(&[(name, bad)]).unwrap_err();
        assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn credentials_are_redacted_and_not_in_errors() {
    let shown = load(&[
        ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
        ("MUSTER_QUEUE", "amqp://user:hunter2@broker/%2f"),
        (
            "MUSTER_STORE",
            "mongodb://u:hunter2@h/?authMechanism=MONGODB-AWS&\
             authMechanismProperties=AWS_SESSION_TOKEN:hunter2",
        ),
        ("MUSTER_TOKEN_ISSUER", "https://user:hunter2@issuer.example"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318"),
    ]);
    let shown = shown.unwrap().to_toml().to_owned();
    assert!(!shown.contains("hunter2"), "{shown}");
    for part in ["user:***@broker", "authMechanism=MONGODB-AWS&authMechanismProperties=***"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }

    for (name, value, part) in [
        ("MUSTER_QUEUE", "amqp://user:1/hunter2@broker", "%2F"),
        ("MUSTER_QUEUE", "amqp://user:hunter2", "not a URL"),
        ("MUSTER_QUEUE", "amqp:user:hunter2@broker", "amqp://"),
        ("MUSTER_STORE", "mongodb://user:1?hunter2@database", "%3F"),
        ("MUSTER_FRONT_CORS_ORIGINS", "https://user:hunter2@app.example.com", "user:***@app"),
        ("MUSTER_TRACE_ENDPOINT", "http://:hunter2@collector", "trace.headers"),
        ("MUSTER_TRACE_HEADERS", "hunter2", "NAME=VALUE"),
    ] {
        let error = load(&[(name, value)]).unwrap_err();
        assert!(error.contains(part) && !error.contains("hunter2"), "{value}: {error}");
    }
}

#[test]
fn invisible_characters_are_rejected_in_any_value() {
    for (name, text) in [
        ("JWT_SECRET", "0123456789abcdef0123456789abcdef\r"),
        ("JWT_SECRET", "\u{feff}0123456789abcdef0123456789abcdef"),
        ("MUSTER_STORE", "file:users.redb\r"),
        ("MUSTER_PASSWORD_BLOCKLIST", "file:list.txt\r\n"),
        ("MUSTER_TOKEN_KEY_FILES", "\u{feff}one.pem,two.pem"),
        ("MUSTER_TOKEN_ISSUER", "https://issuer\r"),
        ("MUSTER_FRONT_JWKS_FILE", "jw\u{fffd}ks.json"),
    ] {
        let error = load(&[(name, text)]).unwrap_err();
        assert!(error.contains(name), "{error}");
        assert!(!error.contains("0123456789"), "contains a secret: {error}");
    }
    // Between the items of a list, carriage returns are white space.
    let settings = load(&[("MUSTER_TOKEN_KEY_FILES", "one.pem\r\ntwo.pem\r\n")]).unwrap();
    assert_eq!(settings.token.key_files, [PathBuf::from("one.pem"), PathBuf::from("two.pem")]);
}

#[test]
fn secret_file_is_in_the_error_only_if_it_is_a_path() {
    let error = |file: &str| load(&[("JWT_SECRET_FILE", file)]).unwrap_err();
    assert!(error("/etc/no-such-secret").contains("/etc/no-such-secret"));
    assert!(error("./no-such-secret").contains("./no-such-secret"));
    for secret in ["Zk4vT0m1Yt3x8Q2cLw9aPd7RbU5nHs6E", "/Zk4vT0m1Yt3x8/Q2cLw9aPd7RbU5nHs6E"] {
        assert!(!error(secret).contains("Zk4v"), "{secret}");
    }
}

#[test]
fn invalid_toml_is_rejected_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("muster.toml");
    std::fs::write(&file, "[front]\nlisten = \n").unwrap();
    let sources = Sources { file: Some(file.clone()), ..Sources::default() };
    let error = Settings::load(&sources).unwrap_err().to_string();
    assert!(error.contains(&format!("{}:2:", file.display())), "{error}");
    std::fs::write(&file, "\u{feff}[front]\nlisten = \"127.0.0.1:1\"\n").unwrap();
    assert_eq!(Settings::load(&sources).unwrap().front.listen.port(), 1);
}

#[test]
fn role_decides_which_settings_are_checked() {
    let amqp = ("MUSTER_QUEUE", "amqp://broker");
    let short = [
        ("MUSTER_FRONT_REQUEST_TIMEOUT", "4s"),
        ("JWT_SECRET", "short"),
        ("MUSTER_BCRYPT_COST", "4"),
    ];
    let front = [&[amqp, ("MUSTER_ROLE", "front")], &short[..]].concat();
    assert!(load(&front).is_ok(), "a front end does not store, sign or hash");
    let error = load(&short).unwrap_err();
    for key in ["token.secret", "password.cost"] {
        assert!(error.contains(key), "{error}");
    }
    let slow = ("MUSTER_STORE_TIMEOUT", "9s");
    assert!(load(&[slow]).unwrap_err().contains("store.timeout"));
    let secret = ("JWT_SECRET", "0123456789abcdef0123456789abcdef");
    assert!(load(&[amqp, ("MUSTER_ROLE", "worker"), secret, slow]).is_ok());
}

#[test]
fn opentelemetry_variables_are_used_or_rejected() {
    let endpoint =
        |variables: &[(&str, &str)]| load(variables).unwrap().trace.map(|trace| trace.endpoint);
    let exact = "https://collector/custom/path";
    for (name, url, expected) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318", "http://c:4318/v1/traces"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/v1/traces", "http://c:4318/v1/traces"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c/otlp/v1/traces/", "http://c/otlp/v1/traces"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", exact, exact),
    ] {
        assert_eq!(endpoint(&[(name, url)]).as_deref(), Some(expected), "{name}={url}");
    }
    let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
    assert_eq!(
        endpoint(&[base, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", exact)]).as_deref(),
        Some(exact)
    );
    assert_eq!(endpoint(&[base, ("OTEL_SDK_DISABLED", "TRUE")]), None);
    let trace = |name, value| load(&[base, (name, value)]).unwrap().trace.unwrap();
    let sampler = trace("OTEL_TRACES_SAMPLER", "always_off").sampler;
    assert_eq!((sampler.parent_based, sampler.root), (false, RootSampler::AlwaysOff));
    assert_eq!(trace("OTEL_TRACES_SAMPLER_ARG", "0.25").sample_ratio, 0.25);
    let headers = trace("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2").headers;
    assert_eq!(headers[0].1.expose_secret(), "Bearer hunter2");
    for (name, bad) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_SDK_DISABLED", "maybe"),
    ] {
        let error = load(&[base, (name, bad)]).unwrap_err();
        assert!(error.contains(name), "{error}");
    }
}
