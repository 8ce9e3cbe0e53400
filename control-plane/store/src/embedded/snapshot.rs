//! Snapshots: the state at one revision as a store file of its own.
//!
//! A snapshot is an ordinary store without history and without a log, so it needs no format, no reader and
//! no checker of its own, and can be opened wherever it lies.

use std::fs;
use std::io;
use std::path::Path;

use windlass_packed::Packed;

use super::database::{Database, Step, io_error};
use super::log;
use super::memory::{Compaction, Memory};
use super::record::Write;
use crate::{Result, Revision};

/// Rows in one transaction.
const STEP: usize = 4_096;

/// Writes a store that holds `state`, the last write of each key, and whose revision is `revision`. The
/// file appears under its name when it is complete.
///
/// # Errors
/// Also when there is a file of that name.
pub(super) fn write(path: &Path, state: &[Write<Packed>], revision: Revision) -> Result<()> {
    if path.exists() {
        let taken = format!("{} exists already", path.display());
        let error = io::Error::new(io::ErrorKind::AlreadyExists, taken);
        return Err(io_error("writing a snapshot", error));
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("removing an unfinished snapshot", error));
        }
        _ => {}
    }
    let (mut database, _) = Database::open(unfinished)?;
    for rows in state.chunks(STEP) {
        let unpacked = |write: &Write<Packed>| write.clone().map(|value| value.to_vec().into());
        let rows: Vec<Write> = rows.iter().map(unpacked).collect();
        let mut step = Step::default();
        step.add(&rows, None);
        database.apply(&step)?;
    }
    let mut last = Step::default();
    last.add(
        &[],
        Some(&Compaction {
            to: revision,
            removed: Vec::new(),
        }),
    );
    database.apply(&last)?;
    drop(database);
    fs::rename(unfinished, path)
        .and_then(|()| log::sync_folder(path))
        .map_err(|error| io_error("naming a snapshot", error))
}

/// Reads a snapshot, all of it, with every check that opening a store makes.
pub(super) fn read(path: &Path) -> Result<(Vec<Write<Packed>>, Revision)> {
    // Opening creates what is not there.
    fs::metadata(path).map_err(|error| io_error("opening a snapshot", error))?;
    let (_, memory) = Database::open(path)?;
    Ok((all(&memory), memory.current()))
}

fn all(memory: &Memory) -> Vec<Write<Packed>> {
    let mut state = Vec::new();
    let mut after = None;
    while let Some(last) =
        memory.state_at(memory.current(), after.as_deref(), usize::MAX, &mut state)
    {
        after = Some(last);
    }
    state.sort_by_key(|write| write.revision);
    state
}
