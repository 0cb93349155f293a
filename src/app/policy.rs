//! Builds the operator's policy for passwords and user names from the settings and the blocklist.
//!
//! Front, worker and import use it.

use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::Context;

use crate::config::{Blocklist, Settings, file};
use crate::contract::{CommonPasswords, Policy};

/// Maximum size of a blocklist in bytes. The largest list in common use has 134 MiB.
const MAX_LIST_BYTES: u64 = 256 << 20;

/// Returns the policy of these settings. Returns an error if the blocklist cannot be read or contains no password.
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

/// Reads one password per line. A line that is not UTF-8 cannot be a user's password, so it is kept in lossy form.
fn read(path: &Path) -> anyhow::Result<CommonPasswords> {
    let lines = BufReader::new(file::open(path, MAX_LIST_BYTES)?).split(b'\n');
    let passwords = lines.map(|line| -> io::Result<String> {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let line = line.trim_end_matches('\r');
        // Some editors put a byte order mark at the start of the file.
        Ok(line.trim_start_matches('\u{feff}').to_owned())
    });
    let passwords = passwords.filter(|line| !line.as_ref().is_ok_and(String::is_empty));
    let common = passwords.collect::<io::Result<CommonPasswords>>()?;
    anyhow::ensure!(common.count() > 0, "the file contains no password, expected one per line");
    Ok(common)
}
