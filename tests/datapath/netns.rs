//! A network namespace without a name: it lives as long as this guard and whatever runs
//! in it, so that no crash can leave one behind.

use std::{fs::File, os::fd::AsRawFd as _, path::PathBuf, process::Command, thread};

use nix::sched::{CloneFlags, setns, unshare};

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
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
        let file = self
            .file
            .try_clone()
            .expect("duplicating the namespace's descriptor");
        thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            work();
        })
    }

    /// One `ip` command line.
    pub fn ip(&self, arguments: &str) {
        self.run(|| {
            let output = Command::new("ip")
                .args(arguments.split_whitespace())
                .output()
                .expect("the tool `ip` (package iproute2) is missing");
            assert!(
                output.status.success(),
                "{}: ip {arguments}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        });
    }

    /// One ICMP echo, by whatever `ping` the machine has.
    pub fn ping(&self, target: std::net::IpAddr) {
        self.run(|| {
            let output = Command::new("ping")
                .args(["-c", "1", "-W", "3", &target.to_string()])
                .output()
                .expect("the tool `ping` (package iputils-ping) is missing");
            assert!(
                output.status.success(),
                "{}: ping {target}: {}",
                self.name,
                String::from_utf8_lossy(&output.stdout)
            );
        });
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
