//! `muster config`

use clap::Args;

use super::{EXIT_CONFIGURATION, SettingFlags, complain, stdout};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster config\n  \
    muster config --config muster.toml --role front\n  \
    muster config --json | jq '.[\"front.listen\"]'")]
pub(super) struct Flags {
    #[command(flatten)]
    settings: SettingFlags,
    /// Print one JSON document: each setting with its value, its environment variables and where its value comes
    /// from.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: Flags) -> u8 {
    match flags.settings.load() {
        Ok(settings) if flags.json => stdout::printed(&format!("{:#}\n", settings.to_json())),
        Ok(settings) => stdout::printed(settings.to_toml()),
        Err(error) => {
            complain(&error);
            EXIT_CONFIGURATION
        }
    }
}
