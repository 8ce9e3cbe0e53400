//! Keeps a program small whose code is most of what it has in memory: what ran only at the start, or in a burst, is let
//! go of.
//!
//! The kernel maps 64 KiB around each page of a program that is touched, and takes none of it back while memory is to be
//! had. Depends on no other crate of the workspace; both binaries do on it.
#![allow(unsafe_code, reason = "madvise has no safe wrapper")]

use std::{io, time::Duration};

/// A start is over by then.
const STARTED: Duration = Duration::from_secs(10);
/// After that, so seldom that what comes back costs nothing.
const AGAIN: Duration = Duration::from_secs(300);

/// Lets go of the program's code when the start is over, and again from time to time: more than a third of what was mapped
/// is not run again. What is comes back from the page cache as it is called, a few hundred minor faults in all.
pub async fn forget_unused() {
    let mut pause = STARTED;
    loop {
        tokio::time::sleep(pause).await;
        if let Err(error) = unmap_code() {
            tracing::debug!(%error, "code that is not run stays in memory");
            return;
        }
        pause = AGAIN;
    }
}

fn unmap_code() -> io::Result<()> {
    for (start, end) in code()? {
        // SAFETY: the range is a mapping of this program's file that nobody writes to, and that stays mapped as it
        // is: a page that is gone is read again from the file.
        let done = unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Where this program's own code is mapped, from the first address to behind the last.
fn code() -> io::Result<Vec<(usize, usize)>> {
    let program = std::env::current_exe()?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    let code = maps.lines().filter_map(|line| {
        // `start-end permissions offset device inode path`
        let fields: Vec<_> = line.split_whitespace().collect();
        let &[range, "r-xp", .., path] = fields.as_slice() else {
            return None;
        };
        let (start, end) = range.split_once('-')?;
        (program.to_str() == Some(path)).then_some((address(start)?, address(end)?))
    });
    Ok(code.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the mapping that begins at `start`, in KiB.
    fn resident(start: usize) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines();
        let begins = format!("{start:x}-");
        lines.find(|line| line.starts_with(&begins)).unwrap();
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn code_is_let_go_of_and_runs_on() {
        let code = code().unwrap();
        let &[(start, _)] = code.as_slice() else {
            panic!("{code:?}")
        };
        let before = resident(start);
        unmap_code().unwrap();
        let after = resident(start);
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }
}
