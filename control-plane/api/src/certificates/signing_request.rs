//! CertificateSigningRequests. Who asks is filled in by the API server's admission, never by the client.

use std::collections::HashSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::time;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree, each};
use crate::validate::{immutable, one_of, same, sentences};

pub struct CertificateSigningRequest;

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const MIN_SECONDS: i64 = 600;
const DECISIONS: [&str; 2] = ["Approved", "Denied"];

impl Strategy for CertificateSigningRequest {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "status");
        for condition in each(object, "status.conditions") {
            tree::fill(condition, "status", "True");
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::keep(new, old, "spec");
        tree::keep(new, old, "status");
    }

    /// Signers write the certificate; approval and denial have a path of their own.
    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        tree::keep(new, old, "spec");
        let decided = |object: &Value, wanted: bool| {
            object
                .list("status.conditions")
                .iter()
                .filter(move |c| DECISIONS.contains(&c.text("type")) == wanted)
                .cloned()
                .collect::<Vec<_>>()
        };
        let mut conditions = decided(old, true);
        conditions.extend(decided(new, false));
        tree::remove(new, "status.conditions");
        if !conditions.is_empty() {
            tree::set(new, "status.conditions", conditions);
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let request = spec.text("request");
        if !is_certificate_request(request) {
            let detail = "PEM block type must be CERTIFICATE REQUEST";
            errors.invalid(&path.child("request"), request, detail);
        }
        let usages = spec.list("usages");
        if usages.is_empty() {
            errors.required(&path.child("usages"), "usages is required");
        }
        let mut seen = HashSet::new();
        for (i, usage) in usages.iter().enumerate() {
            let usage = usage.as_str().unwrap_or_default();
            let path = path.child("usages").index(i);
            if !USAGES.contains(&usage) {
                errors.not_supported(&path, usage, USAGES);
            }
            if !seen.insert(usage) {
                errors.duplicate(&path, usage);
            }
        }
        signer_name(spec.text("signerName"), &path.child("signerName"), errors);
        if let Some(seconds) = spec.int("expirationSeconds").filter(|s| *s < MIN_SECONDS) {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.invalid(&path.child("expirationSeconds"), seconds, detail);
        }
        conditions(object, errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        conditions(new, errors);
        if !old.text("status.certificate").is_empty() {
            immutable(new, old, "status.certificate", errors);
        }
    }

    fn validate_subresource(&self, _name: &str, new: &Value, old: &Value, errors: &mut Errors) {
        conditions(new, errors);
        let path = Path::new("status").child("conditions");
        for kind in ["Approved", "Denied", "Failed"] {
            let find = |object: &Value| {
                object
                    .list("status.conditions")
                    .iter()
                    .find(|c| c.text("type") == kind)
                    .cloned()
            };
            match (find(old), find(new)) {
                (Some(_), None) => {
                    let detail = format!("updates may not remove a condition of type {kind:?}");
                    errors.forbidden(&path, detail);
                }
                (Some(old), Some(new)) if !same(&old, &new) => {
                    let detail = format!("updates may not modify a condition of type {kind:?}\n");
                    errors.forbidden(&path, detail);
                }
                (None, Some(_)) if kind == "Failed" => {
                    let detail = format!("updates may not add a condition of type {kind:?}");
                    errors.forbidden(&path, detail);
                }
                _ => {}
            }
        }
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn field(&self, object: &Value, name: &str) -> String {
        object.text(name).to_owned()
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        let requested = spec
            .int("expirationSeconds")
            .map_or_else(|| "<none>".to_owned(), time::duration_words);
        cells![
            age(object, now),
            or(spec.text("signerName"), "<none>"),
            spec.text("username"),
            requested,
            state(object),
        ]
    }
}

fn is_certificate_request(base64: &str) -> bool {
    BASE64_STANDARD.decode(base64).is_ok_and(|pem| {
        let text = String::from_utf8_lossy(&pem);
        text.contains("-----BEGIN CERTIFICATE REQUEST-----")
            && text.contains("-----END CERTIFICATE REQUEST-----")
    })
}

/// `domain/path`: `kubernetes.io/kube-apiserver-client`, `example.com/my.signer`.
fn signer_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let parts: Vec<_> = name.split('/').collect();
    let [domain, rest] = parts.as_slice() else {
        let detail =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(path, name, detail);
        return;
    };
    sentences(names::is_dns1123_subdomain(domain), path, name, errors);
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.invalid(path, *domain, detail);
    }
    for label in rest.split('.') {
        sentences(names::is_dns1123_label(label), path, label, errors);
    }
}

fn conditions(object: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("conditions");
    let list = object.list("status.conditions");
    let mut seen = HashSet::new();
    for (i, condition) in list.iter().enumerate() {
        let path = path.index(i);
        let kind = condition.text("type");
        if kind.is_empty() {
            errors.required(&path.child("type"), "");
        }
        one_of(
            condition,
            "status",
            &["False", "True", "Unknown"],
            &path,
            errors,
        );
        if ["Approved", "Denied", "Failed"].contains(&kind) && condition.text("status") != "True" {
            errors.not_supported(&path.child("status"), condition.text("status"), &["True"]);
        }
        if !seen.insert(kind) {
            errors.duplicate(&path.child("type"), kind);
        }
    }
    if DECISIONS.iter().all(|kind| seen.contains(kind)) {
        let detail = "Approved and Denied conditions are mutually exclusive";
        errors.invalid(&path, "Denied", detail);
    }
}

fn state(object: &Value) -> String {
    let has = |kind: &str| {
        object
            .list("status.conditions")
            .iter()
            .any(|c| c.text("type") == kind)
    };
    let mut text = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if !object.text("status.certificate").is_empty() {
        text.push_str(",Issued");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    fn request(conditions: Value) -> Value {
        let pem = "-----BEGIN CERTIFICATE REQUEST-----\nMII=\n-----END CERTIFICATE REQUEST-----\n";
        json!({
            "spec": {
                "request": BASE64_STANDARD.encode(pem),
                "signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["client auth"],
                "username": "ann",
            },
            "status": {"conditions": conditions},
        })
    }

    #[test]
    fn requests_name_their_signer_and_use() {
        assert!(
            lines(|e| CertificateSigningRequest.validate(&request(json!([])), None, e)).is_empty()
        );
        let bad = json!({"spec": {"request": "eA==", "signerName": "x", "usages": ["all"]}});
        assert_eq!(
            lines(|e| CertificateSigningRequest.validate(&bad, None, e)).len(),
            3
        );
    }

    #[test]
    fn a_decision_stands() {
        let approved = request(json!([{"type": "Approved", "status": "True"}]));
        let denied = request(json!([{"type": "Denied", "status": "True"}]));
        let check = |new: &Value, old: &Value| {
            lines(|e| CertificateSigningRequest.validate_subresource("approval", new, old, e))
        };
        assert!(check(&approved, &request(json!([]))).is_empty());
        assert_eq!(
            check(&denied, &approved),
            [
                "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""
            ]
        );
    }

    #[test]
    fn a_signer_cannot_approve() {
        let old = request(json!([]));
        let mut new = request(json!([{"type": "Approved", "status": "True"}]));
        new["status"]["certificate"] = "eA==".into();
        CertificateSigningRequest.prepare_for_status_update(&mut new, &old);
        assert_eq!(CertificateSigningRequest.row(&new, 0)[4], "Pending,Issued");
    }
}
