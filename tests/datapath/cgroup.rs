//! A child cgroup for this process. A socket belongs to the cgroup that its process is in
//! when it is made, and all tests are threads of one process: they share the cgroup, every
//! test's hooks see every test's sockets, and the namespaces keep them apart, as they do
//! for several nodes on one machine.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many tests are using the cgroup.
static USERS: Mutex<usize> = Mutex::new(0);

pub struct TestCgroup {
    pub path: PathBuf,
    home: PathBuf,
}

impl TestCgroup {
    pub fn join() -> Self {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        let root = cgroup2_mount();
        let cgroup = Self {
            path: root.join(format!("windlass-test-{}", std::process::id())),
            home: root,
        };
        if *users == 0 {
            fs::create_dir_all(&cgroup.path).expect("making a child cgroup");
            enter(&cgroup.path);
        }
        *users += 1;
        cgroup
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users > 0 {
            return;
        }
        enter(&self.home);
        // A child process that has just exited leaves the cgroup a moment later.
        let deadline = Instant::now() + Duration::from_secs(2);
        while let Err(error) = fs::remove_dir(&self.path) {
            if Instant::now() > deadline {
                eprintln!("cannot remove {}: {error}", self.path.display());
                return;
            }
            std::thread::yield_now();
        }
    }
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .unwrap_or_else(|error| panic!("entering {}: {error}", cgroup.display()));
}

fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| fields[1].into())
        .expect("no cgroup2 hierarchy is mounted")
}
