//! A certificate authority: what signs, what is believed, and how those who know only its predecessor get from one
//! to the other.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long a CA lives, in days.
const CA_DAYS: u32 = 3650;
/// How long a certificate below it lives, in days.
pub(crate) const LEAF_DAYS: u32 = 365;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An authority that can sign.
pub(crate) struct Authority {
    /// The certificate of the key first, then its predecessors that are still believed.
    bundle: Vec<CertificateDer<'static>>,
    /// The same key certified by its predecessor, that one by its own and so on: what leads clients that know only one
    /// of them to what is signed here.
    bridges: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key; behind the certificate the bridges.
pub(crate) struct Signed {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Signed {
    pub(crate) fn certificate_pem(&self) -> String {
        pem(&self.chain)
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

impl Authority {
    /// Of the certificates in `bundle_pem`, the one that belongs to the key signs; who replaces the files by hand, or dies
    /// between writing one and the other, thus leaves an authority that works.
    ///
    /// # Errors
    /// When a text cannot be read or no certificate belongs to the key.
    pub(super) fn from_pem(
        bundle_pem: &str,
        key_pem: &str,
        bridges_pem: &str,
    ) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("the CA's key")?;
        let public = key.subject_public_key_info();
        let mut bundle = parse(bundle_pem).context("the CA's certificates")?;
        let own = bundle
            .iter()
            .position(|certificate| public_key(certificate).as_ref() == Some(&public))
            .context(
                "the CA's key belongs to none of the CA's certificates: put back the one that does",
            )?;
        let signing = bundle.remove(own);
        bundle.retain(is_in_time);
        bundle.insert(0, signing);
        let mut bridges =
            parse(bridges_pem).context("the CA's certificates by its predecessors")?;
        bridges.retain(is_in_time);
        let issuer = Issuer::from_ca_cert_der(&bundle[0], key).context("the CA's certificate")?;
        Ok(Self {
            bundle,
            bridges,
            issuer,
        })
    }

    /// A new authority with its own key: certificate and key.
    pub(super) fn make(common_name: &str) -> anyhow::Result<(CertificateDer<'static>, KeyPair)> {
        let key = KeyPair::generate().context("make the CA's key")?;
        let signed = authority_parameters(common_name).self_signed(&key);
        let signed = signed.context("sign the CA's certificate")?;
        Ok((signed.der().clone(), key))
    }

    /// Certifies the key of a new authority, so that who believes this one believes that one.
    pub(super) fn bridge(
        &self,
        common_name: &str,
        key: &KeyPair,
    ) -> anyhow::Result<CertificateDer<'static>> {
        let mut params = authority_parameters(common_name);
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(key, &self.issuer);
        Ok(signed.context("certify the new CA")?.der().clone())
    }

    /// Every certificate that clients shall believe, the signing one first.
    pub(crate) fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    pub(super) fn bridges(&self) -> &[CertificateDer<'static>] {
        &self.bridges
    }

    pub(crate) fn bundle_pem(&self) -> String {
        pem(&self.bundle)
    }

    /// The certificate of the key that signs.
    pub(crate) fn signing_pem(&self) -> String {
        pem(&self.bundle[..1])
    }

    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub(crate) fn roots(&self) -> anyhow::Result<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in &self.bundle {
            roots.add(certificate.clone()).context("the cluster CA")?;
        }
        Ok(roots)
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
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.bridges.iter().cloned());
        Ok(Signed { chain, key })
    }
}

fn authority_parameters(common_name: &str) -> CertificateParams {
    let mut params = parameters(common_name, None, CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    params
}

fn parameters(common_name: &str, organization: Option<&str>, days: u32) -> CertificateParams {
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
    let now = SystemTime::now();
    // A day back, for clients whose clock lags.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
    params
}

fn parse(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

/// The certificates as one text.
pub(super) fn pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine as _;
    let mut text = String::new();
    for certificate in certificates {
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// The SubjectPublicKeyInfo.
fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

fn is_in_time(certificate: &CertificateDer<'static>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.validity().is_valid())
}
