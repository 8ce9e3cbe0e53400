//! Annotations of pods and templates that mean something, most of them from before there was a field.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::volume_source::descending_path;
use super::{container, tolerations};
use crate::tree::{self, Tree};
use crate::validate::same;

pub const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
pub const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
pub const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

const PROFILE: &str = "securityContext.appArmorProfile";

pub fn get<'a>(holder: &'a Value, key: &str) -> Option<&'a str> {
    holder.at("metadata.annotations").get(key)?.as_str()
}

/// `holder` has `metadata` and `spec`, `path` is that of its annotations. `old` may have kept a wrong cost.
pub fn validate(holder: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    let spec = holder.at("spec");
    // A mirror pod stands for one that a node already runs.
    if let Some(value) = get(holder, MIRROR).filter(|_| spec.text("nodeName").is_empty()) {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errors.invalid(&path.key(MIRROR), value, detail);
    }
    if let Some(text) = get(holder, TOLERATIONS).filter(|text| !text.is_empty()) {
        match serde_json::from_str::<Value>(text) {
            Ok(list) if list.is_array() || list.is_null() => {
                tolerations(&list, &path.child(TOLERATIONS), errors);
            }
            Ok(_) => errors.invalid(path, TOLERATIONS, "must be a list of tolerations"),
            Err(error) => errors.invalid(path, TOLERATIONS, error.to_string()),
        }
    }
    let cost = |holder: &Value| get(holder, DELETION_COST).is_none_or(is_cost);
    if !cost(holder) && old.is_none_or(cost) {
        let value = get(holder, DELETION_COST).unwrap_or_default();
        errors.invalid(&path.key(DELETION_COST), value, "must be a 32bit integer");
    }
    for (key, value) in holder.entries("metadata.annotations") {
        let value = value.as_str().unwrap_or_default();
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            seccomp(value, &path.child(key), errors);
        }
    }
    for (key, value) in holder.entries("metadata.annotations") {
        if let Some(name) = key.strip_prefix(APP_ARMOR) {
            app_armor(
                name,
                value.as_str().unwrap_or_default(),
                spec,
                &path.key(key),
                errors,
            );
        }
    }
}

/// A number that begins neither with a plus sign nor with a superfluous zero.
fn is_cost(text: &str) -> bool {
    let odd = text.starts_with('+') || (text.len() > 1 && text.starts_with('0'));
    !odd && text.parse::<i32>().is_ok()
}

fn seccomp(profile: &str, path: &Path, errors: &mut Errors) {
    match profile.strip_prefix("localhost/") {
        Some(file) => descending_path(file, path, errors),
        None if ["runtime/default", "docker/default", "unconfined"].contains(&profile) => {}
        None => errors.invalid(path, profile, "must be a valid seccomp profile"),
    }
}

fn app_armor(name: &str, profile: &str, spec: &Value, path: &Path, errors: &mut Errors) {
    let mut known = false;
    container::visit(spec, path, |container, _| {
        known |= container.text("name") == name
    });
    if !known {
        errors.invalid(path, name, "container not found");
    }
    let valid = matches!(profile, "" | "runtime/default" | "unconfined")
        || profile.starts_with("localhost/");
    if !valid {
        errors.invalid(
            path,
            profile,
            format!("invalid AppArmor profile name: {profile:?}"),
        );
    }
}

/// New pods, and templates, whose profiles stand in both places must mean the same there. `path` is the spec's.
pub fn agree_with_fields(holder: &Value, path: &Path, errors: &mut Errors) {
    let spec = holder.at("spec");
    let context = path.child("securityContext");
    let seccomp_path = context.child("seccompProfile");
    let profile = spec.at("securityContext.seccompProfile");
    let words = ("seccomp", "docker/default");
    agree(
        get(holder, SECCOMP_POD),
        profile,
        words,
        &seccomp_path,
        errors,
    );
    container::visit(spec, path, |container, path| {
        let key = format!("{SECCOMP_CONTAINER}{}", container.text("name"));
        let profile = container.at("securityContext.seccompProfile");
        let path = path.child("securityContext").child("seccompProfile");
        agree(get(holder, &key), profile, words, &path, errors);
    });
    if spec.text("os.name") == "windows" {
        return;
    }
    container::visit(spec, path, |container, path| {
        let key = format!("{APP_ARMOR}{}", container.text("name"));
        let profile = profile_of(container, spec);
        let path = path.child("securityContext").child("appArmorProfile");
        agree(get(holder, &key), profile, ("apparmor", ""), &path, errors);
    });
}

/// `alias` is another word for the runtime's own profile.
fn agree(
    annotation: Option<&str>,
    profile: &Value,
    (what, alias): (&str, &str),
    path: &Path,
    errors: &mut Errors,
) {
    let Some(annotation) = annotation else { return };
    let same_type = match profile.text("type") {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => annotation == "runtime/default" || annotation == alias,
        "Localhost" => annotation.starts_with("localhost/"),
        _ => return,
    };
    let local = annotation.strip_prefix("localhost/");
    if !same_type {
        let detail = format!("{what} type in annotation and field must match");
        errors.forbidden(&path.child("type"), detail);
    } else if local.is_some() && profile.at("localhostProfile").as_str() != local {
        let detail = format!("{what} profile in annotation and field must match");
        errors.forbidden(&path.child("localhostProfile"), detail);
    }
}

/// The container's own AppArmor profile, or the pod's.
fn profile_of<'a>(container: &'a Value, spec: &'a Value) -> &'a Value {
    match container.at(PROFILE) {
        Value::Null => spec.at(PROFILE),
        own => own,
    }
}

/// Changes of them that no update of a pod may make.
pub fn validate_update(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let guarded = |key: &str| match key {
        MIRROR => Some("mirror pod annotation"),
        key if key.starts_with(APP_ARMOR) => Some("AppArmor annotations"),
        _ => None,
    };
    for (key, value) in old.entries("metadata.annotations") {
        let changed = new.at("metadata.annotations").get(key) != Some(value);
        if let Some(what) = guarded(key).filter(|_| changed) {
            errors.forbidden(&path.key(key), format!("may not remove or update {what}"));
        }
    }
    for (key, _) in new.entries("metadata.annotations") {
        let added = old.at("metadata.annotations").get(key).is_none();
        if let Some(what) = guarded(key).filter(|_| added) {
            errors.forbidden(&path.key(key), format!("may not add {what}"));
        }
    }
}

/// The profile that an annotation stands for.
fn profile_in(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        other => other
            .strip_prefix("localhost/")
            .filter(|name| !name.is_empty() && name.trim() == *name)
            .map(|name| json!({"type": "Localhost", "localhostProfile": name})),
    }
}

/// A new pod's AppArmor annotations become fields where there is none.
pub fn app_armor_fields(pod: &mut Value) {
    if pod.text("spec.os.name") == "windows" {
        return;
    }
    let of_pod = pod.at("spec.securityContext.appArmorProfile").clone();
    let annotations = pod.at("metadata.annotations").clone();
    for list in container::LISTS {
        for container in tree::each(pod, &format!("spec.{list}")) {
            let key = format!("{APP_ARMOR}{}", container.text("name"));
            let annotation = annotations.get(key).and_then(Value::as_str);
            let field = annotation
                .and_then(profile_in)
                .filter(|field| !same(field, &of_pod));
            if let Some(field) = field.filter(|_| !container.has(PROFILE)) {
                tree::set(container, PROFILE, field);
            }
        }
    }
}

/// Whether nothing but the annotation says a container's AppArmor profile.
pub fn only_annotated(container: &Value, annotation: &str) -> bool {
    match container.at(PROFILE) {
        Value::Null => profile_in(annotation).is_none(),
        field => profile_in(annotation).is_some_and(|said| same(&said, field)),
    }
}
