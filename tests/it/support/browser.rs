//! A Chromium without a window, driven over WebDriver (W3C) with the tests' own HTTP client.

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

/// A browser takes several processes, so there is one at a time.
static ONE: Semaphore = Semaphore::const_new(1);

/// How Chromium runs as root, without a screen, and without asking anybody on the internet anything.
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
    // What moves smoothly is still on its way when a click looks for it.
    "--force-prefers-reduced-motion",
];

/// The key that WebDriver names an element by.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys as WebDriver writes them.
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";

/// A browser with one page. It ends when dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    client: Client,
    session: String,
    _profile: TempDir,
    _turn: SemaphorePermit<'static>,
}

impl Browser {
    /// A fresh one; none where there is no driver.
    pub async fn start() -> Option<Self> {
        let program = service("TEST_CHROMEDRIVER")?;
        let turn = ONE.acquire().await.unwrap();
        let (driver, port) = driver(&program);
        let mut browser = Self {
            driver,
            client: Client::new(format!("127.0.0.1:{port}")),
            session: String::new(),
            _profile: TempDir::new().unwrap(),
            _turn: turn,
        };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([profile.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let made = browser.ask("POST", "/session", wanted).await;
        browser.session = format!("/session/{}", made["sessionId"].as_str().unwrap());
        browser.resize(1200, 1000).await;
        Some(browser)
    }

    /// Goes to a page, and waits until it has loaded.
    pub async fn open(&self, url: &str) {
        self.command("/url", json!({ "url": url })).await;
    }

    /// Runs a function's body in the page and gives what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// The same for one that gives a promise.
    pub async fn run_async(&self, script: &str) -> Value {
        self.command("/execute/async", json!({ "script": script, "args": [] })).await
    }

    /// The text of an element, as it is seen; empty if it is not.
    pub async fn text(&self, selector: &str) -> String {
        let script = format!(
            "const found = document.querySelector({selector:?});
             return found?.checkVisibility() ? found.innerText : ''"
        );
        self.run(&script).await.as_str().unwrap().to_owned()
    }

    /// Waits until an element's text has this in it.
    pub async fn says(&self, selector: &str, text: &str) {
        let what = format!("{selector} to say {text:?}");
        eventually(&what, async || self.text(selector).await.contains(text)).await;
    }

    /// Clicks as a mouse does: where the element is, and only if nothing lies over it.
    pub async fn click(&self, selector: &str) {
        self.on(selector, "click", json!({})).await;
    }

    /// Types at the end of a field.
    pub async fn write(&self, selector: &str, text: &str) {
        self.on(selector, "value", json!({ "text": text })).await;
    }

    /// Presses keys one by one, wherever the focus is.
    pub async fn press(&self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.command("/actions", json!({ "actions": [keyboard] })).await;
    }

    /// Pretends that the reader's system asks for this, such as `prefers-color-scheme: dark`.
    pub async fn prefers(&self, feature: &str, value: &str) {
        let features = json!({ "features": [{ "name": feature, "value": value }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// Lets scripts read the clipboard, as a person would when asked.
    pub async fn allow_clipboard(&self) {
        let permissions =
            json!({ "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"] });
        self.devtools("Browser.grantPermissions", permissions).await;
    }

    /// The size of the page, in CSS pixels.
    pub async fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Saves a picture of the top of the page, once nothing moves on it, where `SCREENSHOTS` says; does
    /// nothing without it.
    pub async fn picture(&self, name: &str) {
        let Some(directory) = pictures() else { return };
        self.run("scrollTo(0, 0)").await;
        let rests = "return document.getAnimations().length === 0";
        eventually("the page to rest", async || self.run(rests).await == true).await;
        let taken = self.devtools("Page.captureScreenshot", json!({})).await;
        let picture = BASE64.decode(taken["data"].as_str().unwrap()).unwrap();
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(format!("{name}.png")), picture).unwrap();
    }

    /// What the browser complained about since it was asked last: errors, and breaches of the policy.
    /// Each begins with where it comes from, such as `network`.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.command("/se/log", json!({ "type": "browser" })).await;
        let line =
            |entry: &Value| format!("{}: {}", entry["source"].as_str().unwrap(), entry["message"]);
        log.as_array().unwrap().iter().map(line).collect()
    }

    async fn on(&self, selector: &str, verb: &str, body: Value) {
        let wanted = json!({ "using": "css selector", "value": selector });
        let found = self.command("/element", wanted).await;
        let element = found[ELEMENT].as_str().unwrap();
        self.command(&format!("/element/{element}/{verb}"), body).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command("/goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        self.ask("POST", &format!("{}{path}", self.session), body).await
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("content-type", "application/json")];
        let answer = self.client.send(method, path, &headers, body).await.unwrap();
        let mut told = answer.json();
        assert_eq!(answer.status, 200, "{path}: {}", told["value"]["message"]);
        told["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser when the session ends, and not when it is killed.
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

/// A driver, and the port it listens on. It takes one that is free over IPv4 and ends if that is not free
/// over IPv6, so it may take a few.
fn driver(program: &str) -> (Child, u16) {
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
    panic!("{program} does not start");
}

/// The port the driver tells; none if it ends without. It goes on writing, which nobody reads.
fn port_in(stdout: impl Read + Send + 'static) -> Option<u16> {
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let told = lines.find_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse().ok()
    });
    std::thread::spawn(move || lines.for_each(drop));
    told
}

/// Where pictures are wanted. Relative to the package, as one would type it there.
pub fn pictures() -> Option<PathBuf> {
    let wanted = std::env::var_os("SCREENSHOTS").filter(|directory| !directory.is_empty())?;
    Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(wanted))
}
