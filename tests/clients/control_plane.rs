//! A control plane in a temporary folder, ended with the guard.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use windlass_tests::eventually::pause;

/// Longer than any start takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct ControlPlane {
    child: Child,
    pub folder: PathBuf,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// An address of this machine that Endpoints may name: no loopback.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent; the kernel chooses the source for such a destination.
    socket.connect("192.0.2.1:9").expect("a route to anywhere");
    socket.local_addr().unwrap().ip()
}

impl ControlPlane {
    /// Starts the binary that was built beside this test.
    pub fn start(name: &str) -> Self {
        let test = env::current_exe().unwrap();
        let binary = test
            .parent()
            .unwrap()
            .with_file_name("windlass-control-plane");
        assert!(
            binary.exists(),
            "{} is missing: build it first (cargo build -p windlass-control-plane)",
            binary.display()
        );
        let folder =
            env::temp_dir().join(format!("windlass-clients-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let port = TcpListener::bind("0.0.0.0:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(binary)
            .arg("serve")
            .args(["--data-dir", folder.join("data").to_str().unwrap()])
            .args(["--advertise-address", &own_address().to_string()])
            .args(["--secure-port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let control_plane = Self { child, folder };
        let deadline = Instant::now() + PATIENCE;
        while !control_plane.kubeconfig().exists() {
            let log = fs::read_to_string(control_plane.folder.join("log")).unwrap_or_default();
            assert!(
                Instant::now() < deadline,
                "the control plane does not start:\n{log}"
            );
            pause(Duration::from_millis(50));
        }
        control_plane
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("data").join("admin.kubeconfig")
    }
}
