//! Waits until a log grows or is replaced, by inotify.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;

use super::folder;

pub(super) struct Changes {
    inotify: Inotify,
    /// The same descriptor for reading. A pipe is what tokio can wait for without `unsafe`; to wait for an
    /// inotify descriptor is the same.
    events: pipe::Receiver,
}

impl Changes {
    /// From now on a write to the file, and a new file in its folder, are noticed.
    pub(super) fn watch(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = File::from(inotify.as_fd().try_clone_to_owned()?);
        let changes = Self {
            inotify,
            events: pipe::Receiver::from_file_unchecked(events)?,
        };
        let appears = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        changes.inotify.add_watch(folder(path), appears)?;
        changes.rewatch(path)?;
        Ok(changes)
    }

    /// Watches the file that is at the path now.
    pub(super) fn rewatch(&self, path: &Path) -> io::Result<()> {
        // The kernel drops the old file's watch with its last link; until then it only wakes in vain.
        match self.inotify.add_watch(path, AddWatchFlags::IN_MODIFY) {
            // Renamed again already: the folder's watch tells when there is a new one.
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns after a change since the last call, perhaps without one.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        // What exactly has changed, the reader sees by looking; an event is 16 bytes and a file's name.
        let mut events = [0; 4_096];
        loop {
            self.events.readable().await?;
            match self.events.try_read(&mut events) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(drop),
            }
        }
    }
}
