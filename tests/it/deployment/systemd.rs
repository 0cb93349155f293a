//! `docs/deploy/systemd`: the units match muster's settings, and systemd accepts them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::{file, path, run_successfully, settings_of};
use crate::support::services::skip_unsupported;

const FOLDER: &str = "docs/deploy/systemd";
const PROGRAM: &str = "/usr/local/bin/muster";

/// The instances with their drop-ins.
const INSTANCES: [(&str, &[&str]); 3] =
    [("all", &[]), ("front", &["secrets.conf", "tls.conf"]), ("worker", &["secrets.conf"])];

/// The template and the drop-ins of an instance as one text.
fn unit(role: &str, drop_ins: &[&str]) -> String {
    let mut text = file(&format!("{FOLDER}/muster@.service"));
    for drop_in in drop_ins {
        text += &file(&format!("{FOLDER}/muster@{role}.service.d/{drop_in}"));
    }
    text.replace("%i", role)
}

/// All values of a key.
fn all<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let set = unit.lines().filter_map(|line| line.split_once('='));
    set.filter(|(name, _)| *name == key).map(|(_, value)| value).collect()
}

/// The single value of a key: seconds or a number.
fn number(unit: &str, key: &str) -> u64 {
    let [value] = all(unit, key)[..] else { panic!("expected {key} once") };
    value.trim_end_matches('s').parse().unwrap()
}

#[test]
fn every_variable_is_a_setting() {
    for (role, drop_ins) in INSTANCES {
        let unit = unit(role, drop_ins);
        let credentials = TempDir::new().unwrap();
        for credential in all(&unit, "LoadCredential") {
            let (name, from) = credential.split_once(':').unwrap();
            assert_eq!(from, format!("/etc/muster/{role}/{name}"));
            let content = match name {
                "queue" => "amqp://account:password@broker/%2f",
                "store" => "mongodb://database/muster",
                // A key is any 32 bytes.
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
        let credentials_used = variables.keys().filter(|name| name.ends_with("_FILE")).count();
        assert_eq!(
            credentials_used,
            all(&unit, "LoadCredential").len(),
            "every credential must be used"
        );
        assert_eq!(all(&unit, "ExecStart"), [format!("{PROGRAM} serve --role {role}")]);
        let seconds = |key: &str| -> u64 {
            settings["front"][key].as_str().unwrap().trim_end_matches('s').parse().unwrap()
        };
        let stopping = seconds("stop_delay") + seconds("shutdown_timeout");
        assert!(
            number(&unit, "TimeoutStopSec") > stopping,
            "TimeoutStopSec must exceed the shutdown time"
        );
        let connections = settings["front"]["max_connections"].as_integer().unwrap();
        assert!(
            number(&unit, "LimitNOFILE") > connections.unsigned_abs(),
            "LimitNOFILE must exceed front.max_connections"
        );
        // Without a file to reload, SIGHUP would end the process.
        assert_eq!(all(&unit, "ExecReload").is_empty(), drop_ins.len() < 2);
    }
}

#[test]
fn systemd_accepts_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        skip_unsupported("no systemd-analyze");
        return;
    }
    let folder = TempDir::new().unwrap();
    // systemd-analyze checks that the program exists.
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
            // The units may depend on units of this machine whose manuals are missing.
            run_successfully(command.args(["--man=no", verb]).args(more).arg(&unit));
        };
        analyze("verify", &[]);
        // systemd rates a threshold up to 20 (in tenths) as "OK".
        analyze("security", &["--offline=yes", "--threshold=20"]);
    }
}
