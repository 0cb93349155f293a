//! Fixed paths, and the profile paths that follow from the mounts. The paths of HTML pages are in `pages`.

use crate::config::{Mount, PathPattern};

pub(super) const BULK: &str = "/registrations";
/// The profile path that is served whatever the mounts are.
pub(super) const PROFILE: &str = "/users/profile";
pub(super) const KEYS: &str = "/.well-known/jwks.json";
pub(super) const SPECIFICATION: &str = "/openapi.json";
pub(super) const LIVE: &str = "/live";
pub(super) const METRICS: &str = "/metrics";
pub(super) const READY: &str = "/ready";

/// [`PROFILE`] and the profile paths of the mounts, without duplicates and without paths that are mounts themselves.
pub(super) fn profiles(mounts: &[Mount]) -> Vec<PathPattern> {
    let mut profiles = vec![PathPattern { path: PROFILE.to_owned(), any_prefix: false }];
    for pattern in mounts.iter().filter_map(|mount| mount.profile.as_ref()) {
        let is_mounted = mounts
            .iter()
            .any(|mount| (&mount.path, mount.any_prefix) == (&pattern.path, pattern.any_prefix));
        if !is_mounted && !profiles.contains(pattern) {
            profiles.push(pattern.clone());
        }
    }
    profiles
}
