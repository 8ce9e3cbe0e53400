//! JSON patch (RFC 6902), with limits on how many operations there are and how much they copy.

use serde_json::Value;

use super::rejected;
use crate::fields::go_kind;
use crate::status::ApiError;

/// As many operations as upstream allows.
const MAX_OPERATIONS: usize = 10_000;
/// No object may be nested deeper, whatever the operations build.
const MAX_DEPTH: usize = 128;
/// `copy` can double a document with each operation: all copies together may be this long.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Applies the operations in order.
pub fn json(document: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return Err(no_patch(other, "jsonpatch.Patch")),
    };
    if let Some(other) = operations.iter().find(|operation| !operation.is_object()) {
        return Err(no_patch(other, "jsonpatch.Operation"));
    }
    if operations.len() > MAX_OPERATIONS {
        return Err(ApiError::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut copied = 0;
    for operation in operations {
        apply(document, operation, &mut copied)?;
    }
    Ok(())
}

/// What is not even JSON of the right kind, in the words of Go's decoder.
fn no_patch(value: &Value, go_type: &str) -> ApiError {
    let kind = go_kind(value);
    ApiError::bad_request(format!(
        "json: cannot unmarshal {kind} into Go value of type {go_type}"
    ))
}

fn apply(document: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), ApiError> {
    let text = |field: &str| {
        operation
            .get(field)
            .and_then(Value::as_str)
            .ok_or_else(|| rejected(format!("a JSON patch operation has no {field}")))
    };
    // A missing value is null, as upstream has it: Go's clients leave out what is empty.
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    let op = text("op")?;
    let path = Pointer::parse(text("path")?)?;
    match op {
        "add" => path.add(document, value(), op),
        "remove" => path.remove(document, op).map(drop),
        "replace" => {
            let value = value();
            path.check_depth(&value)?;
            *path.find_mut(document, op)? = value;
            Ok(())
        }
        "test" => {
            let found = path.find_mut(document, op).ok();
            if found.as_deref().unwrap_or(&Value::Null) == &value() {
                Ok(())
            } else {
                Err(rejected(format!(
                    "testing value {} failed: test failed",
                    path.text
                )))
            }
        }
        "copy" => {
            let from = Pointer::parse(text("from")?)?;
            let value = from.find_mut(document, op)?;
            *copied = copied.saturating_add(size(value));
            if *copied > MAX_COPIED_BYTES {
                return Err(ApiError::too_large(format!(
                    "the copies of a JSON patch may be {MAX_COPIED_BYTES} bytes long"
                )));
            }
            let value = value.clone();
            path.add(document, value, op)
        }
        "move" => {
            let from = Pointer::parse(text("from")?)?;
            if path
                .text
                .strip_prefix(from.text)
                .is_some_and(|rest| rest.starts_with('/'))
            {
                return Err(rejected(
                    "move operation does not apply: a value cannot move into itself",
                ));
            }
            let value = from.remove(document, op)?;
            path.add(document, value, op)
        }
        unknown => Err(rejected(format!("Unexpected kind: {unknown}"))),
    }
}

/// About as long as the value's text.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(size).sum::<usize>() + 2,
        Value::Object(map) => {
            map.iter()
                .map(|(key, value)| key.len() + 4 + size(value))
                .sum::<usize>()
                + 2
        }
        _ => 8,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// A JSON pointer (RFC 6901).
struct Pointer<'a> {
    text: &'a str,
    tokens: Vec<String>,
}

impl<'a> Pointer<'a> {
    fn parse(text: &'a str) -> Result<Self, ApiError> {
        if !text.is_empty() && !text.starts_with('/') {
            return Err(rejected(format!("{text:?} is not a JSON pointer")));
        }
        let tokens = text
            .split('/')
            .skip(1)
            .map(|t| t.replace("~1", "/").replace("~0", "~"))
            .collect();
        Ok(Self { text, tokens })
    }

    fn missing(&self, op: &str, what: &str) -> ApiError {
        rejected(format!(
            "{op} operation does not apply: doc is missing {what}: {:?}: missing value",
            self.text
        ))
    }

    fn find_mut<'v>(&self, document: &'v mut Value, op: &str) -> Result<&'v mut Value, ApiError> {
        let mut at = document;
        for token in &self.tokens {
            at = child(at, token).ok_or_else(|| self.missing(op, "path"))?;
        }
        Ok(at)
    }

    /// The container that holds the last token, and that token.
    fn parent<'v>(
        &self,
        document: &'v mut Value,
        op: &str,
    ) -> Result<(&'v mut Value, &str), ApiError> {
        let Some((last, tokens)) = self.tokens.split_last() else {
            return Err(rejected(format!(
                "{op} operation does not apply: the whole document"
            )));
        };
        let mut at = document;
        for token in tokens {
            at = child(at, token).ok_or_else(|| self.missing(op, "path"))?;
        }
        Ok((at, last))
    }

    fn add(&self, document: &mut Value, value: Value, op: &str) -> Result<(), ApiError> {
        self.check_depth(&value)?;
        if self.tokens.is_empty() {
            *document = value;
            return Ok(());
        }
        let (parent, key) = self.parent(document, op)?;
        match parent {
            Value::Object(map) => {
                map.insert(key.to_owned(), value);
                Ok(())
            }
            Value::Array(items) if key == "-" => {
                items.push(value);
                Ok(())
            }
            Value::Array(items) => match index(key) {
                Some(index) if index <= items.len() => {
                    items.insert(index, value);
                    Ok(())
                }
                _ => Err(rejected(format!(
                    "{op} operation does not apply: Unable to access invalid index: {key}: invalid index referenced"
                ))),
            },
            _ => Err(self.missing(op, "path")),
        }
    }

    fn check_depth(&self, value: &Value) -> Result<(), ApiError> {
        if self.tokens.len() + depth(value) > MAX_DEPTH {
            return Err(ApiError::bad_request(
                "a JSON patch nests the object too deeply",
            ));
        }
        Ok(())
    }

    fn remove(&self, document: &mut Value, op: &str) -> Result<Value, ApiError> {
        let (parent, key) = self.parent(document, op)?;
        let removed = match parent {
            Value::Object(map) => map.remove(key),
            Value::Array(items) => index(key)
                .filter(|index| *index < items.len())
                .map(|index| items.remove(index)),
            _ => None,
        };
        removed.ok_or_else(|| self.missing(op, "key"))
    }
}

fn child<'v>(value: &'v mut Value, token: &str) -> Option<&'v mut Value> {
    match value {
        Value::Object(map) => map.get_mut(token),
        Value::Array(items) => items.get_mut(index(token)?),
        _ => None,
    }
}

/// Digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let plain =
        token == "0" || !token.starts_with('0') && token.bytes().all(|b| b.is_ascii_digit());
    if plain { token.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!([{"op": "add", "path": "/a/b", "value": 1}]), json!({"a": {"b": 1}, "l": [1, 2]}))]
    #[case(json!([{"op": "add", "path": "/l/-", "value": 3}]), json!({"a": {}, "l": [1, 2, 3]}))]
    #[case(json!([{"op": "add", "path": "/l/0", "value": 0}]), json!({"a": {}, "l": [0, 1, 2]}))]
    #[case(json!([{"op": "remove", "path": "/l/0"}]), json!({"a": {}, "l": [2]}))]
    #[case(json!([{"op": "replace", "path": "/l", "value": null}]), json!({"a": {}, "l": null}))]
    #[case(json!([{"op": "move", "from": "/l", "path": "/a/x~1y~0z"}]), json!({"a": {"x/y~z": [1, 2]}}))]
    #[case(json!([{"op": "copy", "from": "/l/1", "path": "/n"}]), json!({"a": {}, "l": [1, 2], "n": 2}))]
    #[case(json!([{"op": "test", "path": "/l/1", "value": 2}, {"op": "remove", "path": "/l"}]), json!({"a": {}}))]
    #[case(json!([{"op": "test", "path": "/gone", "value": null}]), json!({"a": {}, "l": [1, 2]}))]
    #[case(json!([{"op": "replace", "path": "", "value": 7}]), json!(7))]
    #[case(json!([{"op": "add", "path": "/a"}]), json!({"a": null, "l": [1, 2]}))]
    #[case(json!([{"op": "replace", "path": "/l"}, {"op": "test", "path": "/l"}]), json!({"a": {}, "l": null}))]
    fn applied(#[case] patch: Value, #[case] expected: Value) {
        let mut document = json!({"a": {}, "l": [1, 2]});
        json(&mut document, &patch).unwrap();
        assert_eq!(document, expected);
    }

    #[rstest]
    #[case(json!({}), 400)]
    #[case(json!([1]), 400)]
    #[case(json!([{}]), 422)]
    #[case(json!([{"op": "fly", "path": "/a"}]), 422)]
    #[case(json!([{"op": "add", "path": "a", "value": 1}]), 422)]
    #[case(json!([{"op": "add", "path": "/x/y", "value": 1}]), 422)]
    #[case(json!([{"op": "add", "path": "/l/3", "value": 1}]), 422)]
    #[case(json!([{"op": "add", "path": "/l/01", "value": 1}]), 422)]
    #[case(json!([{"op": "remove", "path": "/x"}]), 422)]
    #[case(json!([{"op": "remove", "path": ""}]), 422)]
    #[case(json!([{"op": "test", "path": "/l/0", "value": 2}]), 422)]
    #[case(json!([{"op": "move", "from": "/a", "path": "/a/b"}]), 422)]
    fn refused(#[case] patch: Value, #[case] code: u16) {
        let mut document = json!({"a": {}, "l": [1, 2]});
        assert_eq!(json(&mut document, &patch).unwrap_err().code, code);
    }

    #[test]
    fn copies_cannot_grow_without_bound() {
        let double = json!({"op": "copy", "from": "/a", "path": "/a/b"});
        let mut document = json!({"a": {"text": "x".repeat(1000)}});
        let error = json(&mut document, &Value::Array(vec![double; 100])).unwrap_err();
        assert_eq!(error.code, 413);
        let deep = (0..100).fold(json!({}), |inner, _| json!({"a": inner}));
        let mut document = json!({});
        let add = |path: &str| json!({"op": "add", "path": path, "value": deep});
        json(&mut document, &json!([add("/a")])).unwrap();
        let below = "/a".repeat(100);
        assert_eq!(
            json(&mut document, &json!([add(&below)])).unwrap_err().code,
            400
        );
        let many = vec![json!({"op": "remove", "path": "/a"}); MAX_OPERATIONS + 1];
        assert_eq!(
            json(&mut document, &Value::Array(many)).unwrap_err().code,
            413
        );
    }
}
