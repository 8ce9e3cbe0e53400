//! `ca rotate` and `ca retire`: another key for an authority, and the end of what came before it.
//!
//! A rotation asks nothing of clients. The new authority is certified by the old one, and what it signs carries that
//! certificate along: who knows only the old authority gets to the new one, and who has read the new bundle needs
//! no bridge. So there is no first step in which everybody must learn of the new authority before it may sign, as
//! there is where two authorities have nothing to do with each other. A server that runs sees the files change.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::{Authority, Directory, authority};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Sign with a new key from now on. What the old one has signed stays valid; no client needs a restart.
    Rotate(Options),
    /// Believe only the present key from now on: certificates of earlier ones and clients that know only those are
    /// refused.
    Retire(Options),
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The control plane's data directory; it holds the CA.
    #[arg(long, default_value = "/var/lib/windlass/control-plane")]
    data_dir: PathBuf,
    #[arg(long, value_enum, default_value = "cluster")]
    authority: Which,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Which {
    /// The cluster's CA: serving and client certificates.
    Cluster,
    /// The one that aggregated API servers believe requesters' names from.
    FrontProxy,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let (Command::Rotate(options) | Command::Retire(options)) = command;
    let pki = Directory::new(&options.data_dir);
    let present = pki.existing_authority()?;
    let (file, name, present) = match options.authority {
        Which::Cluster => ("ca", "kubernetes", present),
        Which::FrontProxy => (
            "front-proxy-ca",
            "kubernetes-front-proxy-ca",
            pki.front_proxy_authority()?,
        ),
    };
    match command {
        Command::Rotate(_) => rotate(&pki, file, name, &present),
        Command::Retire(_) => retire(&pki, file, &present),
    }
}

fn rotate(pki: &Directory, file: &str, name: &str, present: &Authority) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // A name of its own: clients look for issuers by name.
    let name = format!("{name}-{}", now.context("the clock")?.as_secs());
    let (certificate, key) = Authority::make(&name)?;
    let mut bridges = vec![present.bridge(&name, &key)?];
    bridges.extend(present.bridges().iter().cloned());
    let mut bundle = vec![certificate];
    bundle.extend(present.bundle().iter().cloned());
    // Whatever a crash leaves of this, the key still belongs to a certificate of the bundle, and that one signs.
    pki.write_bridges(file, &authority::pem(&bridges))?;
    pki.write_bundle(file, &authority::pem(&bundle))?;
    pki.write_key(file, &key.serialize_pem())?;
    tracing::info!(authority = file, %name, "a new key signs; what the old one signed stays valid");
    Ok(())
}

fn retire(pki: &Directory, file: &str, present: &Authority) -> anyhow::Result<()> {
    let retired = present.bundle().len() - 1;
    pki.write_bundle(file, &present.signing_pem())?;
    pki.write_bridges(file, "")?;
    tracing::info!(
        authority = file,
        retired,
        "only the present key is believed"
    );
    Ok(())
}
