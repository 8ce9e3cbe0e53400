//! A network namespace without a name: it lives as long as this guard and whatever runs
//! in it, so that no crash can leave one behind.

use std::{
    fs::File, net::IpAddr, os::fd::AsRawFd as _, path::PathBuf, process::Command, thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

pub struct NetNs {
    pub name: String,
    file: File,
}

impl NetNs {
    pub fn new(name: &str) -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("making a network namespace");
            File::open("/proc/thread-self/ns/net").expect("procfs shows the namespace")
        })
        .join()
        .expect("the thread that made the namespace");
        let namespace = Self {
            name: name.to_owned(),
            file,
        };
        namespace.ip("link set lo up");
        namespace
    }

    /// Another guard of the same namespace.
    pub fn another(&self) -> Self {
        let file = self.file.try_clone();
        Self {
            name: self.name.clone(),
            file: file.expect("duplicating the namespace's descriptor"),
        }
    }

    /// A path by which anyone (`ip link set … netns`, the datapath) can open it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs on a thread in this namespace; sockets made there stay in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let handle = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                work()
            });
            match handle.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A thread in this namespace that nobody waits for here.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = self.another();
        thread::spawn(move || {
            setns(&namespace.file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            work()
        })
    }

    /// One `ip` command line.
    pub fn ip(&self, arguments: &str) {
        self.tool("ip", arguments);
    }

    /// One command line of a tool of iproute2; returns what it printed.
    pub fn tool(&self, tool: &str, arguments: &str) -> String {
        self.run(|| {
            let output = Command::new(tool)
                .args(arguments.split_whitespace())
                .output()
                .unwrap_or_else(|error| panic!("{tool} (package iproute2) is missing: {error}"));
            assert!(
                output.status.success(),
                "{}: {tool} {arguments}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// One ICMP echo and its answer, by the kernel's own ping sockets.
    pub fn ping(&self, target: IpAddr) -> std::io::Result<()> {
        // Which groups may have such sockets; none by default. One setting for both families.
        self.sysctl("ipv4/ping_group_range", "0 2147483647");
        self.run(|| {
            let (family, protocol, echo) = match target {
                IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
                IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
            };
            let socket = socket(family, SockType::Datagram, SockFlag::empty(), protocol)?;
            // Only its system calls matter: connect, send, receive.
            let socket = std::net::UdpSocket::from(socket);
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            socket.connect((target, 0))?;
            socket.send(&[echo, 0, 0, 0, 0, 0, 0, 1, b'p', b'i', b'n', b'g'])?;
            let mut answer = [0u8; 64];
            let length = socket.recv(&mut answer)?;
            assert_eq!(&answer[8..length], b"ping");
            Ok(())
        })
    }

    /// A setting under /proc/sys/net, which shows the namespace of the thread that looks.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| std::fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    pub fn mac(&self, interface: &str) -> [u8; 6] {
        self.run(|| {
            nix::ifaddrs::getifaddrs()
                .expect("listing interfaces")
                .filter(|entry| entry.interface_name == interface)
                .find_map(|entry| entry.address?.as_link_addr()?.addr())
                .unwrap_or_else(|| panic!("{interface} has no Ethernet address"))
        })
    }

    pub fn ifindex(&self, interface: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(interface).expect("the interface exists"))
    }
}
