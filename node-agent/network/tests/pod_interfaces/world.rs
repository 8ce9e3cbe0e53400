//! One namespace plays the node, others the pods.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use tempfile::TempDir;
use windlass_network::interface::Namespace;
use windlass_network::{
    AttachmentKey, Attachments, AttachmentsConfig, PodInterface, PodInterfaces, PodName,
};

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A network namespace, gone when dropped.
pub(crate) struct Netns {
    pub(crate) path: PathBuf,
    _leave: mpsc::Sender<()>,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let (made, path) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (are you root?)");
            let thread = nix::unistd::gettid();
            made.send(PathBuf::from(format!("/proc/self/task/{thread}/ns/net")))
                .expect("a listener");
            // Until the guard is dropped.
            let _ = left.recv();
        });
        Self {
            path: path.recv().expect("a namespace"),
            _leave: leave,
        }
    }

    pub(crate) async fn open(&self) -> Namespace {
        Namespace::open(&self.path).await.expect("open")
    }

    pub(crate) async fn within<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.open().await.within(f).await.expect("enter")
    }

    pub(crate) async fn ip(&self, arguments: &'static str) {
        let run = || {
            Command::new("ip")
                .args(arguments.split(' '))
                .output()
                .expect("ip")
        };
        let output = self.within(run).await;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {text}");
    }
}

/// Stands for the datapath: notes what is attached, and looks whether the pod's end is still down then.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) attached: Mutex<BTreeMap<u32, PodInterface>>,
    pub(crate) attachments: AtomicUsize,
    pub(crate) refuses: AtomicBool,
    pub(crate) refuses_admission: AtomicBool,
    /// Interfaces that were published and down when they were to be admitted.
    pub(crate) admissions: AtomicUsize,
    pub(crate) pod_netns: Mutex<Option<PathBuf>>,
}

impl PodInterfaces for Recorder {
    fn attach<'a>(&'a self, interface: &'a PodInterface) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            anyhow::ensure!(
                !self.refuses.load(Ordering::Relaxed),
                "no room for another program"
            );
            let watched = self.pod_netns.lock().clone();
            if let Some(path) = watched {
                let pod = Namespace::open(&path).await?;
                let link = pod.link(&interface.link.pod_name).await?;
                anyhow::ensure!(
                    link.is_some_and(|link| !link.up),
                    "the pod's end is up already"
                );
            }
            self.attachments.fetch_add(1, Ordering::Relaxed);
            self.attached
                .lock()
                .insert(interface.index, interface.clone());
            Ok(())
        }
        .boxed()
    }

    fn admit<'a>(&'a self, interface: &'a PodInterface) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            anyhow::ensure!(
                !self.refuses_admission.load(Ordering::Relaxed),
                "the pod is not known yet"
            );
            let pod = Namespace::open(&interface.netns).await?;
            let link = pod.link(&interface.link.pod_name).await?;
            if link.is_some_and(|link| !link.up) {
                self.admissions.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
        .boxed()
    }

    fn detach(&self, index: u32, _: &[IpAddr]) -> BoxFuture<'_, anyhow::Result<()>> {
        self.attached.lock().remove(&index);
        async { Ok(()) }.boxed()
    }
}

pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) state: TempDir,
    pub(crate) datapath: Arc<Recorder>,
}

impl Node {
    pub(crate) async fn new() -> Self {
        let netns = Netns::new();
        for command in [
            "link set lo up",
            "link add up0 mtu 1400 type veth peer name up1",
            "address add 192.0.2.1/24 dev up0",
            "link set up0 up",
            "link set up1 up",
        ] {
            netns.ip(command).await;
        }
        Self {
            netns,
            state: tempfile::tempdir().expect("a folder"),
            datapath: Arc::default(),
        }
    }

    pub(crate) async fn start(&self) -> Arc<Attachments> {
        let host = self.netns.open().await;
        start(host, self.state.path(), self.datapath.clone()).await
    }

    pub(crate) async fn pod_links(&self) -> Vec<String> {
        let links = self.netns.open().await.links().await.expect("links");
        links
            .into_iter()
            .map(|link| link.name)
            .filter(|name| name.starts_with("wl"))
            .collect()
    }
}

/// An agent of the node `host`.
pub(crate) async fn start(
    host: Namespace,
    state: &Path,
    datapath: Arc<Recorder>,
) -> Arc<Attachments> {
    let config = AttachmentsConfig {
        state_dir: state.to_owned(),
        node_addresses: vec![NODE.into()],
        uplinks: vec!["up0".into()],
    };
    let attachments = Attachments::open(config, host, datapath)
        .await
        .expect("open");
    attachments
        .set_pod_cidrs(&["10.77.0.0/24".parse().expect("a CIDR")])
        .expect("has room");
    Arc::new(attachments)
}

pub(crate) fn key(container_id: &str) -> AttachmentKey {
    AttachmentKey {
        container_id: container_id.into(),
        interface: "eth0".into(),
    }
}

pub(crate) async fn add(attachments: &Attachments, id: &str, pod: &Netns) -> PodInterface {
    let name = PodName {
        namespace: "default".into(),
        name: id.into(),
        uid: String::new(),
    };
    attachments
        .add(key(id), &pod.path, name)
        .await
        .expect("add")
}

/// A TCP connection and a UDP exchange between two namespaces.
pub(crate) async fn reaches(from: &Netns, to: &Netns, address: IpAddr) {
    let (tcp, udp) = to
        .within(move || {
            let any = SocketAddr::new(address, 0);
            (
                TcpListener::bind(any).expect("listen"),
                UdpSocket::bind(any).expect("bind"),
            )
        })
        .await;
    let (tcp_address, udp_address) = (
        tcp.local_addr().expect("address"),
        udp.local_addr().expect("address"),
    );
    let server = std::thread::spawn(move || {
        let (mut connection, peer) = tcp.accept().expect("accept");
        let mut text = [0; 4];
        connection.read_exact(&mut text).expect("read");
        connection.write_all(&text).expect("write");
        let (_, udp_peer) = udp.recv_from(&mut text).expect("receive");
        udp.send_to(&text, udp_peer).expect("send");
        assert_eq!(peer.ip(), udp_peer.ip());
        peer.ip()
    });
    from.within(move || {
        let patience = Duration::from_secs(20);
        let mut connection = TcpStream::connect_timeout(&tcp_address, patience).expect("connect");
        connection.write_all(b"ping").expect("write");
        let mut text = [0; 4];
        connection.read_exact(&mut text).expect("read");
        assert_eq!(&text, b"ping");
        let any = if udp_address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).expect("bind");
        socket.set_read_timeout(Some(patience)).expect("a timeout");
        socket.connect(udp_address).expect("connect");
        socket.send(b"pong").expect("send");
        socket.recv(&mut text).expect("receive");
        assert_eq!(&text, b"pong");
    })
    .await;
    server.join().expect("the server");
}
