//! `muster spec`: prints the descriptions of the HTTP and the AMQP interface. Connects to no service.

use clap::Subcommand;

use super::stdout::print;
use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, complain};
use crate::config::Settings;
use crate::front::openapi;

/// The AMQP interface, with the default names and limits.
const ASYNCAPI: &str = include_str!("../../docs/asyncapi.yaml");

/// The interface to describe.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Print the AMQP interface as AsyncAPI 3.0 in YAML, with the default names and limits.
    #[command(after_help = "Examples:\n  \
        muster spec asyncapi > asyncapi.yaml")]
    Asyncapi,
    /// Print the HTTP interface as OpenAPI 3.1 in JSON, with the mounts and limits of these settings.
    #[command(after_help = "Examples:\n  \
        muster spec openapi > openapi.json\n  \
        MUSTER_FRONT_MOUNTS='/signup = register' muster spec openapi")]
    Openapi(SettingFlags),
}

pub(super) fn run(command: Command) -> u8 {
    let printed = match command {
        Command::Asyncapi => print(ASYNCAPI),
        Command::Openapi(flags) => match settings(flags) {
            Ok(settings) => print(&format!("{:#}\n", openapi::document(&settings.front))),
            Err(code) => return code,
        },
    };
    match printed {
        Ok(()) => EXIT_OK,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}

/// The settings in effect, or the exit code where they are wrong.
fn settings(flags: SettingFlags) -> Result<Settings, u8> {
    flags.load_for_client().map_err(|error| {
        complain(&error);
        EXIT_CONFIGURATION
    })
}
