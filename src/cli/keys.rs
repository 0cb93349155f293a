//! `muster keys`: makes the keys that sign tokens, lists them, and writes what others need to verify.
//! A private key is printed only by `make --output -`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{EXIT_CONFIGURATION, EXIT_OK, SettingFlags, UsageError, complain, failed, stdout};
use crate::telemetry::stderr;
use crate::token::key::{self, SigningAlgorithm};
use crate::token::{TokenKey, public_keys};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a private key, in a file that only its owner can read.
    #[command(after_help = "Examples:\n  \
        muster keys make --output token-2026.pem\n  \
        muster keys make --algorithm rs256 --output token-rsa.pem\n\n\
        The first file of token.key_files (MUSTER_TOKEN_KEY_FILES) signs; the others still verify.")]
    Make(Make),
    /// List keys by their ids: those of the settings, or those in files.
    #[command(after_help = "Examples:\n  \
        MUSTER_TOKEN_KEY_FILES=new.pem,old.pem muster keys list\n  \
        muster keys list --json token-2026.pem")]
    List(Which),
    /// Print the public halves as a JWK set, for front ends and for whoever verifies tokens.
    #[command(after_help = "Examples:\n  \
        muster keys jwks new.pem old.pem > jwks.json\n  \
        MUSTER_FRONT_JWKS_FILE=jwks.json muster serve --role front")]
    Jwks(Which),
}

#[derive(Debug, Args)]
pub(super) struct Make {
    /// How the key signs.
    #[arg(long, value_enum, default_value = "eddsa", value_name = "ALGORITHM")]
    algorithm: Choice,
    /// A new file for it; - is standard output.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Args)]
pub(super) struct Which {
    #[command(flatten)]
    settings: SettingFlags,
    /// Files with private keys; without any, those of token.key_files.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON. A JWK set always is.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    /// Ed25519: small and fast.
    Eddsa,
    /// ECDSA on P-256.
    Es256,
    /// RSA with 2048 bits, for verifiers that know nothing newer.
    Rs256,
}

pub(super) fn run(command: Command) -> u8 {
    let done = match command {
        Command::Make(make) => make.run().map(|()| EXIT_OK),
        Command::List(which) => which.run(list),
        Command::Jwks(which) => which.run(jwks),
    };
    done.unwrap_or_else(|error| failed(&error))
}

impl Make {
    fn run(&self) -> anyhow::Result<()> {
        let algorithm = match self.algorithm {
            Choice::Eddsa => SigningAlgorithm::EdDsa,
            Choice::Es256 => SigningAlgorithm::Es256,
            Choice::Rs256 => SigningAlgorithm::Rs256,
        };
        let pem = key::generate(algorithm)?;
        let id = TokenKey::from_pem(&pem)?.id().unwrap_or_default().to_owned();
        if self.output.as_os_str() == "-" {
            return stdout::print(&pem);
        }
        write_private(&self.output, pem.as_bytes())?;
        let path = self.output.display();
        let told = format!(
            "{path}: a private {} key with the id {id}\nMUSTER_TOKEN_KEY_FILES={path}\n",
            algorithm.as_str()
        );
        stdout::print(&told)
    }
}

impl Which {
    fn run(self, print: fn(&[Found], bool) -> anyhow::Result<()>) -> anyhow::Result<u8> {
        let (mut files, mut secret) = (self.files, false);
        if files.is_empty() {
            match self.settings.load_for_client() {
                Ok(settings) => {
                    files = settings.token.key_files;
                    secret = settings.token.secret.is_some();
                }
                Err(error) => {
                    complain(&error);
                    return Ok(EXIT_CONFIGURATION);
                }
            }
        }
        let found: anyhow::Result<Vec<Found>> = files
            .into_iter()
            .map(|path| Ok(Found { key: Some(TokenKey::read(&path)?), path }))
            .collect();
        let mut found = found?;
        if secret {
            found.push(Found { key: None, path: PathBuf::new() });
        }
        print(&found, self.json)?;
        Ok(EXIT_OK)
    }
}

/// A key and where it is; none is the secret, which has neither an id nor a place.
struct Found {
    key: Option<TokenKey>,
    path: PathBuf,
}

fn list(found: &[Found], as_json: bool) -> anyhow::Result<()> {
    if found.is_empty() {
        stderr::line("muster: no keys: token.key_files (MUSTER_TOKEN_KEY_FILES) and JWT_SECRET are not set");
    }
    let mut lines = String::new();
    for (at, Found { key, path }) in found.iter().enumerate() {
        let (id, algorithm) = match key {
            Some(key) => (key.id().unwrap_or_default(), key.algorithm()),
            None => ("-", SigningAlgorithm::Hs256),
        };
        let (algorithm, use_) = (algorithm.as_str(), if at == 0 { "signs" } else { "verifies" });
        let place = match key {
            Some(_) => path.display().to_string(),
            None => "JWT_SECRET".to_owned(),
        };
        let line = if as_json {
            let id = key.as_ref().and_then(TokenKey::id);
            json!({ "kid": id, "alg": algorithm, "use": use_, "from": place }).to_string()
        } else {
            format!("{id:<43}  {algorithm:<5}  {use_:<8}  {place}")
        };
        lines += &line;
        lines.push('\n');
    }
    stdout::print(&lines)
}

fn jwks(found: &[Found], _: bool) -> anyhow::Result<()> {
    let keys: Option<Value> = public_keys(found.iter().filter_map(|found| found.key.as_ref()));
    let Some(keys) = keys else {
        let wrong =
            "no keys with a public half: name their files, or set token.key_files (MUSTER_TOKEN_KEY_FILES)";
        bail!(UsageError(wrong.to_owned()))
    };
    stdout::print(&(serde_json::to_string_pretty(&keys)? + "\n"))
}

/// Writes a new file that only its owner can read; never over one that is there.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = made.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| format!("{}: not written; name a new file", path.display()))
}
