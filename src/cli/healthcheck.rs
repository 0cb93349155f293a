//! `muster healthcheck`: for containers, whose images hold no other client.

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, complain, reachable, runtime};
use crate::http_client::probe;

pub(super) fn run(flags: SettingFlags) -> u8 {
    let settings = match flags.load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    if settings.admin.is_none() && !settings.role.has_front() {
        complain(&anyhow::anyhow!(
            "a worker answers only at admin.listen, which is not set; set MUSTER_ADMIN_LISTEN for the worker \
             and for this command"
        ));
        return EXIT_CONFIGURATION;
    }
    let address = reachable(settings.admin.unwrap_or(settings.front.listen));
    // The probes of an address of their own are always plain.
    let https = settings.admin.is_none() && settings.front.tls.is_some();
    let asked = runtime().and_then(|runtime| runtime.block_on(probe::ready(address, https)));
    match asked {
        Ok((true, _)) => EXIT_OK,
        Ok((false, told)) => {
            complain(&anyhow::anyhow!("not ready: {told}"));
            EXIT_FAILED
        }
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}
