//! `docs/deploy/systemd`: the unit fits muster's settings, and systemd takes it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::{file, path, settings_of, succeeds};
use crate::support::services::skip_unsupported;

const FOLDER: &str = "docs/deploy/systemd";
const PROGRAM: &str = "/usr/local/bin/muster";

/// The instances, and the drop-ins of each.
const INSTANCES: [(&str, &[&str]); 3] =
    [("all", &[]), ("front", &["secrets.conf", "tls.conf"]), ("worker", &["secrets.conf"])];

/// The template and an instance's drop-ins, as one text.
fn unit(role: &str, drop_ins: &[&str]) -> String {
    let mut text = file(&format!("{FOLDER}/muster@.service"));
    for drop_in in drop_ins {
        text += &file(&format!("{FOLDER}/muster@{role}.service.d/{drop_in}"));
    }
    text.replace("%i", role)
}

/// What a key is set to, each time.
fn all<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let set = unit.lines().filter_map(|line| line.split_once('='));
    set.filter(|(name, _)| *name == key).map(|(_, value)| value).collect()
}

/// Seconds, or a plain number.
fn number(unit: &str, key: &str) -> u64 {
    let [value] = all(unit, key)[..] else { panic!("{key} is there once") };
    value.trim_end_matches('s').parse().unwrap()
}

#[test]
fn muster_knows_every_variable_it_is_given() {
    for (role, drop_ins) in INSTANCES {
        let unit = unit(role, drop_ins);
        let credentials = TempDir::new().unwrap();
        for credential in all(&unit, "LoadCredential") {
            let (name, from) = credential.split_once(':').unwrap();
            assert_eq!(from, format!("/etc/muster/{role}/{name}"));
            let content = match name {
                "queue" => "amqp://account:password@broker/%2f",
                "store" => "mongodb://database/muster",
                // Any 32 bytes are a key.
                _ => "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
            };
            fs::write(credentials.path().join(name), content).unwrap();
        }
        let folder = credentials.path().to_str().unwrap();
        let mut variables = BTreeMap::from([("MUSTER_ROLE".to_owned(), role.to_owned())]);
        for variable in all(&unit, "Environment") {
            let (name, value) = variable.split_once('=').unwrap();
            variables.insert(name.to_owned(), value.replace("%d", folder));
        }
        let settings = settings_of(&variables);
        let brought = variables.keys().filter(|name| name.ends_with("_FILE")).count();
        assert_eq!(brought, all(&unit, "LoadCredential").len(), "each credential is used");
        assert_eq!(all(&unit, "ExecStart"), [format!("{PROGRAM} serve --role {role}")]);
        let seconds = |key: &str| -> u64 {
            settings["front"][key].as_str().unwrap().trim_end_matches('s').parse().unwrap()
        };
        let stopping = seconds("stop_delay") + seconds("shutdown_timeout");
        assert!(number(&unit, "TimeoutStopSec") > stopping, "time to finish");
        let connections = settings["front"]["max_connections"].as_integer().unwrap();
        assert!(number(&unit, "LimitNOFILE") > connections.unsigned_abs(), "a file for each");
        // Where there is nothing to read again, the signal would end it.
        assert_eq!(all(&unit, "ExecReload").is_empty(), drop_ins.len() < 2);
    }
}

#[test]
fn systemd_takes_it() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        skip_unsupported("no systemd-analyze");
        return;
    }
    let folder = TempDir::new().unwrap();
    // It looks whether the program is there.
    let template = file(&format!("{FOLDER}/muster@.service"));
    let template = template.replace(PROGRAM, env!("CARGO_BIN_EXE_muster"));
    fs::write(folder.path().join("muster@.service"), template).unwrap();
    for (role, drop_ins) in INSTANCES {
        let drop_in = format!("muster@{role}.service.d");
        fs::create_dir(folder.path().join(&drop_in)).unwrap();
        for name in drop_ins {
            let to = folder.path().join(&drop_in).join(name);
            fs::copy(path(FOLDER).join(&drop_in).join(name), to).unwrap();
        }
        let unit = folder.path().join(format!("muster@{role}.service"));
        let analyze = |verb: &str, more: &[&str]| {
            let mut command = Command::new("systemd-analyze");
            // What it verifies may depend on units of this machine, and these on manuals.
            succeeds(command.args(["--man=no", verb]).args(more).arg(&unit));
        };
        analyze("verify", &[]);
        // In tenths: systemd calls up to 20 "OK".
        analyze("security", &["--offline=yes", "--threshold=20"]);
    }
}
