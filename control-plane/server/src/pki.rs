//! The cluster's keys and certificates, in `<data-dir>/pki`.
//!
//! Made once, at the first start: the CA (ten years) and the key that signs ServiceAccount tokens. The
//! certificates below the CA are made anew at every start with one year to live, so that new addresses are in
//! them and nothing expires on a server that is restarted now and then.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// How long a CA lives, in days.
const CA_DAYS: i64 = 3650;
/// How long a certificate below it lives, in days.
const LEAF_DAYS: i64 = 365;

/// The cluster's certificate authority.
pub(crate) struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, both PEM.
pub(crate) struct Signed {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) certificate_der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Signed {
    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_der.clone()).into()
    }
}

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

    /// The PKCS#8 PEM of the cluster CA's key, for whoever else signs with it.
    pub(crate) fn authority_key_pem(&self) -> anyhow::Result<String> {
        read(&self.0.join("ca.key"))
    }

    /// The PKCS#8 PEM of the key that signs ServiceAccount tokens, made if there is none yet.
    pub(crate) fn service_account_key(&self) -> anyhow::Result<String> {
        let path = self.0.join("sa.key");
        if path.exists() {
            return read(&path);
        }
        self.create()?;
        let key = KeyPair::generate().context("make the ServiceAccount signing key")?;
        write(&self.0.join("sa.pub"), &key.public_key_pem(), 0o644)?;
        write(&path, &key.serialize_pem(), 0o600)?;
        read(&path)
    }

    fn named_authority(&self, file: &str, common_name: &str) -> anyhow::Result<Authority> {
        let (certificate, key) = (
            self.0.join(format!("{file}.crt")),
            self.0.join(format!("{file}.key")),
        );
        // The key is written last: with the key there, the certificate is complete.
        if key.exists() {
            return Authority::from_pem(read(&certificate)?, &read(&key)?)
                .with_context(|| format!("read the authority {}", certificate.display()));
        }
        self.create()?;
        let pair = KeyPair::generate().context("make the CA's key")?;
        let mut params = parameters(common_name, None, CA_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        let signed = params
            .self_signed(&pair)
            .context("sign the CA's certificate")?;
        write(&certificate, &signed.pem(), 0o644)?;
        write(&key, &pair.serialize_pem(), 0o600)?;
        Authority::from_pem(signed.pem(), &pair.serialize_pem())
    }

    fn create(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.0).with_context(|| format!("create {}", self.0.display()))
    }
}

impl Authority {
    fn from_pem(certificate_pem: String, key_pem: &str) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("the CA's key")?;
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).context("the CA's certificate")?;
        Ok(Self {
            certificate_pem,
            issuer,
        })
    }

    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(crate) fn certificate_der(&self) -> anyhow::Result<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .map_err(|error| anyhow::anyhow!("read the CA's certificate: {error}"))
    }

    /// Signs a serving certificate for `addresses` and `names`.
    pub(crate) fn serving(
        &self,
        common_name: &str,
        names: &[&str],
        addresses: &[IpAddr],
    ) -> anyhow::Result<Signed> {
        let mut params = parameters(common_name, None, LEAF_DAYS);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            let name = (*name)
                .try_into()
                .with_context(|| format!("{name} as a DNS name"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params
            .subject_alt_names
            .extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        self.sign(params)
    }

    /// Signs a client certificate: `user` becomes the common name, `group` the organization, if it is not empty.
    pub(crate) fn client(&self, user: &str, group: &str) -> anyhow::Result<Signed> {
        let mut params = parameters(user, Some(group).filter(|g| !g.is_empty()), LEAF_DAYS);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> anyhow::Result<Signed> {
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("sign a certificate")?;
        Ok(Signed {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate_der: certificate.der().clone(),
            key_der: key.serialize_der(),
        })
    }
}

fn parameters(common_name: &str, organization: Option<&str>, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(24 * 3600);
    // A day back, for clients whose clock lags.
    params.not_before = (now - day).into();
    params.not_after = (now + day * u32::try_from(days).unwrap_or(u32::MAX)).into();
    params
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
        let first = pki.authority().unwrap().certificate_pem().to_owned();
        assert_eq!(pki.authority().unwrap().certificate_pem(), first);
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
            x509_parser::certificate::X509Certificate::from_der(&signed.certificate_der).unwrap();
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
