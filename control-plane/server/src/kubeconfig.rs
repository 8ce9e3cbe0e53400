//! Kubeconfig files with a client certificate signed by the cluster's CA.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::pki::{self, Authority, Directory};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The control plane's data directory; it holds the CA.
    #[arg(long)]
    data_dir: PathBuf,
    /// The API server's URL as the user of the file reaches it.
    #[arg(long)]
    server: String,
    /// The user, such as `system:node:worker-1`.
    #[arg(long)]
    user: String,
    /// The user's group, such as `system:nodes`.
    #[arg(long)]
    group: String,
    /// Where to write the file (mode 0600).
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let authority = Directory::new(&options.data_dir).existing_authority()?;
    write(
        &authority,
        &options.server,
        &options.user,
        &options.group,
        &options.out,
    )
}

/// Signs a certificate for `user` and writes the kubeconfig to `out`, readable by its owner only.
pub(crate) fn write(
    authority: &Authority,
    server: &str,
    user: &str,
    group: &str,
    out: &Path,
) -> anyhow::Result<()> {
    let signed = authority.client(user, group)?;
    let encode = |pem: &str| STANDARD.encode(pem);
    // Every JSON document is YAML, so no YAML writer is needed; kubectl reads and rewrites it as it likes.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "windlass",
            "cluster": {
                "server": server,
                "certificate-authority-data": encode(&authority.bundle_pem()),
            },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": encode(&signed.certificate_pem()),
                "client-key-data": encode(&signed.key_pem()),
            },
        }],
        "contexts": [{"name": "windlass", "context": {"cluster": "windlass", "user": user}}],
        "current-context": "windlass",
    });
    let text = serde_json::to_string_pretty(&config).context("write the kubeconfig")?;
    pki::write(out, &text, 0o600)
}
