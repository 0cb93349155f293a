//! `muster spec`: prints the description of the HTTP or AMQP interface. Connects to no service.

use clap::Subcommand;

use super::stdout::print;
use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, print_error};
use crate::config::Settings;
use crate::front::openapi;

/// AsyncAPI description with the default names and limits.
const ASYNCAPI: &str = include_str!("../../docs/asyncapi.yaml");

/// The interface to print.
#[derive(Subcommand)]
pub(super) enum SpecCommand {
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

pub(super) fn run(command: SpecCommand) -> u8 {
    let printed = match command {
        SpecCommand::Asyncapi => print(ASYNCAPI),
        SpecCommand::Openapi(flags) => match settings(flags) {
            Ok(settings) => print(&format!("{:#}\n", openapi::document(&settings.front))),
            Err(code) => return code,
        },
    };
    match printed {
        Ok(()) => EXIT_OK,
        Err(error) => {
            print_error(&error);
            EXIT_FAILED
        }
    }
}

/// Returns the effective settings, or the exit code if they are invalid.
fn settings(flags: SettingFlags) -> Result<Settings, u8> {
    flags.load_for_client().map_err(|error| {
        print_error(&error);
        EXIT_CONFIGURATION
    })
}
