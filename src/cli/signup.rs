//! `muster signup`: registers one user from the terminal, over HTTP like everybody else. The password
//! is typed without being shown, or comes over standard input; it is never an argument, which other
//! users of the machine could read.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use url::Url;
use zeroize::Zeroizing;

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, UsageError, complain, failed, http_url,
    reachable, runtime, stdout,
};
use crate::config::Settings;
use crate::contract::{Document, Policy, contract};
use crate::http_client::{HttpConnection, trust};
use crate::domain::ContractId;
use crate::telemetry::stderr;

/// Password in the document while the other fields are checked; every contract accepts it.
const PLACEHOLDER: &str = "Asked-for-later-1";
/// Longest part of a response that is shown as it is, in characters.
const REASON_MAX: usize = 200;
/// Longest wait for the answer: more than any muster lets a client wait by default.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster signup --firstname Ann --email ann@example.com\n  \
    muster signup --contract username --username ann --password-stdin < password.txt\n  \
    muster signup --url https://signup.example.com --ca-file ca.pem --firstname Ann --email ann@example.com\n\n\
    Exit codes: 0 registered, 1 refused or failed, 2 settings or command line are wrong.")]
pub(super) struct Flags {
    #[command(flatten)]
    settings: SettingFlags,
    /// Under which contract.
    #[arg(long, default_value = "register", value_name = "NAME")]
    contract: ContractId,
    /// User name.
    #[arg(long)]
    username: Option<String>,
    /// Address.
    #[arg(long)]
    email: Option<String>,
    /// First name.
    #[arg(long)]
    firstname: Option<String>,
    /// Last name.
    #[arg(long)]
    lastname: Option<String>,
    /// Where the muster is; without it, where these settings say that one listens.
    #[arg(long, value_name = "URL", value_parser = http_url)]
    url: Option<Url>,
    /// Authorities to trust over https, besides the well-known ones.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Read the password from the first line of standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Print the whole response as JSON, token and all, instead of a sentence.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &Flags) -> u8 {
    let settings = match flags.settings.clone().load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    register(flags, &settings).unwrap_or_else(|error| failed(&error))
}

/// Registers the user. Checks all other input first, so that a mistake is reported before the password prompt.
fn register(flags: &Flags, settings: &Settings) -> anyhow::Result<u8> {
    let target = target(flags, settings).map_err(usage)?;
    flags.check()?;
    let runtime = runtime()?;
    if !flags.password_stdin {
        ensure!(
            io::stdin().is_terminal(),
            UsageError("no terminal to ask for the password on; give --password-stdin".to_owned())
        );
        runtime.block_on(connect(&target, flags))?;
    }
    let body = flags.body(&password(flags).map_err(usage)?);
    let (status, body) = runtime.block_on(send(&target, flags, body))?;
    report(flags, status, &body)
}

/// An error of the command line.
fn usage(error: anyhow::Error) -> anyhow::Error {
    UsageError(format!("{error:#}")).into()
}

/// Where to, with the contract's path.
fn target(flags: &Flags, settings: &Settings) -> anyhow::Result<Url> {
    let mounts = &settings.front.mounts;
    let mount = mounts.iter().find(|mount| mount.contracts.contains(&flags.contract));
    let path = &mount.with_context(|| format!("{} is not in front.mounts", flags.contract))?.path;
    let base = match &flags.url {
        Some(url) => url.clone(),
        None => {
            let scheme = if settings.front.tls.is_some() { "https" } else { "http" };
            Url::parse(&format!("{scheme}://{}", reachable(settings.front.listen)))?
        }
    };
    let mut target = base.clone();
    target.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    Ok(target)
}

fn password(flags: &Flags) -> anyhow::Result<Zeroizing<String>> {
    if flags.password_stdin {
        let mut line = Zeroizing::new(String::new());
        io::stdin().lock().read_line(&mut line).context("standard input")?;
        let end = line.trim_end_matches(['\r', '\n']).len();
        line.truncate(end);
        return Ok(line);
    }
    let first = Zeroizing::new(rpassword::prompt_password("Password: ")?);
    let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
    if first != again {
        bail!("the two passwords differ; nothing was sent")
    }
    Ok(first)
}

impl Flags {
    /// Applies the contract's rules to everything but the password.
    fn check(&self) -> anyhow::Result<()> {
        let body = self.body(PLACEHOLDER);
        let Ok(document) = Document::parse(body.as_bytes()) else {
            bail!(UsageError("a value cannot be in a document".to_owned()))
        };
        let checked = contract(self.contract).check(&document, &Policy::default());
        let errors = checked.err().unwrap_or_default().into_iter();
        let errors = errors.filter(|error| error.field != "password");
        let errors = errors.map(|error| match &*error.field {
            "" => error.message.into_owned(),
            field => format!("{field}: {}", error.message),
        });
        let errors: Vec<String> = errors.collect();
        ensure!(errors.is_empty(), UsageError(errors.join("; ")));
        Ok(())
    }

    /// The contract's document, with what was given; the contract says what is missing.
    fn body(&self, password: &str) -> Zeroizing<String> {
        let given = |fields: &[(&str, &Option<String>)]| -> Map<String, Value> {
            let given = fields.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?)));
            given.map(|(name, value)| (name.to_owned(), json!(value))).collect()
        };
        let names = [("firstname", &self.firstname), ("lastname", &self.lastname)];
        let mut body = match self.contract {
            ContractId::Username | ContractId::ErrorCode => {
                given(&[("username", &self.username), ("email", &self.email)])
            }
            ContractId::FlatName => given(&[names[0], names[1], ("email", &self.email)]),
            ContractId::NestedName | ContractId::Register => {
                let mut body = given(&[("email", &self.email)]);
                body.insert("fullname".to_owned(), Value::Object(given(&names)));
                body
            }
        };
        body.insert("password".to_owned(), json!(password));
        Zeroizing::new(Value::Object(body).to_string())
    }
}

async fn connect(target: &Url, flags: &Flags) -> anyhow::Result<HttpConnection> {
    let host = target.host_str().context("--url: expected a host")?;
    let port = target.port_or_known_default().context("--url: expected a port")?;
    let encrypted = target.scheme() == "https";
    let trust = encrypted.then(|| trust::authorities(flags.ca_file.as_deref())).transpose()?;
    let opened = tokio::time::timeout(PATIENCE, HttpConnection::open_to(host, port, trust)).await;
    opened.with_context(|| format!("{host}:{port}: no connection in 30 s"))?
}

async fn send(
    target: &Url,
    flags: &Flags,
    body: Zeroizing<String>,
) -> anyhow::Result<(u16, Value)> {
    let mut connection = connect(target, flags).await?;
    let ask = async {
        let bytes = bytes::Bytes::copy_from_slice(body.as_bytes());
        connection.post(target.path(), bytes).await
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await;
    let (status, bytes) = answer.with_context(|| {
        format!("{target}: no response in 30 s; whether the user was registered is not known")
    })??;
    let body = serde_json::from_slice(&bytes).ok();
    Ok((status, body.unwrap_or_else(|| json!(String::from_utf8_lossy(&bytes)))))
}

fn report(flags: &Flags, status: u16, body: &Value) -> anyhow::Result<u8> {
    let registered = status == 201;
    if flags.json {
        stdout::print(&format!("{body}\n"))?;
    } else if registered {
        let user = body.get("data").unwrap_or(body).get("user").unwrap_or(body);
        let id = user.get("_id").or_else(|| user.get("id")).and_then(Value::as_str);
        let id = id.map(|id| format!(" with the id {id}")).unwrap_or_default();
        let who = flags.username.as_ref().or(flags.email.as_ref());
        let who = who.map_or("the user", String::as_str);
        let sentence = format!("Registered {who} under the contract {}{id}.\n", flags.contract);
        stdout::print(&stderr::printable(&sentence))?;
    } else {
        complain(&anyhow::anyhow!("not registered: {} (HTTP {status})", reasons(body)));
    }
    Ok(if registered { EXIT_OK } else { EXIT_FAILED })
}

/// Why a registration was refused, from the response of any contract.
fn reasons(body: &Value) -> String {
    let text = |value: &Value, names: &[&str]| {
        names.iter().find_map(|name| value[*name].as_str()).map(str::to_owned)
    };
    let errors = body["errors"].as_array().into_iter().flatten();
    let errors = errors.filter_map(|error| {
        let reason = text(error, &["msg", "message"])?;
        Some(match text(error, &["param", "field"]) {
            Some(field) => format!("{field}: {reason}"),
            None => reason,
        })
    });
    let errors: Vec<String> = errors.collect();
    if !errors.is_empty() {
        return errors.join("; ");
    }
    let reason = text(body, &["message", "description", "error", "detail", "title"]);
    reason.unwrap_or_else(|| body.to_string().chars().take(REASON_MAX).collect())
}
