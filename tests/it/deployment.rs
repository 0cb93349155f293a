//! The files with which others run muster: they name only what is there, and leave nothing out.

mod compose;
mod kubernetes;
mod systemd;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_norway::Value;

use crate::support::services::provided;

/// A place in the package.
fn path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What stands in a file of the package.
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

/// A program that knows a published schema, or nothing where `./tests/run` did not bring it.
fn schema_tool(name: &str) -> Option<Command> {
    let folder = provided("TEST_SCHEMAS")?;
    let mut command = Command::new(PathBuf::from(folder).join(name));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    Some(command)
}

/// Fails with what the command printed if it does not succeed.
fn succeeds(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}\n{printed}\n{errors}");
    printed
}

/// The settings that muster takes from these variables and those of its image; it has to know all of
/// them.
fn settings_of(variables: &BTreeMap<String, String>) -> toml::Table {
    // Every variable takes effect: none is among those that muster leaves to others.
    let foreign = |name: &&String| !name.starts_with("MUSTER_") && !name.starts_with("JWT_SECRET");
    assert_eq!(variables.keys().find(foreign), None);
    let mut all = image_environment();
    all.extend(variables.clone());
    let done = muster(&["config".to_owned()], &all);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().parse().unwrap()
}

fn muster(arguments: &[String], environment: &BTreeMap<String, String>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(arguments)
        .env_clear()
        .envs(environment)
        .output()
        .unwrap()
}

/// Whether the image's program has this command.
fn is_a_command_of_the_image(command: &[String]) {
    let dockerfile = file("Dockerfile");
    let entry = dockerfile.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).unwrap();
    let entry: Vec<String> = serde_json::from_str(entry).unwrap();
    assert_eq!(command[0], entry[0]);
    let arguments = [&command[1..], &["--help".to_owned()]].concat();
    let done = muster(&arguments, &BTreeMap::new());
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn the_images_health_check_is_a_command() {
    let dockerfile = file("Dockerfile");
    let check = dockerfile.lines().find(|line| line.starts_with("HEALTHCHECK ")).unwrap();
    let (_, command) = check.split_once("CMD ").unwrap();
    let command: Vec<String> = serde_json::from_str(command).unwrap();
    is_a_command_of_the_image(&command);
    assert!(command.len() > 1, "the program alone is not a check");
}

#[test]
fn the_public_workflow_runs_what_every_change_has_to_pass() {
    let workflow = yaml(".github/workflows/ci.yml");
    let jobs: BTreeMap<String, Value> = serde_norway::from_value(workflow["jobs"].clone()).unwrap();
    let runs = jobs.values().flat_map(|job| job["steps"].as_sequence().unwrap());
    let runs: Vec<&str> = runs.filter_map(|step| step.get("run")?.as_str()).collect();
    assert!(runs.iter().any(|run| run.trim() == ".ci/run"), "{runs:?}");
}

#[test]
fn the_actions_of_the_workflow_are_pinned_by_commit_and_leave_no_credentials() {
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
    assert!(count > 5, "is this test blind?");
}

#[test]
fn the_public_workflow_is_what_its_schema_says() {
    if let Some(mut check) = schema_tool("check-jsonschema") {
        let schema = ["--builtin-schema", "vendor.github-workflows"];
        succeeds(check.args(schema).arg(".github/workflows/ci.yml"));
    }
}
