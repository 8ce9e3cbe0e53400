//! The agent's own unix socket: a gRPC server for the CNI plugin and for tools that look into the node.
//!
//! Its name is the only way in, and anyone who tidies `/run` can take it away without the kernel telling the
//! listener: so the name is looked at, and given anew when it is gone.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

/// How long the socket may be without a name.
const LOOK: Duration = Duration::from_secs(1);

/// Binds the socket. What a killed agent left is replaced; it is reachable by root alone from the moment
/// at which it has its name.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] when another agent answers there.
pub async fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        let text = format!("another agent serves {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    let hidden = path.with_extension(format!("{}.new", std::process::id()));
    remove(&hidden)?;
    let listener = UnixListener::bind(&hidden)?;
    fs::set_permissions(&hidden, Permissions::from_mode(0o600))?;
    fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Serves until `shutdown`; calls in progress are finished.
pub async fn serve(
    listener: UnixListener,
    routes: Routes,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let connections = UnixListenerStream::new(listener);
    Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, shutdown)
        .await
}

/// Serves `listener`, which has the name `path`, and further ones when that name is gone; until `shutdown`.
pub async fn keep(
    listener: UnixListener,
    path: &Path,
    routes: Routes,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let (stop, stopped) = watch::channel(());
    let serve = |listener| {
        let mut stopped = stopped.clone();
        serve(listener, routes.clone(), async move {
            // Ends with an error, when the other end is dropped.
            drop(stopped.changed().await);
        })
    };
    let mut servers = FuturesUnordered::new();
    let mut bound = identity(path);
    servers.push(serve(listener));
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = servers.next() => ended?,
            _ = look.tick() => if identity(path).is_none() || identity(path) != bound {
                match bind(path).await {
                    Ok(listener) => {
                        tracing::warn!(path = %path.display(), "the agent's socket was gone and is there again");
                        bound = identity(path);
                        servers.push(serve(listener));
                    }
                    // Another agent has taken over: an update may have two of them for a moment.
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                    Err(error) => tracing::error!(%error, path = %path.display(), "the agent's socket is gone"),
                }
            },
        }
    }
    drop(stop);
    while let Some(ended) = servers.next().await {
        ended?;
    }
    Ok(())
}

/// Which file has this name now.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_socket_whose_name_was_removed_gets_it_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run/agent.sock");
        let listener = bind(&path).await.expect("binds");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn({
            let path = path.clone();
            async move {
                let shutdown = async { drop(ended.await) };
                keep(listener, &path, Routes::default(), shutdown).await
            }
        });
        UnixStream::connect(&path).await.expect("it is served");
        fs::remove_dir_all(folder.path().join("run")).expect("removing it");
        let again = async {
            while UnixStream::connect(&path).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(10 * LOOK, again)
            .await
            .expect("it is served again");
        drop(end);
        server.await.expect("no panic").expect("no error");
    }
}
