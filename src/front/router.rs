//! Which path is what.

use super::pages::{self, Page};
use crate::config::Mount;

pub(super) const BULK: &str = "/registrations";
pub(super) const PROFILE: &str = "/users/profile";
pub(super) const KEYS: &str = "/.well-known/jwks.json";
pub(super) const SPECIFICATION: &str = "/openapi.json";
pub(super) const LIVE: &str = "/live";
pub(super) const READY: &str = "/ready";

/// The paths that are served.
pub(super) struct Routes {
    exact: Vec<Mount>,
    patterns: Vec<Mount>,
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
    Profile,
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
    /// The methods it takes, as in the `Allow` header.
    pub(super) fn allow(self) -> &'static str {
        match self {
            Self::Signup(_) | Self::Bulk => "POST, OPTIONS",
            Self::Profile
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
        Self { exact, patterns, served }
    }

    /// Finds a path; a trailing slash is tolerated, an exact mount beats a pattern, and any mount
    /// beats a page.
    pub(super) fn find(&self, path: &str) -> Option<Found<'_>> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if let Some(mount) = self.exact.iter().find(|mount| mount.path == path) {
            return Some(Found::Signup(mount));
        }
        match path {
            BULK if self.served.bulk => return Some(Found::Bulk),
            PROFILE => return Some(Found::Profile),
            KEYS if self.served.keys => return Some(Found::Keys),
            SPECIFICATION => return Some(Found::Specification),
            LIVE => return Some(Found::Live),
            READY => return Some(Found::Ready),
            "/metrics" if self.served.metrics => return Some(Found::Metrics),
            _ => {}
        }
        if let Some(mount) = self.patterns.iter().find(|mount| path.ends_with(&mount.path)) {
            return Some(Found::Signup(mount));
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
        Mount { path: path.into(), any_prefix, contracts: contracts.to_vec() }
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
        assert_eq!(routes.find("/users/profile"), Some(Found::Profile));
        for path in ["/", "", "/signups", "/xauth/signup", "/users/register//", "/Signup"] {
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
