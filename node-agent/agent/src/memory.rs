//! Keeps the process small: what lists of thousands of objects took while they were decoded goes back to the
//! kernel afterwards, and so does what ran only at the start.
#![allow(unsafe_code, reason = "mallopt and madvise have no safe wrapper")]

use std::{io, time::Duration};

use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, c_int};

/// glibc's own first value. Set, it stays; otherwise glibc raises it to the largest block that was ever freed (32 MiB
/// at most), and blocks below it live on the heap, which cannot shrink around them.
const THRESHOLD_BYTES: c_int = 128 << 10;
/// Heaps that threads share, instead of eight for each processor: each holds free pages of its own.
const ARENAS: c_int = 2;

/// For the start of the process, before other threads allocate.
pub(crate) fn stay_small() {
    for (parameter, value) in [
        (M_ARENA_MAX, ARENAS),
        (M_MMAP_THRESHOLD, THRESHOLD_BYTES),
        (M_TRIM_THRESHOLD, THRESHOLD_BYTES),
    ] {
        // SAFETY: mallopt takes two integers and checks them; it may be called at any time.
        let taken = unsafe { libc::mallopt(parameter, value) };
        if taken == 0 {
            tracing::debug!(parameter, value, "the allocator refused a parameter");
        }
    }
}

/// A start is over by then.
const STARTED: Duration = Duration::from_secs(10);

/// Lets go of the program's code when the start is over: two thirds of what was mapped is not run again. What is
/// comes back from the page cache as it is called, a few hundred minor faults in all.
pub(crate) async fn forget_start() {
    tokio::time::sleep(STARTED).await;
    if let Err(error) = unmap_code() {
        tracing::debug!(%error, "the code of the start stays in memory");
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
