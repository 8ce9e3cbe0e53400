//! The certificate by which the agent is its node's: renewed before it ends, as a kubelet does it.
//!
//! The request goes to the API server under the certificate that ends (signer `kubernetes.io/kube-apiserver-client-kubelet`); who approves
//! it is the cluster's business. What comes is kept beside the agent's state and found there by the next start, which is
//! at once: nothing of the node depends on this process, and no connection to the API server has to be led over.
//!
//! Only for the pods role: other agents come with a token, or with a certificate that somebody else looks after.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kube::Config;
use kube::api::{Api, ObjectMeta, PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use windlass_pods::Patience;
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Where in its life a certificate is renewed: between these parts, so that the nodes of a cluster do not ask as one.
const EARLIEST: f64 = 0.7;
const LATEST: f64 = 0.9;
/// How long an approval is waited for before it is asked for anew.
const APPROVAL: Duration = Duration::from_secs(15 * 60);
const LOOK: Duration = Duration::from_secs(2);
/// The old one is good for a while yet.
const GLANCE: Duration = Duration::from_secs(60);

/// The agent has a new certificate, and is to be started again.
#[derive(Debug)]
pub(crate) struct Renewed;

impl std::fmt::Display for Renewed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the client certificate was renewed")
    }
}

impl std::error::Error for Renewed {}

/// A certificate as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Life {
    organizations: Vec<String>,
    name: String,
    /// In seconds since the epoch.
    begins: i64,
    ends: i64,
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("pki/kubelet-client-current.pem")
}

/// Puts a renewed certificate in the place of the one that was given, if it is the same one's and lasts longer.
pub(crate) fn prefer_renewed(config: &mut Config, state_dir: &Path) {
    let Ok(renewed) = fs::read(file(state_dir)) else {
        return;
    };
    let Some((given, now)) = life_of(config).zip(read(&renewed)) else {
        return;
    };
    if now.name == given.name && now.ends > given.ends && now.ends > Timestamp::now().as_second() {
        let encoded = STANDARD.encode(&renewed);
        let auth = &mut config.auth_info;
        (auth.client_certificate, auth.client_key) = (None, None);
        auth.client_certificate_data = Some(encoded.clone());
        auth.client_key_data = Some(encoded.into());
    }
}

/// Returns when another one has been put in the place of the renewed certificate that there is now.
pub(crate) async fn replaced(state_dir: Option<PathBuf>) {
    let Some(file) = state_dir.as_deref().map(file) else {
        std::future::pending().await
    };
    let written = || fs::metadata(&file).and_then(|found| found.modified()).ok();
    let first = written();
    while written() == first {
        tokio::time::sleep(GLANCE).await;
    }
}

/// Ends with [`Renewed`] when the time has come and the cluster has given another; never without a certificate.
pub(crate) async fn keep(
    client: kube::Client,
    config: Config,
    state_dir: PathBuf,
) -> anyhow::Result<()> {
    let Some(life) = life_of(&config) else {
        std::future::pending().await
    };
    let at = renewal(&life, fraction());
    let left = at - Timestamp::now().as_second();
    tracing::debug!(ends = life.ends, renewal = at, "client certificate");
    tokio::time::sleep(Duration::from_secs(u64::try_from(left).unwrap_or(0))).await;
    let mut pauses = Patience::default();
    loop {
        match renew(&client, &life).await {
            Ok(pem) => {
                write(&file(&state_dir), pem.as_bytes())?;
                tracing::info!("client certificate renewed; starting again with it");
                return Err(Renewed.into());
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the client certificate is not renewed, trying again"
                );
                // A signer that refuses does so at once, and for long.
                tokio::time::sleep(pauses.next().unwrap_or_default() * 60).await;
            }
        }
    }
}

fn renewal(life: &Life, fraction: f64) -> i64 {
    let length = (life.ends - life.begins).max(0) as f64;
    life.begins + (length * fraction) as i64
}

/// Anything between the two, another one for each process.
fn fraction() -> f64 {
    let nanoseconds = f64::from(Timestamp::now().subsec_nanosecond());
    EARLIEST + (LATEST - EARLIEST) * (nanoseconds / 1e9)
}

/// A key and a certificate for it, in one PEM text.
async fn renew(client: &kube::Client, life: &Life) -> anyhow::Result<String> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = DistinguishedName::new();
    for organization in &life.organizations {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization.as_str());
    }
    params
        .distinguished_name
        .push(DnType::CommonName, life.name.as_str());
    let request = params.serialize_request(&key)?.pem()?;
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let asked = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".to_owned()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: SIGNER.to_owned(),
            usages: Some(vec![
                "digital signature".to_owned(),
                "client auth".to_owned(),
            ]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = requests.create(&PostParams::default(), &asked).await;
    let name = made
        .context("ask for a certificate")?
        .metadata
        .name
        .unwrap_or_default();
    let waiting = async {
        loop {
            let status = requests.get(&name).await?.status.unwrap_or_default();
            if let Some(issued) = status.certificate.filter(|issued| !issued.0.is_empty()) {
                return anyhow::Ok(issued.0);
            }
            let refused = status.conditions.into_iter().flatten();
            let mut refused = refused.filter(|it| it.type_ == "Denied" || it.type_ == "Failed");
            if let Some(condition) = refused.next() {
                let why = condition.message.unwrap_or_default();
                bail!("{name} was {}: {why}", condition.type_.to_lowercase());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let issued = tokio::time::timeout(APPROVAL, waiting)
        .await
        .with_context(|| format!("nobody approved {name} within {APPROVAL:?}"))??;
    let text = String::from_utf8(issued).context("a certificate is a text")?;
    let other = read(text.as_bytes()).context("what was issued cannot be read")?;
    ensure!(other.name == life.name, "it was issued for {}", other.name);
    Ok(format!("{}\n{}", text.trim_end(), key.serialize_pem()))
}

/// That of the certificate which a configuration says to use.
fn life_of(config: &Config) -> Option<Life> {
    let auth = &config.auth_info;
    let text = match (&auth.client_certificate_data, &auth.client_certificate) {
        (Some(data), _) => STANDARD.decode(data).ok()?,
        (None, Some(path)) => fs::read(path).ok()?,
        (None, None) => return None,
    };
    read(&text)
}

/// The first certificate of a PEM text.
fn read(text: &[u8]) -> Option<Life> {
    let mut blocks = Pem::iter_from_buffer(text).flatten();
    let block = blocks.find(|block| block.label == "CERTIFICATE")?;
    let certificate: X509Certificate<'_> = block.parse_x509().ok()?;
    let subject = certificate.subject();
    let organizations = subject
        .iter_organization()
        .filter_map(|it| it.as_str().ok());
    Some(Life {
        organizations: organizations.map(str::to_owned).collect(),
        name: subject.iter_common_name().next()?.as_str().ok()?.to_owned(),
        begins: certificate.validity().not_before.timestamp(),
        ends: certificate.validity().not_after.timestamp(),
    })
}

/// In one step, and for the owner alone.
fn write(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let written = (|| {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::remove_file(&new).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Valid for ten days from now on, or from so many days before.
    fn pair(name: &str, days_ago: i64) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, name);
        let begins = Timestamp::now().as_second() - days_ago * 86_400;
        let at = |second: i64| std::time::UNIX_EPOCH + Duration::from_secs(second as u64);
        params.not_before = at(begins).into();
        params.not_after = at(begins + 10 * 86_400).into();
        (params.self_signed(&key).unwrap().pem(), key)
    }

    fn config_with(certificate: &str) -> Config {
        let mut config = Config::new("https://192.0.2.1".parse().unwrap());
        config.auth_info.client_certificate_data = Some(STANDARD.encode(certificate));
        config
    }

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let (certificate, _) = pair("system:node:a", 0);
        let life = read(certificate.as_bytes()).unwrap();
        assert_eq!(
            (life.name.as_str(), life.organizations.len()),
            ("system:node:a", 1)
        );
        for _ in 0..100 {
            let day = (renewal(&life, fraction()) - life.begins) / 86_400;
            assert!((7..=9).contains(&day), "{day}");
        }
        // One that has ended is renewed at once.
        let (ended, _) = pair("system:node:a", 20);
        let life = read(ended.as_bytes()).unwrap();
        assert!(renewal(&life, fraction()) < Timestamp::now().as_second());
    }

    #[test]
    fn what_was_renewed_is_preferred_as_long_as_it_is_the_same_nodes_and_lasts_longer() {
        let folder = tempfile::tempdir().unwrap();
        let (given, _) = pair("system:node:a", 5);
        let taken = |renewed: Option<(String, KeyPair)>| {
            if let Some((certificate, key)) = renewed {
                let text = format!("{certificate}{}", key.serialize_pem());
                write(&file(folder.path()), text.as_bytes()).unwrap();
            }
            let mut config = config_with(&given);
            prefer_renewed(&mut config, folder.path());
            life_of(&config).unwrap() != life_of(&config_with(&given)).unwrap()
        };
        assert!(!taken(None));
        assert!(!taken(Some(pair("system:node:b", 0))), "another node's");
        assert!(!taken(Some(pair("system:node:a", 6))), "an older one");
        assert!(taken(Some(pair("system:node:a", 0))));
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(file(folder.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
