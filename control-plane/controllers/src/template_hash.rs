//! The short hash that names what a template became: ReplicaSets and ControllerRevisions end in it.

use serde::Serialize;

/// The letters of upstream's `rand.SafeEncodeString`: no vowels, no look-alikes, so that no hash spells
/// a word.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a over the canonical JSON of `template` and the collision count. Upstream hashes Go's dump of the
/// struct instead, so its value differs for the same template; nothing compares across implementations,
/// because templates are compared, not hashes.
pub(crate) fn template_hash<T: Serialize>(template: &T, collisions: Option<i32>) -> String {
    let json = serde_json::to_vec(template).unwrap_or_default();
    let mut hash = fnv1a(0x811c_9dc5, &json);
    if let Some(count) = collisions {
        hash = fnv1a(hash, &count.to_le_bytes());
    }
    safe_encode(&hash.to_string())
}

fn fnv1a(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

fn safe_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_upstreams() {
        // '0' is 48, 48 % 27 = 21 -> '4'; '9' is 57, 57 % 27 = 3 -> 'f'.
        assert_eq!(safe_encode("0"), "4");
        assert_eq!(safe_encode("9"), "f");
        assert_eq!(
            fnv1a(0x811c_9dc5, b"a"),
            0xe40c_292c,
            "the published FNV-1a test vector"
        );
    }

    #[test]
    fn a_collision_gives_another_name_for_the_same_template() {
        let plain = template_hash(&"template", None);
        assert_eq!(plain, template_hash(&"template", None));
        assert_ne!(plain, template_hash(&"template", Some(1)));
        assert_ne!(plain, template_hash(&"other", None));
    }
}
