//! `muster import` with every queue and store, stopped, killed and disconnected. At the end every row has one
//! outcome and every user exists once.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use muster::domain::{Clock, ContractId};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::support::importer::{
    HASH, Importer, assert_stored, csv, import, ndjson, outcomes, reports, user,
    with_password_hash, with_worker,
};
use crate::support::ledger::{PASSWORD, users_in};
use crate::support::muster::{TIMEOUT, eventually};
use crate::support::secrets::lines_with_secrets;
use crate::support::services::{EMBEDDED, PRODUCTION, command};
use crate::support::{Fleet, PAIRS, Pair, Setup};

/// A setup, and a worker if the queue is a broker.
struct ImportFixture {
    setup: Setup,
    _worker: Option<crate::support::Muster>,
}

impl ImportFixture {
    async fn new(pair: Pair) -> Option<Self> {
        let (setup, worker) = with_worker(pair).await?;
        Some(Self { setup, _worker: worker })
    }

    fn write(&self, name: &str, rows: impl AsRef<[u8]>) {
        fs::write(self.setup.directory().join(name), rows).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.setup.directory().join(name)).unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.setup.directory().join(name).exists()
    }
}

/// A fixture with the embedded queue and store.
async fn embedded() -> ImportFixture {
    ImportFixture::new(EMBEDDED).await.unwrap()
}

#[tokio::test]
async fn import_works_with_every_contract_format_and_store() {
    for pair in PAIRS {
        let Some(mut fixture) = ImportFixture::new(pair).await else { continue };
        let mut all = Vec::new();
        for (n, contract) in ContractId::ALL.into_iter().enumerate() {
            let users = |first: usize| (first..first + 3).map(move |n| user(contract, n));
            let first = n * 10;
            fixture.write("users.csv", csv(users(first)));
            fixture.write("users.ndjson", ndjson(users(first + 5)));
            for (file, lines) in [("users.csv", [2, 3, 4]), ("users.ndjson", [1, 2, 3])] {
                let output = import(&fixture.setup, &[file, "--contract", contract.as_str()]).await;
                assert_eq!(output.code, Some(0), "{pair:?} {contract} {file}: {}", output.stderr);
                let reports = reports(&output.stdout);
                let mut found: Vec<u64> =
                    reports.iter().map(|r| r["line"].as_u64().unwrap()).collect();
                found.sort_unstable();
                assert_eq!(found, lines);
                assert_eq!(outcomes(&reports)["registered"], 3);
                assert!(lines_with_secrets(&(output.stdout + &output.stderr)).is_empty());
                assert!(
                    !fixture.has(&format!("{file}.checkpoint")),
                    "the checkpoint must be removed"
                );
                all.extend(reports);
            }
        }
        // Only one process can open the embedded store.
        fixture._worker = None;
        // Line numbers repeat across files; `assert_stored` needs unique ones.
        for (n, report) in all.iter_mut().enumerate() {
            report["line"] = json!(n);
        }
        assert_stored(&fixture.setup, &all).await;
    }
}

#[tokio::test]
async fn invalid_ndjson_lines_are_rejected_individually() {
    let fixture = embedded().await;
    let good = |n| user(ContractId::Register, n).to_string().into_bytes();
    let long = format!("{{\"email\":\"{}\"}}", "x".repeat(20_000)).into_bytes();
    let other = br#"{"contract":"username","username":"ann","password":"never-seen-outside-1"}"#;
    let lines: [&[u8]; 9] = [
        &good(1),
        br#"{"email":"a@b.co",,}"#,
        b"{\"email\":\"\xff@b.co\"}",
        b"",
        &long,
        b"[1,2]",
        other,
        br#"{"email":"no-address","fullname":{"firstname":"Ann"},"password":"never-seen-outside-2"}"#,
        &good(2),
    ];
    fixture.write("users.ndjson", lines.join(&b'\n'));
    let output = import(&fixture.setup, &["users.ndjson", "--contract", "register"]).await;
    assert_eq!(output.code, Some(3), "{}", output.stderr);
    let mut reports = reports(&output.stdout);
    reports.sort_by_key(|report| report["line"].as_u64());
    let found: Vec<(u64, &str, &str, Option<u64>)> = reports
        .iter()
        .map(|report| {
            let error = &report["errors"][0];
            let code = error["code"].as_str().unwrap_or_default();
            let outcome = report["outcome"].as_str().unwrap();
            (report["line"].as_u64().unwrap(), outcome, code, error["column"].as_u64())
        })
        .collect();
    let expected = [
        (1, "registered", "", None),
        (2, "rejected", "INVALID_JSON", Some(19)),
        (3, "rejected", "NOT_UTF8", Some(11)),
        (5, "rejected", "TOO_LONG", None),
        (6, "rejected", "INVALID_JSON", Some(1)),
        (7, "rejected", "OTHER_CONTRACT", None),
        (8, "rejected", "INVALID_EMAIL_FORMAT", None),
        (9, "registered", "", None),
    ];
    assert_eq!(found, expected);
    assert_eq!(reports[6]["errors"][0]["field"], "email");
    assert!(lines_with_secrets(&(output.stdout + &output.stderr)).is_empty());
    assert!(
        output.stderr.contains("8 rows")
            && output.stderr.contains("2 created, 0 duplicate, 6 invalid")
    );
}

#[tokio::test]
async fn invalid_csv_records_are_rejected_individually() {
    let fixture = embedded().await;
    let mut text = b"\xef\xbb\xbffirstname,email,password,notes\r\n".to_vec();
    for line in [
        &b"=1+1,a@example.com,never-seen-outside-1,\"two\r\nlines\"\r\n"[..],
        b"+Ann,b@example.com,never-seen-outside-2\r\n",
        b"@Ann,c\xff@example.com,never-seen-outside-3,\r\n",
        b"\"never closed,d@example.com,never-seen-outside-4,\r\n",
        b"-Ann,e@example.com,never-seen-outside-5,5\" disk\r\n",
    ] {
        text.extend_from_slice(line);
    }
    fixture.write("users.csv", &text);
    let output = import(&fixture.setup, &["users.csv", "--contract", "flat-name"]).await;
    assert_eq!(output.code, Some(3), "{}", output.stderr);
    let mut reports = reports(&output.stdout);
    reports.sort_by_key(|report| report["line"].as_u64());
    let found: Vec<(u64, &str, Option<u64>)> = reports
        .iter()
        .map(|report| {
            let error = &report["errors"][0];
            let code = error["code"].as_str().unwrap_or_default();
            (report["line"].as_u64().unwrap(), code, error["column"].as_u64())
        })
        .collect();
    let expected = [
        (2, "", None),
        (4, "WRONG_CELLS", Some(4)),
        (5, "NOT_UTF8", Some(2)),
        (6, "BAD_QUOTE", None),
        (7, "", None),
    ];
    assert_eq!(found, expected);
    assert!(lines_with_secrets(&(output.stdout + &output.stderr)).is_empty());
    let muster = fixture.setup.start().await;
    let again = json!({ "firstname": "=1+1", "email": "a@example.com", "password": "secret-1" });
    assert_eq!(muster.client().post("/users/register", &again).await.status, 409);
}

#[tokio::test]
async fn lone_cr_ends_a_row() {
    let fixture = embedded().await;
    let row = |name: &str| format!("{name}@e.co,never-seen-outside-1,{name}");
    for end in ["\r", "\n", "\r\n"] {
        let rows = ["email,password,firstname".to_owned(), row("ann"), row("bob"), row("eve")];
        fixture.write("users.csv", rows.map(|row| row + end).concat());
        let arguments = ["users.csv", "--contract", "flat-name", "--dry-run"];
        let output = import(&fixture.setup, &arguments).await;
        assert_eq!(output.code, Some(0), "{end:?}: {}", output.stderr);
        assert_one_each(&reports(&output.stdout), 2..=4);
        assert!(output.stderr.contains("3 created"), "{end:?}: {}", output.stderr);
    }
    let output = import(&fixture.setup, &["users.csv", "--contract", "flat-name"]).await;
    assert_eq!(outcomes(&reports(&output.stdout))["registered"], 3, "{}", output.stderr);
    assert_stored(&fixture.setup, &reports(&output.stdout)).await;

    let rows = ndjson((0..3).map(|n| user(ContractId::FlatName, 10 + n))).replace('\n', "\r");
    fixture.write("users.ndjson", rows);
    let output = import(&fixture.setup, &["users.ndjson", "--contract", "flat-name"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_one_each(&reports(&output.stdout), 1..=3);
}

#[tokio::test]
async fn unclosed_quote_is_rejected_with_every_line_ending() {
    let fixture = embedded().await;
    for end in ["\n", "\r\n", "\r"] {
        let whole = "\"ann@e.co\",\"Ann\",\"never-seen-outside-1\"";
        let unclosed = "\"bob@e.co\",\"Bob\",\"never-seen-outs";
        fixture.write("users.csv", ["email,firstname,password", whole, unclosed].join(end));
        let arguments = ["users.csv", "--contract", "flat-name", "--dry-run"];
        let output = import(&fixture.setup, &arguments).await;
        assert_eq!(output.code, Some(3), "{end:?}: {}", output.stderr);
        let reports = reports(&output.stdout);
        let refused = reports.iter().find(|report| report["line"] == 3).unwrap();
        assert_eq!(refused["errors"][0]["code"], "BAD_QUOTE", "{end:?}: {refused}");
        assert_eq!(outcomes(&reports)["valid"], 1);
    }
}

#[tokio::test]
async fn hash_like_passwords_are_rejected_unless_allowed() {
    const MD5: &str = "5f4dcc3b5aa765d61d8327deb882cf99";
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(fixture) = ImportFixture::new(pair).await else { continue };
        let keys = muster::queue::seal::KeyPair::generate();
        let with = |n: usize, password: &str| {
            let mut user = user(ContractId::Register, n);
            user["password"] = password.into();
            user
        };
        let formats = [HASH, "pbkdf2_sha256$260000$salt$hash=", "{SSHA}DkMTwBl+a/3DQTxCYEApdUtN"];
        let rows = formats.iter().enumerate().map(|(n, hash)| with(n, hash));
        fixture.write("formats.ndjson", ndjson(rows));
        fixture.write("digests.ndjson", ndjson((0..200).map(|n| with(100 + n, MD5))));
        let mixed = (0..3).map(|n| with(400 + n, MD5)).chain([with(403, "secret-word")]);
        fixture.write("mixed.ndjson", ndjson(mixed));
        for (file, rows, code) in
            [("formats.ndjson", 3, 3), ("digests.ndjson", 200, 3), ("mixed.ndjson", 4, 0)]
        {
            let output = import(&fixture.setup, &[file, "--contract", "register"]).await;
            assert_eq!(output.code, Some(code), "{pair:?} {file}: {}", output.stderr);
            let reports = reports(&output.stdout);
            assert_eq!(reports.len(), rows);
            if code == 3 {
                let refused = |r: &Value| r["errors"][0]["code"] == "LOOKS_LIKE_HASH";
                assert!(reports.iter().all(refused), "{pair:?} {file}: {reports:?}");
            }
        }
        // The flag also works with sealed rows.
        let mut setup = fixture.setup.clone();
        let mut _sealing = None;
        if pair == PRODUCTION {
            setup = Setup::new(PRODUCTION).with("MUSTER_QUEUE_SEAL_PUBLIC_KEY", &keys.public);
            let working = setup.clone();
            let working =
                working.with("MUSTER_QUEUE_SEAL_PRIVATE_KEYS", keys.private.expose_secret());
            _sealing = Some(working.start_role("worker").await);
            fs::copy(
                fixture.setup.directory().join("formats.ndjson"),
                setup.directory().join("formats.ndjson"),
            )
            .unwrap();
        }
        let arguments = ["formats.ndjson", "--contract", "register", "--allow-hash-like-passwords"];
        let output = import(&setup, &arguments).await;
        assert_eq!(output.code, Some(0), "{pair:?}: {}\n{}", output.stderr, output.stdout);
        assert_eq!(outcomes(&reports(&output.stdout))["registered"], 3);
    }
}

#[tokio::test]
async fn first_of_equal_rows_is_registered() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(fixture) = ImportFixture::new(pair).await else { continue };
        let _second = match pair {
            PRODUCTION => Some(fixture.setup.start_role("worker").await),
            _ => None,
        };
        // Only the first row of each three must be hashed, so the others would finish earlier.
        let rows = (0..150).map(|n| match n % 3 {
            0 => user(ContractId::Register, n / 3),
            _ => with_password_hash(user(ContractId::Register, n / 3)),
        });
        fixture.write("users.ndjson", ndjson(rows));
        let output = import(&fixture.setup, &["users.ndjson", "--contract", "register"]).await;
        assert_eq!(output.code, Some(3), "{pair:?}: {}", output.stderr);
        let reports = reports(&output.stdout);
        assert_one_each(&reports, 1..=150);
        for report in &reports {
            let expected = match report["line"].as_u64().unwrap() % 3 {
                1 => "registered",
                _ => "rejected",
            };
            assert_eq!(report["outcome"], expected, "{pair:?}: {report}");
        }
    }
}

#[tokio::test]
async fn on_duplicate_mode_selects_the_outcome() {
    let fixture = embedded().await;
    let both = |name: &str, n: usize| {
        json!({ "username": name, "email": format!("user{n}@example.com"),
            "password": format!("{PASSWORD}A1-{n}") })
    };
    fixture.write("first.ndjson", ndjson([both("ann", 1)].into_iter()));
    let contract = ["--contract", "error-code"];
    let run = async |file: &str, mode: &str| {
        let arguments = [&[file][..], &contract, &["--on-duplicate", mode]].concat();
        let output = import(&fixture.setup, &arguments).await;
        (output.code, reports(&output.stdout))
    };
    assert_eq!(run("first.ndjson", "fail").await.0, Some(0));
    // First the whole row is a duplicate, then only its name.
    for (row, mode, code, outcome) in [
        (both("ann", 1), "fail", 3, "rejected"),
        (both("ann", 1), "skip", 0, "skipped"),
        (both("ann", 1), "existing", 0, "existing"),
        (both("ann", 2), "fail", 3, "rejected"),
        (both("ann", 2), "skip", 0, "skipped"),
        (both("ann", 2), "existing", 3, "rejected"),
    ] {
        fixture.write("again.ndjson", ndjson([row].into_iter()));
        let (exit, reports) = run("again.ndjson", mode).await;
        assert_eq!((exit, reports[0]["outcome"].as_str()), (Some(code), Some(outcome)), "{mode}");
        assert_eq!(reports[0]["code"], "duplicate");
        assert_eq!(reports[0]["errors"][0]["field"], "username");
        assert_eq!(reports[0]["userId"], Value::Null, "the report must not name the other user");
    }
}

#[tokio::test]
async fn dry_run_reports_rows_and_writes_nothing() {
    for pair in [EMBEDDED, PRODUCTION] {
        let Some(mut fixture) = ImportFixture::new(pair).await else { continue };
        let users = |range: std::ops::Range<usize>| range.map(|n| user(ContractId::Register, n));
        fixture.write("some.ndjson", ndjson(users(0..3)));
        fixture.write("all.ndjson", ndjson(users(0..5)) + "{}\n");
        let dry = ["all.ndjson", "--contract", "register", "--dry-run"];
        if pair == EMBEDDED {
            let output = import(&fixture.setup, &dry).await;
            assert_eq!(outcomes(&reports(&output.stdout))["valid"], 5, "{}", output.stderr);
            assert!(!fixture.has("users.redb") && !fixture.has("all.ndjson.checkpoint"));
        }
        assert_eq!(
            import(&fixture.setup, &["some.ndjson", "--contract", "register"]).await.code,
            Some(0)
        );
        // Only one process can open the embedded store.
        fixture._worker = None;
        for _ in 0..2 {
            let output = import(&fixture.setup, &dry).await;
            assert_eq!(output.code, Some(3), "{}", output.stderr);
            let reports = reports(&output.stdout);
            let counts = outcomes(&reports);
            assert_eq!((counts["valid"], counts["duplicate"], counts["invalid"]), (2, 3, 1));
            assert!(reports.iter().all(|report| report["userId"].is_null()));
        }
    }
}

#[tokio::test]
async fn row_with_an_id_is_registered_once_across_imports() {
    let fixture = embedded().await;
    let named = |n: usize, password: &str| {
        let mut user = user(ContractId::Register, n);
        user["id"] = json!(1000 + n);
        user["password"] = json!(format!("{PASSWORD}{password}"));
        user
    };
    fixture.write("users.ndjson", ndjson((0..3).map(|n| named(n, "one"))));
    let arguments = ["users.ndjson", "--contract", "register", "--id-field", "id"];
    let first = import(&fixture.setup, &arguments).await;
    let again = import(&fixture.setup, &arguments).await;
    assert_eq!((first.code, again.code), (Some(0), Some(0)), "{}", again.stderr);
    let sorted = |text: &str| {
        let mut reports = reports(text);
        reports.sort_by_key(|report| report["line"].as_u64());
        reports
    };
    for (first, again) in sorted(&first.stdout).iter().zip(&sorted(&again.stdout)) {
        assert_eq!(
            (&first["userId"], &first["registrationId"]),
            (&again["userId"], &again["registrationId"])
        );
        assert_eq!((&first["replayed"], &again["replayed"]), (&Value::Null, &json!(true)));
    }
    fixture.write(
        "users.ndjson",
        ndjson([named(1, "two"), user(ContractId::Register, 9)].into_iter()),
    );
    let output = import(&fixture.setup, &arguments).await;
    assert_eq!(output.code, Some(3));
    let reports = sorted(&output.stdout);
    assert_eq!(reports[0]["code"], "key_reused");
    assert_eq!(reports[1]["errors"][0]["code"], "INVALID_ID");
}

#[tokio::test]
async fn sealed_import_rows_are_opened_by_the_worker() {
    if !PRODUCTION.is_available() {
        return;
    }
    let keys = muster::queue::seal::KeyPair::generate();
    let importing = Setup::new(PRODUCTION).with("MUSTER_QUEUE_SEAL_PUBLIC_KEY", &keys.public);
    let mut working = importing.clone().with("MUSTER_QUEUE_REQUIRE_SEALED", "true");
    working = working.with("MUSTER_QUEUE_SEAL_PRIVATE_KEYS", keys.private.expose_secret());
    let _worker = working.start_role("worker").await;
    let users = ndjson((0..3).map(|n| user(ContractId::NestedName, n)));
    fs::write(importing.directory().join("users.ndjson"), users).unwrap();
    let output = import(&importing, &["users.ndjson", "--contract", "nested-name"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_stored(&importing, &reports(&output.stdout)).await;
}

#[tokio::test]
async fn import_that_cannot_start_explains_why() {
    let fixture = embedded().await;
    fixture.write("users.txt", "");
    fixture.write("users.csv", "email;password\na@b.co;secret-1\n");
    for (arguments, code, expected) in [
        (&["users.txt", "--contract", "register"][..], 2, "--format"),
        (&["missing.csv", "--contract", "register"], 1, "missing.csv: cannot be read"),
        (&["users.csv", "--contract", "other"], 2, "unknown contract"),
        (&["users.csv", "--contract", "register", "--resume"], 1, "no import to resume"),
        (&["-", "--format", "csv", "--contract", "register", "--resume"], 2, "--checkpoint"),
        (&["users.csv", "--contract", "flat-name"], 1, "--delimiter"),
    ] {
        let output = import(&fixture.setup, arguments).await;
        assert_eq!(output.code, Some(code), "{arguments:?} {}", output.stderr);
        assert!(output.stderr.contains(expected), "{}", output.stderr);
    }
}

#[tokio::test]
async fn failed_start_leaves_all_files_unchanged() {
    let fixture = embedded().await;
    let row = ndjson([user(ContractId::Username, 1)].into_iter());
    fixture.write("users.ndjson", &row);
    let older = "{\"line\":1,\"outcome\":\"registered\"}\n";
    fixture.write("report.ndjson", older);
    let arguments =
        |output| ["users.ndjson", "--contract", "username", "--output", output, "--force"];

    let same_file = import(&fixture.setup, &arguments("./users.ndjson")).await;
    assert_eq!(same_file.code, Some(1), "{}", same_file.stderr);
    assert!(same_file.stderr.contains("that is the file to import"), "{}", same_file.stderr);

    let other = fixture.setup.start().await;
    let locked = import(&fixture.setup, &arguments("report.ndjson")).await;
    assert_ne!(locked.code, Some(0), "another process has the data file open");
    assert!(other.stop().await.success());
    assert!(!fixture.has("users.ndjson.checkpoint"), "no checkpoint without an import");
    assert_eq!((fixture.read("report.ndjson"), fixture.read("users.ndjson")), (older.into(), row));

    let output = import(&fixture.setup, &arguments("report.ndjson")).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
}

#[tokio::test]
async fn stopped_import_resumes_only_over_the_same_input() {
    // Slow enough that the import cannot finish before the stop.
    let fixture = embedded().await;
    let slow =
        fixture.setup.clone().with("MUSTER_BCRYPT_COST", "8").with("MUSTER_PASSWORD_THREADS", "1");
    let rows = 300;
    let users: Vec<Value> = (0..rows).map(|n| user(ContractId::Register, n)).collect();
    fixture.write("users.ndjson", ndjson(users.iter().cloned()));
    let arguments = [
        "users.ndjson",
        "--contract",
        "register",
        "--output",
        "report.ndjson",
        "--in-flight",
        "16",
    ];
    let importer = Importer::start(&slow, &arguments);
    eventually("the first reports", async || {
        fixture.has("report.ndjson") && !fixture.read("report.ndjson").is_empty()
    })
    .await;
    importer.signal("INT");
    let output = importer.wait_for_exit().await;
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("--resume"), "{}", output.stderr);
    let reported = reports(&fixture.read("report.ndjson")).len();
    assert!((1..rows).contains(&reported), "{reported}");

    let refused = import(&slow, &arguments).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("--resume"), "{}", refused.stderr);
    let resume = [&arguments[..], &["--resume"]].concat();
    let other = [&resume[..], &["--id-field", "email"]].concat();
    assert_eq!(import(&slow, &other).await.code, Some(1));
    // Another input with the same number of rows, so the rows would get the same ids.
    fixture.write("users.ndjson", ndjson(users.iter().rev().cloned()));
    let refused = import(&slow, &resume).await;
    assert!(refused.stderr.contains("another input"), "{}", refused.stderr);
    assert_eq!(reports(&fixture.read("report.ndjson")).len(), reported, "no row was sent");
    fixture.write("users.ndjson", ndjson(users.iter().take(3).cloned()));
    assert!(import(&slow, &resume).await.stderr.contains("another input"));

    fixture.write("users.ndjson", ndjson(users.iter().cloned()));
    let output = import(&slow, &resume).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let reports = reports(&fixture.read("report.ndjson"));
    assert_one_each(&reports, 1..=rows as u64);
    assert_stored(&fixture.setup, &reports).await;
    assert!(output.stderr.contains("300 created") && !fixture.has("users.ndjson.checkpoint"));
}

#[tokio::test]
async fn second_stop_does_not_wait_for_unanswered_rows() {
    let Some(mut fleet) = Fleet::new(0, 1, &[]).await else { return };
    let users = ndjson((0..20).map(|n| user(ContractId::Username, n)));
    fs::write(fleet.setup.directory().join("users.ndjson"), users).unwrap();
    let arguments = ["users.ndjson", "--contract", "username", "--output", "report.ndjson"];
    let importer = Importer::start(&fleet.setup, &arguments);
    eventually("the warning about a missing consumer", async || {
        importer.stderr().contains("has no consumer")
    })
    .await;
    eventually("20 queued rows", async || fleet.messages("bulk").await == 20).await;
    importer.signal("TERM");
    eventually("the soft stop", async || importer.stderr().contains("stopping")).await;
    importer.signal("TERM");
    let output = importer.wait_for_exit().await;
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("stopped immediately") && output.stderr.contains("--resume"));
    fleet.workers[0].start().await;
    let output = import(&fleet.setup, &[&arguments[..], &["--resume"]].concat()).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let text = fs::read_to_string(fleet.setup.directory().join("report.ndjson")).unwrap();
    assert_one_each(&reports(&text), 1..=20);
    assert_stored(&fleet.setup, &reports(&text)).await;
}

#[tokio::test]
async fn standard_input_import_resumes_over_the_same_bytes() {
    let fixture = embedded().await;
    let slow =
        fixture.setup.clone().with("MUSTER_BCRYPT_COST", "8").with("MUSTER_PASSWORD_THREADS", "1");
    fixture.write("users.csv", csv((0..300).map(|n| user(ContractId::Username, n))));
    let input = || Stdio::from(File::open(fixture.setup.directory().join("users.csv")).unwrap());
    let arguments = [
        "-",
        "--format",
        "csv",
        "--contract",
        "username",
        "--output",
        "report.ndjson",
        "--checkpoint",
        "users.checkpoint",
        "--in-flight",
        "16",
    ];
    let importer = Importer::start_from(&slow, &arguments, input());
    eventually("the first reports", async || {
        fixture.has("report.ndjson") && !fixture.read("report.ndjson").is_empty()
    })
    .await;
    importer.signal("KILL");
    assert_eq!(importer.wait_for_exit().await.code, None);
    let resume = [&arguments[..], &["--resume"]].concat();
    let refused = Importer::start(&slow, &resume).wait_for_exit().await;
    assert!(refused.stderr.contains("another input"), "{}", refused.stderr);
    let output = Importer::start_from(&slow, &resume, input()).wait_for_exit().await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let reports = reports(&fixture.read("report.ndjson"));
    assert_one_each(&reports, 2..=301);
    assert_stored(&fixture.setup, &reports).await;
}

/// Fails unless every line has exactly one report.
fn assert_one_each(reports: &[Value], lines: std::ops::RangeInclusive<u64>) {
    let mut found: Vec<u64> =
        reports.iter().map(|report| report["line"].as_u64().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, lines.collect::<Vec<_>>());
}

#[tokio::test]
async fn every_row_has_one_outcome_after_random_faults() {
    FaultInjection { rows: 3_000, seed: 7, kills: 6, restart_broker: false }.run().await;
}

/// The long version: `cargo test --test it -- --ignored --nocapture every_row_has_one_outcome_after_many_random_faults`.
#[tokio::test]
#[ignore = "takes minutes and restarts the broker"]
async fn every_row_has_one_outcome_after_many_random_faults() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| Clock::system().now().0 as u64);
    println!("SEED={seed}");
    FaultInjection { rows: 50_000, seed, kills: 24, restart_broker: true }.run().await;
}

/// An import under random faults.
struct FaultInjection {
    rows: usize,
    seed: u64,
    kills: usize,
    restart_broker: bool,
}

impl FaultInjection {
    async fn run(mut self) {
        let Some(mut fleet) = Fleet::new(0, 2, &[]).await else { return };
        for worker in &mut fleet.workers {
            worker.start().await;
        }
        let proxy =
            crate::support::proxy::Proxy::to(&fleet.setup.environment["MUSTER_QUEUE"]).await;
        let queue = format!("{}?heartbeat=1", proxy.url(&fleet.setup.environment["MUSTER_QUEUE"]));
        let setup = fleet.setup.clone().with("MUSTER_QUEUE", &queue);
        let path = |name: &str| fleet.setup.directory().join(name);
        let (report, input) = (path("report.ndjson"), path("users.ndjson"));
        // Every tenth row is invalid, every twenty-third is a duplicate.
        let rows = (0..self.rows).map(|n| match n {
            n if n % 10 == 3 => json!({ "username": "" }),
            n if n % 23 == 22 => user(ContractId::Username, n - 22),
            // Most rows have a hash and are stored in batches; every fourth must be hashed first.
            n if n % 4 == 0 => user(ContractId::Username, n),
            n => with_password_hash(user(ContractId::Username, n)),
        });
        fs::write(input, ndjson(rows)).unwrap();
        let first = [
            "users.ndjson",
            "--contract",
            "username",
            "--output",
            "report.ndjson",
            "--in-flight",
            "256",
        ];
        let resume = [&first[..], &["--resume"]].concat();
        let mut importer = Importer::start(&setup, &first);
        for n in 1..=self.kills {
            // After the next part of the rows, plus a random number.
            let at = self.rows * n / (self.kills + 2) + self.random(self.rows / (self.kills * 4));
            // The import may be slow, but must make progress.
            let (mut lines, mut last) = (0, Instant::now());
            while lines < at && importer.is_running() {
                let text = fs::read(&report).unwrap_or_default();
                let now = text.iter().filter(|byte| **byte == b'\n').count();
                if now > lines {
                    (lines, last) = (now, Instant::now());
                }
                assert!(last.elapsed() < TIMEOUT, "stuck at row {lines}: {}", importer.stderr());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if !importer.is_running() {
                break;
            }
            let choices = if self.restart_broker { 5 } else { 4 };
            match (n - 1 + self.random(2)) % choices {
                0 => {
                    importer.signal("KILL");
                    assert_eq!(importer.wait_for_exit().await.code, None);
                    importer = Importer::start(&setup, &resume);
                }
                1 => {
                    let worker = self.random(2);
                    fleet.workers[worker].kill().await;
                    fleet.workers[worker].start().await;
                }
                2 => {
                    proxy.cut();
                    proxy.restore();
                }
                3 => {
                    // Workers handle rows, but the importer gets no replies.
                    proxy.drop_responses();
                    eventually("the bulk queue to be empty", async || {
                        fleet.messages("bulk").await == 0 || !importer.is_running()
                    })
                    .await;
                    proxy.cut();
                    proxy.restore();
                }
                _ => {
                    if command("TEST_BROKER", &["kill"]).await.is_some() {
                        command("TEST_BROKER", &["start"]).await;
                    }
                }
            }
        }
        let output = importer.wait_for_exit_within(Duration::from_secs(3600)).await;
        assert_eq!(output.code, Some(3), "{}", output.stderr);
        let reports = reports(&fs::read_to_string(&report).unwrap());
        assert_one_each(&reports, 1..=self.rows as u64);
        let counts = outcomes(&reports);
        let (mut invalid, mut duplicate) = (0, 0);
        for n in 0..self.rows {
            invalid += usize::from(n % 10 == 3);
            let twice = n % 10 != 3 && n % 23 == 22 && (n - 22) % 10 != 3;
            duplicate += usize::from(twice);
        }
        assert_eq!((counts["invalid"], counts["duplicate"]), (invalid, duplicate), "{counts:?}");
        assert_eq!(counts["registered"], self.rows - invalid - duplicate);
        assert_stored(&fleet.setup, &reports).await;
        let users = users_in(&fleet.setup.environment["MUSTER_STORE"]).await;
        assert!(users.values().all(|ids| ids.len() == 1), "a name with two users");
        assert_eq!(users.len(), counts["registered"], "a user without a report");
        println!("{counts:?}; {}", output.stderr.lines().last().unwrap_or_default());
    }

    /// A number below `below`, from the seed.
    fn random(&mut self, below: usize) -> usize {
        // SplitMix64.
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % below.max(1) as u64) as usize
    }
}

#[tokio::test]
async fn import_memory_does_not_grow_with_the_file() {
    // Invalid rows pass everything except the queue, so a test can have many. Short rows need the most memory for
    // their bytes.
    let fixture = embedded().await;
    let mut peaks = Vec::new();
    for rows in [10_000, 300_000] {
        fixture.write("users.ndjson", "{}\n".repeat(rows));
        let arguments =
            ["users.ndjson", "--contract", "username", "--output", "/dev/null", "--dry-run"];
        let mut importer = Importer::start(&fixture.setup, &arguments);
        let mut peak = 0;
        while importer.is_running() {
            peak = importer.peak_kib().unwrap_or(peak).max(peak);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(importer.wait_for_exit().await.code, Some(3));
        peaks.push(peak);
    }
    println!("peaks in KiB: {peaks:?}");
    assert!(peaks.iter().all(|peak| *peak < 60 << 10), "{peaks:?}");
    assert!(peaks[1] < peaks[0] + (8 << 10), "{peaks:?}");
}
