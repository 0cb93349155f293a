//! Pages for people: files compiled in, and the figures that their scripts ask for. Off unless the
//! settings say so. What a page does it does over the same paths as everybody else.

mod asset;
mod mounts;
mod status;

use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};

use super::Front;
use super::answer::{self, Response};
use asset::{Asset, html, script, style, svg};

/// Everything from here, nothing inline, framed by nobody.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
);
/// What changes is asked for again; an unchanged file answers 304.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");

/// The files and where they are, without a trailing slash.
static ASSETS: [Asset; 8] = [
    html("", include_str!("signup.html")),
    html("/status", include_str!("status.html")),
    script("/pages/signup.js", include_str!("signup.js")),
    script("/pages/exchange.js", include_str!("exchange.js")),
    script("/pages/trip.js", include_str!("trip.js")),
    script("/pages/status.js", include_str!("status.js")),
    style("/pages/style.css", include_str!("style.css")),
    svg("/pages/icon.svg", include_str!("icon.svg")),
];

/// What belongs to the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// A file.
    Asset(&'static Asset),
    /// Where which contract is mounted.
    Mounts,
    /// The figures of the status page.
    Status,
}

/// Finds what is at a path.
pub(super) fn find(path: &str) -> Option<Page> {
    match path {
        "/pages/mounts.json" => Some(Page::Mounts),
        "/status.json" => Some(Page::Status),
        path => ASSETS.iter().find(|asset| asset.path == path).map(Page::Asset),
    }
}

impl Front {
    pub(super) fn page(&self, page: Page, asked: &HeaderMap) -> Response {
        let mut response = match page {
            Page::Asset(asset) => asset.answer(asked),
            Page::Mounts => answer::json(StatusCode::OK, &mounts::listed(&self.settings.mounts)),
            Page::Status => answer::json(StatusCode::OK, &status::told(self)),
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, POLICY);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CACHE_CONTROL, ASK_AGAIN);
        response
    }
}
