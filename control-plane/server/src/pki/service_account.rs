//! `service-account-key rotate` and `retire`: another key for ServiceAccount tokens, and the end of earlier ones.
//!
//! What is signed stays valid until it ends or its key is retired. Pods' tokens are renewed by their nodes within the hour
//! in which they would end; whoever retires a key waits for that. Tokens in Secrets have no end: one is made anew when
//! it is taken out of its Secret.

use std::path::PathBuf;

use anyhow::Context as _;
use rcgen::KeyPair;

use super::Directory;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Sign with a new key from now on. Tokens of the old one stay valid.
    Rotate(Options),
    /// Believe only the present key's tokens from now on.
    Retire(Options),
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The control plane's data directory; it holds the keys.
    #[arg(long, default_value = "/var/lib/windlass/control-plane")]
    data_dir: PathBuf,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let (Command::Rotate(options) | Command::Retire(options)) = command;
    let pki = Directory::new(&options.data_dir);
    pki.existing_authority()?;
    let private = pki.service_account_key()?;
    let present = KeyPair::from_pem(&private).context("read the ServiceAccount signing key")?;
    match command {
        Command::Rotate(_) => {
            let next = KeyPair::generate().context("make the ServiceAccount signing key")?;
            let mut public = next.public_key_pem();
            let known = pki.service_account_public_keys()?;
            if !known.contains(present.public_key_pem().trim()) {
                public.push_str(&present.public_key_pem());
            }
            public.push_str(&known);
            pki.write_service_account_keys(&public, &next.serialize_pem())?;
            tracing::info!(
                "a new key signs ServiceAccount tokens; what the old one signed stays valid"
            );
        }
        Command::Retire(_) => {
            pki.write_service_account_keys(&present.public_key_pem(), &private)?;
            tracing::info!("only tokens of the present key are believed");
        }
    }
    Ok(())
}
