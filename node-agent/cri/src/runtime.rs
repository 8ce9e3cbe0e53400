//! Sandboxes, containers, and the commands run in them.

use std::collections::HashMap;
use std::time::Duration;

use crate::client::Call;
use crate::v1::*;
use crate::{Error, Result, Runtime};

/// For calls that read memory of the runtime.
const SHORT: Duration = Duration::from_secs(30);
/// For calls that start processes: a loaded machine needed 6 s for one sandbox.
const LONG: Duration = Duration::from_secs(240);
/// What a call may take beyond the time that the caller itself allows the container.
const MARGIN: Duration = Duration::from_secs(30);

/// What a command left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// 0 is success.
    pub exit_code: i32,
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
}

/// Which streams of a container a caller wants to be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamTarget {
    /// The caller will send.
    pub stdin: bool,
    /// The caller wants to read.
    pub stdout: bool,
    /// As `stdout`; never with `tty`.
    pub stderr: bool,
    /// One terminal instead of three pipes.
    pub tty: bool,
}

macro_rules! call {
    ($runtime:expr, $call:expr, $method:ident($request:expr)) => {{
        let request = $request;
        $call
            .make(|| {
                let mut client = $runtime.runtime_service();
                let request = request.clone();
                async move { client.$method(request).await }
            })
            .await
    }};
}

impl Runtime {
    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<VersionResponse> {
        let request = VersionRequest {
            version: "0.1.0".into(),
        };
        call!(self, Call::repeatable("Version", SHORT), version(request))
    }

    /// The runtime's own view of its health, asked once: the caller wants to know
    /// that it is away rather than to wait until it is back.
    pub async fn status(&self) -> Result<StatusResponse> {
        let request = StatusRequest { verbose: false };
        call!(
            self,
            Call::once("Status", Duration::from_secs(10)),
            status(request)
        )
    }

    /// The cgroup driver that the runtime uses, if it can tell (containerd 2.0 and later); asked once, as the status is.
    pub async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>> {
        let call = Call::once("RuntimeConfig", Duration::from_secs(10));
        match call!(self, call, runtime_config(RuntimeConfigRequest {})) {
            Ok(response) => Ok(response.linux.map(|linux| linux.cgroup_driver())),
            Err(Error::Unsupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells runtimes that write the CNI configuration themselves the node's pod CIDRs.
    pub async fn set_pod_cidrs(&self, pod_cidrs: &[String]) -> Result<()> {
        let network_config = Some(NetworkConfig {
            pod_cidr: pod_cidrs.join(","),
        });
        let runtime_config = Some(RuntimeConfig { network_config });
        let request = UpdateRuntimeConfigRequest { runtime_config };
        let call = Call::repeatable("UpdateRuntimeConfig", SHORT);
        call!(self, call, update_runtime_config(request)).map(|_| ())
    }

    /// Makes and starts a sandbox; gives its id.
    pub async fn run_pod_sandbox(
        &self,
        config: PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<String> {
        let runtime_handler = runtime_handler.to_owned();
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler,
        };
        let call = Call::once("RunPodSandbox", LONG);
        Ok(call!(self, call, run_pod_sandbox(request))?.pod_sandbox_id)
    }

    /// Kills what runs in the sandbox and gives its address back. A sandbox that is
    /// not there counts as stopped.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let call = Call::repeatable("StopPodSandbox", LONG);
        absent_is_done(call!(self, call, stop_pod_sandbox(request)))
    }

    /// Removes a sandbox and its containers. One that is not there counts as removed.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let call = Call::repeatable("RemovePodSandbox", LONG);
        absent_is_done(call!(self, call, remove_pod_sandbox(request)))
    }

    /// A sandbox with its addresses.
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        const NAME: &str = "PodSandboxStatus";
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let call = Call::repeatable(NAME, SHORT);
        let response = call!(self, call, pod_sandbox_status(request))?;
        response.status.ok_or_else(|| empty(NAME))
    }

    /// The sandboxes that carry all of `labels`.
    pub async fn list_pod_sandboxes(&self, labels: &[(&str, &str)]) -> Result<Vec<PodSandbox>> {
        let filter = PodSandboxFilter {
            label_selector: selector(labels),
            ..Default::default()
        };
        let request = ListPodSandboxRequest {
            filter: Some(filter),
        };
        let call = Call::repeatable("ListPodSandbox", SHORT);
        Ok(call!(self, call, list_pod_sandbox(request))?.items)
    }

    /// Makes a container in a sandbox; gives its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let call = Call::once("CreateContainer", LONG);
        Ok(call!(self, call, create_container(request))?.container_id)
    }

    /// Starts a container that was made.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        call!(
            self,
            Call::once("StartContainer", LONG),
            start_container(request)
        )
        .map(|_| ())
    }

    /// Asks a container to stop, kills it after `grace`, and returns when it is dead.
    /// One that is not there counts as stopped.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        // The contract counts whole seconds and reads 0 as "kill at once".
        let timeout = i64::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        let call = Call::repeatable("StopContainer", grace.saturating_add(MARGIN));
        absent_is_done(call!(self, call, stop_container(request)))
    }

    /// Removes a container, killing it if it runs. One that is not there counts as removed.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let call = Call::repeatable("RemoveContainer", LONG);
        absent_is_done(call!(self, call, remove_container(request)))
    }

    /// The containers that carry all of `labels`.
    pub async fn list_containers(&self, labels: &[(&str, &str)]) -> Result<Vec<Container>> {
        let filter = ContainerFilter {
            label_selector: selector(labels),
            ..Default::default()
        };
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let call = Call::repeatable("ListContainers", SHORT);
        Ok(call!(self, call, list_containers(request))?.containers)
    }

    /// A container in detail.
    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        const NAME: &str = "ContainerStatus";
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let response = call!(
            self,
            Call::repeatable(NAME, SHORT),
            container_status(request)
        )?;
        response.status.ok_or_else(|| empty(NAME))
    }

    /// Changes a running container's limits.
    pub async fn update_container_resources(
        &self,
        id: &str,
        resources: LinuxContainerResources,
    ) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            annotations: HashMap::new(),
        };
        let call = Call::repeatable("UpdateContainerResources", SHORT);
        call!(self, call, update_container_resources(request)).map(|_| ())
    }

    /// Has the runtime begin a new log file, after the old one was renamed.
    pub async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let request = ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        let call = Call::repeatable("ReopenContainerLog", SHORT);
        call!(self, call, reopen_container_log(request)).map(|_| ())
    }

    /// Runs a command and waits for its end; past `timeout` the runtime kills it and
    /// the call fails with [`Error::Deadline`].
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        let seconds = i64::try_from(timeout.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: seconds.max(1),
        };
        let call = Call::once("ExecSync", timeout.saturating_add(MARGIN));
        let response = call!(self, call, exec_sync(request))?;
        let ExecSyncResponse {
            stdout,
            stderr,
            exit_code,
        } = response;
        Ok(ExecOutput {
            exit_code,
            stdout,
            stderr,
        })
    }

    /// A single-use URL of the runtime's streaming server at which `command` runs.
    pub async fn exec_url(
        &self,
        id: &str,
        command: &[String],
        streams: StreamTarget,
    ) -> Result<String> {
        let StreamTarget {
            stdin,
            stdout,
            stderr,
            tty,
        } = streams;
        let request = ExecRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            stdin,
            stdout,
            stderr,
            tty,
            audit_request_id: String::new(),
        };
        Ok(call!(self, Call::once("Exec", SHORT), exec(request))?.url)
    }

    /// A single-use URL at which the container's own process can be attached to.
    pub async fn attach_url(&self, id: &str, streams: StreamTarget) -> Result<String> {
        let StreamTarget {
            stdin,
            stdout,
            stderr,
            tty,
        } = streams;
        let request = AttachRequest {
            container_id: id.to_owned(),
            stdin,
            stdout,
            stderr,
            tty,
            audit_request_id: String::new(),
        };
        Ok(call!(self, Call::once("Attach", SHORT), attach(request))?.url)
    }

    /// A single-use URL at which ports of the sandbox can be reached.
    pub async fn port_forward_url(&self, sandbox: &str, ports: &[i32]) -> Result<String> {
        let request = PortForwardRequest {
            pod_sandbox_id: sandbox.to_owned(),
            port: ports.to_vec(),
        };
        Ok(call!(
            self,
            Call::once("PortForward", SHORT),
            port_forward(request)
        )?
        .url)
    }

    /// What the containers that carry all of `labels` consume.
    pub async fn list_container_stats(
        &self,
        labels: &[(&str, &str)],
    ) -> Result<Vec<ContainerStats>> {
        let filter = ContainerStatsFilter {
            label_selector: selector(labels),
            ..Default::default()
        };
        let request = ListContainerStatsRequest {
            filter: Some(filter),
        };
        let call = Call::repeatable("ListContainerStats", SHORT);
        Ok(call!(self, call, list_container_stats(request))?.stats)
    }

    /// What the sandboxes consume, with their network; not served by every runtime.
    pub async fn list_pod_sandbox_stats(&self) -> Result<Vec<PodSandboxStats>> {
        let request = ListPodSandboxStatsRequest { filter: None };
        let call = Call::repeatable("ListPodSandboxStats", SHORT);
        Ok(call!(self, call, list_pod_sandbox_stats(request))?.stats)
    }
}

fn selector(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn absent_is_done<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn empty(call: &'static str) -> Error {
    Error::Refused {
        call,
        code: tonic::Code::Internal,
        message: "an answer without status".into(),
    }
}
