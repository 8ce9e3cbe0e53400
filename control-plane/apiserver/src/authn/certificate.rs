//! Client certificates: the subject's common name is the user, its organizations are the groups.
//!
//! The TLS layer asks for a certificate but does not judge its chain ([`AcceptAnyChain`]): a client with an
//! expired or foreign certificate then gets a readable 401 instead of a broken handshake, as upstream does.
//! Possession of the key is still proved in the handshake.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::UserInfo;

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("no certificate authority for clients: {0}")]
    Authority(String),
    #[error("chain: {0}")]
    Chain(#[from] rustls::Error),
    #[error("subject cannot be read: {0}")]
    Subject(String),
    #[error("subject has no common name")]
    NoCommonName,
}

/// The extra by which upstream names what somebody came with.
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// Verifies client certificates against the cluster's CA.
pub struct CertificateAuthenticator {
    authority: ArcSwap<Verifier>,
    /// Chains that were verified, by leaf: a connection sends the same one with every request. Bounded by
    /// [`REMEMBERED`]; validity is still checked each time.
    verified: RwLock<HashMap<CertificateDer<'static>, Verified>>,
}

struct Verifier(Arc<dyn ClientCertVerifier>);

impl Verifier {
    fn new(roots: RootCertStore) -> Result<Self, CertificateError> {
        WebPkiClientVerifier::builder(Arc::new(roots))
            .build()
            .map(Self)
            .map_err(|e| CertificateError::Authority(e.to_string()))
    }
}

#[derive(Clone)]
struct Verified {
    user: UserInfo,
    not_after: i64,
}

const REMEMBERED: usize = 4096;

impl CertificateAuthenticator {
    /// # Errors
    /// When `roots` holds no usable certificate.
    pub fn new(roots: RootCertStore) -> Result<Self, CertificateError> {
        Ok(Self {
            authority: ArcSwap::from_pointee(Verifier::new(roots)?),
            verified: RwLock::default(),
        })
    }

    /// Believes `roots` from now on, and no longer what they do not lead to, open connections included.
    ///
    /// # Errors
    /// When `roots` holds no usable certificate.
    pub(super) fn trust(&self, roots: RootCertStore) -> Result<(), CertificateError> {
        let authority = Arc::new(Verifier::new(roots)?);
        let mut verified = self.verified.write();
        self.authority.store(authority);
        verified.clear();
        Ok(())
    }

    /// What a TLS listener needs to ask clients for a certificate without judging it.
    pub(crate) fn tls_verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::new(AcceptAnyChain(self.authority.load().0.clone()))
    }

    /// # Errors
    /// When the chain does not lead to the CA, is not valid at `now`, or its subject names nobody.
    pub fn authenticate(
        &self,
        chain: &[CertificateDer<'static>],
        now: i64,
    ) -> Result<UserInfo, CertificateError> {
        let [leaf, intermediates @ ..] = chain else {
            return Err(CertificateError::NoCommonName);
        };
        if let Some(known) = self.verified.read().get(leaf)
            && now <= known.not_after
        {
            return Ok(known.user.clone());
        }
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
        let authority = self.authority.load_full();
        authority.0.verify_client_cert(leaf, intermediates, at)?;
        let verified = subject(leaf)?;
        let mut remembered = self.verified.write();
        if !Arc::ptr_eq(&authority, &self.authority.load()) {
            // The next request is judged by the new authority.
            return Ok(verified.user);
        }
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(leaf.clone(), verified.clone());
        Ok(verified.user)
    }
}

fn subject(leaf: &CertificateDer<'_>) -> Result<Verified, CertificateError> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|e| CertificateError::Subject(e.to_string()))?;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute
            .as_str()
            .map(str::to_owned)
            .map_err(|e| CertificateError::Subject(e.to_string()))
    };
    let name = certificate
        .subject()
        .iter_common_name()
        .next()
        .ok_or(CertificateError::NoCommonName)?;
    let groups = certificate
        .subject()
        .iter_organization()
        .map(text)
        .collect::<Result<_, _>>()?;
    Ok(Verified {
        user: UserInfo {
            name: text(name)?,
            groups,
            extra: BTreeMap::from([(CREDENTIAL.to_owned(), vec![credential(leaf)])]),
            ..UserInfo::default()
        },
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// Which certificate somebody came with, for audit logs and `kubectl auth whoami`.
fn credential(leaf: &CertificateDer<'_>) -> String {
    let digest = Sha256::digest(leaf);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("X509SHA256={hex}")
}

/// Leaves the chain to [`CertificateAuthenticator`], checks only that the client holds the key.
#[derive(Debug)]
struct AcceptAnyChain(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AcceptAnyChain {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
