//! The paths that are not settings, and the paths of profiles. Pages have theirs in `pages`.

use crate::config::{Mount, Place};

pub(super) const BULK: &str = "/registrations";
pub(super) const PROFILE: &str = "/users/profile";
pub(super) const KEYS: &str = "/.well-known/jwks.json";
pub(super) const SPECIFICATION: &str = "/openapi.json";
pub(super) const LIVE: &str = "/live";
pub(super) const METRICS: &str = "/metrics";
pub(super) const READY: &str = "/ready";

/// The paths of profiles: the documented one, and those of the mounts, each once.
pub(super) fn profiles(mounts: &[Mount]) -> Vec<Place> {
    let mut profiles = vec![Place { path: PROFILE.to_owned(), any_prefix: false }];
    for place in mounts.iter().filter_map(|mount| mount.profile.as_ref()) {
        let is_mounted = mounts
            .iter()
            .any(|mount| (&mount.path, mount.any_prefix) == (&place.path, place.any_prefix));
        if !is_mounted && !profiles.contains(place) {
            profiles.push(place.clone());
        }
    }
    profiles
}
