//! `muster config`: prints the effective settings, with secrets redacted.

use clap::Args;

use super::{EXIT_CONFIGURATION, SettingFlags, print_error, stdout};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster config\n  \
    muster config --config muster.toml --role front\n  \
    muster config --json | jq '.[\"front.listen\"]'")]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Print one JSON document: each setting with its value, its environment variables and the source of the value.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: ConfigArgs) -> u8 {
    match flags.settings.load() {
        Ok(settings) if flags.json => stdout::print_or_fail(&format!("{:#}\n", settings.to_json())),
        Ok(settings) => stdout::print_or_fail(settings.to_toml()),
        Err(error) => {
            print_error(&error);
            EXIT_CONFIGURATION
        }
    }
}
