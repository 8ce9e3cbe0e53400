//! The conversation with a plugin that makes itself known.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Request;
use windlass_proto::pluginregistration::registration_client::RegistrationClient;
use windlass_proto::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus};
use windlass_volumes::csi::{Driver, connect, explain};

use super::csi_node::CsiNode;
use crate::node::Node;

const DEADLINE: Duration = Duration::from_secs(10);

/// What a plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Volumes.
    Csi,
    /// Devices.
    Dra,
}

/// A plugin that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plugin {
    pub(super) kind: Kind,
    pub(super) name: String,
}

/// Asks the plugin behind a socket who it is, takes it, and tells it so.
pub(super) async fn register(
    socket: &Path,
    node: &Node,
    csi_node: &CsiNode,
) -> Result<Plugin, String> {
    let mut client = RegistrationClient::new(connect(socket));
    let info = within(client.get_info(Request::new(InfoRequest {}))).await?;
    let taken = take(&info, socket, node, csi_node).await;
    let status = RegistrationStatus {
        plugin_registered: taken.is_ok(),
        error: taken.as_ref().err().cloned().unwrap_or_default(),
    };
    within(client.notify_registration_status(Request::new(status))).await?;
    taken
}

async fn take(
    info: &PluginInfo,
    socket: &Path,
    node: &Node,
    csi_node: &CsiNode,
) -> Result<Plugin, String> {
    let kind = check(info, socket)?;
    let name = info.name.clone();
    let endpoint = match info.endpoint.is_empty() {
        true => socket.to_owned(),
        false => PathBuf::from(&info.endpoint),
    };
    match kind {
        Kind::Csi => {
            let driver = Driver::new(name.clone(), &endpoint);
            let told = driver.node_info().await;
            let told = told.map_err(|status| format!("NodeGetInfo: {}", explain(&status)))?;
            csi_node.add(&name, &told).await?;
            node.csi.register(driver);
        }
        Kind::Dra => node.devices.register(&name, &endpoint),
    }
    Ok(Plugin { kind, name })
}

fn check(info: &PluginInfo, socket: &Path) -> Result<Kind, String> {
    let number_one =
        |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
    let (kind, fits) = match info.r#type.as_str() {
        "CSIPlugin" => (Kind::Csi, info.supported_versions.iter().any(number_one)),
        "DRAPlugin" => {
            let mut versions = info.supported_versions.iter();
            (Kind::Dra, versions.any(|version| version == "v1.DRAPlugin"))
        }
        other => {
            return Err(format!(
                "no handler registered for plugin type: {other} at socket {}",
                socket.display()
            ));
        }
    };
    if info.name.is_empty() {
        return Err("the plugin has no name".to_owned());
    }
    match fits {
        true => Ok(kind),
        false => Err(format!(
            "none of the versions that the plugin reports is supported: {:?}",
            info.supported_versions
        )),
    }
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(explain(&status)),
        Err(_) => Err("the plugin does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_that_speak_version_1_are_taken() {
        let judge = |kind: &str, name: &str, versions: &[&str]| {
            let info = PluginInfo {
                r#type: kind.into(),
                name: name.into(),
                endpoint: String::new(),
                supported_versions: versions.iter().map(|&it| it.into()).collect(),
            };
            check(&info, Path::new("/s"))
        };
        assert_eq!(judge("CSIPlugin", "d", &["1.0.0"]), Ok(Kind::Csi));
        assert_eq!(judge("CSIPlugin", "d", &["0.3.0", "v1.9.0"]), Ok(Kind::Csi));
        assert!(judge("CSIPlugin", "d", &["0.3.0"]).is_err());
        assert!(judge("CSIPlugin", "", &["1.0.0"]).is_err());
        let both = ["v1beta1.DRAPlugin", "v1.DRAPlugin"];
        assert_eq!(judge("DRAPlugin", "d", &both), Ok(Kind::Dra));
        assert!(judge("DRAPlugin", "d", &both[..1]).is_err());
        assert_eq!(
            judge("DevicePlugin", "d", &[]).unwrap_err(),
            "no handler registered for plugin type: DevicePlugin at socket /s"
        );
    }
}
