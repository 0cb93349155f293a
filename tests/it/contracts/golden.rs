//! Runs a golden file against the real program.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::tokens;
use crate::support::muster::eventually;
use crate::support::services::unique;
use crate::support::{HttpResponse, Client, Muster, Pair, Setup, muster::SECRET};

/// Headers as they are written in a file: one value, several, or null for none.
type Headers = BTreeMap<String, Value>;

/// Makes a token of another.
type Make = fn(&str) -> String;

/// A golden file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What the file is about; for its readers.
    #[serde(rename = "about")]
    _about: String,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    /// Whether another signup is under way all the time.
    #[serde(default)]
    busy: bool,
    /// Whether all cases are asked at the same time, because each waits as long as the deadline is. That is long
    /// enough for whatever a worker does before it hashes, however slow the machine is.
    #[serde(default)]
    together: bool,
    /// Path of the requests that name none.
    #[serde(default)]
    path: String,
    /// Headers of every answer, unless a case says otherwise.
    headers: Headers,
    cases: Vec<Case>,
}

/// One request and its answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// What must have happened.
    #[serde(default)]
    before: Vec<Before>,
    request: Request,
    answer: Expected,
}

/// A request of which only the status of the answer counts.
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
    /// `content-type: application/json` goes without saying where there is a body.
    #[serde(default)]
    headers: Headers,
    body: Option<Value>,
    /// A body that JSON cannot hold: as text, or in hexadecimal where it is no text.
    raw: Option<String>,
    hex: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    status: u16,
    #[serde(default)]
    headers: Headers,
    /// Absent: there is none.
    #[serde(default)]
    body: Value,
}

fn post() -> String {
    "POST".into()
}

/// Runs a file; tells all cases that differ.
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
    let (sessions, wrong): (Vec<Session>, Vec<Vec<String>>) = if file.together {
        // One after the other reaches the worker: what waits for one would have the next refused.
        let cases = file.cases.iter().enumerate().map(async |(before, case)| {
            let taken = || muster.output().matches("\"delivery_started\"").count();
            eventually("the request before it to be taken", async || taken() > before).await;
            session().play_all(&file, std::slice::from_ref(case)).await
        });
        join_all(cases).await.into_iter().unzip()
    } else {
        [session().play_all(&file, &file.cases).await].into_iter().unzip()
    };
    let wrong = wrong.concat();
    // A busy server would first finish what keeps it busy.
    let output = if file.busy { muster.output() } else { muster.stop_and_collect_output().await };
    sessions.iter().for_each(|session| session.check_that_nothing_leaked(&output));
    assert!(wrong.is_empty(), "{name}, {} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// Begins a signup that takes as long as its server lives.
async fn occupy(muster: &mut Muster) {
    let client = muster.client().clone();
    let body = json!({ "username": "the first in line", "password": "keeps-it-busy" });
    // It ends with the server, and then nobody wants its answer.
    tokio::spawn(async move {
        let headers = [("content-type", "application/json")];
        let _ = client.send("POST", "/signup", &headers, body.to_string()).await;
    });
    muster.wait_for_log(|line| line.contains("hashing")).await;
}

/// What was said so far.
struct Session {
    client: Client,
    /// The last token.
    token: String,
    /// The texts that stood for `{unique}`: they are part of every name and address.
    people: Vec<String>,
    passwords: BTreeSet<String>,
    answers: Vec<String>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            client: Client::new(""),
            token: String::new(),
            people: Vec::new(),
            passwords: BTreeSet::new(),
            answers: Vec::new(),
        }
    }
}

impl Session {
    /// Plays cases one after the other, and gives the differences.
    async fn play_all(mut self, file: &File, cases: &[Case]) -> (Self, Vec<String>) {
        let mut wrong = Vec::new();
        for case in cases {
            if let Err(difference) = self.play(file, case).await {
                wrong.push(format!("{}: {difference}", case.name));
            }
        }
        (self, wrong)
    }

    async fn play(&mut self, file: &File, case: &Case) -> Result<(), String> {
        let person = unique("p");
        self.people.push(person.clone());
        for before in &case.before {
            let answer = self.ask(file, &before.request, &person).await;
            if answer.status != before.status {
                return Err(format!("before it, {}: {}", answer.status, answer.json()));
            }
        }
        let answer = self.ask(file, &case.request, &person).await;
        let expected = expected(file, &case.answer, &person);
        let mut actual = json!({
            "status": answer.status,
            "headers": headers_of(&answer),
            "body": answer.json(),
        });
        blind(&expected, &mut actual);
        if actual != expected {
            return Err(format!("\n  wanted {expected}\n  got    {actual}"));
        }
        if answer.status >= 400 && case.request.method != "HEAD" && !actual["body"].is_object() {
            return Err(format!("no object: {actual}"));
        }
        Ok(())
    }

    async fn ask(&mut self, file: &File, request: &Request, person: &str) -> HttpResponse {
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
        let answer = self.client.send(&request.method, &path, &headers, body).await;
        let answer = answer.unwrap_or_else(|error| panic!("{} {path}: {error}", request.method));
        let told = String::from_utf8_lossy(&answer.bytes).into_owned();
        self.answers.push(format!("{:?}\n{told}", answer.headers));
        if let Some(token) = token_in(&told) {
            self.token = token;
        }
        answer
    }

    fn fill(&self, text: &str, person: &str) -> String {
        let text = repeated(&text.replace("{unique}", person));
        let made: [(&str, Make); 5] = [
            ("{token}", str::to_owned),
            ("{expired}", tokens::expired),
            ("{forged}", tokens::forged),
            ("{unsigned}", tokens::unsigned),
            ("{gone}", tokens::gone),
        ];
        made.into_iter().fold(text, |text, (name, make)| {
            if text.contains(name) { text.replace(name, &make(&self.token)) } else { text }
        })
    }

    /// No password and no hash in an answer or the program's output, and nobody in its output.
    fn check_that_nothing_leaked(&self, output: &str) {
        let said = self.answers.join("\n") + output;
        for secret in self.passwords.iter().map(String::as_str).chain(["$2b$", SECRET]) {
            assert!(!said.contains(secret), "{secret} leaked");
        }
        for private in self.people.iter().map(String::as_str).chain(["eyJ", "@example.com"]) {
            assert!(!output.contains(private), "{private} is in the log:\n{output}");
        }
    }
}

/// The answer a case wants, with what all answers of its file have.
fn expected(file: &File, answer: &Expected, person: &str) -> Value {
    let fill = |text: &str| repeated(&text.replace("{unique}", person));
    let mut headers = file.headers.clone();
    headers.extend(answer.headers.clone());
    let headers: BTreeMap<String, Vec<String>> = headers
        .iter()
        .map(|(name, values)| (name.clone(), listed(values).map(fill).collect::<Vec<_>>()))
        .filter(|(_, values)| !values.is_empty())
        .collect();
    let body = fill_all(&answer.body, &fill);
    json!({ "status": answer.status, "headers": headers, "body": body })
}

/// All headers but those that say nothing about the answer.
fn headers_of(answer: &HttpResponse) -> BTreeMap<String, Vec<String>> {
    let mut headers = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in &answer.headers {
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

/// Replaces what has the wanted form by the name of the form.
fn blind(expected: &Value, actual: &mut Value) {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            for (key, expected) in expected {
                if let Some(actual) = actual.get_mut(key) {
                    blind(expected, actual);
                }
            }
        }
        (Value::Array(expected), Value::Array(actual)) => {
            expected.iter().zip(actual).for_each(|(expected, actual)| blind(expected, actual));
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

/// Fills the texts of a document in.
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

/// Writes `{x*3}` out: `xxx`.
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

/// Every password in a body, readable or not.
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
