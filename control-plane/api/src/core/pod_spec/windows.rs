//! What only Windows pods may say, and what they may not.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::container;
use crate::tree::Tree;

const MAX_CREDENTIAL: usize = 64 * 1024;
const MAX_DOMAIN: usize = 256;
const MAX_USER: usize = 104;

/// `windowsOptions` of a pod's or a container's security context; `path` is theirs.
pub fn options(options: &Value, path: &Path, errors: &mut Errors) {
    if let Some(name) = options.at("gmsaCredentialSpecName").as_str() {
        for problem in names::is_dns1123_subdomain(name) {
            errors.invalid(&path.child("gmsaCredentialSpecName"), name, problem);
        }
    }
    if let Some(credential) = options.at("gmsaCredentialSpec").as_str() {
        let path = path.child("gmsaCredentialSpec");
        if credential.is_empty() {
            let detail = "gmsaCredentialSpec cannot be an empty string";
            errors.invalid(&path, credential, detail);
        } else if credential.len() > MAX_CREDENTIAL {
            let detail = "gmsaCredentialSpec size must be under 64 KiB";
            errors.invalid(&path, credential, detail);
        }
    }
    if let Some(name) = options.at("runAsUserName").as_str() {
        for problem in user_name(name) {
            errors.invalid(
                &path.child("runAsUserName"),
                name,
                format!("runAsUserName{problem}"),
            );
        }
    }
}

/// What is wrong with `DOMAIN\user`.
fn user_name(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec![" cannot be an empty string".to_owned()];
    }
    if name.chars().any(char::is_control) {
        return vec![" cannot contain control characters".to_owned()];
    }
    let (domain, user) = match name.split_once('\\') {
        Some((_, user)) if user.contains('\\') => {
            return vec![" cannot contain more than one backslash".to_owned()];
        }
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    let mut problems = Vec::new();
    let mut tell = |wrong: bool, problem: String| {
        if wrong {
            problems.push(problem);
        }
    };
    let domain_len = domain.map_or(0, str::len);
    tell(
        domain_len >= MAX_DOMAIN,
        format!("'s Domain length must be under {MAX_DOMAIN} characters"),
    );
    tell(
        domain.is_some_and(|domain| !is_netbios(domain) && !is_dns_domain(domain)),
        "'s Domain doesn't match the NetBios nor the DNS format".to_owned(),
    );
    tell(user.is_empty(), "'s User cannot be empty".to_owned());
    tell(
        user.len() > MAX_USER,
        format!("'s User length must not be longer than {MAX_USER} characters"),
    );
    tell(
        !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')),
        "'s User cannot contain only periods or spaces".to_owned(),
    );
    tell(
        user.contains(|c: char| "\"/\\:;|=,+*?<>@[]".contains(c)),
        "'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".to_owned(),
    );
    problems
}

fn is_netbios(domain: &str) -> bool {
    let illegal = |c: char| "\\/:*?\"<>|".contains(c);
    (1..=15).contains(&domain.chars().count())
        && !domain.starts_with('.')
        && !domain.contains(illegal)
}

fn is_dns_domain(domain: &str) -> bool {
    domain.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// Containers that run on the host itself: all of a pod, or none.
pub fn host_process(spec: &Value, path: &Path, errors: &mut Errors) {
    const FIELD: &str = "securityContext.windowsOptions.hostProcess";
    let of_pod = spec.at(FIELD).as_bool();
    let (mut all, mut on_host) = (0, 0);
    container::visit(spec, path, |container, path| {
        all += 1;
        let own = container.at(FIELD).as_bool();
        if let (Some(of_pod), Some(own)) = (of_pod, own)
            && of_pod != own
        {
            let path = path
                .child("securityContext")
                .child("windowsOptions")
                .child("hostProcess");
            let detail = format!(
                "pod hostProcess value must be identical if both are specified, was {of_pod}"
            );
            errors.invalid(&path, own, detail);
        }
        if own.or(of_pod) == Some(true) {
            on_host += 1;
        }
    });
    if on_host == 0 {
        return;
    }
    if on_host != all {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid(path, "", detail);
    }
    if !spec.flag("hostNetwork") {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(&path.child("hostNetwork"), false, detail);
    }
}

/// What a pod may not say that is for one system only.
pub fn for_system(spec: &Value, path: &Path, errors: &mut Errors) {
    let os = spec.at("os");
    if os.is_null() {
        return;
    }
    let os_path = path.child("os");
    match os.text("name") {
        "" => errors.required(&os_path.child("name"), "cannot be empty"),
        "linux" => not_windows(spec, path, errors),
        "windows" => not_linux(spec, path, errors),
        other => errors.not_supported(&os_path, other, &["linux", "windows"]),
    }
}

fn not_windows(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut check = |holder: &Value, path: &Path| {
        if holder.has("securityContext.windowsOptions") {
            let path = path.child("securityContext").child("windowsOptions");
            errors.forbidden(&path, "windows options cannot be set for a linux pod");
        }
    };
    check(spec, path);
    container::visit(spec, path, check);
}

const OF_POD: &[&str] = &[
    "securityContext.appArmorProfile",
    "securityContext.seLinuxOptions",
    "hostUsers",
    "hostPID",
    "hostIPC",
    "securityContext.seccompProfile",
    "securityContext.fsGroup",
    "securityContext.fsGroupChangePolicy",
    "securityContext.sysctls",
    "shareProcessNamespace",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.supplementalGroups",
    "securityContext.supplementalGroupsPolicy",
    "securityContext.seLinuxChangePolicy",
];

const OF_CONTAINER: &[&str] = &[
    "securityContext.appArmorProfile",
    "securityContext.seLinuxOptions",
    "securityContext.seccompProfile",
    "securityContext.capabilities",
    "securityContext.readOnlyRootFilesystem",
    "securityContext.privileged",
    "securityContext.allowPrivilegeEscalation",
    "securityContext.procMount",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
];

fn not_linux(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut forbid = |holder: &Value, fields: &[&str], path: &Path| {
        for field in fields {
            // These two are no pointers in Go: false is the same as not there.
            let is_set = match *field {
                "hostPID" | "hostIPC" => holder.flag(field),
                "securityContext.sysctls" => !holder.list(field).is_empty(),
                _ => holder.has(field),
            };
            if is_set {
                let path = field
                    .split('.')
                    .fold(path.clone(), |path, part| path.child(part));
                errors.forbidden(&path, "cannot be set for a windows pod");
            }
        }
    };
    forbid(spec, OF_POD, path);
    container::visit(spec, path, |container, path| {
        forbid(container, OF_CONTAINER, path)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_windows_have_a_form() {
        for (name, problems) in [
            ("ann", 0),
            ("CORP\\ann", 0),
            ("corp.example.com\\ann", 0),
            ("", 1),
            ("a\\b\\c", 1),
            ("\\ann", 1),
            ("CORP\\", 1),
            ("..", 1),
            ("a@b", 1),
        ] {
            assert_eq!(
                user_name(name).len(),
                problems,
                "{name}: {:?}",
                user_name(name)
            );
        }
    }
}
