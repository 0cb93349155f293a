//! The deployment files: Dockerfile, compose file, Kubernetes manifests, systemd units and the public workflow.

mod compose;
mod kubernetes;
mod systemd;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_norway::Value;

use crate::support::services::provided;

/// The path of a file in the package.
fn path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The content of a file in the package.
fn file(path: &str) -> String {
    let path = self::path(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    let mut document: Value = serde_norway::from_str(&file(path)).unwrap();
    document.apply_merge().unwrap();
    document
}

/// `ENV` lines of the image.
fn image_environment() -> BTreeMap<String, String> {
    let dockerfile = file("Dockerfile");
    let lines = dockerfile.lines().filter_map(|line| line.strip_prefix("ENV "));
    lines
        .map(|line| line.split_once('=').expect("NAME=value"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A schema validator that `./tests/run` installs. `None` without it.
fn schema_tool(name: &str) -> Option<Command> {
    let folder = provided("TEST_SCHEMAS")?;
    let mut command = Command::new(PathBuf::from(folder).join(name));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    Some(command)
}

/// Runs a command and returns its standard output. Fails with its output if it does not succeed.
fn run_successfully(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{printed}\n{errors}");
    printed
}

/// The settings from these variables and those of the image. Fails if a variable is unknown.
fn settings_of(variables: &BTreeMap<String, String>) -> toml::Table {
    // Other variables would be ignored.
    let foreign = |name: &&String| !name.starts_with("MUSTER_") && !name.starts_with("JWT_SECRET");
    assert_eq!(variables.keys().find(foreign), None);
    let mut all = image_environment();
    all.extend(variables.clone());
    let output = muster(&["config".to_owned()], &all);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

fn muster(arguments: &[String], environment: &BTreeMap<String, String>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(arguments)
        .env_clear()
        .envs(environment)
        .output()
        .unwrap()
}

/// Fails unless the program in the image has this command.
fn assert_image_command(command: &[String]) {
    let dockerfile = file("Dockerfile");
    let entry = dockerfile.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).unwrap();
    let entry: Vec<String> = serde_json::from_str(entry).unwrap();
    assert_eq!(command[0], entry[0]);
    let arguments = [&command[1..], &["--help".to_owned()]].concat();
    let output = muster(&arguments, &BTreeMap::new());
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn image_health_check_is_a_valid_command() {
    let dockerfile = file("Dockerfile");
    let check = dockerfile.lines().find(|line| line.starts_with("HEALTHCHECK ")).unwrap();
    let (_, command) = check.split_once("CMD ").unwrap();
    let command: Vec<String> = serde_json::from_str(command).unwrap();
    assert_image_command(&command);
    assert!(command.len() > 1, "the health check needs a subcommand");
}

#[test]
fn public_workflow_runs_ci() {
    let workflow = yaml(".github/workflows/ci.yml");
    let jobs: BTreeMap<String, Value> = serde_norway::from_value(workflow["jobs"].clone()).unwrap();
    let runs = jobs.values().flat_map(|job| job["steps"].as_sequence().unwrap());
    let runs: Vec<&str> = runs.filter_map(|step| step.get("run")?.as_str()).collect();
    assert!(runs.iter().any(|run| run.trim() == ".ci/run"), "{runs:?}");
}

#[test]
fn workflow_actions_are_pinned_and_keep_no_credentials() {
    let workflow = file(".github/workflows/ci.yml");
    let mut lines = workflow.lines().peekable();
    let mut count = 0;
    while let Some(line) = lines.next() {
        let Some((_, action)) = line.split_once("uses: ") else { continue };
        count += 1;
        let (commit, version) = action.split_once('@').unwrap().1.split_once(" # v").expect(line);
        assert!(commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
        assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{line}");
        if action.starts_with("actions/checkout@") {
            assert_eq!(lines.next().map(str::trim), Some("with:"), "{line}");
            assert_eq!(lines.next().map(str::trim), Some("persist-credentials: false"), "{line}");
        }
    }
    assert!(count > 5, "expected more than 5 actions, got {count}");
}

#[test]
fn public_workflow_matches_its_schema() {
    if let Some(mut check) = schema_tool("check-jsonschema") {
        let schema = ["--builtin-schema", "vendor.github-workflows"];
        run_successfully(check.args(schema).arg(".github/workflows/ci.yml"));
    }
}
