//! Probes and lifecycle hooks.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::numbers::{non_negative, port, port_or_name};
use crate::validate::{required, sentences};

const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// The probes and hooks of an ordinary container or a sidecar.
pub fn probes(container: &Value, grace: i64, path: &Path, errors: &mut Errors) {
    lifecycle(container, grace, path, errors);
    for (name, one_success) in [
        ("livenessProbe", true),
        ("readinessProbe", false),
        ("startupProbe", true),
    ] {
        let probe = container.at(name);
        if probe.is_null() {
            continue;
        }
        let path = path.child(name);
        one(probe, grace, &path, errors);
        let successes = probe.int("successThreshold").unwrap_or_default();
        if one_success && successes != 1 {
            errors.invalid(&path.child("successThreshold"), successes, "must be 1");
        }
        if name == "readinessProbe" && probe.has("terminationGracePeriodSeconds") {
            errors.invalid(
                &path.child("terminationGracePeriodSeconds"),
                probe.at("terminationGracePeriodSeconds").clone(),
                "must not be set for readinessProbes",
            );
        }
    }
}

fn lifecycle(container: &Value, grace: i64, path: &Path, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        let handler = container.at("lifecycle").at(hook);
        if !handler.is_null() {
            self::handler(handler, grace, &path.child("lifecycle").child(hook), errors);
        }
    }
}

fn one(probe: &Value, grace: i64, path: &Path, errors: &mut Errors) {
    handler(probe, grace, path, errors);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        non_negative(probe, field, path, errors);
    }
    if let Some(seconds) = probe
        .int("terminationGracePeriodSeconds")
        .filter(|s| *s <= 0)
    {
        errors.invalid(
            &path.child("terminationGracePeriodSeconds"),
            seconds,
            "must be greater than 0",
        );
    }
}

fn handler(holder: &Value, grace: i64, path: &Path, errors: &mut Errors) {
    let set: Vec<_> = HANDLERS
        .iter()
        .copied()
        .filter(|name| holder.has(name))
        .collect();
    if set.is_empty() {
        errors.required(path, "must specify a handler type");
    }
    for extra in set.iter().skip(1) {
        errors.forbidden(
            &path.child(extra),
            "may not specify more than 1 handler type",
        );
    }
    let Some(first) = set.first() else { return };
    let action = holder.at(first);
    let path = path.child(first);
    match *first {
        "exec" => {
            if action.list("command").is_empty() {
                errors.required(&path.child("command"), "");
            }
        }
        "httpGet" => {
            required(action, "path", &path, errors);
            port_or_name(action.at("port"), &path.child("port"), errors);
            let scheme = action.text("scheme");
            if !["HTTP", "HTTPS"].contains(&scheme) {
                errors.not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
            }
            for header in action.list("httpHeaders") {
                let name = header.text("name");
                let problems = names::is_http_header_name(name);
                sentences(problems, &path.child("httpHeaders"), name, errors);
            }
        }
        "tcpSocket" => port_or_name(action.at("port"), &path.child("port"), errors),
        "grpc" => {
            port(
                action.int("port").unwrap_or_default(),
                &path.child("port"),
                errors,
            );
        }
        _ => {
            let seconds = action.int("seconds").unwrap_or_default();
            if seconds < 0 || seconds > grace {
                let detail = format!(
                    "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                );
                errors.invalid(&path, seconds, detail);
            }
        }
    }
}
