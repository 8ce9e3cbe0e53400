//! The log: what makes a write durable. One append and one fdatasync for each batch, which is the least
//! that a disk allows; the database is brought up to date from it later, in large steps.
//!
//! A segment is a file `<store>.log.<revision of its first batch>`. A batch is
//!
//! ```text
//! "wlbatch1" | length u32 | crc32 u32 | payload: (length u32 | record)*
//! ```
//!
//! with the revisions of its records before them. A crash can tear only the last batch of the last segment,
//! since the next is written after the one before is on the disk. So a broken batch at the end is cut off,
//! and one with a whole batch behind it is damage.
//!
//! A segment is lengthened by zeros, far ahead of what is written: a file that grows with each batch costs a write of its
//! length, in the file system's journal, for each fdatasync. Zeros to the end are the end.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::record::Write;
use crate::Revision;

const MAGIC: &[u8; 8] = b"wlbatch1";
const HEAD: usize = 16;
/// How far zeros go beyond a batch that needs more room.
const AHEAD: u64 = 512 << 10;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

pub(super) struct Log {
    /// The store's own path; segments lie beside it.
    store: PathBuf,
    /// Oldest first; the last one is written.
    segments: Vec<PathBuf>,
    active: Option<Active>,
}

struct Active {
    file: File,
    /// What counts of the file. A failed append may have left more behind.
    length: u64,
    /// Up to here the file has zeros.
    reserved: u64,
    /// The file may hold something else than zeros behind `length`.
    untidy: bool,
}

/// Why a log cannot be read.
#[derive(Debug)]
pub(super) enum LogError {
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Log {
    /// Finds the segments of a store and gives their writes to `replay`, in order. A torn end is cut off.
    pub(super) fn open(
        store: &Path,
        mut replay: impl FnMut(Write) -> Result<(), &'static str>,
    ) -> Result<Self, LogError> {
        let segments = find_segments(store)?;
        let mut active = None;
        for (index, path) in segments.iter().enumerate() {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            let bytes = fs::read(path)?;
            let damaged =
                |problem: String| LogError::Damaged(format!("{}: {problem}", path.display()));
            let whole = read_batches(&bytes, &mut replay).map_err(damaged)?;
            let mut reserved = bytes.len();
            if bytes[whole..].iter().any(|byte| *byte != 0) {
                if index + 1 < segments.len() || has_batch(&bytes[whole + 1..]) {
                    return Err(damaged(format!("the batch at byte {whole} is broken")));
                }
                tracing::info!(bytes = bytes.len() - whole, "cut off an unfinished write");
                file.set_len(whole as u64)?;
                file.sync_data()?;
                reserved = whole;
            }
            active = Some(Active {
                file,
                length: whole as u64,
                reserved: reserved as u64,
                untidy: false,
            });
        }
        Ok(Self {
            store: store.to_owned(),
            segments,
            active,
        })
    }

    /// Makes a batch durable, or nothing of it. The writes have consecutive revisions.
    pub(super) fn append(&mut self, writes: &[Write]) -> io::Result<()> {
        let Some(first) = writes.first() else {
            return Ok(());
        };
        let active = match &mut self.active {
            Some(active) => active,
            None => {
                let (path, active) = create(&self.store, first.revision)?;
                self.segments.push(path);
                self.active.insert(active)
            }
        };
        active.tidy()?;
        let batch = encode(first.revision, writes);
        active.untidy = true;
        let end = active.length + batch.len() as u64;
        let written = active
            .reserve(end)
            .and_then(|()| active.file.write_all_at(&batch, active.length))
            .and_then(|()| active.file.sync_data());
        if let Err(error) = written {
            // So that what is reported as failed cannot come back. Should this fail too, the next append
            // begins with it.
            if let Err(error) = active.tidy() {
                tracing::warn!(%error, "a failed write could not be taken back yet");
            }
            return Err(error);
        }
        active.untidy = false;
        active.length += batch.len() as u64;
        Ok(())
    }

    /// Ends the segment; the next append begins another. Returns those that are complete now.
    pub(super) fn rotate(&mut self) -> io::Result<Vec<PathBuf>> {
        if let Some(active) = &mut self.active {
            active.tidy()?;
        }
        self.active = None;
        Ok(std::mem::take(&mut self.segments))
    }
}

impl Active {
    fn tidy(&mut self) -> io::Result<()> {
        if self.untidy {
            self.file.set_len(self.length)?;
            self.file.sync_data()?;
            self.reserved = self.length;
            self.untidy = false;
        }
        Ok(())
    }

    /// Makes room up to `end` and beyond; where there is none beyond, a batch may still fit.
    fn reserve(&mut self, end: u64) -> io::Result<()> {
        if end <= self.reserved {
            return Ok(());
        }
        // Where there was no room the last time, batches have gone beyond.
        let start = self.reserved.max(self.length);
        let mut at = start;
        while at < end + AHEAD {
            if self.file.write_all_at(&ZEROS, at).is_err() {
                return self.file.set_len(start);
            }
            at += ZEROS.len() as u64;
        }
        self.reserved = at;
        Ok(())
    }
}

fn create(store: &Path, first: Revision) -> io::Result<(PathBuf, Active)> {
    let path = segment_path(store, first);
    // One of that name holds no whole batch, else its revision would have been given.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        // Secrets are in it.
        .mode(0o600)
        .open(&path)?;
    // The name must outlive a power loss as well as the bytes.
    sync_folder(&path)?;
    Ok((
        path,
        Active {
            file,
            length: 0,
            reserved: 0,
            untidy: false,
        },
    ))
}

/// Makes a file's name durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn segment_path(store: &Path, first: Revision) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(format!(".log.{:020}", first.0));
    PathBuf::from(name)
}

fn find_segments(store: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(name) = store.file_name().and_then(|name| name.to_str()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.log.");
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder(store))? {
        let entry = entry?;
        let is_segment = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix));
        if is_segment {
            segments.push(entry.path());
        }
    }
    // Revisions have leading zeros.
    segments.sort();
    Ok(segments)
}

fn encode(first: Revision, writes: &[Write]) -> Vec<u8> {
    let mut batch = vec![0; HEAD];
    batch.extend_from_slice(&first.0.to_le_bytes());
    let mut record = Vec::new();
    for write in writes {
        write.encode(&mut record);
        let length = u32::try_from(record.len()).expect("values are far below 4 GiB");
        batch.extend_from_slice(&length.to_le_bytes());
        batch.extend_from_slice(&record);
    }
    let length = u32::try_from(batch.len() - HEAD).expect("batches are far below 4 GiB");
    let sum = crc32fast::hash(&batch[HEAD..]);
    batch[..8].copy_from_slice(MAGIC);
    batch[8..12].copy_from_slice(&length.to_le_bytes());
    batch[12..16].copy_from_slice(&sum.to_le_bytes());
    batch
}

/// The payload of the batch that begins these bytes, if it is whole.
fn batch(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    if head[..8] != MAGIC[..] {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let payload = rest.get(..word(8) as usize)?;
    (crc32fast::hash(payload) == word(12)).then_some(payload)
}

fn has_batch(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|at| bytes[at..].starts_with(MAGIC) && batch(&bytes[at..]).is_some())
}

/// Reads whole batches until there are no more; returns where that is.
fn read_batches(
    bytes: &[u8],
    replay: &mut impl FnMut(Write) -> Result<(), &'static str>,
) -> Result<usize, String> {
    let mut at = 0;
    while let Some(payload) = batch(&bytes[at..]) {
        read_records(payload, replay).map_err(|problem| format!("at byte {at}: {problem}"))?;
        at += HEAD + payload.len();
    }
    Ok(at)
}

fn read_records(
    payload: &[u8],
    replay: &mut impl FnMut(Write) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    let (first, mut rest) = payload
        .split_first_chunk::<8>()
        .ok_or("a batch is too short")?;
    let mut revision = Revision(u64::from_le_bytes(*first));
    while !rest.is_empty() {
        let (length, tail) = rest.split_first_chunk::<4>().ok_or("a record is cut off")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (record, tail) = tail.split_at_checked(length).ok_or("a record is cut off")?;
        replay(Write::decode(revision, record)?.into_owned())?;
        revision = revision.next();
        rest = tail;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::Put;
    use super::*;

    fn write(revision: u64) -> Write {
        let value = vec![revision as u8; 20 + revision as usize % 50].into();
        let put = Put {
            value,
            create_revision: Revision(revision),
            expires_at: None,
        };
        let put = (!revision.is_multiple_of(4)).then_some(put);
        Write {
            revision: Revision(revision),
            key: format!("/k/{}", revision % 3).into(),
            put,
        }
    }

    fn writes(revisions: std::ops::RangeInclusive<u64>) -> Vec<Write> {
        revisions.map(write).collect()
    }

    fn open(store: &Path) -> Result<(Log, Vec<Write>), LogError> {
        let mut seen = Vec::new();
        let log = Log::open(store, |write| {
            seen.push(write);
            Ok(())
        })?;
        Ok((log, seen))
    }

    #[test]
    fn what_is_appended_is_replayed_across_segments() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = folder.path().join("store");
        let (mut log, seen) = open(&store).expect("open");
        assert_eq!(seen, []);
        log.append(&writes(1..=3)).expect("append");
        log.append(&writes(4..=4)).expect("append");
        let (mut log, seen) = open(&store).expect("open");
        assert_eq!(seen, writes(1..=4));
        let complete = log.rotate().expect("rotate");
        assert_eq!(complete.len(), 1);
        log.append(&writes(5..=9)).expect("append");
        let (_, seen) = open(&store).expect("open");
        assert_eq!(seen, writes(1..=9));
        fs::remove_file(&complete[0]).expect("remove");
        let (mut log, seen) = open(&store).expect("open");
        assert_eq!(seen, writes(5..=9));
        log.append(&writes(10..=10)).expect("append");
        assert_eq!(open(&store).expect("open").1, writes(5..=10));
    }

    #[test]
    fn damage_before_the_end_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = folder.path().join("store");
        let (mut log, _) = open(&store).expect("open");
        for revision in 1..=5 {
            log.append(&writes(revision..=revision)).expect("append");
        }
        let segment = segment_path(&store, Revision(1));
        let mut good = fs::read(&segment).expect("read");
        let written = log.active.as_ref().expect("it was written").length as usize;
        assert!(good.len() > written && good[written..].iter().all(|byte| *byte == 0));
        good.truncate(written);
        let last = good.len() - encode(Revision(5), &writes(5..=5)).len();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0x10;
            fs::write(&segment, &bad).expect("write");
            match open(&store) {
                // In the last batch it looks as if the write had not been finished.
                Ok((_, seen)) => {
                    assert!(
                        position >= last,
                        "damage at {position} was taken for the end"
                    );
                    assert_eq!(seen, writes(1..=4));
                }
                Err(LogError::Damaged(_)) => assert!(position < last, "at {position}"),
                Err(LogError::Io(error)) => panic!("{error}"),
            }
        }
        // Zeros behind it are as good an end as none, and what follows is written over them.
        let mut zeros = good.clone();
        zeros.resize(good.len() + 1_000, 0);
        fs::write(&segment, &zeros).expect("write");
        let (mut log, seen) = open(&store).expect("open");
        assert_eq!(seen, writes(1..=5));
        log.append(&writes(6..=6)).expect("append");
        assert_eq!(open(&store).expect("open").1, writes(1..=6));
        zeros[good.len() + 500] = 1;
        fs::write(&segment, &zeros).expect("write");
        assert_eq!(open(&store).expect("it is torn").1, writes(1..=5));

        fs::write(&segment, &good[..good.len() - 1]).expect("write");
        let (mut log, _) = open(&store).expect("open");
        log.rotate().expect("rotate");
        log.append(&writes(5..=5)).expect("append");
        fs::write(&segment, &good[..last - 1]).expect("write");
        assert!(
            matches!(open(&store), Err(LogError::Damaged(_))),
            "a segment before the last is cut"
        );
    }

    proptest! {
        // Each syncs a dozen times.
        #![proptest_config(ProptestConfig { cases: 40, ..Default::default() })]

        #[test]
        fn a_torn_end_costs_only_the_batch_that_it_tears(
            batches in prop::collection::vec(1u64..6, 1..8), cut: prop::sample::Index,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let store = folder.path().join("store");
            let (mut log, _) = open(&store).expect("open");
            let (mut next, mut ends) = (1, vec![(0, 0)]);
            for size in batches {
                log.append(&writes(next..=next + size - 1)).expect("append");
                next += size;
                ends.push((log.active.as_ref().map_or(0, |active| active.length), next - 1));
            }
            let length = ends.last().expect("not empty").0;
            let cut = cut.index(length as usize + 1) as u64;
            let segment = segment_path(&store, Revision(1));
            OpenOptions::new().write(true).open(&segment).expect("open").set_len(cut).expect("cut");
            let kept = ends.iter().rev().find(|(end, _)| *end <= cut).expect("the first is 0").1;
            let (mut log, seen) = open(&store).expect("open");
            prop_assert_eq!(seen, writes(1..=kept));
            log.append(&writes(kept + 1..=kept + 2)).expect("append");
            prop_assert_eq!(open(&store).expect("open").1, writes(1..=kept + 2));
        }
    }
}
