//! Reads `front.mounts`: the contracts at each path, and the paths of the profiles.

use super::SettingsReader;
use crate::config::{Mount, PathPattern};
use crate::domain::ContractId;

/// The name of a mount's profile option, and the last segment of the default profile path.
const PROFILE: &str = "profile";

impl SettingsReader<'_> {
    pub(super) fn mounts(&mut self) -> Option<Vec<Mount>> {
        let lines = self.list("front.mounts");
        let mounts: Result<Vec<Mount>, String> = lines.iter().map(|line| mount(line)).collect();
        let mounts = mounts.and_then(check_mounts);
        mounts.map_err(|problem| self.problem::<()>("front.mounts", &problem)).ok()
    }
}

/// Rejects mounts that could never be reached.
fn check_mounts(mounts: Vec<Mount>) -> Result<Vec<Mount>, String> {
    if mounts.is_empty() {
        return Err("expected at least one mount, got none".to_owned());
    }
    for (at, mount) in mounts.iter().enumerate() {
        let is_duplicate = mounts[..at]
            .iter()
            .any(|other| (&other.path, other.any_prefix) == (&mount.path, mount.any_prefix));
        if is_duplicate {
            return Err(format!("{} is mounted twice; remove one of the mounts", mount.path));
        }
        let distinguishable = [ContractId::NestedName, ContractId::FlatName];
        let is_single = mount.contracts.len() == 1;
        let is_pair = mount.contracts.len() == 2
            && distinguishable.iter().all(|contract| mount.contracts.contains(contract));
        if !is_single && !is_pair {
            return Err(format!(
                "{}: only nested-name and flat-name can share a path; the bodies of other contracts \
                 cannot be distinguished",
                mount.path
            ));
        }
    }
    Ok(mounts)
}

/// Parses `PATH = CONTRACT | CONTRACT`, optionally followed by `; profile = PATH`.
fn mount(line: &str) -> Result<Mount, String> {
    let expected = || {
        format!(
            "expected PATH = CONTRACT | CONTRACT with an optional ; profile = PATH, got {line:?}"
        )
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

/// Parses `/path`, or `*/path` for any prefix.
fn place(text: &str) -> Option<PathPattern> {
    let (path, any_prefix) = match text.trim().strip_prefix('*') {
        Some(rest) => (rest, true),
        None => (text.trim(), false),
    };
    // A request path cannot contain these characters.
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
    fn profile_is_a_sibling_of_its_mount_unless_named_or_none() {
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
