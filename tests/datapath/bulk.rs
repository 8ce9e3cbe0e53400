//! Much over one connection, there and back.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

use crate::{echo::PATIENCE, netns::NetNs};

/// What `from` sends to whom it has dialled comes to who listens in `to`, and all of it back.
pub fn there_and_back(
    from: &NetNs,
    dialled: SocketAddr,
    to: &NetNs,
    listen: SocketAddr,
    size: usize,
    what: &str,
) {
    let listener = to.run(|| TcpListener::bind(listen).expect("binding"));
    let sink = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("reading");
        stream.write_all(&received).expect("answering");
        received.len()
    });
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&dialled, PATIENCE).expect("connecting");
        stream
            .set_read_timeout(Some(PATIENCE * 4))
            .expect("a timeout");
        let sent: Vec<u8> = (0..size).map(|octet| (octet * 7 % 251) as u8).collect();
        stream.write_all(&sent).expect("writing");
        stream.shutdown(Shutdown::Write).expect("the end");
        let mut back = Vec::with_capacity(size);
        stream.read_to_end(&mut back).expect("reading");
        assert!(back == sent, "{what}: the content differs");
    });
    assert_eq!(sink.join().expect("the sink"), size, "{what}");
}
