//! Reads `[trace]`: where spans go.

use super::Reader;
use crate::config::Trace;

impl Reader<'_> {
    /// Outside: could it be read. Inside: is it set.
    pub(super) fn trace(&mut self) -> Option<Option<Trace>> {
        let ratio = self.layers.get("trace.ratio").value.as_float().unwrap_or_default();
        if !(0.0..=1.0).contains(&ratio) {
            self.problem::<()>("trace.ratio", "0 to 1 wanted");
        }
        let mut headers = Vec::new();
        for line in self.list("trace.headers") {
            match line.split_once('=') {
                Some((name, value)) => headers.push((name.trim().to_owned(), value.trim().into())),
                None => self.problem("trace.headers", "NAME=VALUE wanted")?,
            }
        }
        let Some(base) = self.given("trace.endpoint") else { return Some(None) };
        let fits = url::Url::parse(&base).is_ok_and(|url| {
            let has_login = !url.username().is_empty() || url.password().is_some();
            let is_bare = !has_login && url.query().is_none() && url.fragment().is_none();
            ["http", "https"].contains(&url.scheme()) && url.has_host() && is_bare
        });
        if !fits {
            let wanted = "a collector such as http://localhost:4318 or https://… wanted; keys go \
                          into trace.headers";
            return self.problem("trace.endpoint", wanted);
        }
        Some(Some(Trace {
            endpoint: format!("{}/v1/traces", base.trim_end_matches('/')),
            ca_file: self.path("trace.ca_file"),
            headers,
            ratio,
            service: self.text("trace.service"),
        }))
    }
}
