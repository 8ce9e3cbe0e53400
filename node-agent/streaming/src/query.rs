//! The query of a request: percent-decoded pairs, in order, keys repeated where a value is a list.

pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self(pairs.collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, key: &str) -> Vec<String> {
        let matching = self.0.iter().filter(|(name, _)| name == key);
        matching.map(|(_, value)| value.clone()).collect()
    }

    /// As Go's `strconv.ParseBool` reads it; absent or empty is false.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, String> {
        match self.get(key).unwrap_or_default() {
            "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
            "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
            other => Err(format!("{key} {other:?} is neither true nor false")),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        match self.get(key).unwrap_or_default() {
            "" => Ok(None),
            text => {
                let number = text.parse();
                number
                    .map(Some)
                    .map_err(|_| format!("{key} {text:?} must be a number, 0 or more"))
            }
        }
    }
}

/// Percent decoding and `+` for space; a stray `%` stands for itself.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = bytes.get(at + 1..at + 3).and_then(hex);
        match (byte, escaped) {
            (b'%', Some(value)) => {
                decoded.push(value);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            _ => decoded.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(digits[0])? << 4 | digit(digits[1])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_repeated_keys_kept_in_order() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%20%26%C3%A9&x=100%&tty");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a &\u{e9}"]);
        assert_eq!(query.get("x"), Some("100%"));
        assert_eq!(query.flag("tty"), Ok(false));
        assert_eq!(query.get("none"), None);
    }
}
