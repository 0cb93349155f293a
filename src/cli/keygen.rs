//! `muster keygen`: a new pair of keys for sealed passwords. It reads no settings and writes no file;
//! where the private half goes is for whoever called it to decide.

use clap::Args;
use secrecy::ExposeSecret;
use serde_json::json;
use zeroize::Zeroizing;

use super::stdout;
use crate::queue::seal::KeyPair;

/// How to print it.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = "Examples:\n  \
    muster keygen >> .env\n  \
    muster keygen --json")]
pub(super) struct Flags {
    /// Print JSON instead of lines for an environment file.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: Flags) -> u8 {
    let pair = KeyPair::generate();
    let printed = Zeroizing::new(if flags.json { as_json(&pair) } else { as_settings(&pair) });
    stdout::printed(&printed)
}

/// Lines that a shell, a container's environment file and a person can read.
fn as_settings(pair: &KeyPair) -> String {
    let KeyPair { key_id, public, private } = pair;
    let private = private.expose_secret();
    format!(
        "# Key {key_id}. The public half, for front ends:\n\
         MUSTER_QUEUE_SEAL_PUBLIC_KEY={public}\n\
         # The private half, for workers alone:\n\
         MUSTER_QUEUE_SEAL_PRIVATE_KEYS={private}\n"
    )
}

fn as_json(pair: &KeyPair) -> String {
    let KeyPair { key_id, public, private } = pair;
    let pair =
        json!({ "key_id": key_id, "seal_public_key": public, "seal_private_keys": [private.expose_secret()] });
    format!("{pair}\n")
}
