//! `docs/deploy/kubernetes`: the manifests fit together, give muster settings that it knows, and draw the
//! line that the code draws.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_norway::Value;

use super::{file, path, schema_tool, settings_of, succeeds, yaml};
use crate::support::services::skip_unsupported;

const FOLDER: &str = "docs/deploy/kubernetes";

/// What the kustomization applies: each document of each file.
fn documents() -> Vec<Value> {
    let kustomization = yaml(&format!("{FOLDER}/kustomization.yaml"));
    let files: BTreeSet<String> =
        serde_norway::from_value(kustomization["resources"].clone()).unwrap();
    let there = fs::read_dir(path(FOLDER)).unwrap();
    let there = there.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let manifest = |name: &String| name.ends_with(".yaml") && name != "kustomization.yaml";
    assert_eq!(files, there.filter(manifest).collect(), "all of them are applied");
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

/// What somebody would put into a secret, where it is not the container that says it.
fn secret(variable: &str) -> &'static str {
    match variable {
        "MUSTER_QUEUE" => "amqps://account:password@rabbitmq.rabbitmq:5671/%2f",
        "MUSTER_STORE" => {
            "mongodb://account:password@mongodb.mongodb/muster?replicaSet=rs0&tls=true"
        }
        // Any 32 bytes are a key.
        _ => "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    }
}

/// A container's variables, and those of its secrets: (secret, key).
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
fn muster_knows_every_variable_and_secrets_are_references() {
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
    assert_eq!(keys, ["queue", "seal-public-key", "jwt-secret", "queue", "seal-private-keys", "store"]);
    // The page that says how to make them has the same.
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
fn the_probes_ask_where_muster_answers() {
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
fn a_stop_has_the_time_that_muster_grants_itself() {
    let settings = settings_of(&BTreeMap::new());
    let drain = settings["front"]["shutdown_timeout"].as_str().unwrap().trim_end_matches('s');
    let drain: u64 = drain.parse().unwrap();
    for deployment in of_kind("Deployment") {
        let container = container(&deployment);
        let pause = container.get("lifecycle").map_or(0, |lifecycle| {
            lifecycle["preStop"]["exec"]["command"][1].as_str().unwrap().parse().unwrap()
        });
        let grace = &deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
        assert!(grace.as_u64().unwrap() > drain + pause, "{}", name(&deployment));
    }
}

#[test]
fn whatever_is_named_is_there() {
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
fn a_front_reaches_the_queue_and_nothing_behind_it() {
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
    // And whatever no policy speaks of is not allowed.
    let all = policies.iter().find(|policy| name(policy) == "nothing-else").unwrap();
    let every_pod: Value = serde_norway::from_str("{}").unwrap();
    assert_eq!(all["spec"]["podSelector"], every_pod);
    let both_ways: Value = serde_norway::from_str("[Ingress, Egress]").unwrap();
    assert_eq!(all["spec"]["policyTypes"], both_ways);
}

#[test]
fn workers_are_scaled_by_metrics_that_are_there() {
    let scaled = of_kind("ScaledObject").remove(0);
    let known = file("docs/metrics.md");
    for trigger in scaled["spec"]["triggers"].as_sequence().unwrap() {
        let query = trigger["metadata"]["query"].as_str().unwrap();
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: Vec<&str> = words.filter(|word| word.starts_with("muster_")).collect();
        assert!(!named.is_empty(), "{query}");
        for name in named {
            assert!(known.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
    }
}

#[test]
fn they_are_what_the_schemas_say() {
    // The oldest version that is promised, and the newest that is known.
    for version in ["1.25", "1.37"] {
        let Some(mut check) = schema_tool("kubernetes-validate") else { return };
        check.args(["--strict", "-k", version]);
        // The other two have schemas of their own, which are not among them.
        for name in ["namespace", "front", "worker", "network"] {
            check.arg(format!("{FOLDER}/{name}.yaml"));
        }
        let told = succeeds(&mut check);
        assert!(!told.contains("Couldn't find schema"), "{told}");
    }
}

#[test]
fn kubectl_builds_them() {
    let built = Command::new("kubectl").arg("kustomize").arg(path(FOLDER)).output();
    let Ok(built) = built else {
        skip_unsupported("no kubectl");
        return;
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let built = String::from_utf8(built.stdout).unwrap();
    assert_eq!(built.matches("\nkind: ").count(), documents().len());
}
