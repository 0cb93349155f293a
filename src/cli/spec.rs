//! `muster spec`: prints what other systems have to know, made from the definitions that muster itself
//! works by. Asks no service anything.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, complain};
use crate::config::Settings;
use crate::front::openapi;
use crate::queue::{rabbit, schema};

/// What is to be described.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Print the AMQP door as AsyncAPI 3.0 in YAML, with the names and limits of these settings.
    #[command(after_help = "Examples:\n  \
        muster spec asyncapi > asyncapi.yaml\n  \
        MUSTER_QUEUE_NAMESPACE=signups muster spec asyncapi")]
    Asyncapi(SettingFlags),
    /// Print the HTTP door as OpenAPI 3.1 in JSON, with the mounts and limits of these settings.
    #[command(after_help = "Examples:\n  \
        muster spec openapi > openapi.json\n  \
        MUSTER_FRONT_MOUNTS='/signup = register' muster spec openapi")]
    Openapi(SettingFlags),
    /// Write the JSON Schema of every body that travels over AMQP into a folder, a file each.
    #[command(after_help = "Examples:\n  \
        muster spec schemas schemas")]
    Schemas {
        /// The folder; made if it is not there.
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
}

pub(super) fn run(command: Command) -> u8 {
    let done = match command {
        Command::Asyncapi(flags) => match settings(flags) {
            Ok(settings) => print_yaml(&rabbit::asyncapi::document(&settings.queue)),
            Err(code) => return code,
        },
        Command::Openapi(flags) => match settings(flags) {
            Ok(settings) => print(&format!("{:#}\n", openapi::document(&settings.front))),
            Err(code) => return code,
        },
        Command::Schemas { folder } => write_schemas(&folder),
    };
    match done {
        Ok(()) => EXIT_OK,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}

/// The settings in effect, or the exit code where they are wrong.
fn settings(flags: SettingFlags) -> Result<Settings, u8> {
    flags.load_to_ask().map_err(|error| {
        complain(&error);
        EXIT_CONFIGURATION
    })
}

fn print_yaml(document: &Value) -> anyhow::Result<()> {
    print(&serde_norway::to_string(document)?)
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn write_schemas(folder: &Path) -> anyhow::Result<()> {
    let told = || format!("{}: cannot be written", folder.display());
    fs::create_dir_all(folder).with_context(told)?;
    for (name, mut schema) in schema::all() {
        schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        let text = format!("{schema:#}\n");
        fs::write(folder.join(format!("{name}.json")), text).with_context(told)?;
    }
    Ok(())
}
