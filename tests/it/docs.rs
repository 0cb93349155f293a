//! Checks what documents refer to: tests, links, settings and metrics.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(package().join(path)).unwrap()
}

/// Paths below a folder of the package that end so, relative to the package.
fn files(folder: &str, end: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(package().join(folder)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("{folder}/{name}");
        if package().join(&path).is_dir() {
            found.extend(files(&path, end));
        } else if name.ends_with(end) {
            found.push(path);
        }
    }
    found
}

/// Every document: its path and its text.
fn documents() -> Vec<(String, String)> {
    let mut paths = files("docs", ".md");
    paths.extend(files("crates", ".md"));
    paths.extend(
        ["README", "CHANGELOG", "CONTRIBUTING", "SECURITY"].map(|name| format!("{name}.md")),
    );
    assert!(paths.len() > 15, "only {paths:?}");
    paths.into_iter().map(|path| (path.clone(), text(&path))).collect()
}

/// What stands between backticks on a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// Module paths of the files below a folder, and the text of each: `queue/rabbit/mod.rs` is `queue::rabbit`.
fn modules(folder: &str) -> Vec<(String, String)> {
    let modules = files(folder, ".rs").into_iter().map(|path| {
        let module = path.strip_prefix(folder).unwrap().trim_matches('/').trim_end_matches(".rs");
        (module.trim_end_matches("/mod").replace('/', "::"), text(&path))
    });
    modules.collect()
}

/// Whether a module exists and has tests, itself or below it, or a module has the test `function`.
fn has_test(modules: &[(String, String)], name: &str) -> bool {
    let below = |path: &str, module: &str| {
        path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let has_tests = |text: &str| text.contains("#[test]") || text.contains("#[tokio::test");
    let module = name.trim_end_matches("::");
    if modules.iter().any(|(path, text)| below(path, module) && has_tests(text)) {
        return true;
    }
    let Some((module, function)) = name.rsplit_once("::") else { return false };
    // A golden file's test is a line of a macro: `idempotency: "idempotency.json",`.
    let declarations = [format!("fn {function}("), format!(" {function}: \"{function}.json\"")];
    modules.iter().any(|(path, text)| {
        below(path, module) && declarations.iter().any(|declaration| text.contains(declaration))
    })
}

#[test]
fn tests_named_in_tables_exist() {
    let (unit, integration) = (modules("src"), modules("tests/it"));
    let (mut missing, mut named) = (Vec::new(), 0);
    for (path, text) in documents() {
        for line in text.lines().filter(|line| line.starts_with('|')) {
            for name in quoted(line.trim_end_matches(" |").rsplit(" | ").next().unwrap()) {
                let is_path = name.contains("::") && !name.contains(' ');
                if !is_path {
                    continue;
                }
                named += 1;
                let is_unit = line.contains("(unit)") && has_test(&unit, name);
                if !is_unit && !has_test(&integration, name) {
                    missing.push(format!("{path}: there is no test {name}"));
                }
            }
        }
    }
    assert!(named > 100, "only {named} tests are named");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn tests_named_in_commands_exist() {
    let modules = modules("tests/it");
    let (mut missing, mut named) = (Vec::new(), 0);
    let functions = |module: &str, part: &str| {
        modules.iter().any(|(path, text)| {
            path.starts_with(module)
                && text.lines().any(|line| {
                    let function = line.trim_start().trim_start_matches("async ");
                    function.strip_prefix("fn ").is_some_and(|name| name.contains(part))
                })
        })
    };
    for (path, text) in documents() {
        for line in text.lines().filter(|line| line.contains("./tests/run")) {
            let words: Vec<&str> = line.split(['`', ' ']).collect();
            for (at, word) in words.iter().enumerate() {
                let after_ignored =
                    at > 0 && words[at - 1] == "--ignored" && !word.starts_with('-');
                if !after_ignored && (!word.contains("::") || word.starts_with('|')) {
                    continue;
                }
                named += 1;
                let (module, part) = word.rsplit_once("::").unwrap_or(("", word));
                if !functions(module, part) {
                    missing.push(format!("{path}: there is no test {word}"));
                }
            }
        }
    }
    assert!(named > 5, "only {named} tests are named");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The anchors that GitHub gives the headings of a document.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let (mut broken, mut followed) = (Vec::new(), 0);
    for (path, text) in documents() {
        let folder = Path::new(&path).parent().unwrap();
        for target in prose(&text).split("](").skip(1) {
            let target = target.split(')').next().unwrap();
            if target.starts_with("https://") || target.starts_with("http://") {
                continue;
            }
            followed += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { PathBuf::from(&path) } else { folder.join(file) };
            let is_there = package().join(&file).exists()
                && (anchor.is_empty()
                    || anchors(&fs::read_to_string(package().join(&file)).unwrap())
                        .contains(anchor));
            if !is_there {
                broken.push(format!("{path}: {target}"));
            }
        }
    }
    assert!(followed > 50, "only {followed} links were followed");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Whether a text is the path of a file or folder of this repository: `worker/settle.rs`, `src/front`.
fn is_path(name: &str) -> bool {
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let first = name.split('/').next().unwrap();
    let is_below = |root: &str| package().join(root).join(first).is_dir();
    let is_folder = name.contains('/') && ["", "src", "tests/it"].into_iter().any(is_below);
    is_plain && !name.starts_with(['/', '.']) && (is_folder || name.ends_with(".rs"))
}

#[test]
fn paths_in_documents_exist() {
    let sources = [files("src", ".rs"), files("tests", ".rs")].concat();
    let (mut missing, mut named) = (Vec::new(), 0);
    for (path, text) in documents() {
        for name in prose(&text).lines().flat_map(quoted) {
            // Made by tools.
            if !is_path(name) || name.starts_with("target") {
                continue;
            }
            named += 1;
            let roots =
                ["", "src", "tests/it", Path::new(&path).parent().unwrap().to_str().unwrap()];
            let exists = |path: PathBuf| path.exists() || path.with_extension("rs").exists();
            let is_there = roots.iter().any(|root| exists(package().join(root).join(name)))
                || sources.iter().any(|source| source.rsplit('/').next() == Some(name));
            if !is_there {
                missing.push(format!("{path}: there is no {name}"));
            }
        }
    }
    assert!(named > 50, "only {named} paths are named");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn settings_in_documents_exist() {
    let defaults: toml::Table = text("config.default.toml").parse().unwrap();
    let (mut unknown, mut named) = (Vec::new(), 0);
    for (path, text) in documents() {
        for name in prose(&text).lines().flat_map(quoted) {
            let name = name.split([' ', '=']).next().unwrap();
            let Some((section, key)) = name.split_once('.') else { continue };
            let Some(section) = defaults.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            named += 1;
            if !section.contains_key(key) {
                unknown.push(format!("{path}: there is no setting {name}"));
            }
        }
    }
    assert!(named > 50, "only {named} settings are named");
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
}

#[test]
fn metrics_in_documents_exist() {
    let metrics = text("docs/metrics.md");
    let metrics: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("| `muster_")?.split('`').next())
        .collect();
    assert!(metrics.len() > 30, "only {} metrics", metrics.len());
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        for (at, _) in text.match_indices("muster_") {
            let is_part =
                text[..at].ends_with(|c: char| c.is_alphanumeric() || "_-/.:".contains(c));
            let name: String = text[at + "muster_".len()..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let is_there =
                metrics.contains(name.as_str()) || base.is_some_and(|base| metrics.contains(base));
            if !is_part && !name.is_empty() && !is_there {
                unknown.push(format!("{path}: there is no metric muster_{name}"));
            }
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
}
