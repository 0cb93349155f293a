//! `muster signup`: registers one user over HTTP. The password is read from a hidden prompt or from standard input. It
//! is never an argument, because other users of the machine can read the command line.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use url::Url;
use zeroize::Zeroizing;

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, UsageError, http_url, print_error,
    print_failure, reachable, runtime, stdout,
};
use crate::config::Settings;
use crate::contract::{Document, Policy, contract};
use crate::domain::ContractId;
use crate::http_client::{HttpConnection, trust};
use crate::telemetry::stderr;

/// Stands in for the password while the other fields are validated. Valid in every contract.
const PLACEHOLDER: &str = "Asked-for-later-1";
/// Longest excerpt of an unrecognised response, in characters.
const REASON_MAX: usize = 200;
/// Timeout of connect and of the response, each. Longer than the default front.request_timeout.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster signup --firstname Ann --email ann@example.com\n  \
    muster signup --contract username --username ann --password-stdin < password.txt\n  \
    muster signup --url https://signup.example.com --ca-file ca.pem --firstname Ann --email ann@example.com\n\n\
    Exit codes: 0 registered, 1 refused or failed, 2 command line or settings are invalid.")]
pub(super) struct SignupArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Contract of the request.
    #[arg(long, default_value = "register", value_name = "NAME")]
    contract: ContractId,
    /// User name.
    #[arg(long)]
    username: Option<String>,
    /// Email address.
    #[arg(long)]
    email: Option<String>,
    /// First name.
    #[arg(long)]
    firstname: Option<String>,
    /// Last name.
    #[arg(long)]
    lastname: Option<String>,
    /// URL of the server; by default the address in the settings.
    #[arg(long, value_name = "URL", value_parser = http_url)]
    url: Option<Url>,
    /// Certificate authorities to trust for https, in addition to the public ones.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Read the password from the first line of standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Print the response as JSON, including the token.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &SignupArgs) -> u8 {
    let settings = match flags.settings.clone().load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            print_error(&error);
            return EXIT_CONFIGURATION;
        }
    };
    register(flags, &settings).unwrap_or_else(|error| print_failure(&error))
}

/// Registers the user. Checks all other input first, so that a mistake is reported before the password prompt.
fn register(flags: &SignupArgs, settings: &Settings) -> anyhow::Result<u8> {
    let target = target(flags, settings).map_err(usage)?;
    flags.check()?;
    let runtime = runtime()?;
    if !flags.password_stdin {
        ensure!(
            io::stdin().is_terminal(),
            UsageError(
                "standard input is not a terminal, so no password prompt is possible; give --password-stdin"
                    .to_owned()
            )
        );
        runtime.block_on(connect(&target, flags))?;
    }
    let body = flags.body(&password(flags).map_err(usage)?);
    let (status, body) = runtime.block_on(send(&target, flags, body))?;
    report(flags, status, &body)
}

/// Wraps an error as a usage error.
fn usage(error: anyhow::Error) -> anyhow::Error {
    UsageError(format!("{error:#}")).into()
}

/// Returns the URL of the mount that serves the contract.
fn target(flags: &SignupArgs, settings: &Settings) -> anyhow::Result<Url> {
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

fn password(flags: &SignupArgs) -> anyhow::Result<Zeroizing<String>> {
    if flags.password_stdin {
        let mut line = Zeroizing::new(String::new());
        io::stdin()
            .lock()
            .read_line(&mut line)
            .context("standard input: cannot read the password")?;
        let end = line.trim_end_matches(['\r', '\n']).len();
        line.truncate(end);
        return Ok(line);
    }
    let first = Zeroizing::new(rpassword::prompt_password("Password: ")?);
    let repeated = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
    if first != repeated {
        bail!("the passwords differ; nothing was sent")
    }
    Ok(first)
}

impl SignupArgs {
    /// Validates all fields except the password against the contract. Returns a usage error with all violations.
    fn check(&self) -> anyhow::Result<()> {
        let body = self.body(PLACEHOLDER);
        let Ok(document) = Document::parse(body.as_bytes()) else {
            bail!(UsageError("a value has characters that JSON cannot represent".to_owned()))
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

    /// Returns the JSON document of the contract with the given fields. Validation reports missing fields.
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

async fn connect(target: &Url, flags: &SignupArgs) -> anyhow::Result<HttpConnection> {
    let host = target.host_str().context("--url: expected a host")?;
    let port = target.port_or_known_default().context("--url: expected a port")?;
    let encrypted = target.scheme() == "https";
    let trust = encrypted.then(|| trust::authorities(flags.ca_file.as_deref())).transpose()?;
    let connection =
        tokio::time::timeout(TIMEOUT, HttpConnection::open_to(host, port, trust)).await;
    connection.with_context(|| format!("{host}:{port}: no connection within 30 s"))?
}

async fn send(
    target: &Url,
    flags: &SignupArgs,
    body: Zeroizing<String>,
) -> anyhow::Result<(u16, Value)> {
    let mut connection = connect(target, flags).await?;
    let post = async {
        let bytes = bytes::Bytes::copy_from_slice(body.as_bytes());
        connection.post(target.path(), bytes).await
    };
    let response = tokio::time::timeout(TIMEOUT, post).await;
    let (status, bytes) = response.with_context(|| {
        format!("{target}: no response within 30 s; the user may or may not be registered")
    })??;
    let body = serde_json::from_slice(&bytes).ok();
    Ok((status, body.unwrap_or_else(|| json!(String::from_utf8_lossy(&bytes)))))
}

fn report(flags: &SignupArgs, status: u16, body: &Value) -> anyhow::Result<u8> {
    let is_registered = status == 201;
    if flags.json {
        stdout::print(&format!("{body}\n"))?;
    } else if is_registered {
        let user = body.get("data").unwrap_or(body).get("user").unwrap_or(body);
        let id = user.get("_id").or_else(|| user.get("id")).and_then(Value::as_str);
        let id = id.map(|id| format!(" with the id {id}")).unwrap_or_default();
        let name = flags.username.as_ref().or(flags.email.as_ref());
        let name = name.map_or("the user", String::as_str);
        let sentence = format!("Registered {name} under the contract {}{id}.\n", flags.contract);
        stdout::print(&stderr::printable(&sentence))?;
    } else {
        print_error(&anyhow::anyhow!("not registered: {} (HTTP {status})", refusal_reasons(body)));
    }
    Ok(if is_registered { EXIT_OK } else { EXIT_FAILED })
}

/// Extracts the reasons for a refusal from the response of any contract.
fn refusal_reasons(body: &Value) -> String {
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
