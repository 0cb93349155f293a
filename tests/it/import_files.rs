//! `muster import` with real files: headers, encodings, spreadsheets, conflicting paths, and the output on a terminal.

use std::fs;
use std::process::Stdio;

use muster::domain::ContractId;
use serde_json::Value;

use crate::support::Setup;
use crate::support::importer::{ImportOutput, Importer, import, ndjson, outcomes, reports, user};
use crate::support::secrets::lines_with_secrets;

const HEADER: &str = "email,fullname.firstname,password\n";
const ROW: &str = "ann@example.com,Ann,never-seen-outside-1\n";

fn write(setup: &Setup, name: &str, content: impl AsRef<[u8]>) {
    fs::write(setup.directory().join(name), content).unwrap();
}

fn has(setup: &Setup, name: &str) -> bool {
    setup.directory().join(name).exists()
}

/// An import of `users.csv` for the contract `register`.
async fn import_csv(setup: &Setup, content: impl AsRef<[u8]>, more: &[&str]) -> ImportOutput {
    write(setup, "users.csv", content);
    import(setup, &[&["users.csv", "--contract", "register"], more].concat()).await
}

#[tokio::test]
async fn report_is_replaced_only_with_force() {
    let setup = Setup::embedded();
    let to_report = ["--output", "report.ndjson"];
    let report = || fs::read_to_string(setup.directory().join("report.ndjson")).unwrap();
    let first = import_csv(&setup, [HEADER, ROW].concat(), &to_report).await;
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let before = report();
    let again = import_csv(&setup, [HEADER, ROW].concat(), &to_report).await;
    assert_eq!(again.code, Some(1), "{}", again.stderr);
    assert!(again.stderr.contains("--force") && report() == before, "{}", again.stderr);

    let forced = [&to_report[..], &["--force"]].concat();
    let again = import_csv(&setup, [HEADER, ROW].concat(), &forced).await;
    assert_eq!(again.code, Some(3), "{}", again.stderr);
    assert_eq!(reports(&report())[0]["code"], "duplicate");
    // A file that is not a report is never replaced.
    write(&setup, "report.ndjson", "my notes\n");
    for flags in [&to_report[..], &forced] {
        let refused = import_csv(&setup, [HEADER, ROW].concat(), flags).await;
        assert!(refused.stderr.contains("not a report"), "{}", refused.stderr);
        assert_eq!(report(), "my notes\n");
    }
    let shown = import_csv(&setup, [HEADER, ROW].concat(), &["--output", "-"]).await;
    assert_eq!(reports(&shown.stdout).len(), 1);
    assert!(!has(&setup, "-"));
}

#[tokio::test]
async fn output_and_checkpoint_must_not_be_another_file_in_use() {
    let setup = Setup::embedded();
    let content = [HEADER, ROW].concat();
    // Without and with an existing data file.
    for round in 0..2 {
        let files = ["users.redb", "users.redb.secret", "users.csv"];
        let before = files.map(|name| fs::read(setup.directory().join(name)).ok());
        for (flags, expected) in [
            (&["--output", "users.redb"][..], "the data file"),
            (&["--output", "./users.redb.secret", "--force"], "the signing secret"),
            (&["--output", "users.csv"], "the file to import"),
            (&["--checkpoint", "users.redb"], "the data file"),
            (&["--checkpoint", "users.csv"], "the file to import"),
            (&["--output", "same", "--checkpoint", "./same"], "the checkpoint"),
            (&["--output", "users.csv.checkpoint"], "the checkpoint"),
            (&["--output", "."], "got a directory"),
        ] {
            let output = import_csv(&setup, &content, flags).await;
            assert_eq!(output.code, Some(1), "{flags:?}: {}", output.stderr);
            assert!(output.stderr.contains(expected), "{flags:?}: {}", output.stderr);
        }
        let after = files.map(|name| fs::read(setup.directory().join(name)).ok());
        assert!(round == 0 || before == after, "a file was changed");
        assert!(round == 1 || after[0].is_none(), "the data file was created");
        if round == 0 {
            assert_eq!(import_csv(&setup, &content, &[]).await.code, Some(0));
        }
    }
    // A symbolic link counts as its target.
    std::os::unix::fs::symlink("users.redb", setup.directory().join("link")).unwrap();
    let output = import_csv(&setup, &content, &["--output", "link", "--force"]).await;
    assert!(output.stderr.contains("the data file"), "{}", output.stderr);
    write(&setup, "notes.txt", "not a checkpoint\n");
    let output = import_csv(&setup, &content, &["--checkpoint", "notes.txt"]).await;
    assert!(output.stderr.contains("not a checkpoint"), "{}", output.stderr);
    assert_eq!(fs::read(setup.directory().join("notes.txt")).unwrap(), b"not a checkpoint\n");
}

#[tokio::test]
async fn missing_header_error_shows_no_data() {
    let setup = Setup::embedded();
    for first in [
        "ann@example.com,Ann,never-seen-outside-1\n",
        "ann@example.com,Ann,password\n",
        "ann@example.com,$2b$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u\n",
        "\u{1b}]0;never-seen-outside-2\u{7},ann@example.com\n",
    ] {
        let output = import_csv(&setup, first.repeat(2), &[]).await;
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        for shown in ["ann@", "Ann", "$2b$", "\u{1b}"] {
            assert!(!output.stderr.contains(shown), "{}", output.stderr);
        }
        assert!(lines_with_secrets(&output.stderr).is_empty(), "{}", output.stderr);
        assert!(
            output.stderr.contains("column") || output.stderr.contains("header"),
            "{}",
            output.stderr
        );
    }
    let name = "\u{1b}[31mred\u{9b}31m.csv";
    let output = import(&setup, &[name, "--contract", "register"]).await;
    assert!(output.stderr.contains("red") && output.stderr.contains("cannot be read"));
    assert!(!output.stderr.contains(['\u{1b}', '\u{9b}']), "{:?}", output.stderr);
    let output = import(&setup, &["users.csv", "--contract", name]).await;
    assert_eq!(output.code, Some(2));
    assert!(!output.stderr.contains(['\u{1b}', '\u{9b}']), "{:?}", output.stderr);
}

#[tokio::test]
async fn rejected_file_does_not_block_its_corrected_version() {
    let setup = Setup::embedded();
    let flags = ["--output", "report.ndjson"];
    let wrong = "mail,fullname.firstname,password\n";
    let refused = import_csv(&setup, [wrong, ROW].concat(), &flags).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("did you mean email?"), "{}", refused.stderr);
    for file in ["users.csv.checkpoint", "report.ndjson", "users.redb"] {
        assert!(!has(&setup, file), "{file} exists");
    }
    let output = import_csv(&setup, [HEADER, ROW].concat(), &flags).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);

    // The checkpoint of an import that sent no row.
    let job = r#"{"job":{"id":"ab","contract":"register","format":{"csv":{"delimiter":44}},"id_field":null,"to_file":true}}"#;
    write(&setup, "users.csv.checkpoint", format!("{job}\n"));
    let output = import_csv(&setup, [HEADER, ROW].concat(), &[]).await;
    assert_eq!(output.code, Some(3), "{}", output.stderr);
    assert!(!has(&setup, "users.csv.checkpoint"));
    let resumed = import_csv(&setup, [HEADER, ROW].concat(), &["--resume"]).await;
    assert_eq!(resumed.code, Some(1));
    assert!(resumed.stderr.contains("no import to resume"), "{}", resumed.stderr);
}

#[tokio::test]
async fn header_is_checked_before_the_first_row() {
    let setup = Setup::embedded();
    for (header, flags, expected) in [
        ("email,password", &[][..], "no column fullname.firstname, which register requires"),
        ("email,fullname.firstname", &[], "no column password or passwordHash"),
        (
            "email,fullname.firstname,password,email",
            &[],
            "column 4 (email) is a second column for email",
        ),
        (
            "email,fullname.firstname,Pasword",
            &[],
            "column 3 (Pasword) is not a field of register; did you mean",
        ),
        (
            "email,fullname.firstname,password",
            &["--id-field", "nr"],
            "no column nr, which --id-field names",
        ),
        ("email,fullname.firstname,password", &["--map", "a=b"], "register has no field b"),
        ("email;fullname.firstname;password", &[], "--delimiter"),
    ] {
        let output = import_csv(&setup, format!("{header}\nx,y,z\n"), flags).await;
        assert_eq!(output.code, Some(1), "{header}: {}", output.stderr);
        assert!(output.stderr.contains(expected), "{header}: {}", output.stderr);
        assert!(output.stdout.is_empty() && !has(&setup, "users.redb"), "{header}");
    }
}

#[tokio::test]
async fn spreadsheet_csv_is_imported() {
    let setup = Setup::embedded();
    let content = "sep=;\r\nemail;fullname.firstname;password;notes;;\r\n\
        a@example.com;Ann;secret-word;x;;\r\nb@example.com;Bob;secret-word;;; y\r\n";
    let output = import_csv(&setup, content, &[]).await;
    assert_eq!(output.code, Some(3), "{}", output.stderr);
    assert!(output.stderr.contains("ignored: column 4 (notes)"), "{}", output.stderr);
    let mut reports = reports(&output.stdout);
    reports.sort_by_key(|report| report["line"].as_u64());
    assert_eq!((&reports[0]["line"], &reports[0]["outcome"]), (&3.into(), &"registered".into()));
    assert_eq!(reports[1]["errors"][0]["code"], "UNNAMED_CELL");
    assert_eq!(reports[1]["errors"][0]["column"], 6);
}

#[tokio::test]
async fn encodings_are_detected_or_named() {
    let setup = Setup::embedded();
    let text = format!("{HEADER}zoe@example.com,Zoë,secret-wörd\n");
    let wide = |mark: &[u8], bytes: fn(u16) -> [u8; 2]| {
        [mark, &text.encode_utf16().flat_map(bytes).collect::<Vec<_>>()].concat()
    };
    let western: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap()).collect();
    let dry = |flags: &[&'static str]| [&["--dry-run"], flags].concat();
    for (content, flags) in [
        (text.clone().into_bytes(), dry(&[])),
        (["\u{feff}", &text].concat().into_bytes(), dry(&[])),
        (wide(b"\xff\xfe", u16::to_le_bytes), dry(&[])),
        (wide(b"\xfe\xff", u16::to_be_bytes), dry(&[])),
        (western.clone(), dry(&["--encoding", "windows-1252"])),
    ] {
        let output = import_csv(&setup, content, &flags).await;
        assert_eq!(output.code, Some(0), "{flags:?} {}\n{}", output.stderr, output.stdout);
    }
    let output = import_csv(&setup, &western, &dry(&[])).await;
    assert_eq!(output.code, Some(3));
    let error = &reports(&output.stdout)[0];
    assert_eq!((&error["line"], &error["errors"][0]["code"]), (&2.into(), &"NOT_UTF8".into()));
    assert!(error["errors"][0]["message"].as_str().unwrap().contains("windows-1252"), "{error}");
    let output = import_csv(&setup, &wide(b"", u16::to_le_bytes), &dry(&[])).await;
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(
        output.stderr.contains("line 1") && output.stderr.contains("UTF-16"),
        "{}",
        output.stderr
    );
}

#[tokio::test]
async fn json_array_is_rejected_with_a_conversion_command() {
    let setup = Setup::embedded();
    let users: Vec<Value> = (0..3).map(|n| user(ContractId::Register, n)).collect();
    let lines: Vec<String> = users.iter().map(Value::to_string).collect();
    for content in [
        format!("[\n{}\n]\n", lines.join(",\n")),
        format!("[{}]", lines.join(",")),
        format!("[{}]", lines.join(",").repeat(100)),
        serde_json::to_string_pretty(&users).unwrap(),
        format!("{{\"users\": [\n{}\n]}}\n", lines.join(",\n")),
        serde_json::to_string_pretty(&users[0]).unwrap(),
    ] {
        write(&setup, "users.json", content);
        let output = import(&setup, &["users.json", "--contract", "register"]).await;
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(output.stderr.contains("jq -c '.[]'"), "{}", output.stderr);
        assert!(output.stdout.is_empty() && !has(&setup, "users.redb"));
    }
}

/// The output on a terminal with 80 columns.
async fn on_terminal(setup: &Setup, arguments: &str) -> String {
    let program = env!("CARGO_BIN_EXE_muster");
    let mut command = setup.command(&[]);
    let typed = format!("stty cols 80 rows 24; {program} import {arguments}");
    let mut terminal = tokio::process::Command::new("script");
    terminal.args(["-qec", &typed, "/dev/null"]).current_dir(setup.directory());
    for (name, value) in command.env("TERM", "xterm").get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    let output = terminal.stdin(Stdio::null()).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn terminal_shows_a_summary_table_without_progress() {
    let setup = Setup::embedded();
    let rows = (0..30).map(|n| user(ContractId::Register, n % 20));
    write(&setup, "users.ndjson", ndjson(rows) + "{}\n" + "[]\n");
    let shown = on_terminal(&setup, "users.ndjson --contract register").await;
    // The text of a line after its last clear sequence or carriage return.
    let visible = |line: &str| {
        let line = line.trim_end_matches('\r');
        line.rsplit("\u{1b}[2K").next().unwrap().rsplit('\r').next().unwrap().to_owned()
    };
    let lines: Vec<String> = shown.lines().map(visible).collect();
    let text = lines.join("\n");
    assert!(text.contains("32 rows") && text.contains("20 created, 10 duplicate"), "{shown:?}");
    assert!(!text.contains('{') && !text.contains('%'), "{shown:?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{shown:?}");
    for row in [
        &["registered", "20", "1, 2, 3"][..],
        &["rejected", "duplicate: email DUPLICATE", "10", "21, 22"],
        &["rejected", "invalid: EMPTY_FIELD", "1", "31"],
        &["rejected", "invalid: INVALID_JSON", "1", "32"],
    ] {
        let has_cells = |line: &&String| row.iter().all(|cell| line.contains(cell));
        assert!(lines.iter().find(has_cells).is_some(), "{row:?} {shown:?}");
    }
    // On a pipe the output is one report for each row.
    let output =
        Importer::start(&setup, &["users.ndjson", "--contract", "register"]).wait_for_exit().await;
    assert_eq!(outcomes(&reports(&output.stdout))["duplicate"], 30);
}
