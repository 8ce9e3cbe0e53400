//! Many new connections a second, at a rate that is given, and servers that can answer them. Every failure
//! counts, and nothing is tried twice.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{Shutdown, shutdown};

use crate::netns::NetNs;

/// A first packet that an upgrade drops is repeated after a second, then after two; a busy machine adds to that.
const PATIENCE: Duration = Duration::from_secs(30);

/// One thread that answers one connection after the other.
pub struct ShortServer {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl ShortServer {
    pub fn start(namespace: &NetNs, port: u16) -> Self {
        let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
        let listener = namespace.run(bind).expect("binding the server's port");
        let accepting = listener.try_clone().expect("duplicating a descriptor");
        let thread = thread::spawn(move || {
            // A listener that is shut down has no more of them.
            while let Ok((stream, _)) = accepting.accept() {
                // What a client notices is the client's to say.
                let _ = answer(stream);
            }
        });
        Self {
            listener,
            thread: Some(thread),
        }
    }
}

impl Drop for ShortServer {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut question = [0];
    stream.read_exact(&mut question)?;
    stream.write_all(&question)
}

/// A connection, a question, the answer, and the end, which the server begins.
pub fn ask_shortly(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match answer.as_slice() {
        b"?" => Ok(()),
        other => Err(std::io::Error::other(format!("answered {other:?}"))),
    }
}

/// Clients that dial all the time, each in a thread of its own.
pub struct Stream {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    started: Instant,
}

impl Stream {
    /// So many connections a second, of all clients together, while the machine can.
    pub fn start(dialling: &[(&NetNs, SocketAddr)], per_second: u32) -> Self {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let period = Duration::from_secs(1) * dialling.len() as u32 / per_second;
        let start = |(namespace, target): &(&NetNs, SocketAddr)| {
            let (stop, made, target) = (stop.clone(), made.clone(), *target);
            namespace.spawn(move || {
                let mut next = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    ask_shortly(target).unwrap_or_else(|error| {
                        let made = made.load(Ordering::Relaxed);
                        panic!("{target} after {made} in all: {error}")
                    });
                    made.fetch_add(1, Ordering::Relaxed);
                    next += period;
                    thread::park_timeout(next.saturating_duration_since(Instant::now()));
                }
            })
        };
        let threads = dialling.iter().map(start).collect();
        Self {
            stop,
            made,
            threads,
            started: Instant::now(),
        }
    }

    /// Waits until so many more have been made.
    pub fn wait_for(&self, more: usize) {
        let wanted = self.made.load(Ordering::Relaxed) + more;
        while self.made.load(Ordering::Relaxed) < wanted {
            let ended = self.threads.iter().any(JoinHandle::is_finished);
            assert!(!ended, "a client met a failure");
            thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// How many there were, and how many a second.
    pub fn stop(self) -> (usize, f64) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client met a failure");
        }
        let made = self.made.load(Ordering::Relaxed);
        (made, made as f64 / self.started.elapsed().as_secs_f64())
    }
}
