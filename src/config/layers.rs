//! Merges the sources of the settings. Checks that each key exists and that its value has the type of
//! the default, and records where each value came from. The reader interprets the values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::file::BYTE_ORDER_MARK;
use super::redact::{is_secret, redacted};
use super::{Problems, file};

const DEFAULTS: &str = include_str!("../../config.default.toml");

/// Short environment variables, in addition to `MUSTER_<SECTION>_<KEY>`.
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

/// The sources of settings in addition to the defaults.
#[derive(Default)]
pub struct Sources {
    /// The file given with `--config`.
    pub file: Option<PathBuf>,
    /// The environment variables. Those that do not belong to muster are ignored.
    pub environment: Vec<(String, String)>,
    /// The settings made with command-line flags.
    pub flags: Vec<Flag>,
}

/// A setting made with a command-line flag.
#[derive(Clone)]
pub struct Flag {
    /// The flag, such as `--listen`.
    pub name: &'static str,
    /// The key that it sets.
    pub key: &'static str,
    /// The value.
    pub value: String,
}

/// The effective value of a key.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) value: Value,
    /// The variable, flag or place in the file that set the value. `None` for the default.
    pub(super) origin: Option<String>,
}

/// The effective values of all keys (`section.key`).
pub(super) struct Layers(BTreeMap<String, Layer>);

impl Layers {
    /// Merges the sources. In order of increasing precedence: defaults, file, environment, flags.
    pub(super) fn merge(sources: &Sources, problems: &mut Problems) -> Self {
        let defaults = DEFAULTS.parse::<Table>().expect("valid TOML");
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

    /// Returns the effective value of a key.
    pub(super) fn get(&self, key: &str) -> &Layer {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is missing in config.default.toml"))
    }

    /// Returns the effective settings as TOML, with each value as `show` returns it.
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

    /// Returns, for each key, the value as `show` returns it, the environment variables, and the origin
    /// of the value.
    pub(super) fn to_json(&self, show: impl Fn(&str, &Value) -> Value) -> serde_json::Value {
        let described = self.0.iter().map(|(key, layer)| {
            let short = SHORT_NAMES.iter().filter(|(_, short_key)| short_key == key);
            let names: Vec<String> = short.map(|(name, _)| (*name).to_owned()).collect();
            let variable = variable_name(key);
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
                problems.add(format!("{origin}: {error}; --config needs a readable file"));
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
                let (line, column) =
                    line_and_column(&text, error.span().map_or(0, |span| span.start));
                let reason = error.message();
                problems.add(format!("{origin}:{line}:{column}: not valid TOML: {reason}"));
            }
        }
    }

    fn add_environment(&mut self, sources: &Sources, problems: &mut Problems) {
        let mut names: BTreeMap<String, String> =
            self.0.keys().map(|key| (variable_name(key), key.clone())).collect();
        names.extend(SHORT_NAMES.map(|(name, key)| (name.to_owned(), key.to_owned())));
        let mut set: BTreeMap<&String, &String> = BTreeMap::new();
        for (name, text) in &sources.environment {
            let secret = name.strip_suffix("_FILE").and_then(|name| names.get(name));
            let secret = secret.filter(|key| is_secret(key));
            let Some(key) = names.get(name).or(secret) else {
                if name.starts_with("MUSTER_") && !is_service_link(name, text) {
                    problems.add(format!(
                        "{name}: unknown setting; `muster config --json` lists the variables of all \
                         settings"
                    ));
                }
                continue;
            };
            if let Some(other) = set.insert(key, name) {
                problems.add(format!("{other} and {name} both set {key}; remove one of them"));
            }
            if names.contains_key(name) {
                self.set_text(key, text, name.clone(), problems);
            } else {
                match file::read_text(Path::new(text)) {
                    Ok(secret) => self.set_text(key, secret.trim_end(), name.clone(), problems),
                    Err(error) => {
                        let path = printable_path(text).map(|path| format!(" {path}"));
                        let path = path.unwrap_or_default();
                        problems.add(format!("{name}: cannot read the file{path}: {error}"));
                    }
                }
            }
        }
    }

    /// Sets a key from a string, parsed as the type of the key's default.
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
                // A file with several secrets may have one per line.
                let items = text.split([',', '\n']).map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
            }
            _ => Some(Value::String(text.to_owned())),
        };
        match value {
            Some(value) => self.set(key, value, origin, problems),
            None => {
                let value = Value::String(text.to_owned());
                let mismatch = self.type_mismatch(key, &value);
                problems.add(format!("{origin}: {mismatch}"));
            }
        }
    }

    fn set(&mut self, key: &str, value: Value, origin: String, problems: &mut Problems) {
        let Some(layer) = self.0.get_mut(key) else {
            problems.add(format!(
                "{origin}: unknown setting {key}; `muster config` lists all settings"
            ));
            return;
        };
        // Where a float is expected, an integer is valid.
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
            let mismatch = self.type_mismatch(key, &value);
            problems.add(format!("{origin}: {key}: {mismatch}"));
        }
    }

    fn type_mismatch(&self, key: &str, value: &Value) -> String {
        let expected = match &self.get(key).value {
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Array(_) => "a list of strings",
            _ => "a string",
        };
        format!("expected {expected}{}", got(key, value))
    }
}

/// Returns `, got <value>` for the end of an error message; empty for a secret.
pub(super) fn got(key: &str, value: &Value) -> String {
    if is_secret(key) { String::new() } else { format!(", got {}", redacted(key, value)) }
}

/// Whether Kubernetes set a variable. It gives each container variables for the services of the
/// namespace. For a service called `muster` these are `MUSTER_SERVICE_HOST`, `MUSTER_PORT_3000_TCP`,
/// `MUSTER_PORT` and so on. `MUSTER_PORT` could also be an operator's guess at a setting, but
/// Kubernetes sets it to a URL (`tcp://10.0.0.1:3000`).
fn is_service_link(name: &str, text: &str) -> bool {
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
        || (name.ends_with("_PORT") && text.contains("://"))
}

/// Finds an invisible character that an editor or another system's script left in a value. It would
/// become part of a secret, name or path unnoticed.
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

/// Returns the line and column of every key, by the names that [`flatten`] gives.
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

/// Returns the line and column, from 1, of the byte at an offset.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Returns the text if it can be shown as a path in an error. The value may be the secret itself, set
/// by mistake, so it must begin with `./` or an existing top-level directory.
fn printable_path(text: &str) -> Option<&str> {
    let mut components = Path::new(text).components();
    let first: PathBuf = components.by_ref().take(2).collect();
    let has_more = components.next().is_some();
    let is_path = text.starts_with("./") || (has_more && text.starts_with('/') && first.is_dir());
    is_path.then_some(text)
}

/// Returns the environment variable `MUSTER_<SECTION>_<KEY>` of a key.
pub(super) fn variable_name(key: &str) -> String {
    format!("MUSTER_{}", key.replace('.', "_").to_uppercase())
}

/// Turns sections into keys of the form `section.key`.
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
