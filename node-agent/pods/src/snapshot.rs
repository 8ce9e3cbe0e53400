//! What the runtime holds of one pod, at one moment, as plain values.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerUser, LinuxContainerUser};
use windlass_cri::v1::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};
use windlass_cri::{Result, Runtime};

use crate::labels;

/// Everything that the runtime holds of a pod, the newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// Containers of all names and sandboxes.
    pub containers: Vec<Container>,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// The runtime's name for it.
    pub id: String,
    /// Counts the pod's sandboxes.
    pub attempt: u32,
    /// Whether its namespaces are held and its address is its own.
    pub ready: bool,
    /// When it was made.
    pub created: Timestamp,
    /// Empty on the host's network.
    pub ips: Vec<String>,
}

/// A container.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// The runtime's name for it.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Where it lives.
    pub sandbox: String,
    /// How often a container of this name was started before.
    pub attempt: u32,
    /// What it does.
    pub state: State,
    /// When it was made.
    pub created: Timestamp,
    /// The image as asked for.
    pub image: String,
    /// The image as found.
    pub image_id: String,
    /// [`crate::model::container_hash`] at its making.
    pub hash: String,
    /// Where its output goes.
    pub log_path: String,
    /// Where it has mounts of which nothing can be written, not below either.
    pub read_only_below: Vec<String>,
    /// As whom it runs, where the runtime tells.
    pub user: Option<ContainerUser>,
    /// What it said last.
    pub exit_message: Option<String>,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Started, not ended.
    Running {
        /// When.
        since: Timestamp,
    },
    /// Ended.
    Exited(Exit),
    /// The runtime lost track of it.
    Unknown,
}

/// The end of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// 0 is success; 128 + n is signal n.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, ...
    pub reason: String,
    /// The runtime's words, if any.
    pub message: String,
    /// The start; absent if it never came to that.
    pub started: Option<Timestamp>,
    /// The end.
    pub finished: Timestamp,
}

impl Container {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

impl Snapshot {
    /// Asks the runtime.
    pub async fn take(runtime: &Runtime, uid: &str) -> Result<Self> {
        let of_pod = [(labels::POD_UID, uid)];
        let (sandboxes, containers) = tokio::try_join!(
            runtime.list_pod_sandboxes(&of_pod),
            runtime.list_containers(&of_pod)
        )?;
        let mut snapshot = Self::default();
        for sandbox in sandboxes {
            match runtime.pod_sandbox_status(&sandbox.id).await {
                Ok(status) => snapshot.sandboxes.push(Sandbox::from_status(status)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        for container in containers {
            let sandbox = container.pod_sandbox_id;
            match runtime.container_status(&container.id).await {
                Ok(status) => snapshot
                    .containers
                    .push(Container::from_status(status, sandbox)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        snapshot.sort();
        Ok(snapshot)
    }

    /// Puts the newest first.
    pub fn sort(&mut self) {
        self.sandboxes
            .sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created)));
        self.containers
            .sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created)));
    }

    /// The sandbox in which the pod lives, if it lives in one.
    pub fn live_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// All containers of a name, the newest first.
    pub fn of_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers
            .iter()
            .filter(move |container| container.name == name)
    }

    /// The newest container of a name.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers
            .iter()
            .find(|container| container.name == name)
    }

    /// The container of this id.
    pub fn by_id(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.id == id)
    }

    /// Whether any container runs.
    pub(crate) fn anything_runs(&self) -> bool {
        self.containers.iter().any(Container::is_running)
    }
}

impl Sandbox {
    fn from_status(status: PodSandboxStatus) -> Self {
        let ready = status.state() == PodSandboxState::SandboxReady;
        let network = status.network.unwrap_or_default();
        let more = network
            .additional_ips
            .into_iter()
            .map(|additional| additional.ip);
        let ips = std::iter::once(network.ip)
            .chain(more)
            .filter(|ip| !ip.is_empty())
            .collect();
        let attempt = status.metadata.map_or(0, |metadata| metadata.attempt);
        Self {
            id: status.id,
            attempt,
            ready,
            created: time(status.created_at),
            ips,
        }
    }
}

impl Container {
    fn from_status(status: ContainerStatus, sandbox: String) -> Self {
        let started = (status.started_at > 0).then(|| time(status.started_at));
        let state = match status.state() {
            ContainerState::ContainerCreated => State::Created,
            ContainerState::ContainerRunning => State::Running {
                since: started.unwrap_or_else(|| time(status.created_at)),
            },
            ContainerState::ContainerExited => State::Exited(Exit {
                code: status.exit_code,
                reason: exit_reason(&status.reason, status.exit_code),
                message: status.message,
                started,
                finished: time(status.finished_at.max(status.created_at)),
            }),
            ContainerState::ContainerUnknown => State::Unknown,
        };
        let metadata = status.metadata.unwrap_or_default();
        let annotation = |annotations: &HashMap<String, String>, key: &str| {
            annotations.get(key).cloned().unwrap_or_default()
        };
        Self {
            id: status.id,
            name: metadata.name,
            sandbox,
            attempt: metadata.attempt,
            state,
            created: time(status.created_at),
            image: status.image.map(|image| image.image).unwrap_or_default(),
            image_id: status.image_ref,
            hash: annotation(&status.annotations, labels::CONTAINER_HASH),
            log_path: status.log_path,
            read_only_below: status
                .mounts
                .into_iter()
                .filter(|mount| mount.recursive_read_only)
                .map(|mount| mount.container_path)
                .collect(),
            user: status.user.and_then(user),
            exit_message: None,
        }
    }
}

fn user(told: windlass_cri::v1::ContainerUser) -> Option<ContainerUser> {
    let linux = told.linux?;
    Some(ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: linux.uid,
            gid: linux.gid,
            supplemental_groups: Some(linux.supplemental_groups),
        }),
    })
}

fn exit_reason(reason: &str, code: i32) -> String {
    match (reason, code) {
        ("", 0) => "Completed".to_owned(),
        ("", _) => "Error".to_owned(),
        (reason, _) => reason.to_owned(),
    }
}

fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}
