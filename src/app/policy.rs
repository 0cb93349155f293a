//! The operator's policy for passwords and user names, with its list read: for the front and the worker
//! here, and for an import.

use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::Context;

use crate::config::{Blocklist, Settings, file};
use crate::contract::{CommonPasswords, Policy};

/// Largest list of passwords, in bytes. The largest in common use holds 134 MiB.
const LIST_MAX: u64 = 256 << 20;

/// The policy of these settings. An error if its list cannot be read.
pub fn policy(settings: &Settings) -> anyhow::Result<Policy> {
    let common = match &settings.policy.blocklist {
        Blocklist::None => CommonPasswords::default(),
        Blocklist::Common => CommonPasswords::bundled(),
        Blocklist::File(path) => read(path).with_context(|| {
            format!("password.blocklist (MUSTER_PASSWORD_BLOCKLIST): {}", path.display())
        })?,
    };
    let policy = Policy::new(settings.policy.min_length, common);
    Ok(policy.with_single_script(settings.admission.single_script))
}

/// One password a line. What is no UTF-8 can be nobody's password and does no harm.
fn read(path: &Path) -> anyhow::Result<CommonPasswords> {
    let lines = BufReader::new(file::open(path, LIST_MAX)?).split(b'\n');
    let passwords = lines.map(|line| -> io::Result<String> {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let line = line.trim_end_matches('\r');
        // An editor may have put a byte order mark before the first.
        Ok(line.trim_start_matches('\u{feff}').to_owned())
    });
    let passwords = passwords.filter(|line| !line.as_ref().is_ok_and(String::is_empty));
    let common = passwords.collect::<io::Result<CommonPasswords>>()?;
    anyhow::ensure!(common.count() > 0, "no password in it; one a line wanted");
    Ok(common)
}
