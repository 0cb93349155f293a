//! `muster signup`: registers one user from the terminal, over HTTP like everybody else. The password
//! is typed without being shown, or comes over standard input; it is never an argument, which other
//! users of the machine could read.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use url::Url;
use zeroize::Zeroizing;

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, complain, reachable, runtime};
use crate::config::Settings;
use crate::http_client::{Connection, trust};
use crate::signup::ContractId;

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
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// Authorities to trust over https, besides the well-known ones.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Read the password from the first line of standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Print the whole answer as JSON, token and all.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &Flags) -> u8 {
    let settings = match flags.settings.clone().load_to_ask() {
        Ok(settings) => settings,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let body =
        target(flags, &settings).and_then(|target| Ok((target, flags.body(&password(flags)?))));
    let (target, body) = match body {
        Ok(ready) => ready,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let answered = runtime().and_then(|runtime| runtime.block_on(send(&target, flags, body)));
    match answered.and_then(|(status, body)| tell(flags, status, &body)) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
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
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
        bail!("--url: http://HOST or https://HOST wanted")
    }
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
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask for the password on; give --password-stdin")
    }
    let first = Zeroizing::new(rpassword::prompt_password("Password: ")?);
    let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
    if first != again {
        bail!("the two passwords differ; nothing was sent")
    }
    Ok(first)
}

impl Flags {
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

async fn send(
    target: &Url,
    flags: &Flags,
    body: Zeroizing<String>,
) -> anyhow::Result<(u16, Value)> {
    let host = target.host_str().context("--url: a host wanted")?;
    let port = target.port_or_known_default().context("--url: a port wanted")?;
    let encrypted = target.scheme() == "https";
    let trust = encrypted.then(|| trust::authorities(flags.ca_file.as_deref())).transpose()?;
    let ask = async {
        let mut connection = Connection::open_to(host, port, trust).await?;
        let bytes = bytes::Bytes::copy_from_slice(body.as_bytes());
        connection.post(target.path(), bytes).await
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await;
    let (status, bytes) = answer.with_context(|| {
        format!("{host}:{port}: no answer in 30 s; whether the user was registered is not known")
    })??;
    let body = serde_json::from_slice(&bytes).ok();
    Ok((status, body.unwrap_or_else(|| json!(String::from_utf8_lossy(&bytes)))))
}

fn tell(flags: &Flags, status: u16, body: &Value) -> anyhow::Result<u8> {
    let registered = status == 201;
    if flags.json {
        writeln!(io::stdout(), "{body}")?;
    } else if registered {
        let user = body.get("data").unwrap_or(body).get("user").unwrap_or(body);
        let id = user.get("_id").or_else(|| user.get("id")).and_then(Value::as_str);
        let id = id.map(|id| format!(" with the id {id}")).unwrap_or_default();
        writeln!(io::stdout(), "registered under {}{id}", flags.contract)?;
    } else {
        complain(&anyhow::anyhow!("not registered, the answer was {status}: {body}"));
    }
    Ok(if registered { EXIT_OK } else { EXIT_FAILED })
}
