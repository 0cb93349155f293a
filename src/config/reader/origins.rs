//! `front.cors_origins`: whose pages may read answers.

use url::Url;

use super::SettingsReader;
use crate::config::without_credentials;

impl SettingsReader<'_> {
    pub(super) fn origins(&mut self) -> Option<Vec<String>> {
        let key = "front.cors_origins";
        let origins = self.list(key);
        if origins.len() > 1 && origins.iter().any(|origin| origin == "*") {
            return self.problem(
                key,
                "\"*\" is any origin, without credentials; list origins, or \"*\" alone",
            );
        }
        let other = origins.iter().find(|origin| *origin != "*" && !is_origin(origin));
        let is_login = |other: &String| other.contains('@');
        let shown =
            |other| if is_login(other) { without_credentials(other) } else { other.clone() };
        match other.map(shown) {
            None => Some(origins),
            Some(other) => self.problem(
                key,
                &format!(
                    "{other:?} would never match: browsers send an origin as https://app.example.com or \
                     http://localhost:5173, in small letters, without a path, a slash at the end, or the \
                     port that the scheme has anyway"
                ),
            ),
        }
    }
}

/// Whether a browser would write an origin so (RFC 6454, 6.2).
fn is_origin(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    // A pattern is a host too, to the parser.
    let Some(host) = url.host_str().filter(|host| !host.is_empty() && !host.contains('*')) else {
        return false;
    };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    // The host of a scheme that the standard does not know stays as it was given.
    text == format!("{}://{host}{port}", url.scheme()).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for good in [
            "https://app.example.com",
            "http://localhost:5173",
            "https://[::1]:8443",
            "http://10.0.0.1:443",
            "https://xn--bcher-kva.example",
            "chrome-extension://abcdefghijklmnop",
        ] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "",
            "null",
            "app.example.com",
            "app.example.com:8080",
            "https://",
            "https://app.example.com/",
            "https://app.example.com/path",
            "https://app.example.com?",
            "https://user@app.example.com",
            "https://App.example.com",
            "HTTPS://app.example.com",
            "https://app.example.com:443",
            "http://app.example.com:80",
            "https://*.example.com",
            "https://bücher.example",
            " https://app.example.com",
            "app://Main",
            "file:///home",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
