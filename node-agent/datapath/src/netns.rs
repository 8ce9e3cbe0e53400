//! Network namespaces by their cookie: a 64-bit number that is never used twice.
//!
//! The socket hooks translate only for namespaces that they are told of. Cgroups are no
//! substitute: a process in another namespace (another node on the same machine, a test's
//! outside world) usually shares the cgroups of the host.

use std::{fs::File, net::UdpSocket, path::Path, thread};

use nix::sched::{CloneFlags, setns};

use crate::{
    error::{Error, Result},
    sys,
};

/// The cookie of the calling thread's namespace.
pub(crate) fn own_cookie() -> Result<u64> {
    read_cookie().map_err(|source| error("read the cookie of", "this network namespace", source))
}

/// The cookie of the namespace at a path such as `/run/netns/NAME` or `/proc/PID/ns/net`.
pub(crate) fn cookie_of(path: &Path) -> Result<u64> {
    let target = path.display().to_string();
    let file = File::open(path).map_err(|source| error("open", &target, source))?;
    // A namespace belongs to a thread: this one is thrown away afterwards.
    let entered = thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                read_cookie()
            })
            .join()
    });
    entered
        .unwrap_or_else(|_| Err(std::io::Error::other("the thread that entered it panicked")))
        .map_err(|source| error("read the cookie of", &target, source))
}

fn read_cookie() -> std::io::Result<u64> {
    sys::netns_cookie(&UdpSocket::bind("0.0.0.0:0")?)
}

fn error(doing: &'static str, target: &str, source: std::io::Error) -> Error {
    Error::Namespace {
        doing,
        target: target.to_owned(),
        source,
    }
}
