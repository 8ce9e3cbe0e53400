//! Host names, DNS settings and host aliases.

use std::net::IpAddr;

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

pub fn dns(spec: &Value, path: &Path, errors: &mut Errors) {
    one_of(spec, "dnsPolicy", POLICIES, path, errors);
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
        errors.required(
            &servers_path,
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
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
            let relaxed = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
            sentences(
                names::is_dns1123_subdomain(relaxed.trim_matches('-')),
                &path.index(i),
                search,
                errors,
            );
        }
    }
}

pub fn host_aliases(spec: &Value, path: &Path, errors: &mut Errors) {
    // Upstream's paths leave the indices out.
    let path = path.child("hostAliases");
    for alias in spec.list("hostAliases") {
        ip(alias.text("ip"), &path.child("ip"), errors);
        for host in alias.list("hostnames") {
            let host = host.as_str().unwrap_or_default();
            sentences(
                names::is_dns1123_subdomain(host),
                &path.child("hostnames"),
                host,
                errors,
            );
        }
    }
}

/// An IPv4 or IPv6 address in its usual notation.
pub fn ip(text: &str, path: &Path, errors: &mut Errors) {
    if text.parse::<IpAddr>().is_err() {
        errors.invalid(
            path,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
}
