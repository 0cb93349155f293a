//! `docs/deploy/kubernetes`: consistent manifests, valid settings, and network policies like the code's boundaries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_norway::Value;

use super::{file, path, run_successfully, schema_tool, settings_of, yaml};
use crate::support::services::skip_unsupported;

const FOLDER: &str = "docs/deploy/kubernetes";

/// All documents that the kustomization applies.
fn documents() -> Vec<Value> {
    let kustomization = yaml(&format!("{FOLDER}/kustomization.yaml"));
    let files: BTreeSet<String> =
        serde_norway::from_value(kustomization["resources"].clone()).unwrap();
    let existing = fs::read_dir(path(FOLDER)).unwrap();
    let existing = existing.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let manifest = |name: &String| name.ends_with(".yaml") && name != "kustomization.yaml";
    assert_eq!(
        files,
        existing.filter(manifest).collect(),
        "the kustomization must list every manifest"
    );
    let texts: Vec<String> = files.iter().map(|name| file(&format!("{FOLDER}/{name}"))).collect();
    let parsed = texts.iter().flat_map(|text| serde_norway::Deserializer::from_str(text));
    parsed.map(|document| serde::Deserialize::deserialize(document).unwrap()).collect()
}

fn of_kind(kind: &str) -> Vec<Value> {
    let found: Vec<Value> =
        documents().into_iter().filter(|document| document["kind"] == kind).collect();
    assert!(!found.is_empty(), "no {kind}");
    found
}

fn name(document: &Value) -> &str {
    document["metadata"]["name"].as_str().unwrap()
}

fn component(labels: &Value) -> Option<&str> {
    labels.get("app.kubernetes.io/component")?.as_str()
}

/// The one container of a Deployment.
fn container(deployment: &Value) -> &Value {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_sequence().unwrap();
    assert_eq!(containers.len(), 1);
    &containers[0]
}

/// An example value for a variable from a secret.
fn secret(variable: &str) -> &'static str {
    match variable {
        "MUSTER_QUEUE" => "amqps://account:password@rabbitmq.rabbitmq:5671/%2f",
        "MUSTER_STORE" => {
            "mongodb://account:password@mongodb.mongodb/muster?replicaSet=rs0&tls=true"
        }
        // A key is any 32 bytes.
        _ => "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    }
}

/// The variables of a container, and its references to secrets: (secret, key).
fn environment(container: &Value) -> (BTreeMap<String, String>, BTreeSet<(String, String)>) {
    let (mut variables, mut secrets) = (BTreeMap::new(), BTreeSet::new());
    for variable in container["env"].as_sequence().unwrap() {
        let name = variable["name"].as_str().unwrap();
        let value = match variable.get("value") {
            Some(value) => value.as_str().expect("a text"),
            None => {
                let key = &variable["valueFrom"]["secretKeyRef"];
                let text = |of: &str| key[of].as_str().unwrap().to_owned();
                secrets.insert((text("name"), text("key")));
                secret(name)
            }
        };
        variables.insert(name.to_owned(), value.to_owned());
    }
    (variables, secrets)
}

#[test]
fn every_variable_is_a_setting_and_secrets_are_references() {
    let mut referred = BTreeSet::new();
    for deployment in of_kind("Deployment") {
        let (variables, secrets) = environment(container(&deployment));
        let settings = settings_of(&variables);
        assert_eq!(settings["role"].as_str(), Some(name(&deployment)));
        let of_it = format!("muster-{}", name(&deployment));
        assert!(secrets.iter().all(|(secret, _)| *secret == of_it), "{secrets:?}");
        referred.extend(secrets);
    }
    let keys: Vec<&str> = referred.iter().map(|(_, key)| key.as_str()).collect();
    assert_eq!(
        keys,
        ["queue", "seal-public-key", "jwt-secret", "queue", "seal-private-keys", "store"]
    );
    // The README creates the same secrets.
    let page = file(&format!("{FOLDER}/README.md"));
    let mut made = BTreeSet::new();
    for command in page.split("create secret generic ").skip(1) {
        let (name, rest) = command.split_once(' ').unwrap();
        let keys = rest.split("--from-literal=").skip(1);
        made.extend(keys.map(|key| (name.to_owned(), key.split_once('=').unwrap().0.to_owned())));
    }
    assert_eq!(made, referred);
}

#[test]
fn probes_use_the_admin_port() {
    for deployment in of_kind("Deployment") {
        let container = container(&deployment);
        let (variables, _) = environment(container);
        let settings = settings_of(&variables);
        let port_of = |name: &str| {
            let ports = container["ports"].as_sequence().unwrap();
            let port = ports.iter().find(|port| port["name"] == name).unwrap();
            port["containerPort"].as_u64().unwrap()
        };
        let listens = |address: &str, name: &str| {
            assert!(address.ends_with(&format!(":{}", port_of(name))), "{address}");
        };
        listens(settings["admin"]["listen"].as_str().unwrap(), "admin");
        if settings["role"].as_str() == Some("front") {
            listens(settings["front"]["listen"].as_str().unwrap(), "http");
        }
        for (probe, path) in [("livenessProbe", "/live"), ("readinessProbe", "/ready")] {
            let get = &container[probe]["httpGet"];
            assert_eq!((get["path"].as_str(), get["port"].as_str()), (Some(path), Some("admin")));
        }
        let annotation = &deployment["spec"]["template"]["metadata"]["annotations"];
        let scraped = annotation["prometheus.io/port"].as_str().unwrap();
        assert_eq!(scraped, port_of("admin").to_string());
    }
}

#[test]
fn termination_grace_period_covers_the_shutdown_timeout() {
    let settings = settings_of(&BTreeMap::new());
    let timeout = settings["front"]["shutdown_timeout"].as_str().unwrap().trim_end_matches('s');
    let timeout: u64 = timeout.parse().unwrap();
    for deployment in of_kind("Deployment") {
        let container = container(&deployment);
        let pause = container.get("lifecycle").map_or(0, |lifecycle| {
            lifecycle["preStop"]["exec"]["command"][1].as_str().unwrap().parse().unwrap()
        });
        let grace = &deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
        assert!(grace.as_u64().unwrap() > timeout + pause, "{}", name(&deployment));
    }
}

#[test]
fn selectors_and_targets_exist() {
    let deployments: BTreeSet<String> =
        of_kind("Deployment").iter().map(|found| name(found).to_owned()).collect();
    assert_eq!(deployments, BTreeSet::from(["front".to_owned(), "worker".to_owned()]));
    for document in documents() {
        let spec = &document["spec"];
        let selectors = [
            spec.get("selector").map(|selector| selector.get("matchLabels").unwrap_or(selector)),
            spec.get("podSelector").and_then(|selector| selector.get("matchLabels")),
            spec.get("template").map(|template| &template["metadata"]["labels"]),
        ];
        for labels in selectors.into_iter().flatten() {
            assert_eq!(component(labels), Some(name(&document)));
            assert!(deployments.contains(name(&document)));
        }
        if let Some(target) = spec.get("scaleTargetRef") {
            assert_eq!(target["name"], document["metadata"]["name"]);
            assert!(deployments.contains(name(&document)));
        }
    }
}

#[test]
fn front_network_policy_allows_only_the_queue() {
    let policies = of_kind("NetworkPolicy");
    let reached = |role: &str| {
        let mut reached = BTreeSet::new();
        for policy in policies.iter().filter(|policy| {
            let of = policy["spec"]["podSelector"].get("matchLabels").and_then(component);
            of.is_none_or(|of| of == role)
        }) {
            let Some(rules) = policy["spec"].get("egress") else { continue };
            for rule in rules.as_sequence().unwrap() {
                assert!(rule.get("to").is_some(), "{}: to anywhere", name(policy));
                let ports = rule["ports"].as_sequence().unwrap().iter();
                reached.extend(ports.map(|port| port["port"].as_u64().unwrap()));
            }
        }
        reached
    };
    assert_eq!(reached("front"), BTreeSet::from([53, 5671, 5672]));
    assert_eq!(reached("worker"), BTreeSet::from([53, 5671, 5672, 27017]));
    // All other traffic is denied.
    let all = policies.iter().find(|policy| name(policy) == "nothing-else").unwrap();
    let every_pod: Value = serde_norway::from_str("{}").unwrap();
    assert_eq!(all["spec"]["podSelector"], every_pod);
    let both_ways: Value = serde_norway::from_str("[Ingress, Egress]").unwrap();
    assert_eq!(all["spec"]["policyTypes"], both_ways);
}

#[test]
fn scaling_uses_existing_metrics() {
    let scaled = of_kind("ScaledObject").remove(0);
    let page = file("docs/metrics.md");
    for trigger in scaled["spec"]["triggers"].as_sequence().unwrap() {
        let query = trigger["metadata"]["query"].as_str().unwrap();
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: Vec<&str> = words.filter(|word| word.starts_with("muster_")).collect();
        assert!(!named.is_empty(), "{query}");
        for name in named {
            assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
    }
}

#[test]
fn manifests_match_their_schemas() {
    // The oldest supported version, and the newest with a schema.
    for version in ["1.25", "1.37"] {
        let Some(mut check) = schema_tool("kubernetes-validate") else { return };
        check.args(["--strict", "-k", version]);
        // The other two manifests have no schema here.
        for name in ["namespace", "front", "worker", "network"] {
            check.arg(format!("{FOLDER}/{name}.yaml"));
        }
        let stdout = run_successfully(&mut check);
        assert!(!stdout.contains("Couldn't find schema"), "{stdout}");
    }
}

#[test]
fn kubectl_builds_the_manifests() {
    let built = Command::new("kubectl").arg("kustomize").arg(path(FOLDER)).output();
    let Ok(built) = built else {
        skip_unsupported("no kubectl");
        return;
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let built = String::from_utf8(built.stdout).unwrap();
    assert_eq!(built.matches("\nkind: ").count(), documents().len());
}
