//! Headless Chromium, controlled over WebDriver (W3C) with the tests' HTTP client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::http::Client;
use super::muster::eventually;
use super::services::service;

/// One browser at a time, because each starts several processes.
static BROWSER_PERMIT: Semaphore = Semaphore::const_new(1);

/// Flags for Chromium as root, without a screen and without requests to the internet.
const FLAGS: [&str; 11] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    // An element that is still moving receives no click.
    "--force-prefers-reduced-motion",
];

/// WebDriver's key for an element reference.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// WebDriver's codes for keys.
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";

/// A browser with one page. Dropping it ends the browser.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    client: Client,
    session: String,
    _profile: TempDir,
    _turn: SemaphorePermit<'static>,
}

impl Browser {
    /// Starts a browser with an empty profile. `None` without `TEST_CHROMEDRIVER`.
    pub async fn start() -> Option<Self> {
        let program = service("TEST_CHROMEDRIVER")?;
        let turn = BROWSER_PERMIT.acquire().await.unwrap();
        let (driver, port) = start_driver(&program);
        let mut browser = Self {
            driver,
            client: Client::new(format!("127.0.0.1:{port}")),
            session: String::new(),
            _profile: TempDir::new().unwrap(),
            _turn: turn,
        };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([profile.as_str()]).collect();
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let made = browser.request("POST", "/session", capabilities).await;
        browser.session = format!("/session/{}", made["sessionId"].as_str().unwrap());
        browser.resize(1200, 1000).await;
        Some(browser)
    }

    /// Opens a page and waits until it has loaded.
    pub async fn open(&self, url: &str) {
        self.command("/url", json!({ "url": url })).await;
    }

    /// Runs the body of a function in the page and returns its result.
    pub async fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Runs the body of an asynchronous function in the page and returns its result.
    pub async fn run_async(&self, script: &str) -> Value {
        self.command("/execute/async", json!({ "script": script, "args": [] })).await
    }

    /// The visible text of an element; empty if the element is hidden or missing.
    pub async fn text(&self, selector: &str) -> String {
        let script = format!(
            "const found = document.querySelector({selector:?});
             return found?.checkVisibility() ? found.innerText : ''"
        );
        self.run(&script).await.as_str().unwrap().to_owned()
    }

    /// Waits until the text of an element contains `text`.
    pub async fn wait_for_text(&self, selector: &str, text: &str) {
        let what = format!("{selector} to contain {text:?}");
        eventually(&what, async || self.text(selector).await.contains(text)).await;
    }

    /// Clicks an element. Fails if another element covers it.
    pub async fn click(&self, selector: &str) {
        self.element_command(selector, "click", json!({})).await;
    }

    /// Types text at the end of a field.
    pub async fn write(&self, selector: &str, text: &str) {
        self.element_command(selector, "value", json!({ "text": text })).await;
    }

    /// Presses keys one by one in the focused element.
    pub async fn press(&self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.command("/actions", json!({ "actions": [keyboard] })).await;
    }

    /// Emulates a media feature, such as `emulate_media-color-scheme: dark`.
    pub async fn emulate_media(&self, feature: &str, value: &str) {
        let features = json!({ "features": [{ "name": feature, "value": value }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// Grants scripts access to the clipboard.
    pub async fn grant_clipboard(&self) {
        let permissions =
            json!({ "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"] });
        self.devtools("Browser.grantPermissions", permissions).await;
    }

    /// Sets the size of the page in CSS pixels.
    pub async fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Saves a screenshot of the top of the page to the directory `SCREENSHOTS`, after all animations have
    /// ended. Does nothing if the variable is not set.
    pub async fn screenshot(&self, name: &str) {
        let Some(directory) = screenshot_directory() else { return };
        self.run("scrollTo(0, 0)").await;
        let is_still = "return document.getAnimations().length === 0";
        eventually("the animations to end", async || self.run(is_still).await == true).await;
        let captured = self.devtools("Page.captureScreenshot", json!({})).await;
        let screenshot = BASE64.decode(captured["data"].as_str().unwrap()).unwrap();
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(format!("{name}.png")), screenshot).unwrap();
    }

    /// Errors and policy violations since the last call. Each begins with its source, such as `network`.
    pub async fn console_errors(&self) -> Vec<String> {
        let log = self.command("/se/log", json!({ "type": "browser" })).await;
        let line =
            |entry: &Value| format!("{}: {}", entry["source"].as_str().unwrap(), entry["message"]);
        log.as_array().unwrap().iter().map(line).collect()
    }

    async fn element_command(&self, selector: &str, verb: &str, body: Value) {
        let selector_query = json!({ "using": "css selector", "value": selector });
        let found = self.command("/element", selector_query).await;
        let element = found[ELEMENT].as_str().unwrap();
        self.command(&format!("/element/{element}/{verb}"), body).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command("/goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        self.request("POST", &format!("{}{path}", self.session), body).await
    }

    async fn request(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("content-type", "application/json")];
        let response = self.client.send(method, path, &headers, body).await.unwrap();
        let mut body = response.json();
        assert_eq!(response.status, 200, "{path}: {}", body["value"]["message"]);
        body["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser when the session ends, but not when the driver is killed.
        let _ = end_session(self.client.address(), &self.session);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn end_session(address: &str, session: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "DELETE {session} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    stream.read(&mut [0; 16]).map(drop)
}

/// Starts a driver and returns its port. The driver picks a port that is free over IPv4 and exits if the
/// port is in use over IPv6, so this tries several times.
fn start_driver(program: &str) -> (Child, u16) {
    for _ in 0..10 {
        let mut driver = Command::new(program)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if let Some(port) = port_in(driver.stdout.take().unwrap()) {
            return (driver, port);
        }
        driver.wait().unwrap();
    }
    panic!("{program} did not start in 10 attempts");
}

/// The port in the driver's output; `None` if the driver exits first. A thread discards the rest of the output.
fn port_in(stdout: impl Read + Send + 'static) -> Option<u16> {
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let port = lines.find_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse().ok()
    });
    std::thread::spawn(move || lines.for_each(drop));
    port
}

/// The directory `SCREENSHOTS`, relative to the package.
pub fn screenshot_directory() -> Option<PathBuf> {
    let directory = std::env::var_os("SCREENSHOTS").filter(|directory| !directory.is_empty())?;
    Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(directory))
}
