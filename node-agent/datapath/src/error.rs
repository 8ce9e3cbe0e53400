//! What can go wrong, with the program or map it went wrong for and what to do about it.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the datapath's options are wrong: {0}")]
    Config(String),

    /// The pin directory cannot be used.
    #[error("cannot {doing} {path}: {source}")]
    Pins {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// The object could not be taken apart or its maps not be made.
    #[error("cannot load the BPF object{hint}: {source}", hint = load_hint(source))]
    Object { source: Box<EbpfError> },

    /// The verifier or the kernel refused a program.
    #[error("the kernel refused program {program}{}: {reason}{}", need(.needs), tail(.log))]
    Program {
        program: &'static str,
        /// The kernel that brought what this program needs.
        needs: &'static str,
        reason: String,
        /// The last lines of the verifier's log.
        log: String,
    },

    /// The object lacks a program or map, which means that it does not fit this crate.
    #[error("the BPF object has no {kind} {name}")]
    Missing {
        kind: &'static str,
        name: &'static str,
    },

    #[error("cannot attach {program} to {target}: {source}")]
    Attach {
        program: &'static str,
        target: String,
        source: Box<ProgramError>,
    },

    #[error("cannot {doing} for {target}: {source}")]
    Link {
        doing: &'static str,
        target: String,
        source: io::Error,
    },

    /// A pinned map was made by a build with other types under the same layout version.
    #[error(
        "pinned map {map} has elements of (key, value) sizes {held:?}, not {expected:?}; \
         `windlass-node-agent cleanup` removes the pinned state"
    )]
    Layout {
        map: &'static str,
        held: (usize, usize),
        expected: (usize, usize),
    },

    /// No room: raise the capacity option of this map.
    #[error("map {map} is full; raise its capacity")]
    MapFull { map: &'static str },

    #[error("cannot {doing} map {map}: {source}")]
    Map {
        doing: &'static str,
        map: &'static str,
        source: Box<MapError>,
    },

    #[error("no interface {name} in this network namespace")]
    NoInterface { name: String },

    #[error("cannot {doing} {target}: {source}")]
    Namespace {
        doing: &'static str,
        target: String,
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn map(doing: &'static str, map: &'static str, source: MapError) -> Self {
        if let MapError::SyscallError(error) = &source
            // Hash tables say the one, prefix tries the other.
            && matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
        {
            return Self::MapFull { map };
        }
        Self::Map {
            doing,
            map,
            source: Box::new(source),
        }
    }

    pub(crate) fn attach(
        program: &'static str,
        target: impl Into<String>,
        source: ProgramError,
    ) -> Self {
        Self::Attach {
            program,
            target: target.into(),
            source: Box::new(source),
        }
    }

    pub(crate) fn program(
        program: &'static str,
        needs: &'static str,
        source: &ProgramError,
    ) -> Self {
        let (reason, log) = match source {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => (
                io_error.to_string(),
                last_lines(&verifier_log.to_string(), 12),
            ),
            other => (other.to_string(), String::new()),
        };
        Self::Program {
            program,
            needs,
            reason,
            log,
        }
    }
}

fn need(kernel: &str) -> String {
    format!(" (needs kernel {kernel})")
}

fn tail(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!("; the verifier said:\n{log}")
    }
}

fn load_hint(source: &EbpfError) -> &'static str {
    let text = source.to_string();
    if text.contains("Operation not permitted") || text.contains("EPERM") {
        " (needs root, or CAP_BPF with CAP_NET_ADMIN)"
    } else {
        ""
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tail_of_a_long_log_is_kept() {
        let log: Vec<_> = (0..100).map(|line| line.to_string()).collect();
        assert_eq!(last_lines(&log.join("\n"), 3), "97\n98\n99");
        assert_eq!(last_lines("short", 3), "short");
    }
}
