//! CertificateSigningRequests. Who asks is filled in by the API server's admission, never by the client.

use std::collections::HashSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::time;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree, each};
use crate::validate::one_of;

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
/// These come once, and do not go.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";

impl Strategy for CertificateSigningRequest {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "status");
        for condition in each(object, "status.conditions") {
            tree::fill_text(condition, "status", "True");
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
        // What was decided stays as it was; that a decision came or went is refused below.
        for kind in DECISIONS {
            let before: Vec<_> = of_type(old, kind).cloned().collect();
            if before.len() == of_type(new, kind).count() {
                let mut before = before.into_iter();
                let now = each(new, "status.conditions").filter(|c| c.text("type") == kind);
                now.zip(&mut before).for_each(|(now, before)| *now = before);
            }
        }
        stamp(new, old);
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let request = spec.text("request");
        if !is_certificate_request(request) {
            let detail = "PEM block type must be CERTIFICATE REQUEST";
            errors.invalid(&path.child("request"), request, detail);
        }
        let usages = spec.list("usages");
        if usages.is_empty() {
            errors.required(&path.child("usages"), "usages must be provided");
        }
        let usages: Vec<_> = usages.iter().filter_map(Value::as_str).collect();
        for (i, usage) in usages.iter().enumerate() {
            if !USAGES.contains(usage) {
                errors.not_supported(&path.child("usages").index(i), *usage, USAGES);
            }
        }
        let mut seen = HashSet::new();
        for (i, usage) in usages.iter().enumerate() {
            if !seen.insert(usage) {
                errors.duplicate(&path.child("usages").index(i), *usage);
            }
        }
        let (signer, signer_path) = (spec.text("signerName"), path.child("signerName"));
        if signer == LEGACY_SIGNER {
            let detail = "the legacy signerName is not allowed via this API version";
            errors.invalid(&signer_path, signer, detail);
        } else {
            signer_name(signer, &signer_path, errors);
        }
        if let Some(seconds) = spec.int("expirationSeconds").filter(|s| *s < MIN_SECONDS) {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.invalid(&path.child("expirationSeconds"), seconds, detail);
        }
        conditions(object, old, errors);
        let certificate = object.text("status.certificate");
        let is_kept = old.is_some_and(|old| old.text("status.certificate") == certificate);
        if let Some(problem) = fault_of_certificate(certificate).filter(|_| !is_kept) {
            let path = Path::new("status").child("certificate");
            errors.invalid(&path, "<certificate data>", problem);
        }
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, Some(old), errors);
        nothing_removed(new, old, errors);
        let path = Path::new("status").child("conditions");
        for kind in DECISIONS {
            if of_type(new, kind).count() > of_type(old, kind).count() {
                let detail = format!("updates may not add a condition of type {kind:?}");
                errors.forbidden(&path, detail);
            }
        }
        let before = old.text("status.certificate");
        if !before.is_empty() && new.text("status.certificate") != before {
            let path = Path::new("status").child("certificate");
            errors.forbidden(&path, "updates may not modify existing certificate content");
        }
    }

    fn validate_subresource(&self, _name: &str, new: &Value, old: &Value, errors: &mut Errors) {
        nothing_removed(new, old, errors);
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

/// Fills in when conditions were written, and since when they say what they say.
pub fn stamp(object: &mut Value, old: &Value) {
    let now = time::format(Timestamp::now().as_second());
    for condition in each(object, "status.conditions") {
        if condition.text("lastUpdateTime").is_empty() {
            condition["lastUpdateTime"] = now.clone().into();
        }
        if condition.text("lastTransitionTime").is_empty() {
            let same = of_type(old, condition.text("type"))
                .find(|old| old.text("status") == condition.text("status"))
                .map_or("", |old| old.text("lastTransitionTime"));
            let since = if same.is_empty() { &now } else { same };
            condition["lastTransitionTime"] = since.into();
        }
    }
}

fn is_certificate_request(base64: &str) -> bool {
    BASE64_STANDARD.decode(base64).is_ok_and(|pem| {
        let text = String::from_utf8_lossy(&pem);
        text.contains("-----BEGIN CERTIFICATE REQUEST-----")
            && text.contains("-----END CERTIFICATE REQUEST-----")
    })
}

/// The conditions of a type.
fn of_type<'o>(object: &'o Value, kind: &str) -> impl Iterator<Item = &'o Value> {
    let list = object.list("status.conditions").iter();
    list.filter(move |condition| condition.text("type") == kind)
}

fn nothing_removed(new: &Value, old: &Value, errors: &mut Errors) {
    for kind in FINAL {
        if of_type(new, kind).count() < of_type(old, kind).count() {
            let path = Path::new("status").child("conditions");
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.forbidden(&path, detail);
        }
    }
}

/// What is wrong with a certificate, as far as its envelope shows it.
fn fault_of_certificate(base64: &str) -> Option<String> {
    if base64.is_empty() {
        return None;
    }
    let pem = BASE64_STANDARD.decode(base64).unwrap_or_default();
    let text = String::from_utf8_lossy(&pem);
    let mut types = text.lines().filter_map(|line| {
        line.trim_end()
            .strip_prefix("-----BEGIN ")?
            .strip_suffix("-----")
    });
    match types.find(|kind| *kind != "CERTIFICATE") {
        Some(other) => Some(format!(
            "only CERTIFICATE PEM blocks are allowed, found {other:?}"
        )),
        None if text.contains("-----BEGIN CERTIFICATE-----") => None,
        None => Some("must contain at least one CERTIFICATE PEM block".to_owned()),
    }
}

/// `domain/path`: `kubernetes.io/kube-apiserver-client`, `example.com/my.signer`.
fn signer_name(name: &str, path: &Path, errors: &mut Errors) {
    const MAX_DOMAIN: usize = 253;
    const MAX_REST: usize = 253 + 63 + 1;
    if name.is_empty() {
        errors.required(path, "signerName must be provided");
        return;
    }
    let parts: Vec<_> = name.split('/').collect();
    let [domain, rest] = parts.as_slice() else {
        let detail =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(path, name, detail);
        return;
    };
    if domain.len() > MAX_DOMAIN {
        errors.too_long(path, MAX_DOMAIN);
    }
    labels_of(domain, names::is_dns1123_label, path, errors);
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.invalid(path, *domain, detail);
    }
    if name.len() > MAX_DOMAIN + MAX_REST + 1 {
        errors.too_long(path, MAX_DOMAIN + MAX_REST + 1);
    }
    if rest.len() > MAX_REST {
        errors.too_long(path, MAX_REST);
    }
    labels_of(rest, names::is_dns1123_subdomain, path, errors);
}

/// Tells of the first wrong label of one half of a name.
fn labels_of(half: &str, check: fn(&str) -> Vec<String>, path: &Path, errors: &mut Errors) {
    let mut found = half.split('.').map(|label| (label, check(label)));
    if let Some((label, problems)) = found.find(|(_, problems)| !problems.is_empty()) {
        for problem in problems {
            errors.invalid(path, half, format!("validating label {label:?}: {problem}"));
        }
    }
}

/// What an earlier object had wrong may stay so.
fn conditions(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let had = |kinds: &[&str]| {
        old.is_some_and(|old| kinds.iter().all(|kind| of_type(old, kind).next().is_some()))
    };
    let before = old.map_or(&[][..], |old| old.list("status.conditions"));
    let kinds: HashSet<_> = before.iter().map(|c| c.text("type")).collect();
    let had_repeated = kinds.len() < before.len();
    let path = Path::new("status").child("conditions");
    let mut seen = HashSet::new();
    for (i, condition) in object.list("status.conditions").iter().enumerate() {
        let kind = condition.text("type");
        let place = path.index(i);
        if kind.is_empty() && !had(&[""]) {
            errors.required(&place.child("type"), "");
        }
        let allowed: &[&str] = match FINAL.contains(&kind) {
            true => &["True"],
            false => &["False", "True", "Unknown"],
        };
        one_of(condition, "status", allowed, &place, errors);
        let other = DECISIONS.iter().find(|other| **other != kind);
        if DECISIONS.contains(&kind)
            && other.is_some_and(|other| seen.contains(other))
            && !had(&DECISIONS)
        {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(&path, kind, detail);
        }
        if !seen.insert(kind) && !had_repeated {
            errors.duplicate(&place.child("type"), kind);
        }
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
        CertificateSigningRequest.prepare_for_status_update(&mut new, &old);
        assert_eq!(
            lines(|e| CertificateSigningRequest.validate_status_update(&new, &old, e)),
            ["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""]
        );
        let approved = request(json!([{"type": "Approved", "status": "True", "message": "a"}]));
        let mut other = request(json!([{"type": "Approved", "status": "True", "message": "b"}]));
        CertificateSigningRequest.prepare_for_status_update(&mut other, &approved);
        assert_eq!(other["status"]["conditions"][0]["message"], "a");
    }

    #[test]
    fn conditions_say_since_when_they_hold() {
        let old = request(json!([{
            "type": "Approved", "status": "True", "lastUpdateTime": "2026-01-02T10:00:00Z",
            "lastTransitionTime": "2026-01-01T10:00:00Z",
        }]));
        let mut new = request(json!([
            {"type": "Approved", "status": "True"},
            {"type": "Failed", "status": "True"},
        ]));
        stamp(&mut new, &old);
        let [approved, failed] = new.list("status.conditions") else {
            panic!("{new}");
        };
        let now = failed.text("lastUpdateTime");
        assert!(time::parse_seconds(now).is_some(), "{failed}");
        assert_eq!(failed.text("lastTransitionTime"), now);
        assert_eq!(approved.text("lastUpdateTime"), now);
        assert_eq!(
            approved.text("lastTransitionTime"),
            "2026-01-01T10:00:00Z",
            "the same is said since then"
        );
    }
}
