//! Field names in expressions: those that are no identifiers there are escaped
//! (`k8s.io/apiserver/pkg/cel/escaping.go`).

use std::borrow::Cow;

use windlass_machinery::names::CEL_KEYWORDS;

/// What stands for what; underscores first, so that the others' are not taken for a name's own.
const ESCAPES: [(&str, &str); 4] = [
    ("__", "__underscores__"),
    (".", "__dot__"),
    ("-", "__dash__"),
    ("/", "__slash__"),
];

/// A field's name as expressions call it.
pub(crate) fn escaped(name: &str) -> Cow<'_, str> {
    if CEL_KEYWORDS.contains(&name) {
        return format!("__{name}__").into();
    }
    if !ESCAPES.iter().any(|(plain, _)| name.contains(plain)) {
        return name.into();
    }
    let mut text = String::with_capacity(name.len() + 16);
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let escape = ESCAPES.iter().find(|(plain, _)| rest.starts_with(plain));
        let length = match escape {
            Some((plain, escape)) => {
                text.push_str(escape);
                plain.len()
            }
            None => {
                text.push(first);
                first.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_upstream_does() {
        for (name, expected) in [
            ("replicas", "replicas"),
            ("max_size", "max_size"),
            ("a__b", "a__underscores__b"),
            ("a___b", "a__underscores___b"),
            (
                "app.kubernetes.io/x-y",
                "app__dot__kubernetes__dot__io__slash__x__dash__y",
            ),
            ("namespace", "__namespace__"),
            ("namespaces", "namespaces"),
        ] {
            assert_eq!(escaped(name), expected);
        }
    }
}
