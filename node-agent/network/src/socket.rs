//! The agent's own unix socket: a gRPC server for the CNI plugin and for tools that look into the node.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

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

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
