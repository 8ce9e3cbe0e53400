//! Field selectors: `spec.nodeName=a,status.phase!=Failed`.

use std::fmt;

use super::SelectorError;

/// All requirements must hold; which fields exist is the resource's to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// `metadata.name`
    pub field: String,
    pub op: FieldOp,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldOp {
    Eq,
    NotEq,
}

impl FieldSelector {
    /// `\\`, `\,` and `\=` stand for themselves in values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in terms(text).filter(|term| !term.is_empty()) {
            let Some((field, op, value)) = split(term) else {
                return Err(SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            let value = unescape(value)?;
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                op,
                value,
            });
        }
        Ok(Self { requirements })
    }

    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements on the fields of which `ours` holds, and the others.
    pub fn partition(&self, ours: impl Fn(&str) -> bool) -> (Self, Self) {
        let (ours, others) = self
            .requirements
            .iter()
            .cloned()
            .partition(|requirement| ours(&requirement.field));
        let selector = |requirements| Self { requirements };
        (selector(ours), selector(others))
    }

    /// The value that a field must have, if the selector says so: lets a caller use an index.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| r.field == field && r.op == FieldOp::Eq)
            .map(|r| r.value.as_str())
    }

    /// `value` gives a field's value; absent is `""`.
    pub fn matches<T: AsRef<str>>(&self, value: impl Fn(&str) -> T) -> bool {
        self.requirements.iter().all(|r| {
            let equal = value(&r.field).as_ref() == r.value;
            equal == (r.op == FieldOp::Eq)
        })
    }
}

/// Splits at commas that are not escaped.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        let separator = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        separator
    })
}

/// Splits at the first operator that is not escaped.
fn split(term: &str) -> Option<(&str, FieldOp, &str)> {
    let mut escaped = false;
    for (index, c) in term.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        escaped = c == '\\';
        let (field, rest) = term.split_at(index);
        if let Some(value) = rest.strip_prefix("!=") {
            return Some((field, FieldOp::NotEq, value));
        }
        if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
            return Some((field, FieldOp::Eq, value));
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => text.push(c),
                other => {
                    let sequence = other.map_or_else(|| "\\".to_owned(), |c| format!("\\{c}"));
                    let why =
                        format!("invalid field selector: invalid escape sequence: {sequence}");
                    return Err(SelectorError(why));
                }
            },
            ',' | '=' => {
                let why = format!("invalid field selector: unescaped character in value: {c}");
                return Err(SelectorError(why));
            }
            c => text.push(c),
        }
    }
    Ok(text)
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace(',', "\\,")
        .replace('=', "\\=")
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, r) in self.requirements.iter().enumerate() {
            let op = if r.op == FieldOp::Eq { "=" } else { "!=" };
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}{op}{}", r.field, escape(&r.value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_parsed_with_escapes() {
        let selector = FieldSelector::parse(r"metadata.name==a\,b,spec.nodeName!=,x=y\=z").unwrap();
        let [name, node, x] = selector.requirements() else {
            panic!("{selector:?}")
        };
        assert_eq!(
            (name.field.as_str(), name.op, name.value.as_str()),
            ("metadata.name", FieldOp::Eq, "a,b")
        );
        assert_eq!((node.op, node.value.as_str()), (FieldOp::NotEq, ""));
        assert_eq!(x.value, "y=z");
        assert_eq!(
            FieldSelector::parse(&selector.to_string()).unwrap(),
            selector
        );
        assert_eq!(selector.exact("metadata.name"), Some("a,b"));
        assert_eq!(selector.exact("spec.nodeName"), None);
    }

    #[test]
    fn nonsense_is_refused_in_upstreams_words() {
        assert_eq!(
            FieldSelector::parse("a=b,c").unwrap_err().to_string(),
            "invalid selector: 'a=b,c'; can't understand 'c'"
        );
        assert!(FieldSelector::parse(r"a=b\x").is_err());
        assert!(FieldSelector::parse("a=b=c").is_err());
        assert!(FieldSelector::parse("").unwrap().is_empty());
    }

    #[test]
    fn matching_compares_texts() {
        let selector = FieldSelector::parse("a=1,b!=2").unwrap();
        assert!(selector.matches(|field| if field == "a" { "1" } else { "" }));
        assert!(!selector.matches(|_| "2"));
    }
}
