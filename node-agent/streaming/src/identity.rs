//! Who calls: the subject of the client certificate that TLS has verified against the cluster's CA, or
//! whom the cluster names for a token.

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;

/// The API server's certificates, which may do everything here: by the group of administrators, or by the
/// name that is upstream's custom for this client.
const ADMINISTRATORS: &str = "system:masters";
const API_SERVER: &str = "kube-apiserver-kubelet-client";

/// A caller, by certificate or token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The name.
    pub user: String,
    /// The groups.
    pub groups: Vec<String>,
    /// The account's own identity, where it has one.
    pub uid: String,
    /// Whatever else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|group| group.as_str().ok());
        Some(Self {
            user,
            groups: groups.map(str::to_owned).collect(),
            ..Self::default()
        })
    }

    pub(crate) fn is_api_server(&self) -> bool {
        self.user == API_SERVER || self.groups.iter().any(|group| group == ADMINISTRATORS)
    }
}
