//! A plugin of a node, as drivers of volumes and devices are: it serves gRPC on a socket in the kubelet's folder, and
//! registers on another one.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use windlass_proto::pluginregistration::registration_server::{Registration, RegistrationServer};
use windlass_proto::pluginregistration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};

/// A plugin that is there until it is dropped.
pub struct Plugin {
    clerk: Arc<Clerk>,
    sockets: [PathBuf; 2],
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Answers the node agent's questions about the plugin.
struct Clerk {
    info: PluginInfo,
    registered: Mutex<Option<Result<(), String>>>,
}

impl Plugin {
    /// Starts a plugin on the node with this kubelet's folder.
    pub fn start(
        root: &Path,
        kind: &str,
        name: &str,
        version: &str,
        routes: Routes,
    ) -> Result<Self> {
        let sockets = [
            root.join("plugins").join(name).join("plugin.sock"),
            root.join("plugins_registry")
                .join(format!("{name}-reg.sock")),
        ];
        let clerk = Arc::new(Clerk {
            info: PluginInfo {
                r#type: kind.to_owned(),
                name: name.to_owned(),
                endpoint: sockets[0].to_string_lossy().into_owned(),
                supported_versions: vec![version.to_owned()],
            },
            registered: Mutex::default(),
        });
        let listeners = [listen(&sockets[0])?, listen(&sockets[1])?];
        let registry = Routes::new(RegistrationServer::from_arc(clerk.clone()));
        let (stop, stopped) = oneshot::channel();
        let serving = move || serve(listeners, [routes, registry], stopped);
        Ok(Self {
            clerk,
            sockets,
            stop: Some(stop),
            thread: Some(std::thread::spawn(serving)),
        })
    }

    /// Whether the node agent took it, and why not.
    pub fn registered(&self) -> Option<Result<(), String>> {
        let registered = self.clerk.registered.lock();
        registered.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket's path may be too long for an address, its name in an open folder is not.
fn listen(socket: &Path) -> Result<UnixListener> {
    let folder = socket.parent().context("a socket lies in a folder")?;
    let name = socket.file_name().context("a socket has a name")?;
    fs::create_dir_all(folder)?;
    let _ = fs::remove_file(socket);
    let opened = fs::File::open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())).join(name);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listening at {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn serve(listeners: [UnixListener; 2], routes: [Routes; 2], stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread starts");
    runtime.block_on(async move {
        let [plugin, registry] = listeners.map(tokio::net::UnixListener::from_std);
        let (Ok(plugin), Ok(registry)) = (plugin, registry) else {
            return;
        };
        let [own, of_registry] = routes.map(|routes| Server::builder().add_routes(routes));
        tokio::select! {
            _ = stopped => {}
            _ = own.serve_with_incoming(UnixListenerStream::new(plugin)) => {}
            _ = of_registry.serve_with_incoming(UnixListenerStream::new(registry)) => {}
        }
    });
}

#[tonic::async_trait]
impl Registration for Clerk {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let registered = self.registered.lock();
        *registered.unwrap_or_else(PoisonError::into_inner) =
            Some(match status.plugin_registered {
                true => Ok(()),
                false => Err(status.error),
            });
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
