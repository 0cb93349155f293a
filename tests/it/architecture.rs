//! The house rules that a compiler does not know: which module may see which, where each heavy crate
//! lives, and that every file says what it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may see whom, from the inside out. A module sees itself and those listed here; what is not
/// listed at all sees nobody.
const MAY_SEE: [(&str, &[&str]); 13] = [
    ("signup", &[]),
    ("contract", &["signup"]),
    ("config", &["signup"]),
    ("shutdown", &["signup"]),
    ("telemetry", &["signup", "config"]),
    ("rows", &["signup", "contract"]),
    ("queue", INNER),
    ("store", INNER),
    ("password", INNER),
    ("token", INNER),
    // Never the store, a hash or a signing key: whoever comes in over HTTP goes through the queue.
    ("front", &["signup", "contract", "config", "shutdown", "telemetry", "rows", "queue"]),
    ("worker", BELOW),
    (
        "import",
        &["signup", "contract", "config", "shutdown", "telemetry", "rows", "queue", "store"],
    ),
];

const INNER: &[&str] = &["signup", "contract", "config", "shutdown", "telemetry"];
const BELOW: &[&str] = &[
    "signup",
    "contract",
    "config",
    "shutdown",
    "telemetry",
    "queue",
    "store",
    "password",
    "token",
];

/// They put the parts together, so they see everything.
const EVERYTHING: [&str; 4] = ["app", "cli", "lib", "main"];

/// Where each heavy crate may be named: paths under `src` that begin so.
const HOMES: [(&str, &[&str]); 29] = [
    ("async_rs", &["queue/rabbit/amqp/"]),
    ("lapin", &["queue/rabbit/"]),
    ("x509_parser", &["front/validity.rs"]),
    ("percent_encoding", &["cli/doctor/management.rs", "config/reader/trace.rs"]),
    ("mongodb", &["store/mongo/"]),
    ("redb", &["store/embedded"]),
    // `app` names the type of a request, to hand it from the listener to the front.
    ("hyper", &["front/", "app.rs"]),
    ("prometheus", &["telemetry/"]),
    ("bcrypt", &["password/"]),
    ("bcrypt_lanes", &["password/"]),
    ("jsonwebtoken", &["token/"]),
    ("validator", &["contract/"]),
    ("crypto_box", &["queue/seal.rs"]),
    ("clap", &["cli/", "main.rs"]),
    ("encoding_rs", &["import/encoding.rs"]),
    ("clap_complete", &["cli/manual.rs"]),
    ("clap_mangen", &["cli/manual.rs"]),
    ("rcgen", &["cli/cert.rs"]),
    ("rpassword", &["cli/signup.rs"]),
    ("opentelemetry", &["telemetry/trace.rs", "telemetry/export.rs"]),
    ("opentelemetry_http", &["telemetry/export.rs", "front/collector.rs"]),
    ("opentelemetry_otlp", &["telemetry/export.rs"]),
    ("opentelemetry_sdk", &["telemetry/trace.rs", "telemetry/export.rs"]),
    ("pkcs8", &["token/"]),
    ("ring", &["token/", "front/"]),
    ("tokio_rustls", &["front/"]),
    ("governor", &["front/limits/"]),
    ("lru", &["front/limits/"]),
    ("maud", &["front/pages/docs"]),
];

/// Lines without tests; beyond, a file has more than one thing to say.
const LINES_MAX: usize = 400;

struct Source {
    /// Relative to `src`, or to the package for a test.
    path: String,
    text: String,
}

impl Source {
    /// The top-level module it belongs to.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The text without line comments and without the tests at its end.
    fn code(&self) -> String {
        let lines = self.text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
        lines.map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
    }
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    read(&package().join("src"), &package().join("src"))
}

fn read(root: &Path, directory: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(read(root, &path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push(Source { path, text });
        }
    }
    found
}

/// The top-level modules that a text reaches through `crate::`, groups in braces included.
fn seen(code: &str) -> Vec<String> {
    let mut seen = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        if code[..start].ends_with(is_word) || code[..start].ends_with('$') {
            continue;
        }
        let rest = &code[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => seen.extend(first_names(group)),
            None => seen.extend(first_word(rest)),
        }
    }
    seen
}

/// The first name of each path in a group, up to the brace that closes it.
fn first_names(group: &str) -> Vec<String> {
    let (mut names, mut depth, mut at_start) = (Vec::new(), 0, true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            _ if at_start && is_word(character) => {
                names.extend(first_word(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|character| is_word(*character)).collect();
    (!word.is_empty()).then_some(word)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Whether a text names an external crate: `name::…` or `use name;`.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(start, _)| {
        let (before, after) = (&code[..start], &code[start + name.len()..]);
        let is_path = after.starts_with("::") && !before.ends_with("::");
        let is_use = before.ends_with("use ") && after.starts_with([';', ' ']);
        !before.ends_with(is_word) && (is_path || is_use)
    })
}

#[test]
fn modules_see_only_what_lies_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_SEE.into_iter().collect();
    let modules: Vec<String> = sources().iter().map(|source| source.module().to_owned()).collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module();
        if EVERYTHING.contains(&module) {
            continue;
        }
        let Some(may_see) = allowed.get(module) else {
            wrong.push(format!("{}: {module} is not in the table", source.path));
            continue;
        };
        for other in seen(&source.code()) {
            if modules.contains(&other) && other != module && !may_see.contains(&other.as_str()) {
                wrong.push(format!("{}: {module} may not see {other}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_heavy_crate_has_one_home() {
    let mut wrong = Vec::new();
    for source in sources() {
        let code = source.code();
        for (name, homes) in HOMES {
            let at_home = homes.iter().any(|home| source.path.starts_with(home));
            if names_crate(&code, name) && !at_home {
                wrong.push(format!("{}: {name} belongs in {homes:?}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, _) in HOMES {
        let used = sources().iter().any(|source| names_crate(&source.code(), name));
        assert!(used, "{name} is used nowhere: is this test blind?");
    }
}

#[test]
fn every_file_says_what_it_is() {
    let tests = read(&package(), &package().join("tests"));
    for source in sources().into_iter().chain(tests) {
        let first = source.text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{} opens with {first:?}", source.path);
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    for source in sources() {
        let lines = source.code().lines().count();
        assert!(lines <= LINES_MAX, "{}: {lines} lines without its tests", source.path);
    }
}

#[test]
fn this_test_can_see() {
    let code = "use crate::queue::{Call, crate_x};\nuse crate::{config, store::{self, Taken}};\n\
        fn a(b: crate::signup::Millis) {} // crate::front\n$crate::macros;";
    let source = Source { path: "x.rs".into(), text: code.into() };
    assert_eq!(seen(&source.code()), ["queue", "config", "store", "signup"]);
    assert!(names_crate("use hyper::Request;", "hyper"));
    assert!(names_crate("a: Option<redb::Database>", "redb"));
    assert!(names_crate("use clap;", "clap"));
    for other in ["use hyper_util::rt;", "\"mongodb://host\"", "self::hyper::x", "muster.redb"] {
        for (name, _) in HOMES {
            assert!(!names_crate(other, name), "{name} in {other}");
        }
    }
}
