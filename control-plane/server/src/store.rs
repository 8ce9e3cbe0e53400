//! Which store holds the cluster, by flags, and how it is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio_util::sync::CancellationToken;
use windlass_store::{
    Embedded, EmbeddedOptions, Etcd, EtcdOptions, EtcdTls, Prefixed, ROOT, Store, StoreError,
    compactor,
};

use crate::snapshot;

/// Longer than a snapshot of a large store takes.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
#[group(id = "store-options")]
pub(crate) struct Options {
    /// `embedded` keeps the cluster in the data folder, for one API server; `etcd` is shared by several.
    #[arg(long, value_enum)]
    store: Option<Kind>,
    /// The members of the etcd cluster, `https://host:2379`, comma-separated.
    #[arg(long, value_delimiter = ',')]
    etcd_servers: Vec<String>,
    /// The CA that signed etcd's certificates.
    #[arg(long)]
    etcd_cafile: Option<PathBuf>,
    /// The client certificate by which etcd knows this server.
    #[arg(long, requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,
    #[arg(long, requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// What every key in etcd begins with.
    #[arg(long, default_value = "/registry")]
    etcd_prefix: String,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Embedded,
    Etcd,
}

impl Options {
    pub(crate) fn kind(&self) -> Kind {
        let default = if self.etcd_servers.is_empty() {
            Kind::Embedded
        } else {
            Kind::Etcd
        };
        self.store.unwrap_or(default)
    }

    pub(crate) async fn open(
        &self,
        data_dir: &Path,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Arc<dyn Store>> {
        match self.kind() {
            Kind::Embedded => {
                ensure!(
                    self.etcd_servers.is_empty(),
                    "--etcd-servers has no use with --store=embedded"
                );
                let store = open_embedded(&path(data_dir)).await;
                let store = Arc::new(store.context("open the store")?);
                // Worth a server all the same.
                if let Err(error) = snapshot::listen(store.clone(), data_dir, shutdown) {
                    tracing::warn!(error = %format_args!("{error:#}"), "snapshots cannot be saved while this server runs");
                }
                Ok(store)
            }
            Kind::Etcd => {
                if self.etcd_servers.is_empty() {
                    bail!("--store=etcd needs --etcd-servers");
                }
                let options = EtcdOptions {
                    endpoints: self.etcd_servers.clone(),
                    tls: self.tls()?,
                };
                let store = Etcd::connect(options).await.context("connect to etcd")?;
                let mut store: Arc<dyn Store> = Arc::new(store);
                if self.etcd_prefix.trim_matches('/') != ROOT.trim_matches('/') {
                    store = Arc::new(Prefixed::new(store, &self.etcd_prefix));
                }
                let compacting = compactor::run(store.clone(), compactor::INTERVAL);
                tokio::spawn(shutdown.clone().run_until_cancelled_owned(compacting));
                Ok(store)
            }
        }
    }

    fn tls(&self) -> anyhow::Result<Option<EtcdTls>> {
        let Some(ca) = &self.etcd_cafile else {
            ensure!(
                self.etcd_certfile.is_none(),
                "--etcd-certfile needs --etcd-cafile"
            );
            return Ok(None);
        };
        let identity = match self.etcd_certfile.as_ref().zip(self.etcd_keyfile.as_ref()) {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Some(EtcdTls {
            ca: read(ca)?,
            identity,
        }))
    }
}

/// A `snapshot save` that found no server has the file for a moment; another server has it for good.
async fn open_embedded(path: &Path) -> Result<Embedded, StoreError> {
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        match Embedded::open(path, EmbeddedOptions::default()).await {
            Err(StoreError::Locked { .. }) if Instant::now() < patience => {
                tokio::time::sleep(LOCK_RETRY).await;
            }
            outcome => return outcome,
        }
    }
}

/// The embedded store's file.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("store.redb")
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}
