//! Doing something in another network namespace, without leaving one's own.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Runs `work` on a thread of its own inside the named namespace; sockets that it returns stay there.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = Path::new("/run/netns").join(name);
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
            work()
        });
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the work inside {name} panicked"))?
    })
}
