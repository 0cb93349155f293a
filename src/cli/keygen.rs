//! `muster keygen`: generates a key pair for sealed passwords and prints it. Reads no settings and writes no file.

use clap::Args;
use secrecy::ExposeSecret;
use serde_json::json;
use zeroize::Zeroizing;

use super::stdout;
use crate::queue::seal::KeyPair;

/// Output format.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = "Examples:\n  \
    muster keygen >> .env\n  \
    muster keygen --json")]
pub(super) struct KeygenArgs {
    /// Print JSON instead of environment variables.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: KeygenArgs) -> u8 {
    let pair = KeyPair::generate();
    let printed = Zeroizing::new(if flags.json { as_json(&pair) } else { as_settings(&pair) });
    stdout::print_or_fail(&printed)
}

/// Formats the keys as environment variables, for a shell or a container's environment file.
fn as_settings(pair: &KeyPair) -> String {
    let KeyPair { key_id, public, private } = pair;
    let private = private.expose_secret();
    format!(
        "# Key {key_id}. Public half, for fronts:\n\
         MUSTER_QUEUE_SEAL_PUBLIC_KEY={public}\n\
         # Private half, for workers only:\n\
         MUSTER_QUEUE_SEAL_PRIVATE_KEYS={private}\n"
    )
}

fn as_json(pair: &KeyPair) -> String {
    let KeyPair { key_id, public, private } = pair;
    let pair = json!({ "key_id": key_id, "seal_public_key": public, "seal_private_keys": [private.expose_secret()] });
    format!("{pair}\n")
}
