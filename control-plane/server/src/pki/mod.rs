//! The cluster's keys and certificates, in `<data-dir>/pki`.
//!
//! The first start makes the CA (ten years) and the key that signs ServiceAccount tokens. The certificates below the
//! CA have one year to live and are no files: each start makes them anew, and so does a server that runs, in time
//! ([`crate::credentials`]). `<name>.crt` may hold several certificates: all of them are believed.

mod authority;
mod rotate;
mod service_account;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::KeyPair;

pub(crate) use authority::{Authority, LEAF_DAYS, Signed};
pub(crate) use rotate::{Command, run};
pub(crate) use service_account::{Command as KeyCommand, run as run_key};

/// Where the keys of the cluster in `data_dir` lie.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(data_dir.join("pki"))
    }

    /// The cluster CA, made if there is none yet.
    pub(crate) fn authority(&self) -> anyhow::Result<Authority> {
        self.named_authority("ca", "kubernetes")
    }

    /// The authority of the certificate that is shown to aggregated API servers, made if there is none yet.
    pub(crate) fn front_proxy_authority(&self) -> anyhow::Result<Authority> {
        self.named_authority("front-proxy-ca", "kubernetes-front-proxy-ca")
    }

    /// The cluster CA of a cluster that has been started before.
    pub(crate) fn existing_authority(&self) -> anyhow::Result<Authority> {
        anyhow::ensure!(
            self.0.join("ca.key").exists(),
            "{} holds no cluster CA: start the control plane with this --data-dir first",
            self.0.display()
        );
        self.authority()
    }

    /// The PKCS#8 PEM of the key that signs ServiceAccount tokens, made if there is none yet.
    pub(crate) fn service_account_key(&self) -> anyhow::Result<String> {
        let path = self.0.join("sa.key");
        if path.exists() {
            return read(&path);
        }
        self.create()?;
        let key = KeyPair::generate().context("make the ServiceAccount signing key")?;
        self.write_service_account_keys(&key.public_key_pem(), &key.serialize_pem())?;
        read(&path)
    }

    /// The public half is written first: no server signs by what another one may not believe yet.
    fn write_service_account_keys(&self, public: &str, private: &str) -> anyhow::Result<()> {
        write(&self.0.join("sa.pub"), public, 0o644)?;
        write(&self.0.join("sa.key"), private, 0o600)
    }

    /// Public keys of ServiceAccount tokens that are believed, the present one's and earlier ones'.
    pub(crate) fn service_account_public_keys(&self) -> anyhow::Result<String> {
        match fs::read_to_string(self.0.join("sa.pub")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            found => found.context("read sa.pub"),
        }
    }

    /// Whose change means that other keys are in force.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let names = ["ca", "front-proxy-ca"]
            .map(|name| [".crt", "-bridge.crt", ".key"].map(|end| format!("{name}{end}")));
        let accounts = ["sa.key", "sa.pub"].map(str::to_owned);
        names
            .iter()
            .flatten()
            .chain(&accounts)
            .map(|name| self.0.join(name))
            .collect()
    }

    fn named_authority(&self, file: &str, common_name: &str) -> anyhow::Result<Authority> {
        let key = self.0.join(format!("{file}.key"));
        // The key is written last: with the key there, the certificate is complete.
        if !key.exists() {
            self.create()?;
            let (certificate, pair) = Authority::make(common_name)?;
            self.write_bundle(file, &authority::pem(&[certificate]))?;
            self.write_key(file, &pair.serialize_pem())?;
        }
        let certificates = self.0.join(format!("{file}.crt"));
        let bridges = fs::read_to_string(self.0.join(format!("{file}-bridge.crt")));
        Authority::from_pem(
            &read(&certificates)?,
            &read(&key)?,
            &bridges.unwrap_or_default(),
        )
        .with_context(|| format!("read the authority {}", certificates.display()))
    }

    fn write_bundle(&self, file: &str, pem: &str) -> anyhow::Result<()> {
        write(&self.0.join(format!("{file}.crt")), pem, 0o644)
    }

    fn write_bridges(&self, file: &str, pem: &str) -> anyhow::Result<()> {
        write(&self.0.join(format!("{file}-bridge.crt")), pem, 0o644)
    }

    fn write_key(&self, file: &str, pem: &str) -> anyhow::Result<()> {
        write(&self.0.join(format!("{file}.key")), pem, 0o600)
    }

    fn create(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.0).with_context(|| format!("create {}", self.0.display()))
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Writes `text` so that a reader sees all of it or nothing, also after a power loss.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .with_context(|| format!("write {}", temporary.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_made_once_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let pki = Directory::new(dir.path());
        let first = pki.authority().unwrap().bundle_pem();
        assert_eq!(pki.authority().unwrap().bundle_pem(), first);
        assert_eq!(
            pki.service_account_key().unwrap(),
            pki.service_account_key().unwrap()
        );
        for file in ["ca.key", "sa.key"] {
            let mode = fs::metadata(dir.path().join("pki").join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_client_certificate_names_the_user_and_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Directory::new(dir.path()).authority().unwrap();
        let signed = authority.client("system:node:one", "system:nodes").unwrap();
        use x509_parser::prelude::FromDer as _;
        let (_, parsed) =
            x509_parser::certificate::X509Certificate::from_der(&signed.chain[0]).unwrap();
        let organizations: Vec<_> = parsed
            .subject()
            .iter_organization()
            .map(|o| o.as_str().unwrap())
            .collect();
        assert_eq!(organizations, ["system:nodes"]);
        let name = parsed
            .subject()
            .iter_common_name()
            .next()
            .unwrap()
            .as_str()
            .unwrap();
        assert_eq!(name, "system:node:one");
    }

    #[test]
    fn a_directory_without_an_authority_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Directory::new(dir.path())
            .existing_authority()
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("start the control plane"), "{error}");
    }
}
