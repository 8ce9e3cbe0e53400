//! Clients that dial all the time, and notice everything.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use crate::{echo::Conversation, netns::NetNs};

/// One thread for each: a connection, a question, an answer, and again. A failure is the test's.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<usize>>,
}

impl Clients {
    pub fn start(dialling: &[(&NetNs, SocketAddr)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |(namespace, target): &(&NetNs, SocketAddr)| {
            let (stop, target) = (stop.clone(), *target);
            namespace.spawn(move || {
                let mut made = 0;
                while !stop.load(Ordering::Relaxed) {
                    Conversation::open(target)
                        .and_then(|mut conversation| conversation.ask("hello"))
                        .unwrap_or_else(|error| panic!("{target} after {made}: {error}"));
                    made += 1;
                }
                made
            })
        };
        let threads = dialling.iter().map(start).collect();
        Self { stop, threads }
    }

    /// How many connections there were; each client made some.
    pub fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let made = self.threads.into_iter().map(|client| {
            let made = client.join().expect("a client met a failure");
            assert!(made > 30, "only {made} connections were made");
            made
        });
        made.sum()
    }
}
