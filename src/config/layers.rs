//! Lays the sources over each other: which keys there are, where each value came from, and whether
//! it has the type of its default. What the values mean is the reader's business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::file::BYTE_ORDER_MARK;
use super::{Problems, file};

const DEFAULTS: &str = include_str!("../../config.default.toml");

/// Short names of common keys in the environment.
const SHORT_NAMES: [(&str, &str); 18] = [
    ("MUSTER_LISTEN", "front.listen"),
    ("MUSTER_QUEUE", "queue.url"),
    ("MUSTER_STORE", "store.url"),
    ("JWT_SECRET", "token.secret"),
    ("MUSTER_BCRYPT_COST", "password.cost"),
    ("MUSTER_ALLOW_WEAK_COST", "password.allow_weak_cost"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "trace.endpoint"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "trace.traces_endpoint"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "trace.headers"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "trace.headers"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "trace.ca_file"),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "trace.ca_file"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "trace.protocol"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "trace.protocol"),
    ("OTEL_SDK_DISABLED", "trace.disabled"),
    ("OTEL_TRACES_SAMPLER", "trace.sampler"),
    ("OTEL_TRACES_SAMPLER_ARG", "trace.sample_ratio"),
    ("OTEL_SERVICE_NAME", "trace.service_name"),
];

/// Keys whose values are never shown, and may come from a file.
const SECRETS: [&str; 6] = [
    "front.bulk_api_key",
    "queue.seal_private_keys",
    "queue.url",
    "store.url",
    "token.secret",
    "trace.headers",
];

/// Where settings come from besides the defaults.
#[derive(Default)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// The environment; names that are not muster's are ignored.
    pub environment: Vec<(String, String)>,
    /// Keys that the command line sets, by the names of its flags.
    pub flags: Vec<Flag>,
}

/// A setting made on the command line.
#[derive(Clone)]
pub struct Flag {
    /// Its name, as `--listen`.
    pub name: &'static str,
    /// What it sets.
    pub key: &'static str,
    /// To what.
    pub value: String,
}

/// A value and where it came from.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) value: Value,
    /// Nothing for the default.
    pub(super) origin: Option<String>,
}

/// The effective value of every key, as `section.key`.
pub(super) struct Layers(BTreeMap<String, Layer>);

impl Layers {
    pub(super) fn merge(sources: &Sources, problems: &mut Problems) -> Self {
        let defaults = DEFAULTS.parse::<Table>().expect("the compiled-in defaults are TOML");
        let keys = flatten(defaults)
            .into_iter()
            .map(|(key, value)| (key, Layer { value, origin: None }))
            .collect();
        let mut layers = Self(keys);
        layers.add_file(sources, problems);
        layers.add_environment(sources, problems);
        for Flag { name, key, value } in &sources.flags {
            layers.set_text(key, value, (*name).to_owned(), problems);
        }
        layers
    }

    pub(super) fn get(&self, key: &str) -> &Layer {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is missing in config.default.toml"))
    }

    /// The effective settings, top-level keys first, `show` deciding how each value looks.
    pub(super) fn to_toml(&self, show: impl Fn(&str, &Value) -> Value) -> String {
        let mut root = Table::new();
        for (key, layer) in &self.0 {
            let value = show(key, &layer.value);
            match key.split_once('.') {
                None => root.insert(key.clone(), value),
                Some((section, key)) => root
                    .entry(section)
                    .or_insert_with(|| Value::Table(Table::new()))
                    .as_table_mut()
                    .and_then(|section| section.insert(key.to_owned(), value)),
            };
        }
        root.to_string()
    }

    /// Every setting by its key: its value as `show` has it, its environment variables, and where its value comes
    /// from.
    pub(super) fn to_json(&self, show: impl Fn(&str, &Value) -> Value) -> serde_json::Value {
        let described = self.0.iter().map(|(key, layer)| {
            let short = SHORT_NAMES.iter().filter(|(_, of)| of == key);
            let names: Vec<String> = short.map(|(name, _)| (*name).to_owned()).collect();
            let variable = long_name(key);
            let all = std::iter::once(&variable).chain(&names);
            let files: Vec<String> = if is_secret(key) {
                all.map(|name| format!("{name}_FILE")).collect()
            } else {
                Vec::new()
            };
            let others = [names, files].concat();
            let described = json!({
                "value": show(key, &layer.value),
                "variable": variable,
                "other_variables": others,
                "from": layer.origin.as_deref().unwrap_or("default"),
            });
            (key.clone(), described)
        });
        described.collect::<serde_json::Map<_, _>>().into()
    }

    fn add_file(&mut self, sources: &Sources, problems: &mut Problems) {
        let Some(path) = &sources.file else { return };
        let origin = path.display().to_string();
        let text = match file::read_text(path) {
            Ok(text) => text,
            Err(error) => {
                problems.add(format!("{origin}: {error}; give --config a file that can be read"));
                return;
            }
        };
        match text.parse::<Table>() {
            Ok(table) => {
                let positions = key_positions(&text);
                for (key, value) in flatten(table) {
                    let at = positions.get(&key).map_or(origin.clone(), |(line, column)| {
                        format!("{origin}:{line}:{column}")
                    });
                    self.set(&key, value, at, problems);
                }
            }
            Err(error) => {
                let (line, column) = line_and_column(&text, error.span().map_or(0, |span| span.start));
                let wrong = error.message();
                problems.add(format!("{origin}:{line}:{column}: not TOML: {wrong}"));
            }
        }
    }

    fn add_environment(&mut self, sources: &Sources, problems: &mut Problems) {
        let mut names: BTreeMap<String, String> =
            self.0.keys().map(|key| (long_name(key), key.clone())).collect();
        names.extend(SHORT_NAMES.map(|(name, key)| (name.to_owned(), key.to_owned())));
        let mut set: BTreeMap<&String, &String> = BTreeMap::new();
        for (name, text) in &sources.environment {
            let secret = name.strip_suffix("_FILE").and_then(|name| names.get(name));
            let secret = secret.filter(|key| is_secret(key));
            let Some(key) = names.get(name).or(secret) else {
                if name.starts_with("MUSTER_") && !is_service_link(name, text) {
                    problems.add(format!(
                        "{name}: no such setting; `muster config` lists them all as \
                         MUSTER_<SECTION>_<KEY>"
                    ));
                }
                continue;
            };
            if let Some(other) = set.insert(key, name) {
                problems.add(format!("{other} and {name} are the same setting; keep one of them"));
            }
            if names.contains_key(name) {
                self.set_text(key, text, name.clone(), problems);
            } else {
                match file::read_text(Path::new(text)) {
                    Ok(secret) => self.set_text(key, secret.trim_end(), name.clone(), problems),
                    Err(error) => {
                        let named = shown_path(text).map(|path| format!(" ({path})"));
                        let named = named.unwrap_or_default();
                        problems.add(format!(
                            "{name}: the file it names{named} cannot be read: {error}"
                        ));
                    }
                }
            }
        }
    }

    /// Sets a key from a text, read as the type its default has.
    fn set_text(&mut self, key: &str, text: &str, origin: String, problems: &mut Problems) {
        let value = match &self.get(key).value {
            Value::Integer(_) => text.parse().map(Value::Integer).ok(),
            Value::Float(_) => text.parse().map(Value::Float).ok(),
            Value::Boolean(_) => match &*text.to_ascii_lowercase() {
                "1" | "true" => Some(Value::Boolean(true)),
                "0" | "false" | "" => Some(Value::Boolean(false)),
                _ => None,
            },
            Value::Array(_) => {
                // One a line is how a file of secrets may list them.
                let items = text.split([',', '\n']).map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
            }
            _ => Some(Value::String(text.to_owned())),
        };
        match value {
            Some(value) => self.set(key, value, origin, problems),
            None => problems.add(format!("{origin}: {} wanted", self.expected_type(key))),
        }
    }

    fn set(&mut self, key: &str, value: Value, origin: String, problems: &mut Problems) {
        let Some(layer) = self.0.get_mut(key) else {
            problems
                .add(format!("{origin}: no such setting: {key}; `muster config` lists them all"));
            return;
        };
        // A whole number is a number too.
        let value = match (&layer.value, value) {
            (Value::Float(_), Value::Integer(whole)) => Value::Float(whole as f64),
            (_, value) => value,
        };
        if let Some(flaw) = invisible_flaw(&value) {
            problems.add(format!("{key}: {flaw} (from {origin})"));
        }
        if layer.value.same_type(&value) {
            *layer = Layer { value, origin: Some(origin) };
        } else {
            problems.add(format!("{origin}: {key}: {} wanted", self.expected_type(key)));
        }
    }

    fn expected_type(&self, key: &str) -> &'static str {
        match &self.get(key).value {
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Array(_) => "a list of texts",
            _ => "a text",
        }
    }
}

/// Kubernetes tells every container where each service of its namespace is; for one called `muster`
/// in variables such as `MUSTER_SERVICE_HOST`, `MUSTER_PORT_3000_TCP` and `MUSTER_PORT`, which nobody set. The
/// last could also be somebody's guess at a setting; Kubernetes gives it a URL, `tcp://10.0.0.1:3000`.
fn is_service_link(name: &str, text: &str) -> bool {
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
        || (name.ends_with("_PORT") && text.contains("://"))
}

/// What an editor or a script of another system left at the end or the start of a value. It would
/// become part of a secret, a name or a path without being seen.
fn invisible_flaw(value: &Value) -> Option<&'static str> {
    match value {
        Value::String(text) if text.starts_with(BYTE_ORDER_MARK) => {
            Some("begins with a byte order mark; save the file without one")
        }
        Value::String(text) if text.contains('\r') => {
            Some("contains a carriage return; save the file with Unix line ends")
        }
        Value::String(text) if text.contains(char::REPLACEMENT_CHARACTER) => Some("is not UTF-8"),
        Value::String(text) if text.contains('\0') => Some("contains a zero byte"),
        Value::Array(items) => items.iter().find_map(invisible_flaw),
        _ => None,
    }
}

/// Line and column of every key, under the names that [`flatten`] gives.
fn key_positions(text: &str) -> BTreeMap<String, (usize, usize)> {
    let mut found = BTreeMap::new();
    let Ok(table) = DeTable::parse(text) else { return found };
    for (key, value) in table.get_ref() {
        found.insert(key.get_ref().to_string(), line_and_column(text, key.span().start));
        if let DeValue::Table(section) = value.get_ref() {
            for inner in section.keys() {
                let name = format!("{}.{}", key.get_ref(), inner.get_ref());
                found.insert(name, line_and_column(text, inner.span().start));
            }
        }
    }
    found
}

/// Line and column, from 1, of a byte in a text.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// A path to name in an error. The value may be the secret itself, set by mistake: only what begins with
/// an existing folder is shown.
fn shown_path(text: &str) -> Option<&str> {
    let mut components = Path::new(text).components();
    let first: PathBuf = components.by_ref().take(2).collect();
    let has_more = components.next().is_some();
    let is_path = text.starts_with("./") || (has_more && text.starts_with('/') && first.is_dir());
    is_path.then_some(text)
}

/// Whether a key's value is never shown.
pub(super) fn is_secret(key: &str) -> bool {
    SECRETS.contains(&key)
}

/// The environment's name of a key.
pub(super) fn long_name(key: &str) -> String {
    format!("MUSTER_{}", key.replace('.', "_").to_uppercase())
}

fn flatten(table: Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(section) => {
                flat.extend(
                    section.into_iter().map(|(inner, value)| (format!("{key}.{inner}"), value)),
                );
            }
            value => flat.push((key, value)),
        }
    }
    flat
}
