//! Sends back what it gets.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;

use crate::lifecycle::Lifecycle;

/// The largest UDP payload that IPv4 can carry.
const DATAGRAM: usize = 65_507;
/// Of a connection's thread: its buffer, and some room.
const STACK: usize = 128 * 1024;

pub(crate) fn serve_tcp(listener: TcpListener, lifecycle: Arc<Lifecycle>) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let busy = lifecycle.busy();
            let serve = move || {
                if let Err(error) = copy(stream) {
                    println!("echo: {error}");
                }
                drop(busy);
            };
            // Connections that a policy has cut stay here for ever, each with its thread: there may be no room for
            // one more, and then this one is closed and the next may have more luck.
            if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(serve) {
                println!("echo: {error}");
            }
        }
    });
}

pub(crate) fn serve_udp(socket: UdpSocket) {
    thread::spawn(move || {
        let mut datagram = vec![0; DATAGRAM];
        loop {
            let answered = socket
                .recv_from(&mut datagram)
                .and_then(|(length, peer)| socket.send_to(&datagram[..length], peer));
            if let Err(error) = answered {
                println!("udp echo: {error}");
            }
        }
    });
}

fn copy(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}
