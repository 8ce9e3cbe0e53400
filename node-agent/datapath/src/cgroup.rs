//! Attaching the socket hooks to a cgroup2 directory, one pinned link a hook.

use std::{
    fs::File,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, Program, ProgramError, links::FdLink},
};

use crate::{
    bpffs::{PinDirectory, pin_error, remove_link},
    error::{Error, Result},
    loader, sys,
};

/// The hooks in the order in which they are switched. What takes translations back, or looks after
/// translated sockets, comes before what makes them, so that no socket sees half of a pair.
const HOOKS: [&str; 10] = [
    "sock_ops",
    "sock_release",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "sendmsg6",
    "connect4",
    "connect6",
];

pub(crate) fn attach(ebpf: &mut Ebpf, pins: &PinDirectory, cgroup: &Path) -> Result<()> {
    let directory = File::open(cgroup)
        .map_err(|source| link_error("open the cgroup2 directory", cgroup, source))?;
    // On cgroup2 the inode number of a directory is the id of its cgroup.
    let id = directory
        .metadata()
        .map_err(|source| link_error("look at the cgroup2 directory", cgroup, source))?
        .ino();
    for hook in HOOKS {
        let program = loader::program(ebpf, hook)?;
        let pin = pins.link(&pin_name(hook));
        if adopt(program, &pin, id, hook, cgroup)? {
            continue;
        }
        let target = || cgroup.display().to_string();
        let link =
            link(program, &directory).map_err(|error| Error::attach(hook, target(), error))?;
        link.pin(&pin)
            .map_err(|error| pin_error("pin a link at", &pin, std::io::Error::other(error)))?;
    }
    tracing::info!(cgroup = %cgroup.display(), "socket hooks attached");
    Ok(())
}

pub(crate) fn is_pin(name: &str) -> bool {
    HOOKS.iter().any(|hook| name == pin_name(hook))
}

fn pin_name(hook: &str) -> String {
    format!("cgroup-{hook}")
}

fn link(program: &mut Program, directory: &File) -> std::result::Result<FdLink, ProgramError> {
    // aya has a type for each kind of program and of link, and nothing that they share.
    macro_rules! link {
        ($program:ident) => {{
            // A link (5.7) always allows others beside it; the mode only matters without.
            let id = $program.attach(directory, CgroupAttachMode::Single)?;
            FdLink::try_from($program.take_link(id)?)
                .map_err(|error| ProgramError::IOError(std::io::Error::other(error)))
        }};
    }
    match program {
        Program::CgroupSockAddr(program) => link!(program),
        Program::CgroupSock(program) => link!(program),
        Program::SockOps(program) => link!(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Gives the link of an earlier run the new program. `false`: there is none to go on with.
fn adopt(
    program: &Program,
    pin: &Path,
    cgroup_id: u64,
    hook: &'static str,
    cgroup: &Path,
) -> Result<bool> {
    let held = sys::open_pin(pin).map_err(|source| pin_error("open", pin, source))?;
    let Some(link) = held else { return Ok(false) };
    let attached_to = sys::link_cgroup(link.as_fd())
        .map_err(|source| link_error("look at the pinned link", pin, source))?;
    if attached_to == cgroup_id {
        let fd = program
            .fd()
            .map_err(|error| Error::attach(hook, cgroup.display().to_string(), error))?;
        sys::update_link(link.as_fd(), fd.as_fd())
            .map_err(|source| link_error("update the pinned link", pin, source))?;
        return Ok(true);
    }
    // The option named another cgroup before, or that cgroup is gone.
    remove_link(pin)?;
    Ok(false)
}

fn link_error(doing: &'static str, target: &Path, source: std::io::Error) -> Error {
    Error::Link {
        doing,
        target: target.display().to_string(),
        source,
    }
}
