//! Field errors: what is wrong with which field, in the words that Kubernetes uses.
//!
//! The kinds, their reasons and the wording follow `k8s.io/apimachinery/pkg/util/validation/field`, because
//! users read them in kubectl and tools match on `reason` and `field` of a `Status`' causes.

use std::fmt;

use serde_json::Value;

/// A path to a field, printed as `spec.containers[0].name` or `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The object itself; its children print without a leading dot.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// A path that starts at a top-level field.
    pub fn new(field: &str) -> Self {
        Self(field.to_owned())
    }

    /// The path of a field below this one.
    #[must_use]
    pub fn child(&self, field: &str) -> Self {
        if self.0.is_empty() {
            Self(field.to_owned())
        } else {
            Self(format!("{}.{field}", self.0))
        }
    }

    /// The path of a list's element.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The path of a map's entry.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What kind of fault a [`FieldError`] is; its [`reason`](ErrorKind::reason) is what clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    /// As `Invalid`, without the value.
    Inconsistent,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorKind {
    /// The machine-readable `reason` of a status cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid | Self::Inconsistent => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::Inconsistent | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(
            self,
            Self::Inconsistent
                | Self::Required
                | Self::Forbidden
                | Self::TooLong
                | Self::TooMany
                | Self::Internal
        )
    }
}

/// One fault of one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    /// The field's path, as [`Path`] prints it.
    pub field: String,
    pub value: Value,
    pub detail: String,
}

impl FieldError {
    /// The message without the field's path, as it stands in a status cause.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if self.kind.shows_value() {
            text.push_str(": ");
            // Go's `%q` and JSON agree on strings; everything else is shown as JSON.
            text.push_str(&self.value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// The faults found in one object, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, kind: ErrorKind, field: &Path, value: Value, detail: impl Into<String>) {
        self.0.push(FieldError {
            kind,
            field: field.to_string(),
            value,
            detail: detail.into(),
        });
    }

    pub fn required(&mut self, field: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Required, field, Value::Null, detail);
    }

    pub fn invalid(&mut self, field: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(ErrorKind::Invalid, field, value.into(), detail);
    }

    /// A fault of something that is too much to be shown: upstream leaves its value out.
    pub fn invalid_whole(&mut self, field: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Inconsistent, field, Value::Null, detail);
    }

    pub fn duplicate(&mut self, field: &Path, value: impl Into<Value>) {
        self.push(ErrorKind::Duplicate, field, value.into(), "");
    }

    pub fn not_found(&mut self, field: &Path, value: impl Into<Value>) {
        self.push(ErrorKind::NotFound, field, value.into(), "");
    }

    pub fn forbidden(&mut self, field: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Forbidden, field, Value::Null, detail);
    }

    /// `supported` is listed as it is given, each value quoted: upstream sorts its sets, but not its lists.
    pub fn not_supported(&mut self, field: &Path, value: impl Into<Value>, supported: &[&str]) {
        let quoted: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        self.push(ErrorKind::NotSupported, field, value.into(), detail);
    }

    /// `max` is in bytes.
    pub fn too_long(&mut self, field: &Path, max: usize) {
        let detail = format!("may not be more than {max} bytes");
        self.push(ErrorKind::TooLong, field, Value::Null, detail);
    }

    pub fn too_many(&mut self, field: &Path, actual: usize, max: usize) {
        let detail = format!(
            "{actual}: must have at most {max} item{}",
            if max == 1 { "" } else { "s" }
        );
        self.push(ErrorKind::TooMany, field, Value::Null, detail);
    }

    /// Orders the faults by what they say.
    pub fn sort(&mut self) {
        self.0.sort_by_cached_key(ToString::to_string);
    }

    /// Adds what was found in a part as if it were a whole.
    pub fn append_below(&mut self, path: &Path, found: Self) {
        self.0.extend(found.0.into_iter().map(|mut error| {
            error.field = match error.field.as_str() {
                "" | "<nil>" => path.to_string(),
                field if field.starts_with('[') => format!("{path}{field}"),
                field => format!("{path}.{field}"),
            };
            error
        }));
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, FieldError> {
        self.0.iter()
    }
}

impl fmt::Display for Errors {
    /// One error as it is, several in brackets: what follows `… is invalid: ` in a Status' message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => one.fmt(f),
            many => {
                f.write_str("[")?;
                for (i, error) in many.iter().enumerate() {
                    write!(f, "{}{error}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_messages_read_as_kubernetes_writes_them() {
        let path = Path::new("spec")
            .child("containers")
            .index(0)
            .child("image");
        let mut errors = Errors::new();
        errors.required(&path, "");
        assert_eq!(
            errors.to_string(),
            "spec.containers[0].image: Required value"
        );
        errors.not_supported(
            &Path::new("spec").child("type"),
            "X",
            &["NodePort", "ClusterIP"],
        );
        assert_eq!(
            errors.to_string(),
            "[spec.containers[0].image: Required value, spec.type: Unsupported value: \"X\": \
             supported values: \"NodePort\", \"ClusterIP\"]"
        );
        assert_eq!(
            Path::new("metadata").child("labels").key("a/b").to_string(),
            "metadata.labels[a/b]"
        );
    }
}
