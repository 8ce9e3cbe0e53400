//! A Secret's keys as files, and the choice of keys that ConfigMaps share with it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{KeyToPath, SecretProjection};

use crate::payload::{File, Payload};
use crate::volume::Context;
use crate::{Error, Result};

/// An object's content by key.
pub(crate) type Keyed<'a> = BTreeMap<&'a str, &'a [u8]>;

/// The files of a Secret, or none if it is missing and optional.
pub(crate) async fn files(
    context: &Context<'_>,
    source: &SecretProjection,
    default_mode: u32,
) -> Result<Payload> {
    let optional = source.optional.unwrap_or(false);
    let Some(secret) = context
        .objects
        .secret(context.namespace(), &source.name)
        .await?
    else {
        if optional {
            return Ok(Payload::new());
        }
        return Err(Error::Missing {
            kind: "secret",
            name: source.name.clone(),
        });
    };
    let keyed: Keyed<'_> = secret
        .data
        .iter()
        .flatten()
        .map(|(key, bytes)| (key.as_str(), &bytes.0[..]))
        .collect();
    select(
        "secret",
        &keyed,
        source.items.as_deref(),
        optional,
        |content, mode| File {
            content: content.to_vec(),
            mode: mode.unwrap_or(default_mode),
            owner: None,
        },
    )
}

/// All keys under their own names, or only the listed ones under theirs.
pub(crate) fn select(
    kind: &'static str,
    keyed: &Keyed<'_>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    file: impl Fn(&[u8], Option<u32>) -> File,
) -> Result<Payload> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(keyed
            .iter()
            .map(|(key, c)| ((*key).to_owned(), file(c, None)))
            .collect());
    };
    let mut files = Payload::new();
    for item in items {
        match keyed.get(item.key.as_str()) {
            Some(content) => {
                let mode = item.mode.and_then(|mode| u32::try_from(mode).ok());
                files.insert(item.path.clone(), file(content, mode));
            }
            None if optional => {}
            None => {
                return Err(Error::MissingKey {
                    kind,
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_keys_are_renamed_and_must_exist_unless_optional() {
        let keyed = Keyed::from([("a", &b"1"[..]), ("b", &b"2"[..])]);
        let file = |content: &[u8], mode: Option<u32>| File {
            content: content.to_vec(),
            mode: mode.unwrap_or(0o644),
            owner: None,
        };
        let item = |key: &str, mode| KeyToPath {
            key: key.into(),
            path: format!("p/{key}"),
            mode,
        };

        let all = select("secret", &keyed, None, false, file).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);

        let one = select(
            "secret",
            &keyed,
            Some(&[item("b", Some(0o400))]),
            false,
            file,
        )
        .unwrap();
        assert_eq!(one["p/b"].content, b"2");
        assert_eq!(one["p/b"].mode, 0o400);

        let missing = [item("c", None)];
        assert!(select("secret", &keyed, Some(&missing), false, file).is_err());
        assert!(
            select("secret", &keyed, Some(&missing), true, file)
                .unwrap()
                .is_empty()
        );
    }
}
