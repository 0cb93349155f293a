//! `front.mounts`: the contracts served at each path, and the path of their profile.

use super::SettingsReader;
use crate::config::{Mount, PathPattern};
use crate::domain::ContractId;

/// The name of a mount's option for its profile, and the last segment of the path it has without one.
const PROFILE: &str = "profile";

impl SettingsReader<'_> {
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

/// Reads `/path = contract | contract`, and `; profile = /path` after it.
fn mount(line: &str) -> Result<Mount, String> {
    let expected = || {
        format!("expected PATH = CONTRACT | CONTRACT, and ; profile = PATH after it, got {line:?}")
    };
    let (mounted, option) = match line.split_once(';') {
        Some((mounted, option)) => (mounted, Some(option)),
        None => (line, None),
    };
    let (path, contracts) = mounted.split_once('=').ok_or_else(expected)?;
    let PathPattern { path, any_prefix } = place(path).ok_or_else(expected)?;
    let contracts: Result<Vec<_>, _> =
        contracts.split('|').map(|name| name.trim().parse()).collect();
    let contracts = contracts.map_err(|unknown| format!("{line:?}: {unknown}"))?;
    let profile = match option.map(|option| option.split_once('=')) {
        None => {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            Some(PathPattern { path: format!("{parent}/{PROFILE}"), any_prefix })
        }
        Some(Some((name, value))) if name.trim() == PROFILE => match value.trim() {
            "none" => None,
            value => Some(place(value).ok_or_else(expected)?),
        },
        Some(_) => return Err(expected()),
    };
    Ok(Mount { path, any_prefix, contracts, profile })
}

/// Reads `/path`, or `*/path` where anything may come before it.
fn place(text: &str) -> Option<PathPattern> {
    let (path, any_prefix) = match text.trim().strip_prefix('*') {
        Some(rest) => (rest, true),
        None => (text.trim(), false),
    };
    // No request has such a character in its path.
    let is_path = path.starts_with('/') && !path.contains([' ', ';', '?', '#']);
    is_path.then(|| PathPattern { path: path.trim_end_matches('/').to_owned(), any_prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(line: &str) -> Option<String> {
        let place = mount(line).unwrap().profile?;
        Some(format!("{}{}", if place.any_prefix { "*" } else { "" }, place.path))
    }

    #[test]
    fn a_profile_is_the_sibling_of_its_mount_or_named_or_none() {
        for (line, expected) in [
            ("/api/users/register = nested-name | flat-name", Some("/api/users/profile")),
            ("/signup = username", Some("/profile")),
            ("/ = username", Some("/profile")),
            ("*/auth/signup = error-code", Some("*/auth/profile")),
            ("/signup = username; profile = /api/me", Some("/api/me")),
            ("*/auth/signup=error-code;profile=*/me/", Some("*/me")),
            ("/signup = username ; profile = none", None),
        ] {
            assert_eq!(profile(line).as_deref(), expected, "{line}");
        }
        for bad in [
            "/signup = username; profile",
            "/signup = username; profile = me",
            "/signup = username; me = /me",
            "/signup = username;",
            "/signup = username; profile = /me; profile = /you =",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }
}
