//! Whether a port takes connections.

use tokio::net::TcpStream;

pub(super) async fn probe(host: String, port: u16) -> Result<(), String> {
    match TcpStream::connect((host.as_str(), port)).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("dial tcp {host}:{port}: {error}")),
    }
}
