//! YAML text to [`Value`], within limits: bodies of `apply` and manifests.
//!
//! Aliases are resolved up to a small budget, so that a few hundred bytes cannot grow into gigabytes.

use serde::de::DeserializeSeed;
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Error};

use crate::json::{DecodeError, Decoded, Seed};

/// The parser takes a large frame of the stack for each level, so this is half of what JSON may have; what is
/// generated and deep (schemas of custom resources) arrives as JSON.
const MAX_DEPTH: usize = 64;
/// Values, keys and brackets of one document; a 3 MiB body of the shortest possible list stays below.
const MAX_NODES: usize = 2_000_000;
/// Values that aliases may repeat, all together.
const MAX_REPLAYED: usize = 100_000;

/// Decodes one YAML document (JSON is YAML too). Duplicates are told as the line that has them.
pub fn decode(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    // Most "YAML" that clients send is JSON, which is read ten times faster and may be nested deeper.
    if bytes.first() == Some(&b'{')
        && let Ok(decoded) = crate::json::decode(bytes)
    {
        return Ok(decoded);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| DecodeError(format!("yaml: {error}")))?;
    // The parser either refuses duplicate keys or drops them silently: a text that has some is read twice.
    match parse(text, DuplicateKeyPolicy::Error) {
        Err(Error::DuplicateMappingKey { key, location, .. }) => {
            let value = parse(text, DuplicateKeyPolicy::LastWins).map_err(refused)?;
            let key = key.unwrap_or_default();
            Ok(Decoded {
                value,
                duplicates: vec![format!(
                    "line {}: key {key:?} already set in map",
                    location.line()
                )],
            })
        }
        other => Ok(Decoded {
            value: other.map_err(refused)?,
            duplicates: Vec::new(),
        }),
    }
}

fn refused(error: Error) -> DecodeError {
    DecodeError(format!("yaml: {error}"))
}

fn parse(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Value, Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
        },
        duplicate_keys: duplicate_keys,
        with_snippet: false,
        // As sigs.k8s.io/yaml reads them: `defaultMode: 0600`.
        legacy_octal_numbers: true,
    };
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |de| {
        Seed::root(&mut Vec::new()).deserialize(de)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn manifests_decode_as_their_json() {
        let text = "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: \"1\"\n  b: |\n    x\n    y\nn: 3\nt: true\nz: ~\nl: [1, x, 1.5]\n";
        let expected = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1", "b": "x\ny\n"},
            "n": 3, "t": true, "z": null, "l": [1, "x", 1.5]});
        assert_eq!(decode(text.as_bytes()).unwrap().value, expected);
        assert_eq!(
            decode(br#"{"a": [1, {"b": "c"}]}"#).unwrap().value,
            json!({"a": [1, {"b": "c"}]})
        );
    }

    #[test]
    fn aliases_and_merge_keys_work_in_small_numbers() {
        let text = "a: &x {k: v}\nb: *x\n";
        assert_eq!(
            decode(text.as_bytes()).unwrap().value,
            json!({"a": {"k": "v"}, "b": {"k": "v"}})
        );
    }

    #[test]
    fn duplicates_are_told_and_the_last_one_wins() {
        let decoded = decode(b"a: 1\nb: 2\na: 3\n").unwrap();
        assert_eq!(
            (decoded.value, decoded.duplicates),
            (
                json!({"a": 3, "b": 2}),
                vec!["line 3: key \"a\" already set in map".to_owned()]
            )
        );
    }

    #[test]
    fn a_mode_with_a_leading_zero_is_octal_and_a_text_stays_one() {
        let value = decode(b"mode: 0600\nzero: 0\nname: \"0600\"\ndate: 2026-01-01\nversion: 08\n")
            .unwrap()
            .value;
        assert_eq!(value["mode"], 384);
        assert_eq!(value["zero"], 0);
        assert_eq!(value["name"], "0600");
        assert_eq!(value["date"], "2026-01-01");
    }

    #[test]
    fn bombs_cost_an_error_only() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let previous = format!("*a{}", level - 1);
            let line = vec![previous; 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{line}]\n"));
        }
        assert!(decode(bomb.as_bytes()).is_err());
        assert!(decode("[".repeat(100_000).as_bytes()).is_err());
        assert!(decode(format!("{}{}", "[".repeat(200), "]".repeat(200)).as_bytes()).is_err());
        assert!(decode("- ".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn broken_text_is_an_error() {
        for text in ["a: b: c", "a: [", "\"", "a: 1\n---\nb: 2\n"] {
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
        assert!(decode(&[0xff, 0xfe, 0x00]).is_err());
    }
}
