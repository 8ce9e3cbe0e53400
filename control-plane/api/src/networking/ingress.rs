//! Ingresses.

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::ingress_class::local_reference;
use crate::core::pod_spec::network::ip as check_ip;
use crate::resource::Strategy;
use crate::table::{age, cells, load_balancer, or};
use crate::tree::{self, Tree};
use crate::validate::numbers::port;
use crate::validate::{optional_name, required, sentences};

pub struct Ingress;

/// The annotation that named the class before there was a field.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

impl Strategy for Ingress {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "spec");
        tree::object_at(object, "status.loadBalancer");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({"loadBalancer": {}}));
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// What `old` had, from before there were these rules, may stay.
    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        if spec.list("rules").is_empty() && !spec.has("defaultBackend") {
            let detail = "either `defaultBackend` or `rules` must be specified";
            errors.invalid(&path, Value::Null, detail);
        }
        if spec.has("defaultBackend") {
            let path = path.child("defaultBackend");
            backend(spec.at("defaultBackend"), &path, errors);
        }
        let had_wild_faults = old.is_some_and(|old| {
            let rules = old.list("spec.rules").iter();
            rules.filter(|rule| is_wild(rule)).any(|rule| {
                let mut found = Errors::new();
                paths(rule, &path, &mut found);
                !found.is_empty()
            })
        });
        for (i, rule) in spec.list("rules").iter().enumerate() {
            let path = path.child("rules").index(i);
            host_of_rule(rule, &path, errors);
            if !is_wild(rule) || !had_wild_faults {
                paths(rule, &path, errors);
            }
        }
        let is_secret = |tls: &Value| {
            let name = tls.text("secretName");
            name.is_empty() || names::is_dns1123_subdomain(name).is_empty()
        };
        let had_wrong_secret = old.is_some_and(|old| !old.list("spec.tls").iter().all(is_secret));
        for (i, tls) in spec.list("tls").iter().enumerate() {
            let path = path.child("tls").index(i);
            for (j, host) in tls.list("hosts").iter().enumerate() {
                let host = host.as_str().unwrap_or_default();
                check_host(host, &path.child("hosts").index(j), errors);
            }
            if !had_wrong_secret {
                let subdomain = names::is_dns1123_subdomain;
                optional_name(tls, "secretName", subdomain, &path, errors);
            }
        }
        if let Some(class) = spec.at("ingressClassName").as_str() {
            let problems = names::is_dns1123_subdomain(class);
            sentences(problems, &path.child("ingressClassName"), class, errors);
        }
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let annotated = object.at("metadata.annotations").get(CLASS_ANNOTATION);
        if let Some(class) = annotated
            && object.has("spec.ingressClassName")
            && object.at("spec.ingressClassName") != class
        {
            let path = Path::new("annotations").child(CLASS_ANNOTATION);
            let detail = "must match `ingressClassName` when both are specified";
            errors.invalid(&path, class.clone(), detail);
        }
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let path = Path::new("status").child("loadBalancer").child("ingress");
        let ingress = new.list("status.loadBalancer.ingress");
        for (i, entry) in ingress.iter().enumerate() {
            let path = path.index(i);
            let (ip, host) = (entry.text("ip"), entry.text("hostname"));
            if !ip.is_empty() {
                check_ip(ip, &path.child("ip"), errors);
            }
            if !host.is_empty() {
                let path = path.child("hostname");
                sentences(names::is_dns1123_subdomain(host), &path, host, errors);
                if host.parse::<std::net::IpAddr>().is_ok() {
                    errors.invalid(&path, host, NOT_A_NAME);
                }
            }
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let annotated = new
            .at("metadata.annotations")
            .get(CLASS_ANNOTATION)
            .is_some();
        if old.is_some() || !annotated {
            return Vec::new();
        }
        vec![format!(
            "annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead"
        )]
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        cells![
            or(spec.text("ingressClassName"), "<none>"),
            hosts(spec),
            load_balancer(object.at("status")),
            if spec.list("tls").is_empty() {
                "80"
            } else {
                "80, 443"
            },
            age(object, now),
        ]
    }
}

const NOT_A_NAME: &str = "must be a DNS name, not an IP address";

fn is_wild(rule: &Value) -> bool {
    rule.text("host").contains('*')
}

fn check_host(host: &str, path: &Path, errors: &mut Errors) {
    let problems = if host.contains('*') {
        names::is_wildcard_dns1123_subdomain(host)
    } else {
        names::is_dns1123_subdomain(host)
    };
    sentences(problems, path, host, errors);
}

fn host_of_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    let (host, path) = (rule.text("host"), path.child("host"));
    if host.is_empty() {
        return;
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        errors.invalid(&path, host, NOT_A_NAME);
    }
    check_host(host, &path, errors);
}

/// `path` is the rule's.
fn paths(rule: &Value, path: &Path, errors: &mut Errors) {
    let http = rule.at("http");
    if http.is_null() {
        return;
    }
    let path = path.child("http").child("paths");
    if http.list("paths").is_empty() {
        errors.required(&path, "");
    }
    for (i, entry) in http.list("paths").iter().enumerate() {
        let path = path.index(i);
        if entry.has("pathType") {
            check_path(entry, &path, errors);
            backend(entry.at("backend"), &path.child("backend"), errors);
        } else {
            errors.required(&path.child("pathType"), "pathType must be specified");
        }
    }
}

fn check_path(entry: &Value, path: &Path, errors: &mut Errors) {
    let types = &["Exact", "ImplementationSpecific", "Prefix"];
    let (kind, text) = (entry.text("pathType"), entry.text("path"));
    let (path, type_path) = (path.child("path"), path.child("pathType"));
    match kind {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.invalid(&path, text, "must be an absolute path");
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(sequence) {
                    errors.invalid(&path, text, format!("must not contain '{sequence}'"));
                }
            }
            for suffix in ["/..", "/."] {
                if text.ends_with(suffix) {
                    errors.invalid(&path, text, format!("cannot end with '{suffix}'"));
                }
            }
        }
        "ImplementationSpecific" if !text.is_empty() && !text.starts_with('/') => {
            errors.invalid(&path, text, "must be an absolute path");
        }
        "ImplementationSpecific" => {}
        other => errors.not_supported(&type_path, other, types),
    }
}

fn backend(backend: &Value, path: &Path, errors: &mut Errors) {
    let (service, resource) = (backend.at("service"), backend.at("resource"));
    match (service.is_null(), resource.is_null()) {
        (false, false) => {
            errors.invalid(path, "", "cannot set both resource and service backends");
        }
        (true, true) => errors.invalid(path, "", "resource or service backend is required"),
        (true, false) => {
            let path = path.child("resource");
            local_reference(resource, &path, errors);
        }
        (false, true) => {
            let service_path = path.child("service");
            if let Some(name) = required(service, "name", &service_path, errors) {
                sentences(
                    names::is_dns1035_label(name),
                    &service_path.child("name"),
                    name,
                    errors,
                );
            }
            let (name, number) = (
                service.text("port.name"),
                service.int("port.number").unwrap_or_default(),
            );
            let port_path = service_path.child("port");
            match (name.is_empty(), number) {
                (true, 0) => errors.required(path, "port name or number is required"),
                (true, number) => port(number, &port_path.child("number"), errors),
                (false, 0) => {
                    sentences(
                        names::is_valid_port_name(name),
                        &port_path.child("name"),
                        name,
                        errors,
                    );
                }
                (false, _) => errors.invalid(path, "", "cannot set both port name & port number"),
            }
        }
    }
}

/// The first three hosts. Every rule behind them counts as one more, with a host or without.
fn hosts(spec: &Value) -> String {
    const SHOWN: usize = 3;
    let rules = spec.list("rules");
    let mut named = Vec::new();
    for rule in rules {
        if named.len() == SHOWN {
            return format!("{} + {} more...", named.join(","), rules.len() - SHOWN);
        }
        if !rule.text("host").is_empty() {
            named.push(rule.text("host"));
        }
    }
    if named.is_empty() {
        "*".to_owned()
    } else {
        named.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        let path = |value: Value| json!({"rules": [{"http": {"paths": [value]}}]});
        let backend = || json!({"service": {"name": "s", "port": {"number": 80}}});
        for (spec, expected) in [
            (
                json!({}),
                "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified",
            ),
            (
                json!({"rules": [{"host": "1.2.3.4"}]}),
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
            ),
            (
                path(json!({"backend": backend()})),
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ),
            (
                path(json!({"backend": backend(), "pathType": "Prefix", "path": "x"})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
            ),
            (
                path(
                    json!({"backend": {"service": {"name": "s"}}, "pathType": "Prefix", "path": "/"}),
                ),
                "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
            ),
        ] {
            assert_eq!(
                lines(|e| Ingress.validate(&json!({"spec": spec}), None, e)),
                [expected]
            );
        }
        let good =
            json!({"spec": path(json!({"backend": backend(), "pathType": "Exact", "path": "/a"}))});
        assert!(lines(|e| Ingress.validate(&good, None, e)).is_empty());
    }

    #[test]
    fn rows_list_hosts() {
        let object = json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]}});
        let row = Ingress.row(&object, 0);
        assert_eq!(
            row[..4],
            [
                json!("<none>"),
                json!("a,b,c + 1 more..."),
                json!(""),
                json!("80")
            ]
        );
    }
}
