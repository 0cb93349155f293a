//! `muster keys`: generates and lists the keys that sign tokens, and prints their public halves. Only
//! `make --output -` prints a private key.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{
    EXIT_CONFIGURATION, EXIT_OK, SettingFlags, UsageError, print_error, print_failure, stdout,
};
use crate::telemetry::stderr;
use crate::token::key::{self, SigningAlgorithm};
use crate::token::{TokenKey, public_keys};

#[derive(Subcommand)]
pub(super) enum KeysCommand {
    /// Generate a private key in a file that only its owner can read.
    #[command(after_help = "Examples:\n  \
        muster keys make --output token-2026.pem\n  \
        muster keys make --algorithm rs256 --output token-rsa.pem\n\n\
        The first file of token.key_files (MUSTER_TOKEN_KEY_FILES) signs tokens; all files verify them.")]
    Make(MakeArgs),
    /// List keys with their ids, from the settings or from files.
    #[command(after_help = "Examples:\n  \
        MUSTER_TOKEN_KEY_FILES=new.pem,old.pem muster keys list\n  \
        muster keys list --json token-2026.pem")]
    List(KeyFileArgs),
    /// Print the public halves as a JWK set, for fronts and for services that verify tokens.
    #[command(after_help = "Examples:\n  \
        muster keys jwks new.pem old.pem > jwks.json\n  \
        MUSTER_FRONT_JWKS_FILE=jwks.json muster serve --role front")]
    Jwks(KeyFileArgs),
}

#[derive(Debug, Args)]
pub(super) struct MakeArgs {
    /// Signature algorithm.
    #[arg(long, value_enum, default_value = "eddsa", value_name = "ALGORITHM")]
    algorithm: KeyAlgorithm,
    /// New file for the key; - is standard output.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Args)]
pub(super) struct KeyFileArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Files with private keys; by default those of token.key_files.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON. A JWK set is always JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeyAlgorithm {
    /// Ed25519: small and fast.
    Eddsa,
    /// ECDSA on P-256.
    Es256,
    /// RSA with 2048 bits, for verifiers without support for the others.
    Rs256,
}

pub(super) fn run(command: KeysCommand) -> u8 {
    let done = match command {
        KeysCommand::Make(make) => make.run().map(|()| EXIT_OK),
        KeysCommand::List(files) => files.run(list),
        KeysCommand::Jwks(files) => files.run(jwks),
    };
    done.unwrap_or_else(|error| print_failure(&error))
}

impl MakeArgs {
    fn run(&self) -> anyhow::Result<()> {
        let algorithm = match self.algorithm {
            KeyAlgorithm::Eddsa => SigningAlgorithm::EdDsa,
            KeyAlgorithm::Es256 => SigningAlgorithm::Es256,
            KeyAlgorithm::Rs256 => SigningAlgorithm::Rs256,
        };
        let pem = key::generate(algorithm)?;
        let id = TokenKey::from_pem(&pem)?.id().unwrap_or_default().to_owned();
        if self.output.as_os_str() == "-" {
            return stdout::print(&pem);
        }
        write_private(&self.output, pem.as_bytes())?;
        let path = self.output.display();
        let summary = format!(
            "{path}: private {} key with the id {id}\nMUSTER_TOKEN_KEY_FILES={path}\n",
            algorithm.as_str()
        );
        stdout::print(&summary)
    }
}

impl KeyFileArgs {
    fn run(self, print: fn(&[ListedKey], bool) -> anyhow::Result<()>) -> anyhow::Result<u8> {
        let (mut files, mut has_secret) = (self.files, false);
        if files.is_empty() {
            match self.settings.load_for_client() {
                Ok(settings) => {
                    files = settings.token.key_files;
                    has_secret = settings.token.secret.is_some();
                }
                Err(error) => {
                    print_error(&error);
                    return Ok(EXIT_CONFIGURATION);
                }
            }
        }
        let keys: anyhow::Result<Vec<ListedKey>> = files
            .into_iter()
            .map(|path| Ok(ListedKey { key: Some(TokenKey::read(&path)?), path }))
            .collect();
        let mut keys = keys?;
        if has_secret {
            keys.push(ListedKey { key: None, path: PathBuf::new() });
        }
        print(&keys, self.json)?;
        Ok(EXIT_OK)
    }
}

/// A key and its file. `None` stands for the signing secret, which has no id and no file.
struct ListedKey {
    key: Option<TokenKey>,
    path: PathBuf,
}

fn list(keys: &[ListedKey], as_json: bool) -> anyhow::Result<()> {
    if keys.is_empty() {
        stderr::line(
            "muster: no keys: token.key_files (MUSTER_TOKEN_KEY_FILES) and JWT_SECRET are not set",
        );
    }
    let mut lines = String::new();
    for (at, ListedKey { key, path }) in keys.iter().enumerate() {
        let (id, algorithm) = match key {
            Some(key) => (key.id().unwrap_or_default(), key.algorithm()),
            None => ("-", SigningAlgorithm::Hs256),
        };
        let (algorithm, use_) = (algorithm.as_str(), if at == 0 { "signs" } else { "verifies" });
        let source = match key {
            Some(_) => path.display().to_string(),
            None => "JWT_SECRET".to_owned(),
        };
        let line = if as_json {
            let id = key.as_ref().and_then(TokenKey::id);
            json!({ "kid": id, "alg": algorithm, "use": use_, "from": source }).to_string()
        } else {
            format!("{id:<43}  {algorithm:<5}  {use_:<8}  {source}")
        };
        lines += &line;
        lines.push('\n');
    }
    stdout::print(&lines)
}

fn jwks(keys: &[ListedKey], _: bool) -> anyhow::Result<()> {
    let set: Option<Value> = public_keys(keys.iter().filter_map(|listed| listed.key.as_ref()));
    let Some(set) = set else {
        let error = "no keys with a public half: give their files, or set token.key_files (MUSTER_TOKEN_KEY_FILES)";
        bail!(UsageError(error.to_owned()))
    };
    stdout::print(&(serde_json::to_string_pretty(&set)? + "\n"))
}

/// Creates a file that only its owner can read. Returns an error if the file exists.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| {
        format!("{}: cannot create the file; give the name of a new file", path.display())
    })
}
