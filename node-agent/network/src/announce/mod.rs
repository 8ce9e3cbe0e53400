//! Addresses of LoadBalancers where there is no cloud: one node of each network segment answers for each of
//! them by ARP and neighbour discovery, and another one within a second when it dies.
//!
//! Who answers is decided by heartbeats of the agents among themselves on the segment ([`election`]): a Lease
//! takes many seconds, and an API server that is away must not take the addresses with it. The answers
//! themselves are the datapath's, which goes on while the agent is away.
//!
//! A thread for each uplink, not a task: what counts is to be heard in time, whatever else the agent does.

pub mod election;
pub mod frame;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use windlass_datapath::{Datapath, PacketSocket};

use self::{
    election::{Action, BEAT, Election},
    frame::{ETHERTYPE, GROUP, Heartbeat},
};
use crate::interface::Mac;

/// An address that was taken is announced again after these: frames get lost, and a neighbour may just have
/// believed another.
const AGAIN: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
/// An uplink that went (or is not there yet) is looked for so often.
const RETRY: Duration = Duration::from_millis(500);

/// Takes part in the elections of all uplinks for as long as it lives; then it gives everything up.
pub struct Announcer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Announcer {
    /// In the calling thread's network namespace. `wanted`: what this node can serve.
    pub fn start(
        datapath: &Arc<Datapath>,
        uplinks: &[String],
        wanted: &watch::Receiver<BTreeSet<IpAddr>>,
    ) -> std::io::Result<Self> {
        let names: Vec<&str> = uplinks.iter().map(String::as_str).collect();
        if let Err(error) = datapath.retain_announced(&names) {
            tracing::warn!(%error, "addresses of former uplinks are still answered for");
        }
        let mut announcer = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for uplink in uplinks {
            let keeper = Keeper {
                datapath: datapath.clone(),
                uplink: uplink.clone(),
                wanted: wanted.clone(),
                stop: announcer.stop.clone(),
            };
            let thread = thread::Builder::new().name(format!("announce-{uplink}"));
            announcer.threads.push(thread.spawn(move || keeper.run())?);
        }
        Ok(announcer)
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What one thread does.
struct Keeper {
    datapath: Arc<Datapath>,
    uplink: String,
    wanted: watch::Receiver<BTreeSet<IpAddr>>,
    stop: Arc<AtomicBool>,
}

impl Keeper {
    fn run(mut self) {
        let mut said = false;
        while !self.stop.load(Ordering::Relaxed) {
            match self.keep() {
                Ok(()) => return,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, uplink = self.uplink, "cannot announce addresses; trying again");
                    }
                    thread::park_timeout(RETRY);
                }
            }
        }
    }

    /// Until the end, or until the uplink is gone.
    fn keep(&mut self) -> anyhow::Result<()> {
        let socket = PacketSocket::open(&self.uplink, ETHERTYPE)?;
        socket.join(GROUP)?;
        let mut link = Link {
            datapath: &self.datapath,
            groups: Groups::new(socket.ifindex())?,
            socket,
            due: Vec::new(),
        };
        let mut election = Election::new(Mac(link.socket.mac()), Instant::now());
        election.want(self.wanted.borrow_and_update().clone());
        // What an earlier run answers for, it goes on answering for until it is known who does.
        let mut inherited = link.inherited()?;
        let mut next_beat = Instant::now();
        let mut buffer = [0; 2_048];
        while !self.stop.load(Ordering::Relaxed) {
            let mut actions = Vec::new();
            if self.wanted.has_changed().unwrap_or(false) {
                actions = election.want(self.wanted.borrow_and_update().clone());
            }
            let wait = election.wakes_at(Instant::now()).min(next_beat);
            let wait = wait.saturating_duration_since(Instant::now());
            if let Some(frame) = link.socket.receive(&mut buffer, wait)?
                && let Some((from, told)) = Heartbeat::parse(frame)
            {
                actions.extend(election.hear(from, &told, Instant::now()));
            }
            let now = Instant::now();
            actions.extend(election.tick(now));
            if !election.listens(now) && !inherited.is_empty() {
                let lost = inherited.iter().filter(|it| !election.held().contains(*it));
                actions.extend(lost.map(|it| Action::Yield(*it)));
                inherited.clear();
            }
            let released = link.act(&actions)?;
            link.repeat(now)?;
            if actions.is_empty() && now < next_beat {
                continue;
            }
            next_beat = now + BEAT;
            if election.takes_part() && !election.listens(now) || !released.is_empty() {
                let held = election.held().iter().copied().collect();
                link.tell(&Heartbeat { held, released })?;
            }
        }
        // Others need not wait until this node was not heard for a while.
        let released: Vec<_> = election.held().iter().copied().collect();
        for address in &released {
            link.datapath.withdraw(link.socket.ifindex(), *address)?;
        }
        let held = Vec::new();
        link.tell(&Heartbeat { held, released })
    }
}

/// An uplink, and what is announced on it.
struct Link<'a> {
    datapath: &'a Datapath,
    socket: PacketSocket,
    groups: Groups,
    /// What is to be announced again, how many times it was, and when.
    due: Vec<(IpAddr, usize, Instant)>,
}

impl Link<'_> {
    fn inherited(&self) -> anyhow::Result<Vec<IpAddr>> {
        let held = self.datapath.announced()?.into_iter();
        let here = held.filter(|(ifindex, _)| *ifindex == self.socket.ifindex());
        Ok(here.map(|(_, address)| address).collect())
    }

    /// Returns what is answered for no more.
    fn act(&mut self, actions: &[Action]) -> anyhow::Result<Vec<IpAddr>> {
        let ifindex = self.socket.ifindex();
        let mut released = Vec::new();
        for action in actions {
            match *action {
                Action::Take(address) => {
                    self.groups.join(address);
                    self.datapath
                        .announce(ifindex, address, self.socket.mac())?;
                    tracing::info!(%address, ifindex, "this node answers for an address");
                    self.due.push((address, 0, Instant::now()));
                }
                Action::Assert(address) => self.due.push((address, 0, Instant::now())),
                Action::Yield(address) => {
                    self.datapath.withdraw(ifindex, address)?;
                    self.groups.leave(address);
                    tracing::info!(%address, ifindex, "another node answers for an address");
                    self.due.retain(|(held, ..)| *held != address);
                    released.push(address);
                }
            }
        }
        Ok(released)
    }

    /// Sends the announcements whose time has come.
    fn repeat(&mut self, now: Instant) -> anyhow::Result<()> {
        let mac = Mac(self.socket.mac());
        for (address, times, at) in &mut self.due {
            if *at <= now {
                self.socket.send(&frame::announcement(mac, *address))?;
                *at = now + AGAIN.get(*times).copied().unwrap_or_default();
                *times += 1;
            }
        }
        self.due.retain(|(_, times, _)| *times <= AGAIN.len());
        Ok(())
    }

    fn tell(&self, beat: &Heartbeat) -> anyhow::Result<()> {
        for frame in beat.frames(Mac(self.socket.mac())) {
            self.socket.send(&frame)?;
        }
        Ok(())
    }
}

/// The groups by which neighbours ask for IPv6 addresses: an uplink, and a switch that listens to who is in
/// which, would not let the questions through.
struct Groups {
    ifindex: u32,
    /// None where the host has no IPv6.
    socket: Option<UdpSocket>,
}

impl Groups {
    fn new(ifindex: u32) -> std::io::Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok();
        Ok(Self { ifindex, socket })
    }

    fn join(&self, address: IpAddr) {
        self.change(address, "join", UdpSocket::join_multicast_v6);
    }

    fn leave(&self, address: IpAddr) {
        self.change(address, "leave", UdpSocket::leave_multicast_v6);
    }

    fn change(
        &self,
        address: IpAddr,
        what: &str,
        change: fn(&UdpSocket, &Ipv6Addr, u32) -> std::io::Result<()>,
    ) {
        let (IpAddr::V6(v6), Some(socket)) = (address, &self.socket) else {
            return;
        };
        let group = frame::solicited_node(v6);
        // One that another address with the same end has joined already; or too many.
        if let Err(error) = change(socket, &group, self.ifindex) {
            tracing::debug!(%error, %group, "cannot {what} a group");
        }
    }
}
