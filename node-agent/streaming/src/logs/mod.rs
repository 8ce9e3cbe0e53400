//! Reads a container's log from the files that the runtime writes.
//!
//! Following waits on the kernel's notifications and ends with the container. A rotated log (renamed, and a
//! new file in its place) is read to its end before the new one. Only the file at the log's path is read
//! from the beginning: older ones are the node's business.

mod line;
mod options;
mod select;
mod tail;
mod wait;

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

pub(crate) use self::options::LogOptions;
use self::select::Select;
use self::wait::Changes;

const READ: usize = 64 << 10;

/// A line longer than this is passed over: runtimes cut lines at 16 KiB, so it is none.
const LONGEST_LINE: usize = 1 << 20;

/// Chunks that a slow client may have waiting before reading stops.
const QUEUE: usize = 4;

pub(crate) type LogStream = mpsc::Receiver<io::Result<Bytes>>;

/// Begins to read a log. `finished` resolves when the container has stopped; what it has written by then
/// is still delivered.
///
/// # Errors
/// When the log cannot be opened; later errors end the stream.
pub(crate) async fn read(
    path: PathBuf,
    options: LogOptions,
    finished: BoxFuture<'static, ()>,
) -> io::Result<LogStream> {
    let mut file = File::open(&path).await?;
    let start = match options.tail_lines {
        Some(count) => tail::tail_start(&mut file, count).await?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).await?;
    let (chunks, stream) = mpsc::channel(QUEUE);
    let reader = Reader {
        path,
        file,
        unfinished: BytesMut::new(),
        select: Select::new(options),
        chunks: chunks.clone(),
    };
    tokio::spawn(async move {
        // Its end is the client's end: it has the error, or has gone.
        if let Err(error) = reader.run(options.follow, finished).await {
            let _ = chunks.send(Err(error)).await;
        }
    });
    Ok(stream)
}

struct Reader {
    path: PathBuf,
    file: File,
    /// The beginning of a line whose end has not been written yet.
    unfinished: BytesMut,
    select: Select,
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

/// Why reading stopped.
#[derive(PartialEq, Eq)]
enum Stop {
    EndOfFile,
    /// The limit is reached or the client has gone.
    Done,
}

impl Reader {
    async fn run(mut self, follow: bool, mut finished: BoxFuture<'static, ()>) -> io::Result<()> {
        if !follow {
            self.read_to_end().await?;
            return Ok(());
        }
        // Watched before the first read: a write after that read is not missed.
        let mut changes = Changes::watch(&self.path)?;
        let client = self.chunks.clone();
        let mut has_finished = false;
        loop {
            if self.read_to_end().await? == Stop::Done {
                return Ok(());
            }
            if let Some(next) = self.rotated().await? {
                // The old file may have got its last lines while the new one was made.
                if self.read_to_end().await? == Stop::Done {
                    return Ok(());
                }
                self.unfinished.clear();
                self.file = next;
                changes.rewatch(&self.path)?;
                continue;
            }
            if has_finished {
                return Ok(());
            }
            tokio::select! {
                changed = changes.next() => changed?,
                // The runtime writes what is left in its pipe before it reports the end.
                () = &mut finished => has_finished = true,
                () = client.closed() => return Ok(()),
            }
        }
    }

    async fn read_to_end(&mut self) -> io::Result<Stop> {
        let mut out = BytesMut::new();
        loop {
            self.unfinished.reserve(READ);
            let length = self.file.read_buf(&mut self.unfinished).await?;
            if length == 0 {
                return Ok(Stop::EndOfFile);
            }
            while let Some(newline) = self.unfinished.iter().position(|byte| *byte == b'\n') {
                let line = self.unfinished.split_to(newline + 1);
                self.select.push(&line[..newline], &mut out);
            }
            if self.unfinished.len() > LONGEST_LINE {
                self.unfinished.clear();
            }
            if !out.is_empty() && self.chunks.send(Ok(out.split().freeze())).await.is_err() {
                return Ok(Stop::Done);
            }
            if self.select.is_done() {
                return Ok(Stop::Done);
            }
        }
    }

    /// The file that now is at the log's path, if it is another one than the one that is read.
    async fn rotated(&self) -> io::Result<Option<File>> {
        let next = match File::open(&self.path).await {
            Ok(next) => next,
            // Between the renaming and the new file; or removed with its container.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (old, new) = (self.file.metadata().await?, next.metadata().await?);
        let is_other = (old.dev(), old.ino()) != (new.dev(), new.ino());
        Ok(is_other.then_some(next))
    }
}

/// The folder of a log: where a rotated one's successor appears.
fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
