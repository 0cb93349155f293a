//! The house rules that a compiler does not know: which module may see which, where each heavy crate
//! lives, and that every file says what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Who may see whom, from the inside out. A module sees itself and those listed here; what is not
/// listed at all sees nobody.
const MAY_SEE: [(&str, &[&str]); 14] = [
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
    ("http_client", &["config"]),
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
    ("hyper", &["front/", "http_client/", "app.rs"]),
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
    ("opentelemetry_http", &["telemetry/export.rs", "http_client/collector.rs"]),
    ("opentelemetry_otlp", &["telemetry/export.rs"]),
    ("opentelemetry_sdk", &["telemetry/trace.rs", "telemetry/export.rs"]),
    ("pkcs8", &["token/"]),
    ("ring", &["token/", "front/", "http_client/"]),
    ("tokio_rustls", &["front/", "http_client/"]),
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

/// Directories in which modules may import each other in a circle, and why.
const CIRCLES: [(&str, &str); 2] = [
    ("import", "the input opens the cutter of its format"),
    ("store", "reindex opens the adapter of the URL, and adapters use its types"),
];

/// Whether a file has only tests.
fn is_test(path: &str) -> bool {
    path.contains("/tests") || path == "queue/rabbit/specification.rs"
}

/// The module path of a file: `queue/rabbit/mod.rs` is `[queue, rabbit]`.
fn module_path(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// The absolute paths that a text names through `crate::` and `super::`, each as far as it is written.
fn named_paths(code: &str, module: &[String]) -> Vec<Vec<String>> {
    let mut named = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(|c| is_word(c) || c == ':' || c == '$') {
                continue;
            }
            let (mut base, mut rest) = (Vec::new(), &code[at..]);
            if let Some(below) = rest.strip_prefix("crate::") {
                rest = below;
            } else {
                base = module.to_vec();
                while let Some(below) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = below;
                }
            }
            expand(&base, rest, &mut named);
        }
    }
    named
}

/// Adds the paths of `a::b::{c, d::e}` below `base`.
fn expand(base: &[String], text: &str, named: &mut Vec<Vec<String>>) {
    let Some(group) = text.strip_prefix('{') else {
        let Some(word) = first_word(text) else { return };
        let mut path = base.to_vec();
        let rest = &text[word.len()..];
        path.push(word);
        match rest.strip_prefix("::") {
            Some(rest) => expand(&path, rest, named),
            None => named.push(path),
        }
        return;
    };
    let (mut depth, mut from) = (0, 0);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                expand(base, group[from..at].trim_start(), named);
                if character == '}' {
                    return;
                }
                from = at + 1;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
}

/// For each directory the imports between its modules.
fn sibling_imports() -> BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> {
    let sources = sources();
    let modules: BTreeSet<Vec<String>> =
        sources.iter().map(|source| module_path(&source.path)).collect();
    let mut imports: BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !is_test(&source.path)) {
        let module = module_path(&source.path);
        for path in named_paths(&source.code(), &module) {
            let common = module.iter().zip(&path).take_while(|(one, other)| one == other).count();
            // The top level has a table of its own.
            if common == 0 || common >= module.len() || common >= path.len() {
                continue;
            }
            if modules.contains(&path[..=common]) {
                let siblings = imports.entry(module[..common].to_vec()).or_default();
                siblings.entry(module[common].clone()).or_default().insert(path[common].clone());
            }
        }
    }
    imports
}

/// Whether `to` can be reached from `from`.
fn reaches(imports: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for next in imports.get(module).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    false
}

#[test]
fn no_modules_of_a_directory_import_each_other_in_a_circle() {
    let all = sibling_imports();
    assert!(all.len() > 10, "is this test blind?");
    let mut wrong = Vec::new();
    for (directory, imports) in &all {
        let circle: Vec<&str> = imports
            .keys()
            .map(String::as_str)
            .filter(|module| reaches(imports, module, module))
            .collect();
        let directory = directory.join("/");
        let is_allowed = CIRCLES.iter().any(|(allowed, _)| *allowed == directory);
        match circle.is_empty() {
            true if is_allowed => {
                wrong.push(format!("{directory}: no circle; strike it from CIRCLES"))
            }
            false if !is_allowed => wrong.push(format!("{directory}: {}", circle.join(", "))),
            _ => {}
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
    let module = ["queue", "rabbit", "link"].map(str::to_owned);
    let code = "use super::{a::B, c::{d, E}};\nsuper::super::f::g(crate::front::H)";
    let paths: Vec<String> = named_paths(code, &module).iter().map(|path| path.join("/")).collect();
    let expected =
        ["front/H", "queue/rabbit/a/B", "queue/rabbit/c/d", "queue/rabbit/c/E", "queue/f/g"];
    assert_eq!(paths, expected);
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
