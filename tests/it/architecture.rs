//! Architecture rules that the compiler does not check: which module may import which, where each heavy crate is used,
//! and the form of source files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that each top-level module may import, from the inside out. This is the only table of imports; the
/// documentation of the crate and `docs/architecture.md` point to it. An entry that is not used fails the test.
const MAY_IMPORT: [(&str, &[&str]); 14] = [
    ("domain", &[]),
    ("contract", &["domain"]),
    ("config", &["domain"]),
    ("shutdown", &[]),
    ("telemetry", &["domain", "config"]),
    ("rows", &["domain", "contract"]),
    ("queue", &["domain", "contract", "config", "shutdown", "telemetry"]),
    ("store", &["domain", "config", "telemetry"]),
    ("password", &["config"]),
    ("token", &["domain", "config"]),
    ("http_client", &["config"]),
    // Not the store, the hash pool or the signing keys, so that every HTTP request goes through the queue.
    ("front", &["domain", "contract", "config", "shutdown", "telemetry", "rows", "queue"]),
    (
        "worker",
        &[
            "domain",
            "contract",
            "config",
            "shutdown",
            "telemetry",
            "queue",
            "store",
            "password",
            "token",
        ],
    ),
    ("import", &["domain", "contract", "telemetry", "rows", "queue", "store"]),
];

/// The modules that may import all others, because they assemble the program.
const MAY_IMPORT_ALL: [&str; 4] = ["app", "cli", "lib", "main"];

/// Where each heavy crate may be used: prefixes of paths in `src`. An entry that is not used fails the test.
const HOMES: [(&str, &[&str]); 29] = [
    ("async_rs", &["queue/rabbit/amqp/"]),
    ("lapin", &["queue/rabbit/"]),
    ("x509_parser", &["front/validity.rs"]),
    ("percent_encoding", &["cli/doctor/management.rs", "config/reader/trace.rs"]),
    ("mongodb", &["store/mongo/"]),
    ("redb", &["store/redb"]),
    ("hyper", &["front/", "http_client/"]),
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

/// Maximum number of lines of a file without its tests.
const MAX_LINES: usize = 400;

struct Source {
    /// The path relative to `src`, or to the package for a test.
    path: String,
    text: String,
}

impl Source {
    /// The top-level module of the file.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The text without line comments and without the tests at the end.
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
    let mut sources = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(read(root, &path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            sources.push(Source { path, text });
        }
    }
    sources
}

/// The first names of all paths in a text that begin with `crate::`, including groups in braces.
fn crate_imports(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        if code[..start].ends_with(is_word) || code[..start].ends_with('$') {
            continue;
        }
        let rest = &code[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(first_names(group)),
            None => names.extend(first_word(rest)),
        }
    }
    names
}

/// The first name of each path in a group, up to its closing brace.
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

/// Whether a text uses an external crate: `name::…` or `use name;`.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(start, _)| {
        let (before, after) = (&code[..start], &code[start + name.len()..]);
        let is_path = after.starts_with("::") && !before.ends_with("::");
        let is_use = before.ends_with("use ") && after.starts_with([';', ' ']);
        !before.ends_with(is_word) && (is_path || is_use)
    })
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.into_iter().collect();
    let modules = modules();
    let mut unused: BTreeSet<(&str, &str)> = MAY_IMPORT
        .iter()
        .flat_map(|(module, others)| others.iter().map(|other| (*module, *other)))
        .collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module();
        if MAY_IMPORT_ALL.contains(&module) {
            continue;
        }
        let Some(may_import) = allowed.get(module) else {
            wrong.push(format!("{}: {module} is not in MAY_IMPORT", source.path));
            continue;
        };
        for other in crate_imports(&source.code()) {
            unused.retain(|entry| *entry != (module, other.as_str()));
            if modules.contains(&other) && other != module && !may_import.contains(&other.as_str())
            {
                wrong.push(format!("{}: {module} may not import {other}", source.path));
            }
        }
    }
    let unused = unused.into_iter();
    wrong.extend(unused.map(|(module, other)| {
        format!("{module} does not import {other}; remove it from MAY_IMPORT")
    }));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The names of the top-level modules, including `lib` and `main`.
fn modules() -> BTreeSet<String> {
    sources().iter().map(|source| source.module().to_owned()).collect()
}

#[test]
fn crate_documentation_lists_every_module() {
    let text = fs::read_to_string(package().join("src/lib.rs")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | [`"));
    let listed: BTreeSet<String> =
        rows.filter_map(|row| Some(row.split_once("`]")?.0.to_owned())).collect();
    let mut modules = modules();
    modules.retain(|module| module != "lib" && module != "main");
    assert_eq!(listed, modules);
}

/// Directories whose modules may import each other in a cycle, with the reason.
const CYCLES: [(&str, &str); 2] = [
    ("import", "the input opens the reader of its format, and the readers use its types"),
    ("store", "reindex opens the adapter of the URL, and adapters use its types"),
];

/// Whether a file contains only tests.
fn is_test(path: &str) -> bool {
    path.contains("/tests") || path == "queue/rabbit/specification.rs"
}

/// The module path of a file: `queue/rabbit/mod.rs` is `[queue, rabbit]`.
fn module_path(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// The absolute paths in a text that begin with `crate::` or `super::`.
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

/// The imports between the modules of each directory.
fn sibling_imports() -> BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> {
    let sources = sources();
    let modules: BTreeSet<Vec<String>> =
        sources.iter().map(|source| module_path(&source.path)).collect();
    let mut imports: BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !is_test(&source.path)) {
        let module = module_path(&source.path);
        for path in named_paths(&source.code(), &module) {
            let common = module.iter().zip(&path).take_while(|(one, other)| one == other).count();
            // `MAY_IMPORT` covers the top level.
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
fn modules_of_a_directory_do_not_import_each_other_in_a_cycle() {
    let all = sibling_imports();
    assert!(all.len() > 10, "expected the imports of more than 10 directories");
    let mut wrong = Vec::new();
    for (directory, imports) in &all {
        let cycle: Vec<&str> = imports
            .keys()
            .map(String::as_str)
            .filter(|module| reaches(imports, module, module))
            .collect();
        let directory = directory.join("/");
        let is_allowed = CYCLES.iter().any(|(allowed, _)| *allowed == directory);
        match cycle.is_empty() {
            true if is_allowed => {
                wrong.push(format!("{directory} has no cycle; remove it from CYCLES"))
            }
            false if !is_allowed => wrong.push(format!("{directory}: {}", cycle.join(", "))),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn heavy_crates_are_used_only_in_their_homes() {
    let mut unused: BTreeSet<(&str, &str)> =
        HOMES.iter().flat_map(|(name, homes)| homes.iter().map(|home| (*name, *home))).collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let code = source.code();
        for (name, homes) in HOMES.iter().filter(|(name, _)| names_crate(&code, name)) {
            let home = homes.iter().find(|home| source.path.starts_with(**home));
            match home {
                Some(home) => _ = unused.remove(&(*name, *home)),
                None => {
                    wrong.push(format!("{}: {name} may be used only in {homes:?}", source.path))
                }
            }
        }
    }
    let unused = unused.into_iter();
    wrong.extend(
        unused.map(|(name, home)| {
            format!("{name} is not used in {home}; remove the entry from HOMES")
        }),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_begins_with_a_doc_comment() {
    let tests = read(&package(), &package().join("tests"));
    for source in sources().into_iter().chain(tests) {
        let first = source.text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{} begins with {first:?}", source.path);
    }
}

#[test]
fn files_do_not_exceed_the_maximum_length() {
    for source in sources() {
        let lines = source.code().lines().count();
        assert!(lines <= MAX_LINES, "{}: {lines} lines without its tests", source.path);
    }
}

#[test]
fn imports_and_crates_are_recognized() {
    let module = ["queue", "rabbit", "amqp"].map(str::to_owned);
    let code = "use super::{a::B, c::{d, E}};\nsuper::super::f::g(crate::front::H)";
    let paths: Vec<String> = named_paths(code, &module).iter().map(|path| path.join("/")).collect();
    let expected =
        ["front/H", "queue/rabbit/a/B", "queue/rabbit/c/d", "queue/rabbit/c/E", "queue/f/g"];
    assert_eq!(paths, expected);
    let code = "use crate::queue::{Call, crate_x};\nuse crate::{config, store::{self, Conflicts}};\n\
        fn a(b: crate::domain::Millis) {} // crate::front\n$crate::macros;";
    let source = Source { path: "x.rs".into(), text: code.into() };
    assert_eq!(crate_imports(&source.code()), ["queue", "config", "store", "domain"]);
    assert!(names_crate("use hyper::Request;", "hyper"));
    assert!(names_crate("a: Option<redb::Database>", "redb"));
    assert!(names_crate("use clap;", "clap"));
    for other in ["use hyper_util::rt;", "\"mongodb://host\"", "self::hyper::x", "muster.redb"] {
        for (name, _) in HOMES {
            assert!(!names_crate(other, name), "{name} in {other}");
        }
    }
}
