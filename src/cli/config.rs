//! `muster config`

use std::io::Write;

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, complain};

pub(super) fn run(flags: SettingFlags) -> u8 {
    match flags.load() {
        Ok(settings) => match std::io::stdout().write_all(settings.to_toml().as_bytes()) {
            Ok(()) => EXIT_OK,
            Err(_) => EXIT_FAILED,
        },
        Err(error) => {
            complain(&error);
            EXIT_CONFIGURATION
        }
    }
}
