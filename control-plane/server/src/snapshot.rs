//! `snapshot save` and `snapshot restore`: the embedded store's state as one file.
//!
//! The store's file belongs to the server that runs, so `save` asks that server, by a socket in the data folder
//! that only its owner can open; when none runs, it opens the store itself. etcd has tools of its own for this
//! (`etcdctl snapshot`).

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use windlass_patience::accepted;
use windlass_store::{Embedded, EmbeddedOptions};

use crate::store;

/// Whoever connects asks at once; the next one waits meanwhile.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Write the present state to a file, also while the server runs.
    Save(Save),
    /// Make a data folder's store from a snapshot. The server must not run.
    Restore(Restore),
}

#[derive(clap::Args)]
pub(crate) struct Save {
    /// The server's data folder.
    #[arg(long, default_value = "/var/lib/windlass/control-plane")]
    data_dir: PathBuf,
    /// The file to write; there must be none of that name.
    file: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct Restore {
    #[arg(long, default_value = "/var/lib/windlass/control-plane")]
    data_dir: PathBuf,
    /// How far the revision jumps, so that clients that have seen what was written after the snapshot list again
    /// and do not take new objects for what they know. More than the writes since the snapshot.
    #[arg(long, default_value_t = 1_000_000_000)]
    bump_revision: u64,
    /// What `snapshot save` has written.
    file: PathBuf,
}

pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Save(save) => {
            let file = std::path::absolute(&save.file).context("the file's path")?;
            let revision = match UnixStream::connect(socket(&save.data_dir)).await {
                Ok(server) => ask(server, &file).await?,
                Err(_) => save_stopped(&save.data_dir, &file).await?,
            };
            tracing::info!(%revision, file = %file.display(), "snapshot saved");
            Ok(())
        }
        Command::Restore(restore) => {
            let to = store::path(&restore.data_dir);
            ensure!(
                !to.exists(),
                "{} exists: stop the server and move the file and its .log.* away, to keep them in case the snapshot is not what you want",
                to.display()
            );
            let logs = logs_of(&to)?;
            if let Some(log) = logs.first() {
                bail!(
                    "{} belongs to a store that is gone: move it away, or its writes would be taken for new ones",
                    log.display()
                );
            }
            std::fs::create_dir_all(&restore.data_dir)
                .with_context(|| format!("create {}", restore.data_dir.display()))?;
            let revision = Embedded::restore(&restore.file, &to, restore.bump_revision).await?;
            tracing::info!(%revision, store = %to.display(), "snapshot restored");
            Ok(())
        }
    }
}

/// Answers `snapshot save` until `shutdown`.
pub(crate) fn listen(
    store: Arc<Embedded>,
    data_dir: &Path,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let path = socket(data_dir);
    // Left behind by a server that was killed: the store's lock says that there is no other now.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restrict {}", path.display()))?;
    let serving = async move {
        loop {
            let (client, _) = accepted(|| listener.accept()).await;
            if let Err(error) = answer(&store, client).await {
                tracing::debug!(%error, "a snapshot's client went away");
            }
        }
    };
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(serving));
    Ok(())
}

fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshot.sock")
}

/// One line with the path; one line with `ok <revision>`, or what went wrong.
async fn answer(store: &Embedded, mut client: UnixStream) -> std::io::Result<()> {
    let mut path = String::new();
    let mut question = BufReader::new(&mut client);
    tokio::time::timeout(QUESTION_TIMEOUT, question.read_line(&mut path)).await??;
    let line = match store
        .save_snapshot(Path::new(path.trim_end_matches('\n')))
        .await
    {
        Ok(revision) => format!("ok {revision}\n"),
        Err(error) => format!("{error}\n"),
    };
    client.write_all(line.as_bytes()).await
}

async fn ask(mut server: UnixStream, file: &Path) -> anyhow::Result<String> {
    let path = file.to_str().context("the file's path is not UTF-8")?;
    server.write_all(format!("{path}\n").as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(server).read_line(&mut line).await?;
    match line.trim_end().strip_prefix("ok ") {
        Some(revision) => Ok(revision.to_owned()),
        None => bail!("the server could not save a snapshot: {}", line.trim_end()),
    }
}

async fn save_stopped(data_dir: &Path, file: &Path) -> anyhow::Result<String> {
    let path = store::path(data_dir);
    // Opening creates what is not there.
    ensure!(path.exists(), "there is no store at {}", path.display());
    let store = Embedded::open(&path, EmbeddedOptions::default()).await?;
    Ok(store.save_snapshot(file).await?.to_string())
}

fn logs_of(store: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Some((folder, name)) = store.parent().zip(store.file_name()) else {
        return Ok(Vec::new());
    };
    let beginning = format!("{}.log.", name.to_string_lossy());
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let mut logs = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        if entry.file_name().to_string_lossy().starts_with(&beginning) {
            logs.push(entry.path());
        }
    }
    Ok(logs)
}
