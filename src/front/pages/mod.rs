//! The HTML pages: compiled-in files, and the JSON data that their scripts fetch. `front.ui` enables them. The pages use
//! the same public paths as other clients.

mod asset;
mod docs;
mod mounts;
mod status;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};

use super::Front;
use super::response::{self, Response};
use asset::{Asset, html, script, style, svg};

/// Content security policy: only resources of this origin, nothing inline, no frames.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
);
/// The content security policy of a page that sends no requests.
const STATIC_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'none'; \
     frame-ancestors 'none'; base-uri 'none'",
);
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// Browsers revalidate every file; an unchanged one gets a 304.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

/// The files by path, without a trailing slash.
static ASSETS: [Asset; 12] = [
    html("", include_str!("signup.html")),
    html("/status", include_str!("status.html")),
    script("/pages/signup.js", include_str!("signup.js")),
    script("/pages/exchange.js", include_str!("exchange.js")),
    script("/pages/timeline.js", include_str!("timeline.js")),
    script("/pages/status.js", include_str!("status.js")),
    script("/pages/chart.js", include_str!("chart.js")),
    script("/pages/docs.js", include_str!("docs.js")),
    style("/pages/style.css", include_str!("style.css")),
    style("/pages/docs.css", include_str!("docs.css")),
    style("/pages/status.css", include_str!("status.css")),
    svg("/pages/icon.svg", include_str!("icon.svg")),
];

/// A page or a file that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// A compiled-in file.
    Asset(&'static Asset),
    /// The API documentation.
    Docs,
    /// The mounts and contracts for the sign-up page, as JSON.
    Mounts,
    /// The data of the status page, as JSON.
    Status,
}

/// Finds the page or file of a path.
pub(super) fn find(path: &str) -> Option<Page> {
    match path {
        "/docs" => Some(Page::Docs),
        "/pages/mounts.json" => Some(Page::Mounts),
        "/status.json" => Some(Page::Status),
        path => ASSETS.iter().find(|asset| asset.path == path).map(Page::Asset),
    }
}

impl Front {
    pub(super) fn page(&self, page: Page, request: &HeaderMap) -> Response {
        let mut response = match page {
            Page::Asset(asset) => asset.response(request),
            Page::Docs => response::bytes(self.docs(), HTML),
            Page::Mounts => response::json(StatusCode::OK, &mounts::list(&self.settings.mounts)),
            Page::Status => response::json(StatusCode::OK, &status::snapshot(self)),
        };
        let headers = response.headers_mut();
        let policy = if page == Page::Docs { STATIC_POLICY } else { POLICY };
        headers.insert(CONTENT_SECURITY_POLICY, policy);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CACHE_CONTROL, REVALIDATE);
        response
    }

    /// The documentation page, rendered on the first request.
    fn docs(&self) -> Bytes {
        let render = || Bytes::from(docs::page(&self.specification().document, &self.settings));
        self.docs.get_or_init(render).clone()
    }
}
