//! ServiceAccounts.

use serde_json::{Value, json};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};

pub struct ServiceAccount;

/// The annotation that limited pods to the account's own Secrets.
const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Of a Secret only the name is kept: it is in the account's namespace.
fn names_only(object: &mut Value) {
    for secret in tree::each(object, "secrets") {
        let name = secret.at("name").clone();
        *secret = if name.is_null() {
            json!({})
        } else {
            json!({"name": name})
        };
    }
}

impl Strategy for ServiceAccount {
    fn prepare_for_create(&self, object: &mut Value) {
        names_only(object);
    }

    fn prepare_for_update(&self, new: &mut Value, _old: &Value) {
        names_only(new);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let has = |object: &Value| object.at("metadata.annotations").get(MOUNTABLE).is_some();
        if !has(new) || old.is_some_and(has) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted \
             secrets"
        )]
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![object.list("secrets").len(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_secret_only_the_name_is_kept() {
        let mut account = json!({"secrets": [{"kind": "Secret", "name": "a", "namespace": "b"}, {"kind": "Secret"}]});
        ServiceAccount.prepare_for_create(&mut account);
        assert_eq!(account, json!({"secrets": [{"name": "a"}, {}]}));
    }
}
