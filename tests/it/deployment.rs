//! The files with which others run muster: they name only what is there, and leave nothing out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_norway::Value;

/// What stands in a file of the package.
fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    let mut document: Value = serde_norway::from_str(&file(path)).unwrap();
    document.apply_merge().unwrap();
    document
}

fn services() -> BTreeMap<String, Value> {
    serde_norway::from_value(yaml("docker-compose.yml")["services"].clone()).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    serde_norway::from_value(value.clone()).unwrap()
}

/// A variable that the compose file takes from `.env`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Placeholder {
    name: String,
    required: bool,
}

/// Fills in `${NAME:?message}` from `values` and `${NAME:-default}` with its default, and notes both.
fn substitute(
    text: &str,
    values: &BTreeMap<&str, &str>,
    found: &mut BTreeSet<Placeholder>,
) -> String {
    let mut parts = text.split("${");
    let mut whole = parts.next().unwrap().to_owned();
    for part in parts {
        let (placeholder, rest) = part.split_once('}').expect("a closing brace");
        let (name, default) = placeholder.split_once(":-").unwrap_or((placeholder, ""));
        let (name, required) = match name.split_once(":?") {
            Some((name, _)) => (name, true),
            None => (name, false),
        };
        found.insert(Placeholder { name: name.to_owned(), required });
        whole += if required { values.get(name).unwrap_or(&"filled-in") } else { default };
        whole += rest;
    }
    whole
}

/// What one would put into `.env`, where it matters what.
fn filled_in() -> BTreeMap<&'static str, &'static str> {
    // Any 32 bytes are a key.
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    BTreeMap::from([
        ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
        ("MUSTER_QUEUE_SEAL_TO", key),
        ("MUSTER_QUEUE_SEAL_KEYS", key),
    ])
}

/// The variables that the compose file sets for a service.
fn environment(service: &Value, found: &mut BTreeSet<Placeholder>) -> BTreeMap<String, String> {
    let Some(set) = service.get("environment") else { return BTreeMap::new() };
    let set: BTreeMap<String, Value> = serde_norway::from_value(set.clone()).unwrap();
    set.into_iter()
        .map(|(name, value)| {
            let value = value.as_str().expect("a text");
            (name, substitute(value, &filled_in(), found))
        })
        .collect()
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

fn muster(arguments: &[String], environment: &BTreeMap<String, String>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(arguments)
        .env_clear()
        .envs(environment)
        .output()
        .unwrap()
}

/// Runs `muster config` as the service runs muster, and gives the settings.
fn settings_of(service: &Value) -> toml::Table {
    let mut variables = image_environment();
    variables.extend(environment(service, &mut BTreeSet::new()));
    let done = muster(&["config".to_owned()], &variables);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().parse().unwrap()
}

#[test]
fn muster_knows_every_variable_it_is_given() {
    let services = services();
    for (name, role) in [("front", "front"), ("worker", "worker")] {
        let settings = settings_of(&services[name]);
        assert_eq!(settings["role"].as_str(), Some(role));
        let queue = settings["queue"]["url"].as_str().unwrap();
        assert!(queue.starts_with("amqp://") && queue.contains("@rabbitmq:5672/"), "{queue}");
        // Every variable took effect: none is among those muster ignores.
        let variables = environment(&services[name], &mut BTreeSet::new());
        let foreign = |name: &String| !name.starts_with("MUSTER_") && name != "JWT_SECRET";
        assert_eq!(variables.into_keys().find(foreign), None, "{name}");
    }
    let worker = settings_of(&services["worker"]);
    assert!(worker["store"]["url"].as_str().unwrap().contains("mongodb:27017"));
    assert_eq!(worker["queue"]["seal_keys"].as_array().unwrap().len(), 1, "passwords are sealed");
}

#[test]
fn a_front_is_given_no_secret_and_no_store() {
    let front = environment(&services()["front"], &mut BTreeSet::new());
    for name in ["JWT_SECRET", "MUSTER_QUEUE_SEAL_KEYS", "MUSTER_STORE", "MUSTER_STORE_URL"] {
        assert!(
            !front.contains_key(name) && !front.contains_key(&format!("{name}_FILE")),
            "{name}"
        );
    }
}

#[test]
fn every_service_has_a_health_check_and_stays_up() {
    for (name, service) in services() {
        let check = service.get("healthcheck").unwrap_or_else(|| panic!("{name} has none"));
        let test = texts(&check["test"]);
        assert_eq!(test[0], "CMD", "{name}: no shell in between");
        if service["image"].as_str() == Some("muster") {
            is_a_command_of_the_image(&test[1..]);
        }
        assert_eq!(service["restart"].as_str(), Some("unless-stopped"), "{name}");
    }
}

#[test]
fn what_a_service_waits_for_is_there() {
    let services = services();
    for (name, service) in &services {
        let Some(needs) = service.get("depends_on") else { continue };
        let needs: BTreeMap<String, Value> = serde_norway::from_value(needs.clone()).unwrap();
        for (needed, how) in needs {
            assert!(services.contains_key(&needed), "{name} needs {needed}");
            assert_eq!(how["condition"].as_str(), Some("service_healthy"), "{name}");
        }
    }
}

#[test]
fn the_sample_names_every_variable() {
    let mut placeholders = BTreeSet::new();
    for service in services().values() {
        environment(service, &mut placeholders);
    }
    assert!(placeholders.iter().any(|placeholder| placeholder.required));
    let sample = file(".env.sample");
    let names = sample.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let is_name = |name: &&str| {
        let name = name.trim_start_matches('#');
        name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    let set: Vec<&str> = names.filter(is_name).collect();
    for Placeholder { name, required } in &placeholders {
        let offered = set.contains(&format!("#{name}").as_str());
        let listed = set.contains(&name.as_str()) || (!required && offered);
        assert!(listed, "{name} is not in .env.sample");
    }
    for name in set {
        let name = name.trim_start_matches('#');
        let used = placeholders.iter().any(|placeholder| placeholder.name == name);
        assert!(used, "{name} is in .env.sample, and the compose file does not use it");
    }
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
