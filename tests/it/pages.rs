//! The web pages: their HTTP headers and settings, and the sign-up page in a browser.

mod docs;
mod status;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use muster::domain::ContractId;
use serde_json::json;

use crate::flow::five_requests;
use crate::support::browser::{ENTER, TAB, screenshot_directory};
use crate::support::muster::eventually;
use crate::support::services::{PRODUCTION, provided};
use crate::support::{Browser, Client, Muster, Pair, QueueAdapter, Setup, StoreAdapter};

/// Paths and media types of all pages and their files.
const FILES: [(&str, &str); 15] = [
    ("/", "text/html; charset=utf-8"),
    ("/status", "text/html; charset=utf-8"),
    ("/docs", "text/html; charset=utf-8"),
    ("/status.json", "application/json; charset=utf-8"),
    ("/pages/signup.js", "text/javascript; charset=utf-8"),
    ("/pages/exchange.js", "text/javascript; charset=utf-8"),
    ("/pages/timeline.js", "text/javascript; charset=utf-8"),
    ("/pages/status.js", "text/javascript; charset=utf-8"),
    ("/pages/chart.js", "text/javascript; charset=utf-8"),
    ("/pages/docs.js", "text/javascript; charset=utf-8"),
    ("/pages/style.css", "text/css; charset=utf-8"),
    ("/pages/docs.css", "text/css; charset=utf-8"),
    ("/pages/status.css", "text/css; charset=utf-8"),
    ("/pages/icon.svg", "image/svg+xml"),
    ("/pages/mounts.json", "application/json; charset=utf-8"),
];

/// The stages that the sign-up page shows, in their order.
const STATIONS: [&str; 6] = ["read", "queue", "slot", "hash", "insert", "reply"];

async fn status(client: &Client, path: &str) -> u16 {
    client.get(path, &[]).await.status
}

#[tokio::test]
async fn pages_load_nothing_from_other_origins() {
    let muster = Setup::embedded().start().await;
    for (path, media_type) in FILES {
        let response = muster.client().get(path, &[]).await;
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(response.header("content-type"), Some(media_type), "{path}");
        let policy = response.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; "));
        assert!(policy.contains("script-src 'self';"), "{path}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"));
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
        let text =
            String::from_utf8_lossy(&response.bytes).replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http:") && !text.contains("https:"), "{path}");
    }
}

#[tokio::test]
async fn cached_file_gets_304() {
    let muster = Setup::embedded().start().await;
    let whole = muster.client().get("/", &[]).await;
    let tag = whole.header("etag").unwrap();
    let again = muster.client().get("/", &[("if-none-match", tag)]).await;
    assert_eq!((again.status, again.bytes.len()), (304, 0));
    assert_eq!(again.header("etag"), Some(tag));
    assert_eq!(muster.client().get("/", &[("if-none-match", "\"other\"")]).await.status, 200);
    let head = muster.client().send("HEAD", "/", &[], "").await.unwrap();
    assert_eq!((head.status, head.bytes.len()), (200, 0));
    let posted = muster.client().send("POST", "/", &[], "").await.unwrap();
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
}

#[tokio::test]
async fn pages_are_off_unless_embedded_or_enabled() {
    let off = Setup::embedded().with("MUSTER_FRONT_UI", "off").start().await;
    for (path, _) in FILES {
        assert_eq!(status(off.client(), path).await, 404, "{path}");
    }
    for pair in [Pair(QueueAdapter::Local, StoreAdapter::Mongo), PRODUCTION] {
        if !pair.is_available() {
            continue;
        }
        let muster = Setup::new(pair).start().await;
        assert_eq!(status(muster.client(), "/").await, 404, "{pair:?}");
        let muster = Setup::new(pair).with("MUSTER_FRONT_UI", "on").start().await;
        assert_eq!(status(muster.client(), "/").await, 200, "{pair:?}");
    }
}

#[tokio::test]
async fn mount_takes_precedence_over_a_page() {
    let setup =
        Setup::embedded().with("MUSTER_FRONT_MOUNTS", "/ = register,*/style.css = username");
    let muster = setup.start().await;
    assert_eq!(status(muster.client(), "/").await, 405);
    assert_eq!(status(muster.client(), "/pages/style.css").await, 405);
    assert_eq!(status(muster.client(), "/pages/icon.svg").await, 200);
    let mounts = muster.client().get("/pages/mounts.json", &[]).await.json();
    assert_eq!((&mounts[0]["path"], &mounts[0]["contract"]), (&"/".into(), &"register".into()));
}

/// Starts the program and a browser on one of its pages. `None` without a browser.
async fn start_with_browser(setup: &Setup, page: &str) -> Option<(Muster, Browser)> {
    let browser = Browser::start().await?;
    let muster = setup.start().await;
    browser.open(&format!("http://{}{page}", muster.client().address())).await;
    Some((muster, browser))
}

/// Selects a contract on the sign-up page.
async fn choose(browser: &Browser, contract: &str) {
    let radio = format!("[id^=contract-{contract}-]");
    let offered = format!("return !!document.querySelector({radio:?})");
    eventually("the contract to be listed", async || browser.run(&offered).await == true).await;
    browser.click(&radio).await;
}

/// Sends the form and waits for the response.
async fn send(browser: &Browser, response: &str) {
    browser.run("document.getElementById('status').textContent = ''").await;
    browser.click("#form .primary").await;
    browser.wait_for_text("#status", response).await;
}

async fn assert_no_console_errors(browser: &Browser) {
    assert_eq!(browser.console_errors().await, [""; 0]);
}

/// Waits until exactly these stages are marked, each with its time.
async fn wait_for_stages(browser: &Browser, stations: &[&str]) {
    let script = "return [...document.querySelectorAll('#stages .passed')]
        .filter((station) => station.querySelector('output').innerText.endsWith(' ms'))
        .map((station) => station.dataset.stage)";
    let what = format!("the stages {stations:?} to be marked");
    eventually(&what, async || browser.run(script).await == json!(stations)).await;
}

/// Fields with an error, with its text.
async fn invalid_fields(browser: &Browser) -> Vec<(String, String)> {
    let script = "return [...document.querySelectorAll('#fields [aria-invalid]')]
        .map((input) => [input.name, document.getElementById(`${input.id}-error`).innerText])";
    serde_json::from_value(browser.run(script).await).unwrap()
}

#[tokio::test]
async fn signup_page_works_with_every_contract() {
    let Some((_muster, browser)) = start_with_browser(&Setup::embedded(), "/").await else {
        return;
    };
    for contract in ContractId::ALL {
        choose(&browser, contract.as_str()).await;
        browser.click("#example").await;
        send(&browser, "201 Created").await;
        wait_for_stages(&browser, &STATIONS).await;
        browser.wait_for_text("#timeline-summary", "of it for hashing").await;
        assert!(
            !browser.text("#request-body").await.contains("Analytical"),
            "the password must be masked"
        );
        let has_token = contract != ContractId::ErrorCode;
        assert_eq!(browser.text("#token").await.is_empty(), !has_token);
        if has_token {
            assert!(browser.text("#claims").await.contains(contract.as_str()));
            browser.click("#profile").await;
            browser.wait_for_text("#status", "200").await;
        }
    }
    browser.click("#reveal").await;
    browser.wait_for_text("#request-body", "Analytical").await;
    assert_no_console_errors(&browser).await;
}

#[tokio::test]
async fn signup_page_shows_errors_at_their_fields() {
    let Some((_muster, browser)) = start_with_browser(&Setup::embedded(), "/").await else {
        return;
    };
    for (contract, fields) in [
        ("username", &["username"][..]),
        ("nested-name", &["fullname.firstname", "email", "password"]),
        ("flat-name", &["firstname", "email", "password"]),
        ("register", &["fullname.firstname", "email", "password"]),
        ("error-code", &["username", "email", "password"]),
    ] {
        choose(&browser, contract).await;
        send(&browser, "400").await;
        wait_for_stages(&browser, &["read"]).await;
        let wrong = invalid_fields(&browser).await;
        let names: Vec<&str> = wrong.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, fields, "{contract}");
        assert!(wrong.iter().all(|(_, text)| !text.is_empty()), "{wrong:?}");
        let focused = browser.run("return document.activeElement.name").await;
        assert_eq!(focused, fields[0], "{contract}");
    }
    // Several errors at one field, and none after they are fixed.
    browser.write("[name=password]", "short").await;
    send(&browser, "400").await;
    let password = invalid_fields(&browser).await.pop().unwrap();
    assert!(password.1.contains("10") && password.1.contains(" · "), "{password:?}");
    browser.click("#example").await;
    send(&browser, "201").await;
    assert_eq!(invalid_fields(&browser).await, []);
    // The browser logs the 400 responses, and no other error.
    let console_errors = browser.console_errors().await;
    assert!(console_errors.iter().all(|one| one.contains("status of 400")), "{console_errors:?}");
}

#[tokio::test]
async fn signup_page_shows_a_replay_and_a_duplicate() {
    let Some((_muster, browser)) = start_with_browser(&Setup::embedded(), "/").await else {
        return;
    };
    choose(&browser, "flat-name").await;
    browser.click("#example").await;
    send(&browser, "201").await;
    browser.click("#repeat").await;
    browser.wait_for_text("#response-headers", "idempotency-replayed").await;
    browser.wait_for_text("#status", "201").await;
    browser.wait_for_text("#timeline-summary", "no second user was registered").await;
    send(&browser, "409").await;
    let expected = [("email".to_owned(), "Email already exists".to_owned())];
    assert_eq!(invalid_fields(&browser).await, expected);
}

#[tokio::test]
async fn signup_page_works_with_a_keyboard() {
    let Some((_muster, browser)) = start_with_browser(&Setup::embedded(), "/").await else {
        return;
    };
    let offered = "return document.querySelectorAll('#fields input').length > 0";
    eventually("the form to be shown", async || browser.run(offered).await == true).await;
    let texts = [
        ("field-username", "ann"),
        ("field-email", "ann@example.com"),
        ("field-password", "securePassword123"),
    ];
    let mut visited = Vec::new();
    while visited.last().is_none_or(|last| last != "primary") {
        assert!(visited.len() < 20, "the button is not reached: {visited:?}");
        browser.press(TAB).await;
        let active = "const at = document.activeElement; return at.id || at.className";
        let at = browser.run(active).await.as_str().unwrap().to_owned();
        if let Some((_, text)) = texts.iter().find(|(id, _)| *id == at) {
            browser.press(text).await;
        }
        let seen = "return getComputedStyle(document.activeElement.closest('label') ?? \
                    document.activeElement).outlineStyle";
        assert_eq!(browser.run(seen).await, "solid", "the focus on {at} is not seen");
        visited.push(at);
    }
    let fields: Vec<&String> = visited.iter().filter(|id| id.starts_with("field-")).collect();
    assert_eq!(fields, ["field-username", "field-email", "field-password"]);
    assert_eq!(visited[0], "skip");
    browser.press(ENTER).await;
    browser.wait_for_text("#status", "201").await;
    assert_no_console_errors(&browser).await;
}

/// Checks the page with axe in both colour schemes. Skipped without `TEST_AXE`, the path of its script.
async fn assert_accessible(browser: &Browser, page: &str) {
    let Some(axe) = provided("TEST_AXE") else { return };
    let axe = std::fs::read_to_string(axe).unwrap();
    for colours in ["light", "dark"] {
        browser.emulate_media("prefers-color-scheme", colours).await;
        let is_dark = "return matchMedia('(prefers-color-scheme: dark)').matches";
        assert_eq!(browser.run(is_dark).await, colours == "dark");
        browser.run(&axe).await;
        let found = browser.run_async(CHECK).await;
        assert_eq!(found, json!([]), "{page}, {colours}");
    }
}

#[tokio::test]
async fn axe_finds_no_violations() {
    let setup = Setup::embedded().with("MUSTER_BCRYPT_COST", "12");
    let Some((muster, browser)) = start_with_browser(&setup, "/").await else { return };
    browser.emulate_media("prefers-reduced-motion", "reduce").await;
    choose(&browser, "nested-name").await;
    browser.click("#example").await;
    send(&browser, "201").await;
    assert_accessible(&browser, "/").await;
    browser.click("nav a[href='/status']").await;
    browser.wait_for_text("#rate-summary", "1 done").await;
    assert_accessible(&browser, "/status").await;
    browser.click("nav a[href='/docs']").await;
    browser.wait_for_text("#postRegister", "/register").await;
    browser.run("document.querySelectorAll('details').forEach((one) => one.open = true)").await;
    assert_accessible(&browser, "/docs").await;
    drop(muster);
}

/// A script that returns axe's violations.
const CHECK: &str = "const done = arguments[arguments.length - 1];
    axe.run().then(({ violations }) => done(violations.map(({ id, nodes }) =>
        [id, ...nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`)])))";

/// Makes the screenshots for the documentation if `SCREENSHOTS` is set; otherwise only checks the pages.
#[tokio::test]
async fn screenshots_for_the_documentation() {
    let setup = Setup::embedded().with("MUSTER_BCRYPT_COST", "12");
    let Some((muster, browser)) = start_with_browser(&setup, "/").await else { return };
    choose(&browser, "nested-name").await;
    browser.click("#example").await;
    send(&browser, "201").await;
    wait_for_stages(&browser, &STATIONS).await;
    browser.resize(1200, 1140).await;
    let backgrounds = async |colours: &str| {
        browser.emulate_media("prefers-color-scheme", colours).await;
        browser.run("return getComputedStyle(document.body).backgroundColor").await
    };
    let light = backgrounds("light").await;
    browser.screenshot("sign-up").await;
    assert_ne!(backgrounds("dark").await, light);
    browser.screenshot("sign-up-dark").await;

    browser.emulate_media("prefers-color-scheme", "light").await;
    browser.click("nav a[href='/status']").await;
    browser.resize(1200, 1330).await;
    // Starts clients one after the other, until they exceed the capacity.
    let (clients, each) = if screenshot_directory().is_some() { (16, 6) } else { (1, 0) };
    let (began, each) = (Instant::now(), Duration::from_secs(each));
    let load = (0..clients).map(|client| {
        let muster = &muster;
        async move {
            tokio::time::sleep_until((began + each * client).into()).await;
            loop {
                for (path, body, _) in five_requests() {
                    let response = muster.client().post(path, &body).await;
                    assert!([201, 503].contains(&response.status), "{}", response.status);
                }
                if began.elapsed() >= each * clients {
                    break;
                }
            }
        }
    });
    join_all(load).await;
    browser.wait_for_text("#rate-summary", "done").await;
    browser.screenshot("status").await;

    browser.click("nav a[href='/docs']").await;
    browser.wait_for_text("h1", "HTTP interface").await;
    browser.screenshot("docs").await;
}
