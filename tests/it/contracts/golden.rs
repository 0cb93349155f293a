//! Runs a golden file against the program.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::tokens;
use crate::support::muster::eventually;
use crate::support::services::unique;
use crate::support::{Client, HttpResponse, Muster, Pair, Setup, muster::SECRET};

/// Headers in a golden file: one value, several values, or null for none.
type Headers = BTreeMap<String, Value>;

/// Changes a token.
type TokenChange = fn(&str) -> String;

/// A golden file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Description of the file, for its readers.
    #[serde(rename = "about")]
    _about: String,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    /// Whether another signup is in progress all the time.
    #[serde(default)]
    busy: bool,
    /// Whether all cases run in parallel, because each waits for the request timeout.
    #[serde(default)]
    together: bool,
    /// Default path of the requests.
    #[serde(default)]
    path: String,
    /// Headers of every response, unless a case overrides them.
    headers: Headers,
    cases: Vec<Case>,
}

/// One request and its expected response.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// Requests to send first.
    #[serde(default)]
    before: Vec<Before>,
    request: Request,
    response: Expected,
}

/// A request of which only the response status is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Before {
    request: Request,
    status: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(default = "post")]
    method: String,
    path: Option<String>,
    /// A request with a body also gets `content-type: application/json`.
    #[serde(default)]
    headers: Headers,
    body: Option<Value>,
    /// A body that is not JSON: as text, or in hexadecimal.
    raw: Option<String>,
    hex: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    status: u16,
    #[serde(default)]
    headers: Headers,
    /// Absent for an empty body.
    #[serde(default)]
    body: Value,
}

fn post() -> String {
    "POST".into()
}

/// Runs a file. Fails with all cases whose response differs.
pub(super) async fn run(name: &str, text: &str, pair: Pair) {
    let file: File = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let setup = file
        .environment
        .iter()
        .fold(Setup::new(pair), |setup, (name, value)| setup.with(name, value));
    let mut muster = setup.start().await;
    if file.busy {
        occupy(&mut muster).await;
    }
    let client = muster.client().clone();
    let session = || Session { client: client.clone(), ..Session::default() };
    let (sessions, failures): (Vec<Session>, Vec<Vec<String>>) = if file.together {
        // Each request waits until the worker has started the one before, because a backlog would shed it.
        let cases = file.cases.iter().enumerate().map(async |(before, case)| {
            let started = || muster.output().matches("\"delivery_started\"").count();
            eventually("the previous delivery to start", async || started() > before).await;
            session().play_all(&file, std::slice::from_ref(case)).await
        });
        join_all(cases).await.into_iter().unzip()
    } else {
        [session().play_all(&file, &file.cases).await].into_iter().unzip()
    };
    let failures = failures.concat();
    // A busy server would delay its stop until the signup ends.
    let output = if file.busy { muster.output() } else { muster.stop_and_collect_output().await };
    sessions.iter().for_each(|session| session.assert_nothing_leaked(&output));
    assert!(failures.is_empty(), "{name}, {} cases:\n{}", failures.len(), failures.join("\n"));
}

/// Starts a signup that does not end before its server stops.
async fn occupy(muster: &mut Muster) {
    let client = muster.client().clone();
    let body = json!({ "username": "the first in line", "password": "keeps-it-busy" });
    // Fails when the server stops, which is ignored.
    tokio::spawn(async move {
        let headers = [("content-type", "application/json")];
        let _ = client.send("POST", "/signup", &headers, body.to_string()).await;
    });
    muster.wait_for_event("hash_started").await;
}

/// The state of a client while it runs cases.
struct Session {
    client: Client,
    /// The last token.
    token: String,
    /// The texts for `{unique}`, which are part of every name and address.
    people: Vec<String>,
    passwords: BTreeSet<String>,
    responses: Vec<String>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            client: Client::new(""),
            token: String::new(),
            people: Vec::new(),
            passwords: BTreeSet::new(),
            responses: Vec::new(),
        }
    }
}

impl Session {
    /// Runs cases one after the other and returns the differences.
    async fn play_all(mut self, file: &File, cases: &[Case]) -> (Self, Vec<String>) {
        let mut failures = Vec::new();
        for case in cases {
            if let Err(difference) = self.play(file, case).await {
                failures.push(format!("{}: {difference}", case.name));
            }
        }
        (self, failures)
    }

    async fn play(&mut self, file: &File, case: &Case) -> Result<(), String> {
        let person = unique("p");
        self.people.push(person.clone());
        for before in &case.before {
            let response = self.send(file, &before.request, &person).await;
            if response.status != before.status {
                return Err(format!(
                    "request before the case: {}: {}",
                    response.status,
                    response.json()
                ));
            }
        }
        let response = self.send(file, &case.request, &person).await;
        let expected = expected(file, &case.response, &person);
        let mut actual = json!({
            "status": response.status,
            "headers": headers_of(&response),
            "body": response.json(),
        });
        replace_placeholders(&expected, &mut actual);
        if actual != expected {
            return Err(format!("\n  expected {expected}\n  got      {actual}"));
        }
        if response.status >= 400 && case.request.method != "HEAD" && !actual["body"].is_object() {
            return Err(format!("the body is not an object: {actual}"));
        }
        Ok(())
    }

    async fn send(&mut self, file: &File, request: &Request, person: &str) -> HttpResponse {
        let fill = |text: &str| self.fill(text, person);
        let body = match (&request.body, &request.raw, &request.hex) {
            (Some(body), ..) => Some(fill_all(body, &fill).to_string().into_bytes()),
            (_, Some(raw), _) => Some(fill(raw).into_bytes()),
            (.., Some(hex)) => Some(from_hex(hex)),
            _ => None,
        };
        let mut headers = Headers::new();
        if body.is_some() {
            headers.insert("content-type".into(), json!("application/json"));
        }
        headers.extend(request.headers.clone());
        let headers: Vec<(String, String)> = headers
            .iter()
            .flat_map(|(name, values)| listed(values).map(|value| (name.clone(), fill(value))))
            .collect();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let path = fill(request.path.as_ref().unwrap_or(&file.path));
        let body = body.unwrap_or_default();
        self.passwords.extend(passwords_in(&String::from_utf8_lossy(&body)));
        let response = self.client.send(&request.method, &path, &headers, body).await;
        let response =
            response.unwrap_or_else(|error| panic!("{} {path}: {error}", request.method));
        let text = String::from_utf8_lossy(&response.bytes).into_owned();
        self.responses.push(format!("{:?}\n{text}", response.headers));
        if let Some(token) = token_in(&text) {
            self.token = token;
        }
        response
    }

    fn fill(&self, text: &str, person: &str) -> String {
        let text = repeated(&text.replace("{unique}", person));
        let tokens: [(&str, TokenChange); 5] = [
            ("{token}", str::to_owned),
            ("{expired}", tokens::expired),
            ("{forged}", tokens::forged),
            ("{unsigned}", tokens::unsigned),
            ("{unknown_user}", tokens::unknown_user),
        ];
        tokens.into_iter().fold(text, |text, (name, make)| {
            if text.contains(name) { text.replace(name, &make(&self.token)) } else { text }
        })
    }

    /// Fails if a response or the output contains a password or a hash, or the output contains personal data.
    fn assert_nothing_leaked(&self, output: &str) {
        let text = self.responses.join("\n") + output;
        for secret in self.passwords.iter().map(String::as_str).chain(["$2b$", SECRET]) {
            assert!(!text.contains(secret), "{secret} leaked");
        }
        for private in self.people.iter().map(String::as_str).chain(["eyJ", "@example.com"]) {
            assert!(!output.contains(private), "{private} is in the log:\n{output}");
        }
    }
}

/// The expected response of a case, with the common headers of its file.
fn expected(file: &File, response: &Expected, person: &str) -> Value {
    let fill = |text: &str| repeated(&text.replace("{unique}", person));
    let mut headers = file.headers.clone();
    headers.extend(response.headers.clone());
    let headers: BTreeMap<String, Vec<String>> = headers
        .iter()
        .map(|(name, values)| (name.clone(), listed(values).map(fill).collect::<Vec<_>>()))
        .filter(|(_, values)| !values.is_empty())
        .collect();
    let body = fill_all(&response.body, &fill);
    json!({ "status": response.status, "headers": headers, "body": body })
}

/// All headers except those that differ between equal responses.
fn headers_of(response: &HttpResponse) -> BTreeMap<String, Vec<String>> {
    let mut headers = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in &response.headers {
        if !["date", "content-length", "server-timing"].contains(&name.as_str()) {
            headers.entry(name.to_string()).or_default().push(value.to_str().unwrap().to_owned());
        }
    }
    headers
}

fn listed(values: &Value) -> impl Iterator<Item = &str> {
    let one = values.as_str().into_iter();
    one.chain(values.as_array().into_iter().flatten().filter_map(Value::as_str))
}

/// Replaces values that match a placeholder by the placeholder.
fn replace_placeholders(expected: &Value, actual: &mut Value) {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            for (key, expected) in expected {
                if let Some(actual) = actual.get_mut(key) {
                    replace_placeholders(expected, actual);
                }
            }
        }
        (Value::Array(expected), Value::Array(actual)) => {
            expected
                .iter()
                .zip(actual)
                .for_each(|(expected, actual)| replace_placeholders(expected, actual));
        }
        (Value::String(form), Value::String(text)) => {
            let is_hex = |text: &str| text.bytes().all(|b| b"0123456789abcdef".contains(&b));
            let fits = match form.as_str() {
                "<id>" => text.len() == 24 && is_hex(text),
                "<key>" => text.len() == 32 && is_hex(text),
                "<token>" => tokens::claims(text).is_some(),
                "<seconds>" => text.parse().is_ok_and(|seconds: u64| seconds >= 1),
                "<time>" => text.len() == 24 && humantime::parse_rfc3339(text).is_ok(),
                _ => false,
            };
            if fits {
                text.clone_from(form);
            }
        }
        _ => {}
    }
}

/// Applies `fill` to all strings of a document.
fn fill_all(value: &Value, fill: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => json!(fill(text)),
        Value::Array(items) => items.iter().map(|item| fill_all(item, fill)).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.clone(), fill_all(value, fill))).collect()
        }
        other => other.clone(),
    }
}

/// Expands `{x*3}` to `xxx`.
fn repeated(text: &str) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let repeated = after.split_once('}').and_then(|(inside, after)| {
            let (part, times) = inside.rsplit_once('*').filter(|(part, _)| !part.contains('{'))?;
            Some((part.repeat(times.parse().ok()?), after))
        });
        match repeated {
            Some((text, after)) => {
                filled.push_str(&text);
                rest = after;
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled + rest
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Every password in a body, valid JSON or not.
fn passwords_in(body: &str) -> Vec<String> {
    body.split("\"password\":")
        .skip(1)
        .map(|rest| match rest.strip_prefix('"') {
            Some(text) => text.split('"').next().unwrap_or_default(),
            None => rest.split([',', '}']).next().unwrap_or_default(),
        })
        .filter(|password| !password.trim().is_empty() && *password != "null")
        .map(str::to_owned)
        .collect()
}

fn token_in(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    let token = body.get("token").or_else(|| body.pointer("/data/token"))?;
    token.as_str().map(str::to_owned)
}
