//! Attaching tc programs.
//!
//! Uplinks, which are attached once: TCX links, pinned, on kernel 6.6 and later. Pods' interfaces,
//! and everything on older kernels: filters of a clsact qdisc with a fixed priority and handle,
//! which the interface itself keeps and which the next run replaces in place. A TCX attach waits
//! for an RCU grace period, 15 to 30 ms that every start of a pod would pay twice; a filter does not.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::FdLink,
        tc::{
            NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
        },
    },
};

use nix::net::if_::if_indextoname;

use crate::{
    bpffs::{PinDirectory, pin_error, remove_link},
    config::TcAttach,
    error::{Error, Result},
    interface::Device,
    loader::{kernel_at_least, tc_program},
    sys,
};

/// The programs of one kind of interface.
pub(crate) struct Hooks {
    list: [Hook; 2],
    /// What is meant where the options leave it open.
    prefers_tcx: bool,
}

/// A program and the side of the interface that it sits on.
struct Hook {
    program: &'static str,
    side: TcAttachType,
    side_name: &'static str,
}

/// What answers is attached before what opens connections.
pub(crate) const UPLINK: Hooks = hooks("to_uplink", "from_uplink", true);
pub(crate) const POD: Hooks = hooks("to_pod", "from_pod", false);

const fn hooks(egress: &'static str, ingress: &'static str, prefers_tcx: bool) -> Hooks {
    Hooks {
        list: [
            Hook {
                program: egress,
                side: TcAttachType::Egress,
                side_name: "egress",
            },
            Hook {
                program: ingress,
                side: TcAttachType::Ingress,
                side_name: "ingress",
            },
        ],
        prefers_tcx,
    }
}

const PRIORITY: u16 = 0x77;
const HANDLE: TcHandle = TcHandle::new(0, 0x77);

pub(crate) fn attach(
    ebpf: &mut Ebpf,
    pins: &PinDirectory,
    mode: TcAttach,
    device: &Device,
    hooks: &Hooks,
) -> Result<()> {
    for hook in &hooks.list {
        let program = tc_program(ebpf, hook.program)?;
        if uses_tcx(mode, hooks) {
            attach_tcx(program, pins, device, hook)?;
        } else {
            attach_clsact(program, device, hook)?;
            // Of a build that used links here: from now on the filter does its work.
            remove_link(&pins.link(&pin_name(device.ifindex, hook)))?;
        }
    }
    tracing::debug!(
        interface = device.name,
        ifindex = device.ifindex,
        "tc programs attached"
    );
    Ok(())
}

/// Takes the programs off an interface; one that is gone took them with it.
pub(crate) fn detach(
    pins: &PinDirectory,
    mode: TcAttach,
    ifindex: u32,
    hooks: &Hooks,
) -> Result<()> {
    for hook in &hooks.list {
        remove_link(&pins.link(&pin_name(ifindex, hook)))?;
        if !uses_tcx(mode, hooks)
            && let Ok(name) = if_indextoname(ifindex)
            && let Some(name) = name.to_str().ok()
            && let Ok(link) = SchedClassifierLink::attached(name, hook.side, PRIORITY, HANDLE, None)
        {
            // Dropping a netlink "link" deletes the filter.
            drop(link);
        }
    }
    Ok(())
}

/// Links of interfaces that no longer exist are dead; only their pins remain.
pub(crate) fn remove_links_of_missing_interfaces(pins: &PinDirectory) -> Result<()> {
    for pin in pins.pinned_links()? {
        let name = pin.file_name().and_then(|name| name.to_str());
        let Some(ifindex) = name.and_then(ifindex_of_pin) else {
            continue;
        };
        if if_indextoname(ifindex).is_err() {
            remove_link(&pin)?;
        }
    }
    Ok(())
}

pub(crate) fn is_pin(name: &str) -> bool {
    ifindex_of_pin(name).is_some()
}

fn uses_tcx(mode: TcAttach, hooks: &Hooks) -> bool {
    match mode {
        TcAttach::Auto => hooks.prefers_tcx && kernel_at_least(6, 6),
        TcAttach::Tcx => true,
        TcAttach::Clsact => false,
    }
}

/// By index, since bpffs allows no dot in a name and interface names may have one.
fn pin_name(ifindex: u32, hook: &Hook) -> String {
    format!("tc-{ifindex}-{}", hook.side_name)
}

fn ifindex_of_pin(name: &str) -> Option<u32> {
    name.strip_prefix("tc-")?.split_once('-')?.0.parse().ok()
}

fn attach_tcx(
    program: &mut SchedClassifier,
    pins: &PinDirectory,
    device: &Device,
    hook: &Hook,
) -> Result<()> {
    let failed = |error| Error::attach(hook.program, &device.name, error);
    let pin = pins.link(&pin_name(device.ifindex, hook));
    if let Some(link) = sys::open_pin(&pin).map_err(|source| pin_error("open", &pin, source))? {
        let fd = program.fd().map_err(failed)?;
        match sys::update_link(link.as_fd(), fd.as_fd()) {
            Ok(()) => return Ok(()),
            // ENOLINK: the interface of that index is gone, and this is another one.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => remove_link(&pin)?,
            Err(source) => {
                return Err(Error::Link {
                    doing: "update the pinned link",
                    target: device.name.clone(),
                    source,
                });
            }
        }
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let link = program
        .attach_with_options(&device.name, hook.side, options)
        .and_then(|id| program.take_link(id))
        .map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|error| Error::Link {
        doing: "take the new link",
        target: device.name.clone(),
        source: io::Error::other(error),
    })?;
    link.pin(&pin)
        .map_err(|error| pin_error("pin a link at", &pin, io::Error::other(error)))?;
    Ok(())
}

fn attach_clsact(program: &mut SchedClassifier, device: &Device, hook: &Hook) -> Result<()> {
    let failed = |error| Error::attach(hook.program, &device.name, error);
    match qdisc_add_clsact(&device.name) {
        Ok(()) => {}
        Err(error) if is_already_there(&error) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let existing = SchedClassifierLink::attached(&device.name, hook.side, PRIORITY, HANDLE, None)
        .map_err(|error| failed(error.into()))?;
    // Replaces the filter of an earlier run; the first run has none to replace.
    let id = match program.attach_to_link(existing) {
        Ok(id) => id,
        Err(_) => program
            .attach_with_options(
                &device.name,
                hook.side,
                TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle: HANDLE,
                    classid: None,
                }),
            )
            .map_err(failed)?,
    };
    let link = program.take_link(id).map_err(failed)?;
    // Dropped, it would delete the filter, which has to outlive the agent.
    std::mem::forget(link);
    Ok(())
}

fn is_already_there(error: &TcError) -> bool {
    matches!(error, TcError::AlreadyAttached)
        || error.to_string().contains("os error 17")
        || std::error::Error::source(error).is_some_and(|e| e.to_string().contains("os error 17"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_names_its_interface() {
        assert_eq!(pin_name(17, &UPLINK.list[0]), "tc-17-egress");
        assert_eq!(ifindex_of_pin("tc-17-egress"), Some(17));
        assert_eq!(ifindex_of_pin("cgroup-connect4"), None);
    }
}
