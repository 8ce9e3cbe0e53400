//! Secrets.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::config_map::{MAX_SIZE, decoded_len, frozen};
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::{immutable, sentences};

pub struct Secret;

const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        tree::fill(object, "type", "Opaque");
        if let Some(Value::Object(text)) = tree::remove(object, "stringData") {
            let data = tree::object_at(object, "data");
            for (key, value) in text {
                let value = value.as_str().unwrap_or_default();
                data.insert(key, BASE64_STANDARD.encode(value).into());
            }
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("data");
        let mut size = 0;
        for (key, value) in object.entries("data") {
            sentences(names::is_config_map_key(key), &path.key(key), key, errors);
            size += decoded_len(value.as_str().unwrap_or_default());
        }
        if size > MAX_SIZE {
            errors.too_long(&path, MAX_SIZE);
        }
        required_content(object, &path, errors);
    }

    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "type", errors);
        frozen(new, old, &["data"], errors);
        self.validate(new, Some(old), errors);
    }

    /// Whether there is a pair of certificate and key at all.
    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let missing = [("tls.crt", "certificate"), ("tls.key", "key")];
        let is_pem = |key: &str| {
            let bytes = BASE64_STANDARD.decode(new.at("data").get(key)?.as_str()?);
            Some(String::from_utf8_lossy(&bytes.ok()?).contains("-----BEGIN "))
        };
        let missing = missing
            .into_iter()
            .find(|(key, _)| is_pem(key) != Some(true));
        let of_pair = missing.filter(|_| new.text("type") == "kubernetes.io/tls");
        of_pair
            .map(|(_, what)| format!("tls: failed to find any PEM data in {what} input"))
            .into_iter()
            .collect()
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn field(&self, object: &Value, name: &str) -> String {
        object.text(name).to_owned()
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![
            object.text("type"),
            object.entries("data").count(),
            age(object, now)
        ]
    }
}

/// What each well-known type of Secret must hold.
fn required_content(object: &Value, path: &Path, errors: &mut Errors) {
    let holds = |key: &str| object.at("data").get(key).is_some();
    let mut require = |keys: &[&str]| {
        for key in keys.iter().filter(|key| !holds(key)) {
            errors.required(&path.key(key), "");
        }
    };
    match object.text("type") {
        "kubernetes.io/dockercfg" => require(&[".dockercfg"]),
        "kubernetes.io/dockerconfigjson" => require(&[".dockerconfigjson"]),
        "kubernetes.io/ssh-auth" if object.at("data").get("ssh-privatekey") == Some(&"".into()) => {
            errors.required(&path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/ssh-auth" => require(&["ssh-privatekey"]),
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        "kubernetes.io/basic-auth" if !holds("username") && !holds("password") => {
            require(&["username", "password"]);
        }
        "kubernetes.io/service-account-token" => {
            let account = object
                .at("metadata.annotations")
                .get(ACCOUNT_NAME)
                .and_then(Value::as_str);
            if account.is_none_or(str::is_empty) {
                let path = Path::new("metadata").child("annotations").key(ACCOUNT_NAME);
                errors.required(&path, "");
            }
        }
        _ => {}
    }
    for key in [".dockercfg", ".dockerconfigjson"] {
        let typed = object.text("type").strip_prefix("kubernetes.io/") == key.strip_prefix('.');
        if let Some(value) = object.at("data").get(key).filter(|_| typed) {
            let bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default());
            if let Some(problem) = fault_of_json(&bytes.unwrap_or_default()) {
                errors.invalid(&path.key(key), "<secret contents redacted>", problem);
            }
        }
    }
}

/// Why bytes are no object, in the words of Go's decoder as far as they say where it ends.
fn fault_of_json(bytes: &[u8]) -> Option<String> {
    let problem = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(_) | Value::Null) => return None,
        Ok(other) => {
            let what = match other {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                _ => "number",
            };
            format!("json: cannot unmarshal {what} into Go value of type map[string]interface {{}}")
        }
        Err(error) if error.is_eof() => "unexpected end of JSON input".to_owned(),
        Err(error) => {
            let at = bytes.get(error.column().saturating_sub(1)).copied();
            let character = char::from(at.unwrap_or_default());
            format!("invalid character '{character}' looking for beginning of value")
        }
    };
    Some(problem)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn plain_text_becomes_data() {
        let mut object = json!({"stringData": {"a": "hello"}, "data": {"a": "eA==", "b": "eA=="}});
        Secret.default(&mut object);
        assert_eq!(
            object,
            json!({"type": "Opaque", "data": {"a": "aGVsbG8=", "b": "eA=="}})
        );
    }

    #[test]
    fn well_known_types_need_their_keys() {
        let secret = |kind: &str, data: Value| json!({"type": kind, "data": data});
        for (object, expected) in [
            (secret("Opaque", json!({})), vec![]),
            (
                secret("kubernetes.io/tls", json!({"tls.crt": ""})),
                vec!["data[tls.key]: Required value"],
            ),
            (
                secret("kubernetes.io/basic-auth", json!({})),
                vec![
                    "data[username]: Required value",
                    "data[password]: Required value",
                ],
            ),
            (
                secret("kubernetes.io/service-account-token", json!({})),
                vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
            (
                secret(
                    "kubernetes.io/dockerconfigjson",
                    json!({".dockerconfigjson": "eA=="}),
                ),
                vec![
                    "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": invalid character 'x' looking \
                     for beginning of value",
                ],
            ),
        ] {
            assert_eq!(
                lines(|e| Secret.validate(&object, None, e)),
                expected,
                "{object}"
            );
        }
    }

    #[test]
    fn a_pair_that_is_none_is_told() {
        let data = |text: &str| BASE64_STANDARD.encode(text);
        let pem = data("-----BEGIN CERTIFICATE-----");
        for (data, expected) in [
            (
                json!({"tls.crt": "", "tls.key": pem}),
                vec!["tls: failed to find any PEM data in certificate input"],
            ),
            (
                json!({"tls.crt": pem, "tls.key": data("x")}),
                vec!["tls: failed to find any PEM data in key input"],
            ),
            (json!({"tls.crt": pem, "tls.key": pem}), vec![]),
        ] {
            let object = json!({"type": "kubernetes.io/tls", "data": data});
            assert_eq!(Secret.warnings(&object, None), expected);
        }
        assert_eq!(Secret.warnings(&json!({"type": "Opaque"}), None), [""; 0]);
    }

    #[test]
    fn the_type_is_immutable() {
        let (old, new) = (json!({"type": "Opaque"}), json!({"type": "x"}));
        assert_eq!(
            lines(|e| Secret.validate_change(&new, &old, e)),
            ["type: Invalid value: \"x\": field is immutable"]
        );
    }
}
