//! Host names, DNS settings and host aliases.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::{one_of, optional_name, sentences};

const POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

pub fn names(spec: &Value, path: &Path, errors: &mut Errors) {
    optional_name(spec, "hostname", names::is_dns1123_label, path, errors);
    optional_name(spec, "subdomain", names::is_dns1123_label, path, errors);
}

pub fn dns_policy(spec: &Value, path: &Path, errors: &mut Errors) {
    one_of(spec, "dnsPolicy", POLICIES, path, errors);
}

pub fn dns_config(spec: &Value, path: &Path, errors: &mut Errors) {
    let config = spec.at("dnsConfig");
    let path = path.child("dnsConfig");
    let must_be_complete = spec.text("dnsPolicy") == "None";
    if config.is_null() {
        if must_be_complete {
            errors.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    }
    let servers = config.list("nameservers");
    let servers_path = path.child("nameservers");
    if must_be_complete && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return errors.required(&servers_path, detail);
    }
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid(&servers_path, config.at("nameservers").clone(), detail);
    }
    for (i, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        ip(server, &servers_path.index(i), errors);
    }
    searches(config, &path.child("searches"), errors);
    for (i, option) in config.list("options").iter().enumerate() {
        if option.text("name").is_empty() {
            errors.required(&path.child("options").index(i), "must not be empty");
        }
    }
}

fn searches(config: &Value, path: &Path, errors: &mut Errors) {
    let searches = config.list("searches");
    let value = || config.at("searches").clone();
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.invalid(path, value(), detail);
    }
    let chars: usize = searches
        .iter()
        .filter_map(Value::as_str)
        .map(|s| s.len() + 1)
        .sum();
    if chars.saturating_sub(1) > MAX_SEARCH_CHARS {
        let detail = format!(
            "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
        );
        errors.invalid(path, value(), detail);
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        // A lone dot and underscores are allowed (KEP-4427).
        if search != "." {
            let search = search.strip_suffix('.').unwrap_or(search);
            sentences(
                underscored_subdomain(search),
                &path.index(i),
                search,
                errors,
            );
        }
    }
}

/// A subdomain whose labels may also hold underscores.
fn underscored_subdomain(text: &str) -> Vec<String> {
    const MAX: usize = 253;
    const PATTERN: &str = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
            && bytes.iter().all(|b| edge(b) || matches!(b, b'-' | b'_'))
    };
    let mut problems = Vec::new();
    if text.len() > MAX {
        problems.push(names::max_len(MAX));
    }
    if !text.split('.').all(is_label) {
        problems.push(format!(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-', '_', or \
             '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
             validation is '{PATTERN}')"
        ));
    }
    problems
}

/// The name that replaces the pod's own in its containers (KEP-4762): a whole one, and the only say in it.
pub fn hostname_override(spec: &Value, path: &Path, errors: &mut Errors) {
    const MAX: usize = 64;
    let Some(name) = spec.at("hostnameOverride").as_str() else {
        return;
    };
    let path = path.child("hostnameOverride");
    if spec.flag("setHostnameAsFQDN") {
        errors.forbidden(
            &path,
            "may not be specified when `setHostnameAsFQDN` is true",
        );
    }
    if spec.flag("hostNetwork") {
        errors.forbidden(&path, "may not be specified when `hostNetwork` is true");
    }
    if name.len() > MAX {
        errors.too_long(&path, MAX);
    }
    sentences(names::is_dns1123_subdomain(name), &path, name, errors);
}

pub fn host_aliases(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, alias) in spec.list("hostAliases").iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        ip(alias.text("ip"), &path.child("ip"), errors);
        for (j, host) in alias.list("hostnames").iter().enumerate() {
            let host = host.as_str().unwrap_or_default();
            let path = path.child("hostnames").index(j);
            sentences(names::is_dns1123_subdomain(host), &path, host, errors);
        }
    }
}

/// An IPv4 or IPv6 address in its usual notation.
pub fn ip(text: &str, path: &Path, errors: &mut Errors) {
    sentences(names::is_valid_ip(text), path, text, errors);
}
