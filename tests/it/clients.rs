//! Pages of other origins in a browser: their requests and responses with CORS, and repeated signups.

use serde_json::{Value, json};

use crate::flow::five_requests;
use crate::support::muster::eventually;
use crate::support::site::Site;
use crate::support::{Browser, Muster, Setup};

/// The documentation page with the snippet.
const GUIDE: &str = include_str!("../../docs/browsers.md");

fn snippet() -> &'static str {
    let (_, rest) = GUIDE.split_once("```js\n").unwrap();
    rest.split_once("```").unwrap().0
}

/// A page without content.
async fn empty_page() -> Site {
    Site::serve("<!doctype html><title>A page</title>".to_owned()).await
}

/// Fetches a URL in the page and returns status and body, or the error.
async fn fetch(browser: &Browser, url: &str, options: &Value) -> Value {
    browser
        .run_async(&format!(
            "const done = arguments[arguments.length - 1];
             fetch({url:?}, {options}).then(
                async (response) => done([response.status, await response.text()]),
                (error) => done(String(error)))"
        ))
        .await
}

const TRACED: [(&str, &str); 5] = [
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("tracestate", "vendor=1"),
    ("baggage", "sentry-environment=production"),
    ("sentry-trace", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1"),
    ("x-requested-with", "XMLHttpRequest"),
];

fn traced(method: &str, body: Option<&Value>) -> Value {
    let mut headers = json!({ "content-type": "application/json" });
    for (name, value) in TRACED {
        headers[name] = json!(value);
    }
    json!({ "method": method, "headers": headers, "body": body.map(Value::to_string) })
}

#[tokio::test]
async fn page_of_another_origin_signs_up_and_reads_errors() {
    let Some(browser) = Browser::start().await else { return };
    let site = empty_page().await;
    let listed = Setup::embedded().with("MUSTER_FRONT_CORS_ORIGINS", &site.origin());
    for setup in [Setup::embedded(), listed] {
        let muster = setup.start().await;
        let url = |path: &str| format!("http://{}{path}", muster.client().address());
        browser.open(&site.origin()).await;
        for (path, body, _) in five_requests() {
            let response = fetch(&browser, &url(path), &traced("POST", Some(&body))).await;
            assert_eq!(response[0], 201, "{path}: {response}");
        }
        for (method, path, status) in
            [("POST", "/nothing", 404), ("GET", "/signup", 405), ("POST", "/signup", 400)]
        {
            let response = fetch(&browser, &url(path), &traced(method, None)).await;
            assert_eq!(response[0], status, "{method} {path}: {response}");
        }
        let mut large = traced("GET", None);
        large["headers"]["x-large"] = json!("x".repeat(20 << 10));
        let response = fetch(&browser, &url("/users/profile"), &large).await;
        assert_eq!(response[0], 431, "{response}");
    }
    let other = Setup::embedded().with("MUSTER_FRONT_CORS_ORIGINS", "https://shop.example");
    let muster = other.start().await;
    let url = format!("http://{}/signup", muster.client().address());
    let response = fetch(&browser, &url, &traced("POST", None)).await;
    assert_eq!(response, "TypeError: Failed to fetch");
}

/// A typical front end: it posts its form, stores the token and requests the profile. The result of each attempt is in
/// the session storage and survives reloads.
fn page(server: &str, sign_up: &str, path: &str, person: &Value, token: Option<&str>) -> String {
    let token =
        token.map_or("null".into(), |pointer| format!("body{}", pointer.replace('/', "?.")));
    format!(
        "<!doctype html><title>Sign up</title><form><button>Sign up</button></form><script>
         {sign_up}
         const ended = (how) => sessionStorage.setItem('ended',
             JSON.stringify([...JSON.parse(sessionStorage.getItem('ended') ?? '[]'), how]));
         document.querySelector('form').addEventListener('submit', async (event) => {{
             event.preventDefault();
             try {{
                 const response = await signUp({server:?} + {path:?}, {person});
                 const body = await response.json();
                 if (!response.ok) return ended(`${{response.status}} ${{JSON.stringify(body)}}`);
                 const token = {token};
                 if (!token) return ended('signed up');
                 const headers = {{ Authorization: `Bearer ${{token}}` }};
                 const profile = await fetch({server:?} + '/users/profile', {{ headers }});
                 ended(profile.ok ? 'signed in' : `profile ${{profile.status}}`);
             }} catch (error) {{
                 ended(String(error));
             }}
         }});
         </script>"
    )
}

/// A signup function without an idempotency key.
const WITHOUT_KEY: &str = "const signUp = (url, form) => fetch(url, {
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(form) });";

/// Waits for `count` results in the session storage and returns all of them.
async fn attempts(browser: &Browser, count: usize) -> Vec<String> {
    let script = "return JSON.parse(sessionStorage.getItem('ended') ?? '[]')";
    let mut results = Vec::new();
    eventually("the attempts to end", async || {
        results = serde_json::from_value(browser.run(script).await).unwrap();
        results.len() >= count
    })
    .await;
    results
}

const CLICK: &str = "document.querySelector('button').click();";

/// A hash takes about a second, many times longer than a browser needs to leave the page.
const RELOAD_COST: &str = "13";

/// Double-clicks, and reloads during a signup, on a page for each contract. Returns all results.
async fn click_and_reload(browser: &Browser, muster: &Muster, sign_up: &str) -> Vec<String> {
    let server = format!("http://{}", muster.client().address());
    let mut all = Vec::new();
    let mut hashed = 0;
    for reload in [false, true] {
        for (path, person, token) in five_requests() {
            let site = Site::serve(page(&server, sign_up, path, &person, token)).await;
            browser.open(&site.origin()).await;
            if reload {
                browser.run(CLICK).await;
                // The page is left while its first signup is in progress.
                eventually("the hash to start", async || {
                    let started = muster.output().matches("\"hash_started\"").count();
                    started > hashed
                })
                .await;
                browser.open(&site.origin()).await;
                // Discards the results of the first page.
                browser.run("sessionStorage.removeItem('ended')").await;
                browser.run(CLICK).await;
                all.extend(attempts(browser, 1).await);
            } else {
                browser.run(&format!("{CLICK}{CLICK}")).await;
                all.extend(attempts(browser, 2).await);
            }
            hashed = muster.output().matches("\"hash_started\"").count();
        }
    }
    all
}

fn succeeded(result: &String) -> bool {
    result == "signed in" || result == "signed up"
}

#[tokio::test]
async fn clicks_and_reloads_sign_in_within_the_replay_window() {
    let Some(browser) = Browser::start().await else { return };
    let setup = Setup::embedded().with("MUSTER_FRONT_REPLAY_WINDOW", "5m");
    let muster = setup.with("MUSTER_BCRYPT_COST", RELOAD_COST).start().await;
    let results = click_and_reload(&browser, &muster, WITHOUT_KEY).await;
    assert!(results.len() >= 15 && results.iter().all(succeeded), "{results:#?}");
}

#[tokio::test]
async fn clicks_and_reloads_sign_in_with_the_documented_snippet() {
    let Some(browser) = Browser::start().await else { return };
    let muster = Setup::embedded().with("MUSTER_BCRYPT_COST", RELOAD_COST).start().await;
    let results = click_and_reload(&browser, &muster, snippet()).await;
    assert!(results.len() >= 15 && results.iter().all(succeeded), "{results:#?}");
}

/// The behaviour that the replay window and the snippet avoid.
#[tokio::test]
async fn double_click_without_window_and_key_is_a_duplicate() {
    let Some(browser) = Browser::start().await else { return };
    let muster = Setup::embedded().start().await;
    let server = format!("http://{}", muster.client().address());
    let (path, person, token) = five_requests().remove(1);
    let site = Site::serve(page(&server, WITHOUT_KEY, path, &person, token)).await;
    browser.open(&site.origin()).await;
    browser.run(&format!("{CLICK}{CLICK}")).await;
    let results = attempts(&browser, 2).await;
    assert_eq!(results.iter().filter(|result| succeeded(result)).count(), 1, "{results:?}");
    assert!(results.iter().any(|result| result.contains("User already exist")), "{results:?}");
}

/// The key survives a server error, but not a rejection of the form.
#[tokio::test]
async fn snippet_keeps_its_key_until_a_response_is_final() {
    let Some(browser) = Browser::start().await else { return };
    let site = empty_page().await;
    // Hashing takes longer than the request timeout.
    let setup = [
        ("MUSTER_BCRYPT_COST", "16"),
        ("MUSTER_FRONT_REQUEST_TIMEOUT", "100ms"),
        ("MUSTER_STORE_TIMEOUT", "40ms"),
    ];
    let setup =
        setup.iter().fold(Setup::embedded(), |setup, (name, value)| setup.with(name, value));
    let muster = setup.start().await;
    browser.open(&site.origin()).await;
    let url = format!("http://{}/signup", muster.client().address());
    let send = async |form: Value| {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             {}
             signUp({url:?}, {form}).then((response) => done(response.status))",
            snippet()
        );
        let status = browser.run_async(&script).await;
        (status, browser.run("return sessionStorage.getItem('signup-key')").await)
    };
    let form = json!({ "username": "ann", "password": "securePassword123" });
    let (status, key) = send(form.clone()).await;
    assert_eq!((status, key.as_str().map(str::len)), (json!(504), Some(36)));
    assert_eq!(send(form).await, (json!(504), key));
    assert_eq!(send(json!({})).await, (json!(400), Value::Null));
}
