//! `muster healthcheck`: requests `/ready`. For containers, whose images contain no other HTTP client.

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, print_error, reachable, runtime,
};
use crate::http_client::probe;

pub(super) fn run(flags: SettingFlags) -> u8 {
    let settings = match flags.load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            print_error(&error);
            return EXIT_CONFIGURATION;
        }
    };
    if settings.admin.is_none() && !settings.role.has_front() {
        print_error(&anyhow::anyhow!(
            "a worker serves /ready only at admin.listen, which is not set; set MUSTER_ADMIN_LISTEN for the worker \
             and for this command"
        ));
        return EXIT_CONFIGURATION;
    }
    let address = reachable(settings.admin.unwrap_or(settings.front.listen));
    // admin.listen always serves plain HTTP.
    let https = settings.admin.is_none() && settings.front.tls.is_some();
    let response = runtime().and_then(|runtime| runtime.block_on(probe::ready(address, https)));
    match response {
        Ok((true, _)) => EXIT_OK,
        Ok((false, body)) => {
            print_error(&anyhow::anyhow!("not ready: {body}"));
            EXIT_FAILED
        }
        Err(error) => {
            print_error(&error);
            EXIT_FAILED
        }
    }
}
