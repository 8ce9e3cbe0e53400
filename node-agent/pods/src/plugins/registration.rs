//! The conversation with a plugin that makes itself known.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Request;
use windlass_proto::pluginregistration::registration_client::RegistrationClient;
use windlass_proto::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus};
use windlass_volumes::Csi;
use windlass_volumes::csi::{Driver, connect, explain};

use super::csi_node::CsiNode;

const CSI: &str = "CSIPlugin";
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks the plugin behind a socket who it is, takes it, and tells it so. Gives its name.
pub(super) async fn register(
    socket: &Path,
    csi: &Csi,
    csi_node: &CsiNode,
) -> Result<String, String> {
    let mut client = RegistrationClient::new(connect(socket));
    let info = within(client.get_info(Request::new(InfoRequest {}))).await?;
    let taken = take(&info, socket, csi, csi_node).await;
    let status = RegistrationStatus {
        plugin_registered: taken.is_ok(),
        error: taken.as_ref().err().cloned().unwrap_or_default(),
    };
    within(client.notify_registration_status(Request::new(status))).await?;
    taken.map(|()| info.name)
}

async fn take(
    info: &PluginInfo,
    socket: &Path,
    csi: &Csi,
    csi_node: &CsiNode,
) -> Result<(), String> {
    check(info, socket)?;
    let endpoint = match info.endpoint.is_empty() {
        true => socket.to_owned(),
        false => PathBuf::from(&info.endpoint),
    };
    let driver = Driver::new(info.name.clone(), &endpoint);
    let told = driver.node_info().await;
    let told = told.map_err(|status| format!("NodeGetInfo: {}", explain(&status)))?;
    csi_node.add(&info.name, &told).await?;
    csi.register(driver);
    Ok(())
}

fn check(info: &PluginInfo, socket: &Path) -> Result<(), String> {
    if info.r#type != CSI {
        return Err(format!(
            "no handler registered for plugin type: {} at socket {}",
            info.r#type,
            socket.display()
        ));
    }
    if info.name.is_empty() {
        return Err("the plugin has no name".to_owned());
    }
    let first = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
    match info.supported_versions.iter().any(first) {
        true => Ok(()),
        false => Err(format!(
            "none of the CSI versions reported by the driver is supported: {:?}",
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
    fn only_drivers_of_csi_1_are_taken() {
        let judge = |kind: &str, name: &str, versions: &[&str]| {
            let info = PluginInfo {
                r#type: kind.into(),
                name: name.into(),
                endpoint: String::new(),
                supported_versions: versions.iter().map(|&it| it.into()).collect(),
            };
            check(&info, Path::new("/s"))
        };
        assert!(judge(CSI, "d", &["1.0.0"]).is_ok());
        assert!(judge(CSI, "d", &["0.3.0", "v1.9.0"]).is_ok());
        assert!(judge(CSI, "d", &["0.3.0"]).is_err() && judge(CSI, "", &["1.0.0"]).is_err());
        assert_eq!(
            judge("DevicePlugin", "d", &[]).unwrap_err(),
            "no handler registered for plugin type: DevicePlugin at socket /s"
        );
    }
}
