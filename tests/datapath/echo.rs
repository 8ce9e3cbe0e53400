//! Servers and clients. A server answers a request with its name and what it saw of the
//! client; the conversation goes on for as long as the client likes.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{netns::NetNs, world::Pod};

/// How long a client waits for what must come: what must not is refused at once or waited for by other constants, so
/// only a broken run takes it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How often a server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(50);

pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Server {
    /// Serves TCP and UDP on a port of every address of a namespace.
    pub fn start(namespace: &NetNs, port: u16) -> Self {
        Self::start_at(namespace, (Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// ... in each of these pods.
    pub fn start_in(pods: &[Pod], port: u16) -> Vec<Self> {
        let servers = pods.iter().map(|pod| Self::start(&pod.ns, port));
        servers.collect()
    }

    /// ... of one address: who has several answers datagrams by whichever.
    pub fn start_at(namespace: &NetNs, address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let name = namespace.name.clone();
        let (tcp, udp) = namespace.run(|| {
            let tcp = TcpListener::bind(address).expect("binding the server's port");
            tcp.set_nonblocking(true).expect("setting the listener");
            (
                tcp,
                UdpSocket::bind(address).expect("binding the server's port"),
            )
        });
        let threads = vec![
            thread::spawn({
                let (stop, name) = (stop.clone(), name.clone());
                move || serve_tcp(&tcp, &name, &stop)
            }),
            thread::spawn({
                let stop = stop.clone();
                move || serve_udp(&udp, &name, &stop)
            }),
        ];
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, peer)) = listener.accept() else {
            // The listener does not block, so that a stop is seen.
            thread::park_timeout(Duration::from_millis(2));
            continue;
        };
        let (name, stop) = (name.to_owned(), stop.clone());
        thread::spawn(move || converse(stream, peer, &name, &stop));
    }
}

fn converse(stream: TcpStream, peer: SocketAddr, name: &str, stop: &AtomicBool) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(POLL));
    let Ok(mut writer) = stream.try_clone() else {
        return;
    };
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        match reader.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) => {
                let answer = format!("{name} {} {}", canonical(peer), line.trim_end());
                if writeln!(writer, "{answer}").is_err() {
                    return;
                }
                line.clear();
            }
            Err(_) if stop.load(Ordering::Relaxed) => return,
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    socket
        .set_read_timeout(Some(POLL))
        .expect("setting a timeout");
    let mut buffer = [0u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            let _ = socket.send_to(
                format!("{name} {} {text}", canonical(peer)).as_bytes(),
                peer,
            );
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What a server said: its name, and the address that it saw the client come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub server: String,
    pub seen_client: SocketAddr,
}

impl Answer {
    fn parse(text: &str) -> std::io::Result<Self> {
        let mut words = text.split_whitespace();
        let (Some(server), Some(client)) = (words.next(), words.next()) else {
            return Err(std::io::Error::other(format!("not an answer: {text:?}")));
        };
        let seen_client = client.parse().map_err(std::io::Error::other)?;
        Ok(Self {
            server: server.to_owned(),
            seen_client,
        })
    }
}

/// A TCP conversation that can be kept open.
pub struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    /// Must be called in the client's namespace.
    pub fn open(target: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    pub fn ask(&mut self, question: &str) -> std::io::Result<Answer> {
        self.say(question)?;
        self.hear()
    }

    /// A question whose answer is heard later: of many, nobody waits for each in turn.
    pub fn say(&mut self, question: &str) -> std::io::Result<()> {
        writeln!(self.reader.get_mut(), "{question}")
    }

    pub fn hear(&mut self) -> std::io::Result<Answer> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Answer::parse(&line)
    }

    pub fn peer(&self) -> SocketAddr {
        self.reader
            .get_ref()
            .peer_addr()
            .expect("a connected socket has a peer")
    }
}

/// One TCP connection from a namespace, one question, one answer.
pub fn ask_tcp(from: &NetNs, target: SocketAddr) -> std::io::Result<Answer> {
    from.run(|| Conversation::open(target)?.ask("hello"))
}

/// One datagram from an unconnected socket of a namespace; also says who answered.
pub fn ask_udp(from: &NetNs, target: SocketAddr) -> std::io::Result<(Answer, SocketAddr)> {
    from.run(|| ask_udp_on(&udp_socket(target)?, target))
}

/// The same by a connected socket, which gets ICMP errors as errors of its own; says who its peer is.
pub fn ask_connected_udp(from: &NetNs, target: SocketAddr) -> std::io::Result<SocketAddr> {
    from.run(|| {
        let socket = udp_socket(target)?;
        socket.connect(target)?;
        socket.send(b"hello")?;
        socket.recv(&mut [0; 512])?;
        // It may say the address again.
        ask_udp_on(&socket, target)?;
        socket.peer_addr()
    })
}

/// Of the family of a target; in the calling thread's namespace.
pub fn udp_socket(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if target.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

pub fn ask_udp_on(socket: &UdpSocket, target: SocketAddr) -> std::io::Result<(Answer, SocketAddr)> {
    socket.send_to(b"hello", target)?;
    let mut buffer = [0u8; 2048];
    let (length, peer) = socket.recv_from(&mut buffer)?;
    Ok((
        Answer::parse(&String::from_utf8_lossy(&buffer[..length]))?,
        peer,
    ))
}
