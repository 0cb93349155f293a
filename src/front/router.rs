//! The routing table: finds the route of a request's path.

use super::pages::{self, Page};
use super::paths::{BULK, KEYS, LIVE, METRICS, READY, SPECIFICATION, profiles};
use crate::config::{Mount, PathPattern};

/// All paths of one front.
pub(super) struct Routes {
    /// Mounts at exactly one path.
    exact: Vec<Mount>,
    /// Mounts whose path may have any prefix.
    patterns: Vec<Mount>,
    /// [`PROFILE`](super::paths::PROFILE) and the profile paths of the mounts.
    profiles: Vec<PathPattern>,
    enabled: EnabledRoutes,
}

/// Optional routes that the settings enable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EnabledRoutes {
    /// `/.well-known/jwks.json`: there are public keys to publish.
    pub(super) keys: bool,
    /// `/registrations`: an API key for bulk uploads is set.
    pub(super) bulk: bool,
    /// The HTML pages and their data (`front.ui`).
    pub(super) pages: bool,
    /// `/metrics`: operators have no address of their own (`admin.listen`).
    pub(super) metrics: bool,
}

/// The route of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// Registers one user through a contract of the mount.
    Signup(&'a Mount),
    /// Registers a stream of rows.
    Bulk,
    /// Returns the user a token belongs to.
    Profile(&'a PathPattern),
    /// Returns the public keys that verify tokens, as a JWK set.
    Keys,
    /// Returns the OpenAPI document.
    Specification,
    /// The liveness probe.
    Live,
    /// The readiness probe.
    Ready,
    /// An HTML page, one of its assets, or its data.
    Page(Page),
    /// The metrics in Prometheus' text format.
    Metrics,
}

impl Route<'_> {
    /// Whether the response is about the process itself. Pages of other origins must not read it.
    pub(super) fn is_for_operators(self) -> bool {
        matches!(self, Self::Live | Self::Ready | Self::Metrics | Self::Page(Page::Status))
    }

    /// The value of the `Allow` header.
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
    pub(super) fn new(mounts: &[Mount], enabled: EnabledRoutes) -> Self {
        let (patterns, exact) = mounts.iter().cloned().partition(|mount| mount.any_prefix);
        Self { exact, patterns, profiles: profiles(mounts), enabled }
    }

    /// Finds the route of a path. One trailing slash is ignored. Precedence: exact mounts, exact profiles, fixed paths,
    /// mounts with any prefix, profiles with any prefix, pages.
    pub(super) fn find(&self, path: &str) -> Option<Route<'_>> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if let Some(mount) = self.exact.iter().find(|mount| mount.path == path) {
            return Some(Route::Signup(mount));
        }
        let mut profiles = self.profiles.iter();
        if let Some(pattern) = profiles.find(|pattern| !pattern.any_prefix && pattern.path == path)
        {
            return Some(Route::Profile(pattern));
        }
        match path {
            BULK if self.enabled.bulk => return Some(Route::Bulk),
            KEYS if self.enabled.keys => return Some(Route::Keys),
            SPECIFICATION => return Some(Route::Specification),
            LIVE => return Some(Route::Live),
            READY => return Some(Route::Ready),
            METRICS if self.enabled.metrics => return Some(Route::Metrics),
            _ => {}
        }
        if let Some(mount) = self.patterns.iter().find(|mount| path.ends_with(&mount.path)) {
            return Some(Route::Signup(mount));
        }
        let mut profiles = self.profiles.iter();
        if let Some(pattern) =
            profiles.find(|pattern| pattern.any_prefix && path.ends_with(&pattern.path))
        {
            return Some(Route::Profile(pattern));
        }
        pages::find(path).filter(|_| self.enabled.pages).map(Route::Page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ContractId;
    use ContractId::{ErrorCode, FlatName, NestedName, Username};

    fn mount(path: &str, any_prefix: bool, contracts: &[ContractId]) -> Mount {
        Mount { path: path.into(), any_prefix, contracts: contracts.to_vec(), profile: None }
    }

    fn with_profile(mount: Mount, path: &str) -> Mount {
        let pattern = PathPattern { path: path.into(), any_prefix: mount.any_prefix };
        Mount { profile: Some(pattern), ..mount }
    }

    #[test]
    fn exact_path_wins_over_pattern_and_trailing_slash_is_ignored() {
        let mounts = [
            mount("/auth/signup", true, &[ErrorCode]),
            mount("/signup", false, &[Username]),
            mount("/special/auth/signup", false, &[FlatName]),
            mount("/users/register", false, &[NestedName, FlatName]),
        ];
        let routes = Routes::new(&mounts, EnabledRoutes::default());
        assert_eq!(routes.find("/.well-known/jwks.json"), None);
        let keys = Routes::new(&mounts, EnabledRoutes { keys: true, ..EnabledRoutes::default() });
        assert_eq!(keys.find("/.well-known/jwks.json"), Some(Route::Keys));
        assert_eq!(routes.find("/registrations"), None);
        let enabled = EnabledRoutes { bulk: true, metrics: true, ..EnabledRoutes::default() };
        let bulk = Routes::new(&mounts, enabled);
        assert_eq!(bulk.find("/registrations"), Some(Route::Bulk));
        assert_eq!((routes.find("/metrics"), bulk.find("/metrics")), (None, Some(Route::Metrics)));
        for path in ["/auth/signup", "/identity/auth/signup", "/api/v1/auth/signup/"] {
            assert_eq!(routes.find(path), Some(Route::Signup(&mounts[0])), "{path}");
        }
        assert_eq!(routes.find("/special/auth/signup"), Some(Route::Signup(&mounts[2])));
        assert_eq!(routes.find("/users/register/"), Some(Route::Signup(&mounts[3])));
        assert!(matches!(routes.find("/users/profile"), Some(Route::Profile(_))));
        for path in ["/", "", "/signups", "/xauth/signup", "/users/register//", "/Signup"] {
            assert_eq!(routes.find(path), None, "{path}");
        }
    }

    #[test]
    fn mount_wins_over_profile() {
        let mounts = [
            with_profile(mount("/api/users/register", false, &[NestedName]), "/api/users/profile"),
            with_profile(mount("/users/register", false, &[FlatName]), "/users/profile"),
            with_profile(mount("/auth/signup", true, &[ErrorCode]), "/auth/profile"),
            with_profile(mount("/profile", false, &[Username]), "/profile"),
        ];
        assert_eq!(profiles(&mounts).len(), 3);
        let routes = Routes::new(&mounts, EnabledRoutes::default());
        for path in
            ["/users/profile", "/api/users/profile/", "/auth/profile", "/identity/auth/profile"]
        {
            assert!(matches!(routes.find(path), Some(Route::Profile(_))), "{path}");
        }
        assert_eq!(routes.find("/profile"), Some(Route::Signup(&mounts[3])));
        for path in ["/api/profile", "/xauth/profile", "/v2/users/profile"] {
            assert_eq!(routes.find(path), None, "{path}");
        }
    }

    #[test]
    fn mount_wins_over_page() {
        let enabled = EnabledRoutes { pages: true, ..EnabledRoutes::default() };
        let is_page = |mounts: &[Mount], path: &str| {
            matches!(Routes::new(mounts, enabled).find(path), Some(Route::Page(_)))
        };
        assert!(is_page(&[], "/") && is_page(&[], "/pages/icon.svg"));
        assert!(!is_page(&[], "/pages") && !is_page(&[], "/pages/router.rs"));
        assert!(!is_page(&[mount("", false, &[Username])], "/"));
        let prefixed = [mount("/icon.svg", true, &[Username])];
        assert!(is_page(&prefixed, "/") && !is_page(&prefixed, "/pages/icon.svg"));
    }
}
