//! What this server shows to others and whom it believes, made from the files in `pki`, and made again when those change
//! or certificates grow old.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use windlass_apiserver::authn::AccountKeys;
use windlass_apiserver::{ApiServer, Credentials, FrontProxy};
use windlass_controllers::SigningCa;

use crate::pki::{Authority, Directory, LEAF_DAYS, Signed};
use crate::serve::{Options, service_address};

/// Files are looked at this often. Not inotify: keys are mounted, linked and copied in too many ways for it to be told of all.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// All of the server's keys, as the files have them.
pub(crate) struct Keys {
    pub(crate) authority: Authority,
    /// Of ServiceAccount tokens.
    pub(crate) accounts: AccountKeys,
    front_proxy: Authority,
    serving: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
}

/// What controllers need of them.
#[derive(Clone)]
pub(crate) struct Signing {
    pub(crate) bundle_pem: String,
    pub(crate) ca: SigningCa,
}

impl Keys {
    /// Reads the authorities, which are made if there are none yet, and signs what is signed by them.
    pub(crate) fn read(options: &Options) -> anyhow::Result<Self> {
        let pki = Directory::new(&options.data_dir);
        let authority = pki.authority()?;
        let serving = match (&options.tls_cert_file, &options.tls_private_key_file) {
            (Some(certificate), Some(key)) => {
                let chain = CertificateDer::pem_file_iter(certificate)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|error| anyhow::anyhow!("read {}: {error}", certificate.display()))?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| anyhow::anyhow!("read {}: {error}", key.display()))?;
                (chain, key)
            }
            _ => {
                let signed = serving_certificate(&authority, options)?;
                let key = signed.key_der();
                (signed.chain, key)
            }
        };
        Ok(Self {
            front_proxy: pki.front_proxy_authority()?,
            accounts: options.api.account_keys(&pki)?,
            authority,
            serving,
        })
    }

    /// How connections from outside are secured.
    pub(crate) fn serving_tls(&self, server: &ApiServer) -> anyhow::Result<rustls::ServerConfig> {
        let (chain, key) = &self.serving;
        let verifier = server.client_certificate_verifier();
        let mut tls = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .context("the serving certificate")?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }

    pub(crate) fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(Credentials {
            client_roots: self.authority.roots()?,
            node_tls: self.node_tls()?,
            front_proxy: Some(self.front_proxy()?),
        })
    }

    pub(crate) fn signing(&self) -> Signing {
        Signing {
            bundle_pem: self.authority.bundle_pem(),
            ca: SigningCa {
                certificate_pem: self.authority.signing_pem(),
                key_pem: self.authority.key_pem(),
            },
        }
    }

    /// How the API server calls node agents: with a client certificate that they know the CA of. Their own
    /// certificates are self-made, so they are not verified, as upstream does without
    /// `--kubelet-certificate-authority`.
    fn node_tls(&self) -> anyhow::Result<rustls::ClientConfig> {
        let user = "kube-apiserver-kubelet-client";
        let client = self.authority.client(user, "system:masters")?;
        let key = client.key_der();
        windlass_tls::any_server()
            .with_client_auth_cert(client.chain, key)
            .context("the client certificate for node agents")
    }

    /// Who this server is to aggregated API servers: its requests carry the requester's name, so an authority of its
    /// own signs the certificate that they believe that from.
    fn front_proxy(&self) -> anyhow::Result<FrontProxy> {
        let client = self.front_proxy.client("front-proxy-client", "")?;
        let key = Arc::new(client.key_der());
        Ok(FrontProxy {
            chain: client.chain,
            key,
            ca_pem: self.front_proxy.bundle_pem(),
            client_ca_pem: self.authority.bundle_pem(),
        })
    }
}

/// Tells when keys must be read again.
pub(crate) struct Renewals {
    files: Changes,
    signed: Instant,
}

impl Renewals {
    /// From what there is now; keys that are missing are made, so that making them is no change.
    pub(crate) fn of(options: &Options) -> anyhow::Result<Self> {
        let pki = Directory::new(&options.data_dir);
        pki.authority()?;
        pki.front_proxy_authority()?;
        pki.service_account_key()?;
        let mut files = pki.files();
        files.extend(options.tls_cert_file.clone());
        files.extend(options.tls_private_key_file.clone());
        files.extend(options.api.key_files());
        Ok(Self {
            files: Changes::new(files),
            signed: Instant::now(),
        })
    }

    /// Waits until a file has changed, or the certificates that were signed last are in the last third of their life.
    pub(crate) async fn next(&mut self) {
        let life = Duration::from_secs(u64::from(LEAF_DAYS) * 24 * 3600);
        let old = self.signed + life * 2 / 3;
        tokio::select! {
            _ = self.files.next() => {}
            () = tokio::time::sleep_until(old.into()) => {}
        }
        self.signed = Instant::now();
    }
}

/// Tells when one of some files is another one than before.
pub(crate) struct Changes {
    files: Vec<PathBuf>,
    seen: Vec<Option<(SystemTime, u64)>>,
}

impl Changes {
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        let mut changes = Self {
            files,
            seen: Vec::new(),
        };
        changes.seen = changes.look();
        changes
    }

    /// Waits until a file has changed; answers the first such.
    pub(crate) async fn next(&mut self) -> PathBuf {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.look();
            let seen = std::mem::replace(&mut self.seen, now);
            let changed = seen
                .iter()
                .zip(&self.seen)
                .position(|(old, new)| old != new);
            if let Some(changed) = changed {
                return self.files[changed].clone();
            }
        }
    }

    fn look(&self) -> Vec<Option<(SystemTime, u64)>> {
        let look = |file: &PathBuf| {
            let found = std::fs::metadata(file).ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        self.files.iter().map(look).collect()
    }
}

/// The certificate for every name by which nodes, pods and people reach this server.
fn serving_certificate(authority: &Authority, options: &Options) -> anyhow::Result<Signed> {
    let service = format!("kubernetes.default.svc.{}", options.cluster_domain);
    let mut names = vec![
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        &service,
        "localhost",
    ];
    let mut addresses = vec![
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        options.advertise_address,
    ];
    // The `kubernetes` Service has the first address of each range.
    addresses.extend(
        options
            .service_cluster_ip_range
            .iter()
            .filter_map(|range| service_address(range, 1)),
    );
    for san in &options.tls_san {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(san),
        }
    }
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    names.extend(host.as_deref());
    authority.serving("kube-apiserver", &names, &addresses)
}
