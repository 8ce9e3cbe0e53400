//! Impersonation: acting as somebody else by `Impersonate-*` headers, where the authorizer allows it.

use std::collections::BTreeMap;

use http::HeaderMap;
use windlass_machinery::status::ApiError;

use super::{GROUP_AUTHENTICATED, GROUP_UNAUTHENTICATED, UserInfo};
use crate::authz::{Attributes, Authorizer, Decision};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The identity that the request acts as: `user` itself, or whom its headers name.
///
/// # Errors
/// 400 when groups, a uid or extras are given without a user; 403 when `user` may not impersonate one of them.
pub fn effective(
    user: UserInfo,
    headers: &HeaderMap,
    authorizer: &dyn Authorizer,
) -> Result<UserInfo, ApiError> {
    let Some(wanted) = requested(headers)? else {
        return Ok(user);
    };
    let service_account = wanted
        .name
        .strip_prefix("system:serviceaccount:")
        .and_then(|r| r.split_once(':'));
    match service_account {
        Some((namespace, name)) => {
            allow(
                &user,
                authorizer,
                "",
                "serviceaccounts",
                "",
                namespace,
                name,
            )?;
        }
        None => allow(&user, authorizer, "", "users", "", "", &wanted.name)?,
    }
    for group in &wanted.groups {
        allow(&user, authorizer, "", "groups", "", "", group)?;
    }
    if !wanted.uid.is_empty() {
        allow(
            &user,
            authorizer,
            "authentication.k8s.io",
            "uids",
            "",
            "",
            &wanted.uid,
        )?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            allow(
                &user,
                authorizer,
                "authentication.k8s.io",
                "userextras",
                key,
                "",
                value,
            )?;
        }
    }
    Ok(with_implied_groups(wanted))
}

fn service_account_groups(name: &str) -> Vec<String> {
    name.strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, account)| UserInfo::service_account(namespace, account, "").groups)
        .unwrap_or_default()
}

fn with_implied_groups(mut user: UserInfo) -> UserInfo {
    if user.groups.is_empty() {
        user.groups = service_account_groups(&user.name);
    }
    let anonymous = user.name == UserInfo::anonymous().name;
    let group = if anonymous {
        GROUP_UNAUTHENTICATED
    } else {
        GROUP_AUTHENTICATED
    };
    if !user.in_group(group) {
        user.groups.push(group.to_owned());
    }
    user
}

fn requested(headers: &HeaderMap) -> Result<Option<UserInfo>, ApiError> {
    let text = |value: &http::HeaderValue| {
        value
            .to_str()
            .map(str::to_owned)
            .map_err(|_| ApiError::bad_request("an impersonation header is not readable text"))
    };
    let one = |name: &str| {
        headers
            .get(name)
            .map(text)
            .transpose()
            .map(Option::unwrap_or_default)
    };
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            extra
                .entry(percent_decoded(key))
                .or_default()
                .push(text(value)?);
        }
    }
    let user = UserInfo {
        name: one(USER)?,
        uid: one(UID)?,
        groups: headers
            .get_all(GROUP)
            .iter()
            .map(text)
            .collect::<Result<_, _>>()?,
        extra,
    };
    if user == UserInfo::default() {
        return Ok(None);
    }
    if user.name.is_empty() {
        return Err(ApiError::bad_request(
            "requested impersonation of groups, a uid or extras without impersonating a user",
        ));
    }
    Ok(Some(user))
}

/// Header names cannot carry every key, so clients percent-encode them.
fn percent_decoded(key: &str) -> String {
    let bytes = key.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| key.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match hex {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| key.to_owned())
}

fn allow(
    user: &UserInfo,
    authorizer: &dyn Authorizer,
    group: &str,
    resource: &str,
    subresource: &str,
    namespace: &str,
    name: &str,
) -> Result<(), ApiError> {
    let attributes = Attributes {
        user,
        verb: "impersonate",
        group,
        version: "v1",
        resource,
        subresource,
        namespace,
        name,
        path: "",
    };
    match authorizer.authorize(&attributes) {
        Decision::Allow => Ok(()),
        _ => Err(attributes.forbidden("")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everyone;
    impl Authorizer for Everyone {
        fn authorize(&self, _: &Attributes<'_>) -> Decision {
            Decision::Allow
        }
    }

    struct Nobody;
    impl Authorizer for Nobody {
        fn authorize(&self, _: &Attributes<'_>) -> Decision {
            Decision::NoOpinion
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, http::HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn a_request_without_the_headers_stays_who_it_is() {
        let user = UserInfo::new("jane", &["dev"]);
        assert_eq!(
            effective(user.clone(), &HeaderMap::new(), &Nobody).unwrap(),
            user
        );
    }

    #[test]
    fn an_allowed_request_becomes_the_named_identity() {
        let map = headers(&[
            ("impersonate-user", "system:serviceaccount:ns:sa"),
            ("impersonate-extra-example.org%2fscope", "a"),
        ]);
        let user = effective(UserInfo::new("root", &[]), &map, &Everyone).unwrap();
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert!(user.in_group("system:serviceaccounts:ns") && user.in_group(GROUP_AUTHENTICATED));
        assert_eq!(user.extra["example.org/scope"], ["a"]);
    }

    #[test]
    fn without_permission_it_is_forbidden_and_without_a_user_it_is_a_bad_request() {
        let map = headers(&[("impersonate-user", "bob")]);
        assert_eq!(
            effective(UserInfo::new("eve", &[]), &map, &Nobody)
                .unwrap_err()
                .code,
            403
        );
        let map = headers(&[("impersonate-group", "admins")]);
        assert_eq!(
            effective(UserInfo::new("eve", &[]), &map, &Everyone)
                .unwrap_err()
                .code,
            400
        );
    }
}
