//! Runs the examples in `docs/examples` on a broker with a worker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::Setup;
use crate::support::services::{PRODUCTION, amqp_url, provided, service, unique};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples")
}

/// Runs an example twice with the same job name. Both runs must print the same three user ids, and the store must have
/// exactly three users.
async fn assert_registers_three_users(command: impl Fn() -> Command) {
    let setup = Setup::new(PRODUCTION).with("MUSTER_QUEUE_ALLOWED_REPLY_PREFIX", "example.");
    let muster = setup.start_role("worker").await;
    let job = unique("job");
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut command = command();
        command.env("AMQP_URL", amqp_url().unwrap());
        command.env("NAMESPACE", setup.namespace()).env("JOB", &job);
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        let mut users = ids_in(&String::from_utf8(output.stdout).unwrap());
        users.sort();
        assert_eq!(users.len(), 3, "{errors}");
        runs.push(users);
    }
    assert_eq!(runs[0], runs[1], "a repeated registration has the same user");
    assert_eq!(users(&setup).await, 3);
    assert!(muster.stop().await.success());
}

/// Number of users in the store.
async fn users(setup: &Setup) -> u64 {
    let client = mongodb::Client::with_uri_str(&setup.environment["MUSTER_STORE"]).await.unwrap();
    let users = client.default_database().unwrap().collection::<bson::Document>("users");
    let count = users.count_documents(bson::doc! {}).await.unwrap();
    client.shutdown().await;
    count
}

/// The user ids in the output of an example: 24 hexadecimal digits.
fn ids_in(printed: &str) -> Vec<String> {
    let words = printed.split(|c: char| !c.is_ascii_alphanumeric());
    let is_id = |word: &&str| word.len() == 24 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    words.filter(is_id).map(str::to_owned).collect()
}

#[tokio::test]
async fn python_example_registers_three_users() {
    if !PRODUCTION.is_available() {
        return;
    }
    let Some(python) = service("EXAMPLES_PYTHON") else { return };
    assert_registers_three_users(|| {
        let mut command = Command::new(&python);
        command.arg(examples().join("register.py"));
        command
    })
    .await;
}

#[tokio::test]
async fn javascript_example_registers_three_users() {
    if !PRODUCTION.is_available() {
        return;
    }
    let Some(packages) = provided("EXAMPLES_NODE_PATH") else { return };
    assert_registers_three_users(|| {
        let mut command = Command::new("node");
        command.arg(examples().join("register.js")).env("NODE_PATH", &packages);
        command
    })
    .await;
}

#[tokio::test]
async fn shell_example_registers_three_users() {
    if !PRODUCTION.is_available() {
        return;
    }
    let Some(management) = provided("MANAGEMENT_URL") else { return };
    assert_registers_three_users(|| {
        let mut command = Command::new("sh");
        command.arg(examples().join("register.sh")).env("MANAGEMENT_URL", &management);
        command
    })
    .await;
}

#[test]
fn page_shows_the_python_example_and_links_all() {
    let page = fs::read_to_string(examples().parent().unwrap().join("amqp.md")).unwrap();
    for entry in fs::read_dir(examples()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            page.contains(&format!("](examples/{name})")),
            "docs/amqp.md has no link to {name}"
        );
    }
}

#[test]
fn page_shows_valid_messages() {
    let page = fs::read_to_string(examples().parent().unwrap().join("amqp.md")).unwrap();
    let blocks = page.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut seen = Vec::new();
    for line in blocks.flat_map(str::lines).filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_str(line).unwrap();
        let name = ["reply", "user.registered", "registration.rejected"]
            .into_iter()
            .find(|name| crate::support::spec::accepts(name, &message));
        seen.push(name.unwrap_or_else(|| panic!("no message schema accepts {line}")));
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, ["registration.rejected", "reply", "user.registered"]);
}
