//! Pages for people: files compiled in, and the figures that their scripts ask for. Off unless the
//! settings say so. What a page does it does over the same paths as everybody else.

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

/// Everything from here, nothing inline, framed by nobody.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
);
/// The policy of a page that sends nothing.
const POLICY_OF_TEXT: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'none'; \
     frame-ancestors 'none'; base-uri 'none'",
);
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// What changes is asked for again; an unchanged file answers 304.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");

/// The files and where they are, without a trailing slash.
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

/// What belongs to the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// A file.
    Asset(&'static Asset),
    /// The OpenAPI document, for people.
    Docs,
    /// Where which contract is mounted.
    Mounts,
    /// The figures of the status page.
    Status,
}

/// Finds what is at a path.
pub(super) fn find(path: &str) -> Option<Page> {
    match path {
        "/docs" => Some(Page::Docs),
        "/pages/mounts.json" => Some(Page::Mounts),
        "/status.json" => Some(Page::Status),
        path => ASSETS.iter().find(|asset| asset.path == path).map(Page::Asset),
    }
}

impl Front {
    pub(super) fn page(&self, page: Page, asked: &HeaderMap) -> Response {
        let mut response = match page {
            Page::Asset(asset) => asset.answer(asked),
            Page::Docs => response::bytes(self.docs(), HTML),
            Page::Mounts => response::json(StatusCode::OK, &mounts::listed(&self.settings.mounts)),
            Page::Status => response::json(StatusCode::OK, &status::snapshot(self)),
        };
        let headers = response.headers_mut();
        let policy = if page == Page::Docs { POLICY_OF_TEXT } else { POLICY };
        headers.insert(CONTENT_SECURITY_POLICY, policy);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CACHE_CONTROL, ASK_AGAIN);
        response
    }

    /// Written when it is asked for first.
    fn docs(&self) -> Bytes {
        let write = || Bytes::from(docs::page(&self.specification.document, &self.settings));
        self.docs.get_or_init(write).clone()
    }
}
