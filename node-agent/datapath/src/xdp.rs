//! Attaching XDP to an uplink: in the driver (native), or where a user asks for it in the kernel's
//! generic way, which runs where tc does and is slower. Native XDP also costs something, the large
//! packets of a device's receive offload, so it is attached only while there is something to drop
//! by it, or where it is asked for.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf,
    programs::{Program, Xdp, XdpMode as Attachment, links::FdLink},
};
use windlass_ebpf_types::xdp_uplink;

use crate::{
    bpffs::{PinDirectory, pin_error, remove_link},
    config::XdpMode,
    error::{Error, Result},
    interface::Device,
    sys, xdp_features,
};

const PROGRAM: &str = "xdp_uplink";
const PIN: &str = "xdp-";

/// Attaches the program, or gives an earlier run's link the new one. Returns whether the
/// device takes it; where it does not, tc does all the work.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    pins: &PinDirectory,
    device: &Device,
    mode: XdpMode,
) -> Result<bool> {
    let (way, other) = match mode {
        XdpMode::Generic => (Attachment::Skb, Attachment::Driver),
        _ => (Attachment::Driver, Attachment::Skb),
    };
    // A device has one or the other.
    remove_link(&pins.link(&pin_name(device.ifindex, other)))?;
    let program = program(ebpf)?;
    let failed = |error| Error::attach(PROGRAM, &device.name, error);
    let pin = pins.link(&pin_name(device.ifindex, way));
    if let Some(link) = sys::open_pin(&pin).map_err(|source| pin_error("open", &pin, source))? {
        let fd = program.fd().map_err(failed)?;
        if sys::update_link(link.as_fd(), fd.as_fd()).is_ok() {
            return Ok(true);
        }
        // Of an interface that is gone.
        remove_link(&pin)?;
    }
    let link = match program.attach(&device.name, way) {
        Ok(id) => program.take_link(id).map_err(failed)?,
        Err(error) => {
            tracing::info!(%error, interface = device.name, ?mode, "no such xdp here; tc does its work");
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
    tracing::info!(interface = device.name, ?mode, "xdp attached");
    Ok(true)
}

pub(crate) fn detach(pins: &PinDirectory, ifindex: u32) -> Result<()> {
    for way in [Attachment::Driver, Attachment::Skb] {
        remove_link(&pins.link(&pin_name(ifindex, way)))?;
    }
    Ok(())
}

/// How XDP sends out of a device that it is attached to, one of [`xdp_uplink`]. `None`: not at all; the
/// device would lose it without a word. A veth, for one, takes it only while the other end is ready.
pub(crate) fn sends(device: &Device, mode: XdpMode) -> Option<u32> {
    if mode == XdpMode::Generic {
        return Some(xdp_uplink::SEND_BACK);
    }
    let asked = xdp_features::of(device.ifindex)
        .and_then(|features| Ok((features, xdp_features::is_virtual(device.ifindex)?)));
    let (sends, is_virtual) = match asked {
        Ok((Some(features), is_virtual)) => (features & xdp_features::SENDS != 0, is_virtual),
        // Before 6.3 no driver tells; those of network cards that run programs send for them.
        Ok((None, is_virtual)) => (!is_virtual, is_virtual),
        Err(error) => {
            tracing::warn!(%error, interface = device.name, "what its driver can do by xdp is not known");
            (false, true)
        }
    };
    if !sends {
        tracing::info!(
            interface = device.name,
            "the driver sends nothing by xdp; tc forwards"
        );
        return None;
    }
    // veth_xdp_flush wakes the other end only if that runs a program too; a redirect does always.
    Some(if is_virtual {
        xdp_uplink::REDIRECT
    } else {
        xdp_uplink::SEND_BACK
    })
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

pub(crate) fn is_pin(name: &str) -> bool {
    name.starts_with(PIN)
}

fn pin_name(ifindex: u32, way: Attachment) -> String {
    match way {
        Attachment::Skb => format!("{PIN}generic-{ifindex}"),
        _ => format!("{PIN}{ifindex}"),
    }
}
