//! Which path is what.

use super::pages::{self, Page};
use super::paths::{BULK, KEYS, LIVE, METRICS, READY, SPECIFICATION, profiles};
use crate::config::{Mount, Place};

/// The paths that are served.
pub(super) struct Routes {
    exact: Vec<Mount>,
    patterns: Vec<Mount>,
    /// The documented path, and those of the mounts.
    profiles: Vec<Place>,
    served: Served,
}

/// What is served besides, if it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    /// Whether there are public keys to serve.
    pub(super) keys: bool,
    /// Whether there is an API key that opens the bulk path.
    pub(super) bulk: bool,
    /// Whether pages for people are served.
    pub(super) pages: bool,
    /// Whether the metrics are served here.
    pub(super) metrics: bool,
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A registration, by one of its contracts.
    Signup(&'a Mount),
    /// Registrations in bulk.
    Bulk,
    /// The owner of a token.
    Profile(&'a Place),
    /// The public keys of tokens.
    Keys,
    /// The description of all of them.
    Specification,
    Live,
    Ready,
    /// For people.
    Page(Page),
    Metrics,
}

impl Found<'_> {
    /// Whether this is about the process itself, so that pages of other origins may not read it.
    pub(super) fn is_for_operators(self) -> bool {
        matches!(self, Self::Live | Self::Ready | Self::Metrics | Self::Page(Page::Status))
    }

    /// The methods it takes, as in the `Allow` header.
    pub(super) fn allow(self) -> &'static str {
        match self {
            Self::Signup(_) | Self::Bulk => "POST, OPTIONS",
            Self::Profile(_)
            | Self::Keys
            | Self::Specification
            | Self::Live
            | Self::Ready
            | Self::Metrics
            | Self::Page(_) => "GET, HEAD, OPTIONS",
        }
    }
}

impl Routes {
    pub(super) fn new(mounts: &[Mount], served: Served) -> Self {
        let (patterns, exact) = mounts.iter().cloned().partition(|mount| mount.any_prefix);
        Self { exact, patterns, profiles: profiles(mounts), served }
    }

    /// Finds a path; a trailing slash is tolerated, an exact path beats a pattern, a mount beats a
    /// profile, and any of them beats a page.
    pub(super) fn find(&self, path: &str) -> Option<Found<'_>> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if let Some(mount) = self.exact.iter().find(|mount| mount.path == path) {
            return Some(Found::Signup(mount));
        }
        let mut profiles = self.profiles.iter();
        if let Some(place) = profiles.find(|place| !place.any_prefix && place.path == path) {
            return Some(Found::Profile(place));
        }
        match path {
            BULK if self.served.bulk => return Some(Found::Bulk),
            KEYS if self.served.keys => return Some(Found::Keys),
            SPECIFICATION => return Some(Found::Specification),
            LIVE => return Some(Found::Live),
            READY => return Some(Found::Ready),
            METRICS if self.served.metrics => return Some(Found::Metrics),
            _ => {}
        }
        if let Some(mount) = self.patterns.iter().find(|mount| path.ends_with(&mount.path)) {
            return Some(Found::Signup(mount));
        }
        let mut profiles = self.profiles.iter();
        if let Some(place) = profiles.find(|place| place.any_prefix && path.ends_with(&place.path))
        {
            return Some(Found::Profile(place));
        }
        pages::find(path).filter(|_| self.served.pages).map(Found::Page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signup::ContractId;
    use ContractId::{ErrorCode, FlatName, NestedName, Username};

    fn mount(path: &str, any_prefix: bool, contracts: &[ContractId]) -> Mount {
        Mount { path: path.into(), any_prefix, contracts: contracts.to_vec(), profile: None }
    }

    fn with_profile(mount: Mount, path: &str) -> Mount {
        let place = Place { path: path.into(), any_prefix: mount.any_prefix };
        Mount { profile: Some(place), ..mount }
    }

    #[test]
    fn exact_beats_pattern_and_a_trailing_slash_is_nothing() {
        let mounts = [
            mount("/auth/signup", true, &[ErrorCode]),
            mount("/signup", false, &[Username]),
            mount("/special/auth/signup", false, &[FlatName]),
            mount("/users/register", false, &[NestedName, FlatName]),
        ];
        let routes = Routes::new(&mounts, Served::default());
        assert_eq!(routes.find("/.well-known/jwks.json"), None);
        let keys = Routes::new(&mounts, Served { keys: true, ..Served::default() });
        assert_eq!(keys.find("/.well-known/jwks.json"), Some(Found::Keys));
        assert_eq!(routes.find("/registrations"), None);
        let served = Served { bulk: true, metrics: true, ..Served::default() };
        let bulk = Routes::new(&mounts, served);
        assert_eq!(bulk.find("/registrations"), Some(Found::Bulk));
        assert_eq!((routes.find("/metrics"), bulk.find("/metrics")), (None, Some(Found::Metrics)));
        for path in ["/auth/signup", "/identity/auth/signup", "/api/v1/auth/signup/"] {
            assert_eq!(routes.find(path), Some(Found::Signup(&mounts[0])), "{path}");
        }
        assert_eq!(routes.find("/special/auth/signup"), Some(Found::Signup(&mounts[2])));
        assert_eq!(routes.find("/users/register/"), Some(Found::Signup(&mounts[3])));
        assert!(matches!(routes.find("/users/profile"), Some(Found::Profile(_))));
        for path in ["/", "", "/signups", "/xauth/signup", "/users/register//", "/Signup"] {
            assert_eq!(routes.find(path), None, "{path}");
        }
    }

    #[test]
    fn a_profile_yields_to_a_mount() {
        let mounts = [
            with_profile(mount("/api/users/register", false, &[NestedName]), "/api/users/profile"),
            with_profile(mount("/users/register", false, &[FlatName]), "/users/profile"),
            with_profile(mount("/auth/signup", true, &[ErrorCode]), "/auth/profile"),
            with_profile(mount("/profile", false, &[Username]), "/profile"),
        ];
        assert_eq!(profiles(&mounts).len(), 3);
        let routes = Routes::new(&mounts, Served::default());
        for path in
            ["/users/profile", "/api/users/profile/", "/auth/profile", "/identity/auth/profile"]
        {
            assert!(matches!(routes.find(path), Some(Found::Profile(_))), "{path}");
        }
        assert_eq!(routes.find("/profile"), Some(Found::Signup(&mounts[3])));
        for path in ["/api/profile", "/xauth/profile", "/v2/users/profile"] {
            assert_eq!(routes.find(path), None, "{path}");
        }
    }

    #[test]
    fn any_mount_beats_a_page() {
        let served = Served { pages: true, ..Served::default() };
        let is_page = |mounts: &[Mount], path: &str| {
            matches!(Routes::new(mounts, served).find(path), Some(Found::Page(_)))
        };
        assert!(is_page(&[], "/") && is_page(&[], "/pages/icon.svg"));
        assert!(!is_page(&[], "/pages") && !is_page(&[], "/pages/router.rs"));
        assert!(!is_page(&[mount("", false, &[Username])], "/"));
        let prefixed = [mount("/icon.svg", true, &[Username])];
        assert!(is_page(&prefixed, "/") && !is_page(&prefixed, "/pages/icon.svg"));
    }
}
