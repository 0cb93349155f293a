//! Commands with a closed or full standard output, and with invalid arguments.

use std::fs::File;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::support::Setup;
use crate::support::broker::Broker;
use crate::support::command::{run, run_with};
use crate::support::importer::{ndjson, user};
use crate::support::services::PRODUCTION;
use muster::domain::ContractId;

/// An Ed25519 public key: the example of RFC 8410, section 10.1.
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
    -----END PUBLIC KEY-----\n";

/// Commands that print to standard output and need no service.
const PRINTING: [&[&str]; 18] = [
    &["--help"],
    &["--version"],
    &["help", "import"],
    &["config"],
    &["config", "--json"],
    &["doctor"],
    &["doctor", "--json"],
    &["keygen"],
    &["keygen", "--json"],
    &["keys", "make", "--output", "-"],
    &["keys", "list", "key.pem"],
    &["keys", "list", "--json", "key.pem"],
    &["keys", "jwks", "key.pem"],
    &["cert", "--directory", "NEW"],
    &["completions", "bash"],
    &["man"],
    &["spec", "asyncapi"],
    &["spec", "openapi"],
];

/// Runs a command with this standard output.
fn run_into(setup: &Setup, arguments: &[&str], stdout: Stdio) -> Output {
    setup.command(arguments).stdout(stdout).stderr(Stdio::piped()).output().unwrap()
}

/// A pipe without a reader.
fn closed_pipe() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// Fails unless a command has its usual result with a closed standard output, and exit code 1 on a full disk. `NEW` in
/// its arguments is replaced by a new directory for each run.
fn assert_handles_closed_and_full_stdout(setup: &Setup, arguments: &[&str]) {
    let with = |folder: &str| -> Vec<String> {
        arguments.iter().map(|argument| argument.replace("NEW", folder)).collect()
    };
    let ended = |folder: &str, stdout: Stdio| {
        let arguments = with(folder);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = run_into(setup, &arguments, stdout);
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let usual = ended("usual", Stdio::null());
    assert_eq!(ended("head", closed_pipe()), usual, "{arguments:?}");
    let (code, stderr) = ended("full", full_disk());
    assert_eq!(code, Some(1), "{arguments:?}: {stderr}");
    let expected = "standard output cannot be written: No space left on device";
    assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
}

#[tokio::test]
async fn closed_stdout_is_ignored_and_a_full_disk_is_an_error() {
    let setup = Setup::embedded();
    run(&setup, &["keys", "make", "--output", "key.pem"]).await.expect_stdout();
    for arguments in PRINTING {
        assert_handles_closed_and_full_stdout(&setup, arguments);
    }
}

#[tokio::test]
async fn dead_letter_commands_accept_a_closed_stdout() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let worker = setup.start_role("worker").await;
    let broker = Broker::connect().await;
    for _ in 0..3 {
        broker.publish_dead_letter(setup.namespace()).await;
    }
    assert!(worker.stop().await.success());
    for arguments in [
        &["dead-letters", "list"][..],
        &["dead-letters", "list", "--json"],
        &["dead-letters", "export", "--output", "-"],
        &["dead-letters", "discard", "--all", "--dry-run"],
    ] {
        assert_handles_closed_and_full_stdout(&setup, arguments);
    }
}

#[tokio::test]
async fn import_continues_with_a_closed_stdout() {
    let setup = Setup::embedded();
    let rows = |from: usize| ndjson((from..from + 20).map(|n| user(ContractId::Register, n)));
    let file = |name: &str, from| std::fs::write(setup.directory().join(name), rows(from)).unwrap();
    file("one.ndjson", 0);
    let import = |file| ["import", file, "--contract", "register"];
    let ended = run_into(&setup, &import("one.ndjson"), closed_pipe());
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("20 created") && !stderr.contains("cannot be written"), "{stderr}");
    file("two.ndjson", 20);
    let ended = run_into(&setup, &import("two.ndjson"), full_disk());
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("standard output cannot be written: No space left"), "{stderr}");
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    let setup = Setup::embedded();
    std::fs::write(setup.directory().join("users.txt"), "").unwrap();
    for arguments in [
        &["nonsense"][..],
        &["--nonsense"],
        &["serve", "--role", "cook"],
        &["config", "--listen", "nowhere"],
        &["healthcheck", "--role", "worker"],
        &["doctor", "--management", "foo"],
        &["signup", "--url", "foo"],
        &["signup", "--url", "localhost:3000"],
        &["signup", "--contract", "nonsense"],
        &["signup", "--firstname", "Ann", "--email", "no-address"],
        &["keygen", "nonsense"],
        &["keys"],
        &["keys", "make"],
        &["keys", "make", "--output", "x.pem", "--algorithm", "rot13"],
        &["keys", "jwks"],
        &["cert", "--name", "bad name!"],
        &["cert", "--days", "0"],
        &["dead-letters", "requeue"],
        &["dead-letters", "list"],
        &["spec", "schemas"],
        &["spec", "openapi", "--store", "nowhere"],
        &["reindex", "--queue", "nowhere"],
        &["import", "users.txt", "--contract", "register"],
        &["bench", "--connections", "none"],
        &["completions", "tcsh"],
        &["man", "--directory"],
    ] {
        let ended = run(&setup, arguments).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
        assert!(!ended.stderr.is_empty(), "{arguments:?}: empty error");
        assert!(!ended.stderr.contains("relative URL"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn certificate_names_must_be_host_names_or_addresses() {
    let setup = Setup::embedded();
    for name in ["bad name!", "", "-a.test", "a..test", "a/b", "*", "a.*.test", "münchen.test"] {
        let named = format!("--name={name}");
        let ended = run(&setup, &["cert", "--directory", "certs", &named]).await;
        assert_eq!(ended.code, Some(2), "{name:?}");
        assert!(ended.stderr.contains("expected a host name"), "{name:?}: {}", ended.stderr);
        assert!(!setup.directory().join("certs").exists());
    }
    let good = ["muster.test", "*.muster.test", "xn--mnchen-3ya.test", "my_app", "10.0.0.1", "::2"];
    let arguments = good.iter().flat_map(|name| ["--name", name]);
    let arguments: Vec<&str> =
        ["cert", "--directory", "certs"].into_iter().chain(arguments).collect();
    run(&setup, &arguments).await.expect_stdout();
}

#[tokio::test]
async fn public_key_in_place_of_a_private_key_is_named() {
    let setup = Setup::embedded();
    std::fs::write(setup.directory().join("public.pem"), PUBLIC_KEY).unwrap();
    for command in ["list", "jwks"] {
        let ended = run(&setup, &["keys", command, "public.pem"]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let expected = "public.pem: holds a public key (PUBLIC KEY); expected the private key";
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
        assert!(!ended.stderr.contains("openssl"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn config_json_names_the_variables() {
    let setup = Setup::embedded().with("MUSTER_LISTEN", "127.0.0.1:3999");
    let setup = setup.with("MUSTER_QUEUE", "amqp://muster:hunter2-hunter2@broker/%2f");
    let setup = setup.with("JWT_SECRET", &"0123456789abcdef".repeat(4));
    let settings = run_with(&setup, &["config", "--json"], "").await;
    assert!(!settings.stdout.contains("hunter2") && !settings.stdout.contains("0123456789abcdef"));
    let settings = settings.json();
    let listen = &settings["front.listen"];
    assert_eq!(listen["value"], "127.0.0.1:3999");
    assert_eq!(listen["variable"], "MUSTER_FRONT_LISTEN");
    assert_eq!(listen["other_variables"], serde_json::json!(["MUSTER_LISTEN"]));
    assert_eq!(listen["from"], "MUSTER_LISTEN");
    let secret = settings["token.secret"]["other_variables"].as_array().unwrap();
    assert!(secret.contains(&"JWT_SECRET_FILE".into()), "{secret:?}");
    assert_eq!(settings["role"]["variable"], "MUSTER_ROLE");
    // Exactly the settings of the defaults file.
    let defaults = include_str!("../../config.default.toml").parse::<toml::Table>().unwrap();
    let mut keys = Vec::new();
    for (section, value) in &defaults {
        match value {
            toml::Value::Table(table) => {
                keys.extend(table.keys().map(|key| format!("{section}.{key}")));
            }
            _ => keys.push(section.clone()),
        }
    }
    keys.sort();
    let printed: Vec<&String> = settings.as_object().unwrap().keys().collect();
    assert_eq!(printed, keys.iter().collect::<Vec<_>>());
    // The named variable is read.
    for (key, setting) in settings.as_object().unwrap() {
        let variable = setting["variable"].as_str().unwrap();
        let shown = run(&Setup::embedded().with(variable, "\u{feff}"), &["config"]).await;
        assert_eq!(shown.code, Some(2), "{key} is not read from {variable}");
        assert!(!shown.stderr.contains("unknown setting"), "{key}: {}", shown.stderr);
        assert!(matches!(
            setting["value"],
            Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Array(_)
        ));
    }
}
