//! A containerd of the test's own, gone with everything it started when dropped.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use windlass_cri::Runtime;

use super::image;

pub(crate) const BUSYBOX: &str = "windlass.test/busybox:1";
const PAUSE: &str = "windlass.test/pause:1";

pub(crate) struct Containerd {
    root: tempfile::TempDir,
    daemon: Option<Child>,
    pub(crate) runtime: Runtime,
}

impl Containerd {
    /// Starts one and gives it the test images. None, with a word on why, where the machine
    /// has no containerd or the tests do not run as root.
    pub(crate) async fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root()
            || Command::new("containerd").arg("-v").output().is_err()
        {
            eprintln!("skipped: needs root and containerd");
            return None;
        }
        let root = tempfile::Builder::new().prefix("wlp").tempdir().unwrap();
        fs::write(root.path().join("config.toml"), config(root.path())).unwrap();
        let socket = root.path().join("c.sock");
        let runtime = Runtime::new(socket.to_str().unwrap().parse().unwrap());
        let mut containerd = Self {
            root,
            daemon: None,
            runtime,
        };
        containerd.launch().await;
        for (name, entrypoint) in [
            (PAUSE, &["/bin/busybox", "sleep", "1000000000"][..]),
            (BUSYBOX, &["/bin/sh"]),
        ] {
            let archive = containerd.root.path().join("image.tar");
            image::write(&archive, name, entrypoint);
            containerd.ctr(&["images", "import", archive.to_str().unwrap()]);
        }
        Some(containerd)
    }

    /// A folder for the agent's own state, on which mounts propagate.
    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    /// A name that no other one has.
    pub(crate) fn name(&self) -> String {
        let name = self.root.path().file_name().unwrap();
        name.to_string_lossy().into_owned()
    }

    pub(crate) async fn launch(&mut self) {
        let log = fs::File::create(self.root.path().join("log")).unwrap();
        let config = self.root.path().join("config.toml");
        let daemon = Command::new("containerd")
            .args(["-c", config.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        for _ in 0..400 {
            if self.runtime.status().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("containerd does not start: {}", self.log());
    }

    /// Ends the daemon the hard way; what it runs goes on.
    pub(crate) fn kill(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let socket = self.root.path().join("c.sock");
        let output = Command::new("ctr")
            .args(["-a", socket.to_str().unwrap(), "-n", "k8s.io"])
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn pids(&self) -> Vec<i32> {
        let marker = self.root.path().to_str().unwrap().to_owned();
        let own = std::process::id().to_string();
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(pid) = name.parse::<i32>() else {
                continue;
            };
            if name == own {
                continue;
            }
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&marker) {
                pids.push(pid);
            }
        }
        pids
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Tests delete their pods; this is for those that failed half-way.
        if self.daemon.is_some() {
            let socket = self.root.path().join("c.sock");
            let ctr = |args: &[&str]| {
                let all = ["-a", socket.to_str().unwrap(), "-n", "k8s.io"];
                Command::new("ctr").args(all).args(args).output()
            };
            if let Ok(tasks) = ctr(&["tasks", "ls", "-q"]) {
                for task in String::from_utf8_lossy(&tasks.stdout).lines() {
                    let _ = ctr(&["tasks", "delete", "-f", task]);
                }
            }
        }
        self.kill();
        // Shims name the socket's folder on their command line.
        for pid in self.pids() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let root = self.root.path().to_owned();
        if let Err(error) = windlass_volumes::tear_down(&root) {
            eprintln!("{} is left behind: {error}", root.display());
        }
    }
}

fn config(root: &Path) -> String {
    let path = |name: &str| -> PathBuf { root.join(name) };
    let disabled = ["aufs", "btrfs", "devmapper", "zfs"];
    let disabled: Vec<String> = disabled
        .iter()
        .map(|name| format!("\"io.containerd.snapshotter.v1.{name}\""))
        .collect();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [{disabled}]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{ttrpc}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{cni}"
"#,
        root = path("root").display(),
        state = path("state").display(),
        disabled = disabled.join(", "),
        socket = path("c.sock").display(),
        ttrpc = path("t.sock").display(),
        cni = path("cni").display(),
    )
}
