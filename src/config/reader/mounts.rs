//! `front.mounts`: which contracts stand at which path.

use super::Reader;
use crate::config::Mount;
use crate::signup::ContractId;

impl Reader<'_> {
    pub(super) fn mounts(&mut self) -> Option<Vec<Mount>> {
        let lines = self.list("front.mounts");
        let mounts: Result<Vec<Mount>, String> = lines.iter().map(|line| mount(line)).collect();
        let mounts = mounts.and_then(check_mounts);
        mounts.map_err(|wrong| self.problem::<()>("front.mounts", &wrong)).ok()
    }
}

/// Refuses mounts of which one could never be reached.
fn check_mounts(mounts: Vec<Mount>) -> Result<Vec<Mount>, String> {
    if mounts.is_empty() {
        return Err("at least one mount wanted".to_owned());
    }
    for (at, mount) in mounts.iter().enumerate() {
        let twice = mounts[..at]
            .iter()
            .any(|other| (&other.path, other.any_prefix) == (&mount.path, mount.any_prefix));
        if twice {
            return Err(format!("{} stands there twice", mount.path));
        }
        let by_shape = [ContractId::NestedName, ContractId::FlatName];
        let alone = mount.contracts.len() == 1;
        let pair = mount.contracts.len() == 2
            && by_shape.iter().all(|contract| mount.contracts.contains(contract));
        if !alone && !pair {
            return Err(format!(
                "{}: only nested-name and flat-name can share a path, their bodies differ",
                mount.path
            ));
        }
    }
    Ok(mounts)
}

/// Reads `/path = contract | contract`.
fn mount(line: &str) -> Result<Mount, String> {
    let wanted = || format!("PATH = CONTRACT | CONTRACT wanted, not {line:?}");
    let (path, contracts) = line.split_once('=').ok_or_else(wanted)?;
    let (path, any_prefix) = match path.trim().strip_prefix('*') {
        Some(rest) => (rest, true),
        None => (path.trim(), false),
    };
    if !path.starts_with('/') {
        return Err(wanted());
    }
    let contracts: Result<Vec<_>, _> =
        contracts.split('|').map(|name| name.trim().parse()).collect();
    let contracts = contracts.map_err(|unknown| format!("{line:?}: {unknown}"))?;
    Ok(Mount { path: path.trim_end_matches('/').to_owned(), any_prefix, contracts })
}
