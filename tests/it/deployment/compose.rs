//! `docker-compose.yml`: complete profiles, valid settings, hardening and networks.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_norway::Value;

use super::{assert_image_command, file, run_successfully, schema_tool, settings_of, yaml};
use crate::support::services::skip_unsupported;

const PROFILES: [&str; 3] = ["minimal", "full", "observability"];

fn services() -> BTreeMap<String, Value> {
    serde_norway::from_value(yaml("docker-compose.yml")["services"].clone()).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    serde_norway::from_value(value.clone()).unwrap()
}

/// The profile of a service. Each service has exactly one, so none starts without a profile.
fn profile(service: &Value) -> String {
    let profiles = texts(&service["profiles"]);
    assert_eq!(profiles.len(), 1, "{profiles:?}");
    profiles[0].clone()
}

/// A variable that the compose file reads from its environment file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Placeholder {
    name: String,
    required: bool,
}

/// Replaces `${NAME:?message}` by a value and `${NAME:-default}` by its default, and records both.
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

/// Values for `.env` that need a certain form.
fn filled_in() -> BTreeMap<&'static str, &'static str> {
    // A key is any 32 bytes.
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    BTreeMap::from([
        ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
        ("MUSTER_QUEUE_SEAL_PUBLIC_KEY", key),
        ("MUSTER_QUEUE_SEAL_PRIVATE_KEYS", key),
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

/// muster's settings in a service.
fn settings(service: &Value) -> toml::Table {
    settings_of(&environment(service, &mut BTreeSet::new()))
}

/// All variables that the file reads from its environment file.
fn placeholders() -> BTreeSet<Placeholder> {
    let mut found = BTreeSet::new();
    for service in services().values() {
        environment(service, &mut found);
    }
    assert!(found.iter().any(|placeholder| placeholder.required));
    found
}

/// The names in an environment file; commented ones start with `#`.
fn names_in(path: &str) -> Vec<String> {
    let is_name = |name: &&str| {
        let name = name.trim_start_matches('#');
        name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    let text = file(path);
    let names = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    names.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn every_variable_is_a_setting() {
    let services = services();
    for (name, role) in [("front", "front"), ("worker", "worker")] {
        let settings = settings(&services[name]);
        assert_eq!(settings["role"].as_str(), Some(role));
        let queue = settings["queue"]["url"].as_str().unwrap();
        assert!(queue.starts_with("amqp://") && queue.contains("@rabbitmq:5672/"), "{queue}");
    }
    let worker = settings(&services["worker"]);
    assert!(worker["store"]["url"].as_str().unwrap().contains("mongodb:27017"));
    assert_eq!(
        worker["queue"]["seal_private_keys"].as_array().unwrap().len(),
        1,
        "passwords are sealed"
    );
}

#[test]
fn minimal_profile_is_one_process_with_a_volume() {
    let services = services();
    let small: Vec<_> =
        services.iter().filter(|(_, service)| profile(service) == "minimal").collect();
    let [(name, muster)] = small[..] else { panic!("{small:?}") };
    assert_eq!(name, "muster");
    let settings = settings(muster);
    assert_eq!(settings["role"].as_str(), Some("all"));
    assert_eq!(settings["queue"]["url"].as_str(), Some("local:"));
    assert_eq!(settings["store"]["url"].as_str(), Some("file:./muster.redb"));
    // The working directory of the image is the volume.
    let folder = file("Dockerfile");
    let folder = folder.lines().rev().find_map(|line| line.strip_prefix("WORKDIR ")).unwrap();
    assert_eq!(texts(&muster["volumes"]), [format!("muster:{folder}")]);
}

#[test]
fn front_has_no_secret_and_no_store() {
    let front = environment(&services()["front"], &mut BTreeSet::new());
    for name in ["JWT_SECRET", "MUSTER_QUEUE_SEAL_PRIVATE_KEYS", "MUSTER_STORE", "MUSTER_STORE_URL"]
    {
        assert!(
            !front.contains_key(name) && !front.contains_key(&format!("{name}_FILE")),
            "{name}"
        );
    }
}

#[test]
fn every_service_has_a_health_check_and_restarts() {
    for (name, service) in services() {
        let check = service.get("healthcheck").unwrap_or_else(|| panic!("{name} has none"));
        let test = texts(&check["test"]);
        assert_eq!(test[0], "CMD", "{name}: a health check without a shell");
        if service["image"].as_str() == Some("muster") {
            assert_image_command(&test[1..]);
        }
        assert_eq!(service["restart"].as_str(), Some("unless-stopped"), "{name}");
    }
}

#[test]
fn every_service_is_hardened() {
    // These entry points start as root; RabbitMQ also writes outside its volume.
    let drops_root = ["mongodb", "rabbitmq"];
    for (name, service) in services() {
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        let added = service.get("cap_add").map(texts).unwrap_or_default();
        assert_eq!(added.is_empty(), !drops_root.contains(&name.as_str()), "{name}: {added:?}");
        let read_only = service.get("read_only").and_then(Value::as_bool) == Some(true);
        assert_eq!(read_only, name != "rabbitmq", "{name}");
    }
}

#[test]
fn queue_and_store_are_on_internal_networks() {
    let networks = yaml("docker-compose.yml")["networks"].clone();
    let services = services();
    for name in ["rabbitmq", "mongodb", "worker"] {
        assert!(services[name].get("ports").is_none(), "{name} publishes a port");
        for network in texts(&services[name]["networks"]) {
            assert_eq!(networks[&*network]["internal"].as_bool(), Some(true), "{name}, {network}");
        }
    }
    for (name, service) in services {
        let Some(ports) = service.get("ports") else { continue };
        // Docker publishes no port of a service that has only internal networks.
        let own = service.get("networks").map(texts);
        let leads_out = |network: &String| networks[&**network].is_null();
        assert!(own.is_none_or(|own| own.iter().any(leads_out)), "{name}: {ports:?}");
    }
}

#[test]
fn dependencies_of_services_exist() {
    let services = services();
    for (name, service) in &services {
        let Some(needs) = service.get("depends_on") else { continue };
        let needs: BTreeMap<String, Value> = serde_norway::from_value(needs.clone()).unwrap();
        for (needed, how) in needs {
            assert_eq!(profile(&services[&needed]), profile(service), "{name} needs {needed}");
            assert_eq!(how["condition"].as_str(), Some("service_healthy"), "{name}");
        }
    }
}

#[test]
fn env_sample_lists_every_variable() {
    let placeholders = placeholders();
    let names = names_in(".env.sample");
    for Placeholder { name, required } in &placeholders {
        let listed = names.contains(name) || (!required && names.contains(&format!("#{name}")));
        assert!(listed, "{name} is not in .env.sample");
    }
    for name in names {
        let name = name.trim_start_matches('#');
        let used = placeholders.iter().any(|placeholder| placeholder.name == name);
        // Compose itself reads COMPOSE_PROFILES.
        assert!(used || name == "COMPOSE_PROFILES", "the compose file does not use {name}");
    }
}

#[test]
fn minimal_profile_needs_no_variable() {
    let required = placeholders().into_iter().filter(|placeholder| placeholder.required);
    let mut required: BTreeSet<String> = required.map(|placeholder| placeholder.name).collect();
    let mut used = BTreeSet::new();
    environment(&services()["muster"], &mut used);
    assert!(used.iter().all(|placeholder| !placeholder.required), "{used:?}");
    required.insert("COMPOSE_PROFILES".to_owned());
    let set: BTreeSet<String> = names_in("docs/deploy/minimal.env").into_iter().collect();
    assert_eq!(set, required, "docs/deploy/minimal.env must set exactly the required variables");
}

#[test]
fn compose_file_matches_its_schema() {
    if let Some(mut check) = schema_tool("check-jsonschema") {
        let schema = ["--builtin-schema", "vendor.compose-spec"];
        run_successfully(check.args(schema).arg("docker-compose.yml"));
    }
}

#[test]
fn docker_compose_accepts_every_profile() {
    if !Command::new("docker")
        .args(["compose", "version"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        skip_unsupported("no docker compose");
        return;
    }
    for name in PROFILES {
        let mut compose = Command::new("docker");
        compose.current_dir(env!("CARGO_MANIFEST_DIR"));
        compose.args(["compose", "--env-file", "docs/deploy/minimal.env", "config", "--services"]);
        // Overrides the variable of the file.
        compose.env("COMPOSE_PROFILES", name);
        let listed = run_successfully(&mut compose);
        let listed: BTreeSet<&str> = listed.lines().collect();
        let services = services();
        let expected = services.iter().filter(|(_, service)| profile(service) == name);
        assert_eq!(listed, expected.map(|(name, _)| name.as_str()).collect(), "{name}");
    }
}
