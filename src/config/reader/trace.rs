//! Reads `[trace]`: the collector that spans are sent to, and sampling.

use percent_encoding::percent_decode_str;
use secrecy::SecretString;

use super::SettingsReader;
use crate::config::{RootSampler, Sampler, TraceSettings};

/// The path for traces below a collector's base URL (OTLP 1.0, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";

/// The supported samplers of OpenTelemetry.
const SAMPLERS: [(&str, Sampler); 6] = [
    ("always_on", sampler(false, RootSampler::AlwaysOn)),
    ("always_off", sampler(false, RootSampler::AlwaysOff)),
    ("traceidratio", sampler(false, RootSampler::Ratio)),
    ("parentbased_always_on", sampler(true, RootSampler::AlwaysOn)),
    ("parentbased_always_off", sampler(true, RootSampler::AlwaysOff)),
    ("parentbased_traceidratio", sampler(true, RootSampler::Ratio)),
];

const fn sampler(parent_based: bool, root: RootSampler) -> Sampler {
    Sampler { parent_based, root }
}

impl SettingsReader<'_> {
    /// Returns `None` after an error, and `Some(None)` if no collector is set.
    pub(super) fn trace(&mut self) -> Option<Option<TraceSettings>> {
        let ratio = self.layers.get("trace.sample_ratio").value.as_float().unwrap_or_default();
        if !(0.0..=1.0).contains(&ratio) {
            self.expected::<()>("trace.sample_ratio", "0 to 1");
        }
        let sampler = self.choice("trace.sampler", &SAMPLERS);
        self.choice("trace.protocol", &[("http/protobuf", ())])?;
        let headers = self.trace_headers();
        let exact =
            self.non_empty_text("trace.traces_endpoint").map(|url| ("trace.traces_endpoint", url));
        let base = self.non_empty_text("trace.endpoint").map(|url| ("trace.endpoint", url));
        let Some((key, url)) = exact.or(base).filter(|_| !self.flag("trace.disabled")) else {
            return Some(None);
        };
        let is_valid = url::Url::parse(&url).is_ok_and(|url| {
            let has_login = !url.username().is_empty() || url.password().is_some();
            let is_bare = !has_login && url.query().is_none() && url.fragment().is_none();
            ["http", "https"].contains(&url.scheme()) && url.has_host() && is_bare
        });
        if !is_valid {
            let expected = "an http:// or https:// URL without credentials, query and fragment (API keys \
                            belong in trace.headers)";
            return self.expected(key, expected);
        }
        let base = url.trim_end_matches('/');
        let endpoint = match key {
            "trace.endpoint" if !base.ends_with(PATH) => format!("{base}{PATH}"),
            "trace.endpoint" => base.to_owned(),
            _ => url,
        };
        Some(Some(TraceSettings {
            endpoint,
            ca_file: self.path("trace.ca_file"),
            headers: headers?,
            sampler: sampler?,
            sample_ratio: ratio,
            service_name: self.text("trace.service_name"),
        }))
    }

    fn trace_headers(&mut self) -> Option<Vec<(String, SecretString)>> {
        let key = "trace.headers";
        // OpenTelemetry's variables have percent-encoded values.
        let origin = &self.layers.get(key).origin;
        let encoded = origin.as_ref().is_some_and(|origin| origin.starts_with("OTEL_"));
        let mut headers = Vec::new();
        for line in self.list(key) {
            let Some((name, value)) = line.split_once('=') else {
                return self.problem(key, "expected NAME=VALUE");
            };
            let value = value.trim();
            let value = match encoded {
                true => match percent_decode_str(value).decode_utf8() {
                    Ok(value) => value.into_owned(),
                    Err(_) => return self.problem(key, "a value is not percent-encoded UTF-8"),
                },
                false => value.to_owned(),
            };
            headers.push((name.trim().to_owned(), value.into()));
        }
        Some(headers)
    }
}
