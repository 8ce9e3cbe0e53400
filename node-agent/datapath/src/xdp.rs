//! Attaching XDP to an uplink, only in the driver (native): the generic mode runs where tc
//! does, and is of no use. Native XDP also costs something, the large packets of a device's
//! receive offload, so it is attached only while there is something to drop by it.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf,
    programs::{Program, Xdp, XdpMode, links::FdLink},
};

use crate::{
    bpffs::{PinDirectory, pin_error, remove_link},
    error::{Error, Result},
    interface::Device,
    sys,
};

const PROGRAM: &str = "xdp_uplink";

/// Attaches the program, or gives an earlier run's link the new one. Returns whether the
/// device takes it; where it does not, tc does all the work.
pub(crate) fn attach(ebpf: &mut Ebpf, pins: &PinDirectory, device: &Device) -> Result<bool> {
    let program = program(ebpf)?;
    let failed = |error| Error::attach(PROGRAM, &device.name, error);
    let pin = pins.link(&pin_name(device.ifindex));
    if let Some(link) = sys::open_pin(&pin).map_err(|source| pin_error("open", &pin, source))? {
        let fd = program.fd().map_err(failed)?;
        if sys::update_link(link.as_fd(), fd.as_fd()).is_ok() {
            return Ok(true);
        }
        // Of an interface that is gone.
        remove_link(&pin)?;
    }
    let link = match program.attach(&device.name, XdpMode::Driver) {
        Ok(id) => program.take_link(id).map_err(failed)?,
        Err(error) => {
            tracing::info!(%error, interface = device.name, "no native xdp here; tc does its work");
            return Ok(false);
        }
    };
    let link = FdLink::try_from(link).map_err(|error| Error::Link {
        doing: "take the new link",
        target: device.name.clone(),
        source: io::Error::other(error),
    })?;
    link.pin(&pin)
        .map_err(|error| pin_error("pin a link at", &pin, io::Error::other(error)))?;
    tracing::info!(interface = device.name, "xdp attached");
    Ok(true)
}

pub(crate) fn detach(pins: &PinDirectory, ifindex: u32) -> Result<()> {
    remove_link(&pins.link(&pin_name(ifindex)))
}

pub(crate) fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    match ebpf.program_mut(PROGRAM) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(Error::Missing {
            kind: "program",
            name: PROGRAM,
        }),
    }
}

fn pin_name(ifindex: u32) -> String {
    format!("xdp-{ifindex}")
}
