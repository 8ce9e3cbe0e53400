//! Domain names as policies write them: `example.org`, or `*.example.org` for everything below it.
//!
//! A crate of its own, because those who decide about policies and those who answer DNS must agree about what a
//! name means, and neither may depend on the other. Depends on nothing.

use std::{collections::HashMap, fmt, hash::Hash};

/// The most that a name may have, in octets (RFC 1035).
const LONGEST: usize = 253;

/// One name, or all below it. Letters are small, and there is no dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainPattern {
    below: bool,
    name: String,
}

impl DomainPattern {
    /// None: not what the API's own pattern allows.
    pub fn parse(text: &str) -> Option<Self> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        // One label alone is no name of a domain to the API.
        let valid = name.len() <= LONGEST && name.contains('.') && name.split('.').all(is_label);
        valid.then(|| Self {
            below,
            name: name.to_ascii_lowercase(),
        })
    }

    /// `name`: as [`normal`] makes it.
    pub fn matches(&self, name: &str) -> bool {
        if !self.below {
            return self.name == name;
        }
        // At least one label more.
        name.strip_suffix(&self.name)
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|rest| !rest.is_empty())
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.below { "*." } else { "" };
        write!(f, "{star}{}", self.name)
    }
}

fn is_label(label: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = label.as_bytes();
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_'))
}

/// A name as it is compared: in small letters, without the dot at its end.
pub fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Patterns, each with something; which of them match a name costs what the name has labels.
#[derive(Clone, Debug)]
pub struct DomainMap<T> {
    exact: HashMap<String, T>,
    below: HashMap<String, T>,
}

impl<T> Default for DomainMap<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            below: HashMap::new(),
        }
    }
}

impl<T> DomainMap<T> {
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    pub fn insert(&mut self, pattern: &DomainPattern, with: T) {
        self.side(pattern).insert(pattern.name.clone(), with);
    }

    pub fn remove(&mut self, pattern: &DomainPattern) {
        self.side(pattern).remove(&pattern.name);
    }

    fn side(&mut self, pattern: &DomainPattern) -> &mut HashMap<String, T> {
        match pattern.below {
            true => &mut self.below,
            false => &mut self.exact,
        }
    }

    /// What goes with the patterns that match. `name`: as [`normal`] makes it.
    pub fn matching<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a T> {
        let parents = name
            .match_indices('.')
            .filter_map(|(dot, _)| self.below.get(&name[dot + 1..]));
        self.exact.get(name).into_iter().chain(parents)
    }
}

impl<'a> FromIterator<&'a DomainPattern> for DomainMap<()> {
    fn from_iter<I: IntoIterator<Item = &'a DomainPattern>>(patterns: I) -> Self {
        let mut map = Self::default();
        for pattern in patterns {
            map.insert(pattern, ());
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the API's own documentation, and what lies beside them.
    #[test]
    fn a_star_means_everything_below_and_not_the_name_itself() {
        for (pattern, name, expected) in [
            ("kubernetes.io", "kubernetes.io", true),
            ("Kubernetes.IO.", "kubernetes.io", true),
            ("kubernetes.io", "www.kubernetes.io", false),
            ("kubernetes.io", "my-kubernetes.io", false),
            ("kubernetes.io", "wikipedia.org", false),
            ("blog.kubernetes.io", "blog.kubernetes.io", true),
            ("blog.kubernetes.io", "www.kubernetes.io", false),
            ("blog.kubernetes.io", "kubernetes.io", false),
            ("*.kubernetes.io", "www.kubernetes.io", true),
            ("*.kubernetes.io", "blog.kubernetes.io", true),
            ("*.kubernetes.io", "latest.blog.kubernetes.io", true),
            ("*.kubernetes.io", "kubernetes.io", false),
            ("*.kubernetes.io", "my-kubernetes.io", false),
            ("*.kubernetes.io", "wikipedia.org", false),
        ] {
            let pattern = DomainPattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(name), expected, "{pattern} and {name}");
            let map: DomainMap<()> = [&pattern].into_iter().collect();
            assert_eq!(
                map.matching(name).count(),
                usize::from(expected),
                "{pattern} and {name}"
            );
        }
    }

    #[test]
    fn what_the_api_does_not_allow_is_no_pattern() {
        let long = format!("{}.io", "a".repeat(64));
        for text in [
            "",
            ".",
            "*",
            "*.",
            "io",
            "*.io",
            "**.kubernetes.io",
            "www.*.io",
            "w*.kubernetes.io",
            "-a.io",
            "a-.io",
            "a..io",
            "a b.io",
            "kubernetes.io..",
            &long,
        ] {
            assert_eq!(DomainPattern::parse(text), None, "{text:?}");
        }
        assert_eq!(normal("WWW.Kubernetes.io."), "www.kubernetes.io");
    }

    #[test]
    fn one_name_may_match_several_patterns() {
        let patterns = ["a.b.io", "*.b.io", "*.a.b.io"].map(|it| DomainPattern::parse(it).unwrap());
        let mut map = DomainMap::default();
        for (number, pattern) in (0..).zip(&patterns) {
            map.insert(pattern, number);
        }
        let found =
            |map: &DomainMap<i32>, name: &str| map.matching(name).copied().collect::<Vec<_>>();
        assert_eq!(found(&map, "a.b.io"), [0, 1]);
        assert_eq!(found(&map, "c.a.b.io"), [2, 1]);
        map.remove(&patterns[1]);
        assert_eq!(found(&map, "a.b.io"), [0]);
    }
}
