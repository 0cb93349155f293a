//! The documentation page: every operation in the order of the contracts, with samples that work.

use std::process::Command;

use serde_json::{Value, json};

use super::{assert_no_console_errors, start_with_browser};
use crate::support::muster::eventually;
use crate::support::{Browser, Setup};

/// The texts of all matching elements.
async fn texts(browser: &Browser, selector: &str) -> Vec<String> {
    let script = format!(
        "return [...document.querySelectorAll({selector:?})].map((one) => one.textContent)"
    );
    serde_json::from_value(browser.run(&script).await).unwrap()
}

/// The operations of a path.
fn operations(item: &Value) -> impl Iterator<Item = &Value> {
    item.as_object().unwrap().values().filter(|value| value.is_object())
}

#[tokio::test]
async fn docs_show_every_operation_with_and_without_a_script() {
    let Some((muster, browser)) = start_with_browser(&Setup::embedded(), "/docs").await else {
        return;
    };
    let document = muster.client().get("/openapi.json", &[]).await.json();
    let written = muster.client().get("/docs", &[]).await;
    let written = String::from_utf8(written.bytes.to_vec()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in operations(item) {
            let id = operation["operationId"].as_str().unwrap();
            let shown = format!("#{id}");
            browser.wait_for_text(&shown, path).await;
            browser.wait_for_text(".contents", path).await;
            let responses = texts(&browser, &format!("{shown} details")).await;
            assert_eq!(
                responses.len(),
                operation["responses"].as_object().unwrap().len(),
                "{path}"
            );
            assert!(written.contains(&format!("id=\"{id}\"")), "{path}");
        }
    }
    browser.click("#postSignup summary").await;
    browser.wait_for_text("#postSignup", "The user is registered").await;
    let scripts = "return [...document.scripts].map((script) => [script.src, script.text])";
    let own = format!("http://{}/pages/docs.js", muster.client().address());
    assert_eq!(browser.run(scripts).await, json!([[own, ""]]));
    assert_no_console_errors(&browser).await;
}

#[tokio::test]
async fn docs_follow_the_contracts_and_mark_required_fields() {
    let Some((muster, browser)) = start_with_browser(&Setup::embedded(), "/docs").await else {
        return;
    };
    let paths = texts(&browser, "section:first-of-type .endpoint code").await;
    let mounted =
        ["/signup", "/users/register", "/register", "/auth/signup", "/{prefix}/auth/signup"];
    assert_eq!(paths, mounted);
    let paths = texts(&browser, "section:nth-of-type(2) .endpoint code").await;
    assert_eq!(paths[..2], ["/users/profile", "/profile"]);

    let document = muster.client().get("/openapi.json", &[]).await.json();
    for (id, schema) in [("postSignup", "username"), ("postRegister", "register")] {
        let schema = &document["components"]["schemas"][schema];
        for name in schema["properties"].as_object().unwrap().keys() {
            let is_required = schema["required"].as_array().unwrap().contains(&json!(name));
            let script = format!(
                "return [...document.querySelectorAll('#{id} > table tr')]
                    .find((row) => row.querySelector('th').textContent === {name:?})
                    .querySelector('.required, .optional').textContent"
            );
            let mark = if is_required { "required" } else { "optional" };
            assert_eq!(browser.run(&script).await, mark, "{id} {name}");
        }
    }
}

/// Number of signups by contract and outcome.
async fn signup_counts(muster: &crate::support::Muster) -> Vec<(String, String, u64)> {
    let metrics = muster.client().get("/metrics", &[]).await;
    let metrics = String::from_utf8(metrics.bytes.to_vec()).unwrap();
    let counted = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("muster_signups_total{contract=\"")?;
        let (contract, rest) = rest.split_once("\",outcome=\"")?;
        let (outcome, count) = rest.split_once("\"} ")?;
        Some((contract.to_owned(), outcome.to_owned(), count.parse().unwrap()))
    });
    counted.filter(|(.., count)| *count > 0).collect()
}

#[tokio::test]
async fn samples_can_be_copied_and_run() {
    let setup = Setup::embedded();
    let Some((muster, browser)) = start_with_browser(&setup, "/docs").await else { return };
    // Each sample has a copy button.
    browser.grant_clipboard().await;
    browser.click("#postSignup .sample:nth-child(2) .copy").await;
    browser.wait_for_text("#postSignup .sample:nth-child(2) .copy", "Copied").await;
    let read = "const done = arguments[arguments.length - 1];
        navigator.clipboard.readText().then(done, (error) => done(String(error)))";
    let copied = browser.run_async(read).await;
    let shown = texts(&browser, "#postSignup .sample:nth-child(2) pre").await;
    assert_eq!(copied, shown[0]);
    // The button also works without the clipboard API.
    browser.run("Object.defineProperty(navigator, 'clipboard', { value: undefined })").await;
    browser.click("#postSignup .sample:first-child .copy").await;
    browser.wait_for_text("#postSignup .sample:first-child .copy", "Copied").await;
    assert_no_console_errors(&browser).await;

    // Every sample is a registration of its contract.
    let posts = "section:first-of-type .sample";
    let curl = texts(&browser, &format!("{posts}:first-child pre")).await;
    let fetch = texts(&browser, &format!("{posts}:last-child pre")).await;
    assert_eq!((curl.len(), fetch.len()), (6, 6), "{curl:?}");
    let directory = setup.directory();
    for command in &curl {
        assert!(command.contains(muster.client().address()), "{command}");
        let shell = Command::new("sh").args(["-c", command]).current_dir(&directory).output();
        let output = shell.unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }
    browser.open(&format!("http://{}/", muster.client().address())).await;
    for script in &fetch {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             (async () => {{ {script}; return response.status }})().then(done, (error) => done(String(error)))"
        );
        let status = browser.run_async(&script).await;
        assert!(status.is_number(), "{script}: {status}");
    }
    let signup_counts = signup_counts(&muster).await;
    for contract in ["username", "nested-name", "flat-name", "register", "error-code"] {
        let counts = signup_counts.iter().filter(|(name, ..)| name == contract);
        let total: u64 = counts.map(|(.., count)| count).sum();
        assert_eq!(total, if contract == "error-code" { 4 } else { 2 }, "{signup_counts:?}");
    }
    let outcomes = signup_counts
        .iter()
        .all(|(_, outcome, _)| ["registered", "duplicate"].contains(&outcome.as_str()));
    assert!(outcomes, "{signup_counts:?}");
}

#[tokio::test]
async fn docs_fit_a_phone() {
    let Some((_muster, browser)) = start_with_browser(&Setup::embedded(), "/docs").await else {
        return;
    };
    browser.resize(320, 800).await;
    let width = "return document.documentElement.scrollWidth";
    eventually("no scrolling sideways", async || browser.run(width).await == 320).await;
}
