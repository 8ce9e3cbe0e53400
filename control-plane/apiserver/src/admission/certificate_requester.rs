//! Writes into a CertificateSigningRequest who asks. Signers trust these fields, so a client's own give way
//! (upstream's strategy of the kind does this with the request's user).

use async_trait::async_trait;
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};
use crate::authn::UserInfo;

pub(super) struct CertificateRequester;

#[async_trait]
impl Plugin for CertificateRequester {
    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), ApiError> {
        if attributes.operation == Operation::Create
            && attributes.is("certificates.k8s.io", "certificatesigningrequests")
        {
            stamp(object, &attributes.context.user);
        }
        Ok(())
    }
}

fn stamp(object: &mut Value, user: &UserInfo) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for (field, value, is_empty) in [
        ("username", json!(user.name), user.name.is_empty()),
        ("uid", json!(user.uid), user.uid.is_empty()),
        ("groups", json!(user.groups), user.groups.is_empty()),
        ("extra", json!(user.extra), user.extra.is_empty()),
    ] {
        if is_empty {
            spec.remove(field);
        } else {
            spec.insert(field.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_asks_in_anothers_name() {
        let user = UserInfo {
            name: "ann".to_owned(),
            groups: vec!["dev".to_owned()],
            ..UserInfo::default()
        };
        let mut object = json!({"spec": {"username": "root", "uid": "0", "request": "x"}});
        stamp(&mut object, &user);
        assert_eq!(
            object,
            json!({"spec": {"username": "ann", "groups": ["dev"], "request": "x"}})
        );
    }
}
