//! Images: whether to pull one, and with whose credentials.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Container, Secret};
use serde::Deserialize;
use windlass_cri::v1::AuthConfig;

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    /// Before every start.
    Always,
    /// If it is not there.
    IfNotPresent,
    /// Not by the agent.
    Never,
}

impl PullPolicy {
    /// A container's policy: what it says, else by its image's tag.
    pub(crate) fn of(container: &Container) -> Self {
        match container.image_pull_policy.as_deref() {
            Some("Always") => Self::Always,
            Some("IfNotPresent") => Self::IfNotPresent,
            Some("Never") => Self::Never,
            _ => match tag_of(container.image.as_deref().unwrap_or_default()) {
                None | Some("latest") => Self::Always,
                Some(_) => Self::IfNotPresent,
            },
        }
    }
}

/// The tag or digest of an image's name.
fn tag_of(image: &str) -> Option<&str> {
    if let Some((_, digest)) = image.split_once('@') {
        return Some(digest);
    }
    // A colon before the last slash belongs to a registry's port.
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').map(|(_, tag)| tag)
}

/// An image's full name without tag and digest, whichever way it was written.
pub(super) fn repository(image: &str) -> String {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let colon = name[last..].find(':');
    let name = qualified(colon.map_or(name, |colon| &name[..last + colon]));
    match name.strip_prefix("docker.io/") {
        Some(short) if !short.contains('/') => format!("docker.io/library/{short}"),
        _ => name,
    }
}

/// Whether a name can be an image's at all.
pub(crate) fn check_name(image: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let path = image.split(['@']).next().unwrap_or_default();
    let repository = match path.rsplit_once('/') {
        Some((_, last)) => last,
        None => path,
    };
    let name_part = repository.split(':').next().unwrap_or_default();
    let upper = name_part.contains(|c: char| c.is_ascii_uppercase());
    if image.is_empty() || !image.chars().all(fits) || name_part.is_empty() || upper {
        return Err(format!(
            "Failed to apply default image tag {image:?}: invalid reference format"
        ));
    }
    Ok(())
}

/// The credentials for an image among a pod's pull secrets, the most specific entry of
/// each secret, in the order of the secrets.
pub(crate) fn credentials<'a>(image: &str, secrets: &'a [Secret]) -> Vec<(&'a Secret, AuthConfig)> {
    secrets
        .iter()
        .filter_map(|secret| Some((secret, from_secret(image, secret)?)))
        .collect()
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: std::collections::BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

fn from_secret(image: &str, secret: &Secret) -> Option<AuthConfig> {
    let data = secret.data.as_ref()?;
    let auths = if let Some(json) = data.get(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(&json.0).ok()?.auths
    } else {
        serde_json::from_slice(&data.get(".dockercfg")?.0).ok()?
    };
    let wanted = qualified(image);
    let matching = auths
        .into_iter()
        .filter(|(registry, _)| covers(registry, &wanted));
    let (_, auth) = matching.max_by_key(|(registry, _)| registry.len())?;
    let (mut username, mut password) = (auth.username, auth.password);
    if username.is_empty() && !auth.auth.is_empty() {
        let decoded = String::from_utf8(STANDARD.decode(auth.auth.trim()).ok()?).ok()?;
        let (user, secret) = decoded.split_once(':')?;
        (username, password) = (user.to_owned(), secret.to_owned());
    }
    // Without the server's address: containerd uses the rest only if that is a URL with the very host that it asks,
    // which the secret's key seldom is (a bare host, a path, Docker's old name).
    Some(AuthConfig {
        username,
        password,
        identity_token: auth.identitytoken,
        ..AuthConfig::default()
    })
}

/// Names without a registry mean Docker's.
fn qualified(image: &str) -> String {
    let first = image.split('/').next().unwrap_or_default();
    let has_registry = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    if has_registry {
        image.to_owned()
    } else {
        format!("docker.io/{image}")
    }
}

/// Whether an entry (`host`, `https://host/v1/`, `host/path`, `*.domain`) is for this image.
fn covers(entry: &str, image: &str) -> bool {
    let entry = entry
        .strip_prefix("https://")
        .or(entry.strip_prefix("http://"))
        .unwrap_or(entry);
    let entry = entry.trim_end_matches('/');
    let entry = entry
        .strip_suffix("/v1")
        .or(entry.strip_suffix("/v2"))
        .unwrap_or(entry);
    let (host, path) = entry.split_once('/').unwrap_or((entry, ""));
    let host = match host {
        "index.docker.io" => "docker.io",
        other => other,
    };
    let Some((registry, name)) = image.split_once('/') else {
        return false;
    };
    let of_path = |rest: &str| rest.is_empty() || rest.starts_with(['/', ':', '@']);
    host_fits(host, registry) && (path.is_empty() || name.strip_prefix(path).is_some_and(of_path))
}

/// A `*` stands for anything within one label of the host's name; a port has to be the same.
fn host_fits(pattern: &str, host: &str) -> bool {
    let label_fits = |pattern: &str, label: &str| match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => label
            .strip_prefix(before)
            .is_some_and(|rest| rest.ends_with(after)),
    };
    pattern.split('.').count() == host.split('.').count()
        && pattern
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, label)| label_fits(pattern, label))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_policy_follows_the_tag_unless_given() {
        let of = |image: &str, policy: Option<&str>| {
            let container = json!({"name": "c", "image": image, "imagePullPolicy": policy});
            PullPolicy::of(&serde_json::from_value(container).unwrap())
        };
        assert_eq!(of("web", None), PullPolicy::Always);
        assert_eq!(of("web:latest", None), PullPolicy::Always);
        assert_eq!(of("web:1", None), PullPolicy::IfNotPresent);
        assert_eq!(of("host:5000/web", None), PullPolicy::Always);
        assert_eq!(of("host:5000/web:1", None), PullPolicy::IfNotPresent);
        assert_eq!(of("web@sha256:abc", None), PullPolicy::IfNotPresent);
        assert_eq!(of("web", Some("Never")), PullPolicy::Never);
    }

    #[test]
    fn a_repository_is_a_full_name_without_tag_and_digest() {
        assert_eq!(repository("host:5000/a/web:1"), "host:5000/a/web");
        assert_eq!(repository("host:5000/web"), "host:5000/web");
        for name in [
            "web",
            "web:1@sha256:abc",
            "docker.io/web",
            "docker.io/library/web:1",
        ] {
            assert_eq!(repository(name), "docker.io/library/web", "{name}");
        }
    }

    #[test]
    fn impossible_names_are_told_at_once() {
        for image in [
            "web",
            "host:5000/a/b:1",
            "a@sha256:abc",
            "windlass.dev/echo:dev",
        ] {
            assert!(check_name(image).is_ok(), "{image}");
        }
        for image in ["", "Web", "a b", "host/", ":tag", "a$b"] {
            assert!(check_name(image).is_err(), "{image}");
        }
    }

    #[test]
    fn credentials_are_those_of_the_images_registry() {
        let secret = |auths: serde_json::Value| -> Secret {
            let text = STANDARD.encode(json!({"auths": auths}).to_string());
            serde_json::from_value(json!({"data": {".dockerconfigjson": text}})).unwrap()
        };
        let secrets = [
            secret(json!({
                "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
                "reg.example.org": {"auth": STANDARD.encode("u:s:t")},
            })),
            secret(json!({"reg.example.org/team": {"username": "team", "password": "p"}})),
            secret(json!({"*.example.net:5000": {"username": "any", "password": "p"}})),
        ];
        let users = |image: &str| -> Vec<_> {
            credentials(image, &secrets)
                .into_iter()
                .map(|(_, auth)| auth.username)
                .collect()
        };
        assert_eq!(users("web:1"), ["hub"]);
        assert_eq!(users("reg.example.org/web"), ["u"]);
        assert_eq!(users("reg.example.org/team/web"), ["u", "team"]);
        assert_eq!(users("eu.example.net:5000/web"), ["any"]);
        for image in [
            "other.example.org/web",
            "reg.example.org:5000/web",
            "eu.example.net/web",
            "a.eu.example.net:5000/web",
            "example.net:5000/web",
        ] {
            assert!(users(image).is_empty(), "{image}");
        }
        let (_, auth) = &credentials("reg.example.org/web", &secrets)[0];
        assert_eq!(
            (auth.password.as_str(), auth.server_address.as_str()),
            ("s:t", "")
        );
    }
}
