//! What each of Kubernetes' signers lets into a certificate: pure.
//!
//! A certificate is a credential for its whole life, so what a signer does not allow is refused here even
//! though somebody approved the request.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose,
    IsCa, KeyUsagePurpose, SanType,
};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// The signers that this controller answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signer {
    Client,
    KubeletClient,
    KubeletServing,
    Legacy,
}

impl Signer {
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            CLIENT => Some(Self::Client),
            KUBELET_CLIENT => Some(Self::KubeletClient),
            KUBELET_SERVING => Some(Self::KubeletServing),
            LEGACY => Some(Self::Legacy),
            _ => None,
        }
    }
}

fn text(value: &DnValue) -> String {
    match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        DnValue::Ia5String(text) => text.as_str().to_owned(),
        DnValue::TeletexString(text) => text.as_str().to_owned(),
        // Not seen in practice; what cannot be read matches no rule.
        _ => String::new(),
    }
}

fn names(params: &CertificateParams, kind: &DnType) -> Vec<String> {
    let all = params.distinguished_name.iter();
    all.filter(|(found, _)| *found == kind)
        .map(|(_, value)| text(value))
        .collect()
}

/// The one that a request is for.
pub(super) fn common_name(params: &CertificateParams) -> Option<String> {
    names(params, &DnType::CommonName).into_iter().next()
}

fn is_node(params: &CertificateParams) -> Result<(), String> {
    if names(params, &DnType::OrganizationName) != ["system:nodes"] {
        return Err("subject organization is not system:nodes".to_owned());
    }
    match &names(params, &DnType::CommonName)[..] {
        [name] if name.starts_with("system:node:") => Ok(()),
        _ => Err("subject common name does not begin with system:node:".to_owned()),
    }
}

fn usages_within(usages: &[String], allowed: &[&str], needed: &str) -> Result<(), String> {
    if let Some(other) = usages
        .iter()
        .find(|usage| !allowed.contains(&usage.as_str()))
    {
        return Err(format!("usage {other:?} is not allowed by this signer"));
    }
    if !usages.iter().any(|usage| usage == needed) {
        return Err(format!("usage {needed:?} is missing"));
    }
    Ok(())
}

/// Why the signer refuses the request, if it does.
pub(super) fn check(
    signer: Signer,
    request: &CertificateSigningRequestParams,
    usages: &[String],
) -> Result<(), String> {
    const ENCIPHER: [&str; 2] = ["digital signature", "key encipherment"];
    let params = &request.params;
    let allowed = |purpose: &'static str| [ENCIPHER[0], ENCIPHER[1], purpose];
    match signer {
        Signer::Legacy => Ok(()),
        Signer::Client => usages_within(usages, &allowed("client auth"), "client auth"),
        Signer::KubeletClient => {
            is_node(params)?;
            if !params.subject_alt_names.is_empty() {
                return Err("subject alternative names are not allowed".to_owned());
            }
            usages_within(usages, &allowed("client auth"), "client auth")
        }
        Signer::KubeletServing => {
            is_node(params)?;
            let named = params
                .subject_alt_names
                .iter()
                .all(|name| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_)));
            if params.subject_alt_names.is_empty() || !named {
                return Err(
                    "DNS or IP subject alternative names, and only those, are required".to_owned(),
                );
            }
            usages_within(usages, &allowed("server auth"), "server auth")
        }
    }
}

/// Puts the usages that were asked for in the place of those that the requester wrote.
pub(super) fn restrict(params: &mut CertificateParams, usages: &[String]) -> Result<(), String> {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages.clear();
    params.extended_key_usages.clear();
    for usage in usages {
        match usage.as_str() {
            "digital signature" | "signing" => {
                params.key_usages.push(KeyUsagePurpose::DigitalSignature);
            }
            "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
            "key agreement" => params.key_usages.push(KeyUsagePurpose::KeyAgreement),
            "content commitment" => params.key_usages.push(KeyUsagePurpose::ContentCommitment),
            "data encipherment" => params.key_usages.push(KeyUsagePurpose::DataEncipherment),
            "client auth" => {
                params
                    .extended_key_usages
                    .push(ExtendedKeyUsagePurpose::ClientAuth);
            }
            "server auth" => {
                params
                    .extended_key_usages
                    .push(ExtendedKeyUsagePurpose::ServerAuth);
            }
            "any" => params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::Any),
            // A certificate that can sign others would be a second CA.
            other => return Err(format!("usage {other:?} is not supported")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;

    use super::*;

    fn request(name: &str, organization: &str, names: &[&str]) -> CertificateSigningRequestParams {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        let key = KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        CertificateSigningRequestParams::from_pem(&pem).unwrap()
    }

    #[test]
    fn each_signer_keeps_to_its_rules() {
        let (node, nodes) = ("system:node:n1", "system:nodes");
        let client = ["digital signature", "client auth"];
        let server = ["digital signature", "server auth"];
        let cases = [
            (CLIENT, request("ann", "team", &[]), &client[..], true),
            (CLIENT, request("ann", "team", &[]), &server[..], false),
            (
                CLIENT,
                request("ann", "team", &[]),
                &["digital signature"][..],
                false,
            ),
            (KUBELET_CLIENT, request(node, nodes, &[]), &client[..], true),
            (
                KUBELET_CLIENT,
                request("ann", nodes, &[]),
                &client[..],
                false,
            ),
            (
                KUBELET_CLIENT,
                request(node, "system:masters", &[]),
                &client[..],
                false,
            ),
            (
                KUBELET_CLIENT,
                request(node, nodes, &["n1"]),
                &client[..],
                false,
            ),
            (
                KUBELET_SERVING,
                request(node, nodes, &["n1", "192.0.2.1"]),
                &server[..],
                true,
            ),
            (
                KUBELET_SERVING,
                request(node, nodes, &[]),
                &server[..],
                false,
            ),
            (
                KUBELET_SERVING,
                request(node, nodes, &["n1"]),
                &client[..],
                false,
            ),
        ];
        for (signer, request, usages, allowed) in cases {
            let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
            let found = check(Signer::named(signer).unwrap(), &request, &usages);
            assert_eq!(found.is_ok(), allowed, "{signer} {usages:?} {found:?}");
        }
        assert_eq!(Signer::named("example.com/other"), None);
    }

    #[test]
    fn nobody_gets_a_certificate_authority() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        restrict(&mut params, &["client auth".to_owned()]).unwrap();
        assert_eq!(params.is_ca, IsCa::ExplicitNoCa);
        assert!(restrict(&mut params, &["cert sign".to_owned()]).is_err());
    }
}
