//! `muster healthcheck`: for containers, whose images hold no other client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, complain, runtime};
use crate::front::probe;

pub(super) fn run(flags: SettingFlags) -> u8 {
    let settings = match flags.load_to_ask() {
        Ok(settings) => settings,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let address = settings.admin.unwrap_or(settings.front.listen);
    let asked = runtime().and_then(|runtime| runtime.block_on(probe::ready(reachable(address))));
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

/// "Every address" is where one listens; from here it is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
