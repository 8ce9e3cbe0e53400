//! The string formats that are checked; unknown ones hold for every text, as upstream has it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{names, time};

/// Whether `text` has the format.
pub(super) fn holds(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => time::parse(text).is_some(),
        "date" => text.len() == 10 && time::parse(&format!("{text}T00:00:00Z")).is_some(),
        "duration" => time::parse_duration(text).is_some(),
        "byte" => STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => names::is_valid_cidr(text).is_empty(),
        "hostname" => names::is_dns1123_subdomain(&text.to_ascii_lowercase()).is_empty(),
        "k8s-short-name" => names::is_dns1123_label(text).is_empty(),
        "k8s-long-name" => names::is_dns1123_subdomain(text).is_empty(),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is_uuid(text),
        "email" => text
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "uri" => text.split_once(':').is_some_and(|(scheme, rest)| {
            !rest.is_empty()
                && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        }),
        "mac" => {
            let parts: Vec<_> = text.split([':', '-']).collect();
            matches!(parts.len(), 6 | 8)
                && parts
                    .iter()
                    .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
        }
        _ => true,
    }
}

/// Eight, four, four, four and twelve hexadecimal digits; the dashes may be missing.
fn is_uuid(text: &str) -> bool {
    let digits = text.replace('-', "");
    let dashes: Vec<usize> = text
        .bytes()
        .enumerate()
        .filter(|(_, b)| *b == b'-')
        .map(|(at, _)| at)
        .collect();
    digits.len() == 32
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
        && (dashes.is_empty() || dashes == [8, 13, 18, 23])
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::holds;

    #[rstest]
    #[case("date-time", &["2026-01-02T03:04:05Z"], &["2026-01-02", ""])]
    #[case("date", &["2026-01-02"], &["2026-1-2", "2026-13-01"])]
    #[case("duration", &["1h30m"], &["1 hour"])]
    #[case("byte", &["YWJj", ""], &["!"])]
    #[case("ipv4", &["10.0.0.1"], &["::1", "10.0.0"])]
    #[case("ipv6", &["::1"], &["10.0.0.1"])]
    #[case("uuid", &["0c0d5e3e-7a2b-4b7e-9d43-2f3f8f2d9f11"], &["0c0d5e3e", "0c0d5e3e-7a2b-4b7e-9d43-2f3f8f2d9f1g"])]
    #[case("uri", &["https://example.com"], &["example.com", "1:x"])]
    #[case("mac", &["00:1a:2b:3c:4d:5e"], &["00:1a"])]
    #[case("something-else", &["anything"], &[])]
    fn formats(#[case] format: &str, #[case] valid: &[&str], #[case] invalid: &[&str]) {
        for text in valid {
            assert!(holds(format, text), "{text}");
        }
        for text in invalid {
            assert!(!holds(format, text), "{text}");
        }
    }
}
