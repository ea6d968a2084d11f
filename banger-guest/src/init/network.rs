//! The guest's one interface: an address without neighbours and a default route to the host.
//!
//! Called by `init` once. The image's own network managers are told to leave it alone
//! ([`super::managers`], [`super::systemd`]).

use banger_proto::guest::GuestConfig;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::Error;
use crate::sys::ifconf::Control;
use nix::errno::Errno;

/// The name that the kernel gives to the only one.
pub(super) const INTERFACE: &str = "eth0";
/// How long the interface may take to appear after its driver is loaded.
const WAIT: Duration = Duration::from_secs(3);

/// Sets up the loopback and [`INTERFACE`]: address/32, the gateway on the link, the rest through
/// it.
pub(super) fn configure(config: &GuestConfig) -> Result<(), Error> {
    let step = |step| move |source| Error::Network { step, source };
    let control = Control::open().map_err(step("socket"))?;
    control.up("lo").map_err(step("bring up lo"))?;
    wait_for_interface().map_err(step("wait for eth0"))?;
    control.address(INTERFACE, config.address).map_err(step("set the address of eth0"))?;
    control.up(INTERFACE).map_err(step("bring up eth0"))?;
    control.host_route(INTERFACE, config.gateway).map_err(step("route to the gateway"))?;
    control.default_route(INTERFACE, config.gateway).map_err(step("default route"))
}

fn wait_for_interface() -> Result<(), Errno> {
    let path = Path::new("/sys/class/net").join(INTERFACE);
    let end = Instant::now() + WAIT;
    while !path.exists() {
        if Instant::now() >= end {
            return Err(Errno::ENODEV);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
