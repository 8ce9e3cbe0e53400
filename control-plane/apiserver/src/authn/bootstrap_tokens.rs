//! Bootstrap tokens: Secrets in `kube-system` by which new nodes ask for their first certificate.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use windlass_machinery::{meta, time};

use super::UserInfo;
use crate::cacher::Caches;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// Looks tokens up in the cache of Secrets.
pub struct BootstrapTokens {
    caches: Arc<Caches>,
}

impl BootstrapTokens {
    pub fn new(caches: Arc<Caches>) -> Self {
        Self { caches }
    }

    pub(super) fn find(&self, token: &str, now: i64) -> Option<UserInfo> {
        let (id, secret) = parse(token)?;
        let secrets = self.caches.get("/registry/secrets")?;
        let name = format!("bootstrap-token-{id}");
        let object = secrets.get(NAMESPACE, &name)?.decode().ok()?;
        user(&object, id, secret, now)
    }
}

/// `[a-z0-9]{6}.[a-z0-9]{16}`
fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

fn user(object: &Value, id: &str, secret: &str, now: i64) -> Option<UserInfo> {
    let field = |key: &str| -> Option<String> {
        let bytes = STANDARD.decode(object["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    if object["type"] != TYPE || meta::is_deleting(object) || field("token-id")? != id {
        return None;
    }
    if !same(field("token-secret")?.as_bytes(), secret.as_bytes())
        || field("usage-bootstrap-authentication")? != "true"
    {
        return None;
    }
    if let Some(expiration) = field("expiration") {
        // A time that cannot be read has passed.
        let end = time::parse_seconds(&expiration).filter(|end| *end > now);
        end?;
    }
    let extra = field("auth-extra-groups").unwrap_or_default();
    let mut groups = vec![GROUP.to_owned()];
    for group in extra.split(',').map(str::trim).filter(|g| !g.is_empty()) {
        if !group.starts_with("system:bootstrappers:") {
            return None;
        }
        groups.push(group.to_owned());
    }
    Some(UserInfo {
        name: format!("system:bootstrap:{id}"),
        groups,
        ..UserInfo::default()
    })
}

/// Compares in a time that does not tell where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_good_until_it_expires_and_for_what_it_is_for() {
        let data = |key: &str, value: &str| (key.to_owned(), Value::from(STANDARD.encode(value)));
        let mut secret = json!({"type": TYPE, "data": serde_json::Map::from_iter([
            data("token-id", "abcdef"),
            data("token-secret", "0123456789abcdef"),
            data("usage-bootstrap-authentication", "true"),
            data("auth-extra-groups", "system:bootstrappers:workers"),
            data("expiration", "2026-01-01T00:00:00Z"),
        ])});
        let (id, text) = parse("abcdef.0123456789abcdef").unwrap();
        let before = time::parse_seconds("2025-12-31T00:00:00Z").unwrap();
        let found = user(&secret, id, text, before).unwrap();
        assert_eq!(found.name, "system:bootstrap:abcdef");
        assert_eq!(
            found.groups,
            ["system:bootstrappers", "system:bootstrappers:workers"]
        );
        assert_eq!(user(&secret, id, text, before + 86_400), None);
        assert_eq!(user(&secret, id, "0123456789abcdeg", before), None);
        secret["data"]["usage-bootstrap-authentication"] = STANDARD.encode("false").into();
        assert_eq!(user(&secret, id, text, before), None);
        assert_eq!(parse("ABCDEF.0123456789abcdef"), None);
    }
}
