//! Reads `front.cors_origins`: the origins whose pages may read responses.

use url::Url;

use super::SettingsReader;
use crate::config::without_credentials;

impl SettingsReader<'_> {
    pub(super) fn origins(&mut self) -> Option<Vec<String>> {
        let key = "front.cors_origins";
        let origins = self.list(key);
        if origins.len() > 1 && origins.iter().any(|origin| origin == "*") {
            return self
                .problem(key, "\"*\" (any origin, without credentials) must be the only entry");
        }
        let invalid = origins.iter().find(|origin| *origin != "*" && !is_origin(origin));
        let has_login = |origin: &String| origin.contains('@');
        let shown =
            |origin| if has_login(origin) { without_credentials(origin) } else { origin.clone() };
        match invalid.map(shown) {
            None => Some(origins),
            Some(invalid) => self.problem(
                key,
                &format!(
                    "{invalid:?} would never match; expected an origin as browsers send it, such as \
                     https://app.example.com or http://localhost:5173: lower case, without path, \
                     trailing slash or default port"
                ),
            ),
        }
    }
}

/// Whether a string is an origin as browsers serialize it (RFC 6454, 6.2).
fn is_origin(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    // The URL parser accepts a pattern such as *.example.com as a host.
    let Some(host) = url.host_str().filter(|host| !host.is_empty() && !host.contains('*')) else {
        return false;
    };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    // The parser does not convert the host to lower case for schemes that the URL standard does not list.
    text == format!("{}://{host}{port}", url.scheme()).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serialized_origins_are_accepted() {
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
