//! Rules for names, labels, keys and ports, with the sentences that Kubernetes uses for them.
//!
//! Each function returns what is wrong, and nothing when the text is valid, as
//! `k8s.io/apimachinery/pkg/util/validation` does; the sentences end up in `Status` causes that users search for.

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1035_LABEL: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const QUALIFIED_NAME_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

type Faults = Vec<String>;

/// "must be no more than 63 bytes"
pub fn max_len(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// The sentence, followed by examples and the regular expression that upstream states.
fn with_pattern(rule: &str, pattern: &str, examples: &[&str]) -> String {
    let mut text = rule.to_owned();
    if examples.is_empty() {
        text.push_str(&format!(" (regex used for validation is '{pattern}')"));
        return text;
    }
    text.push_str(" (e.g. ");
    for (index, example) in examples.iter().enumerate() {
        if index > 0 {
            text.push_str(" or ");
        }
        text.push_str(&format!("'{example}', "));
    }
    text.push_str(&format!("regex used for validation is '{pattern}')"));
    text
}

/// First and last byte satisfy `edge`, those between `middle`; not empty.
fn framed(text: &str, edge: fn(u8) -> bool, middle: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match bytes {
        [] => false,
        [only] => edge(*only),
        [first, between @ .., last] => {
            edge(*first) && edge(*last) && between.iter().all(|b| middle(*b))
        }
    }
}

fn lower_alphanumeric(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn alphanumeric(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

fn is_label(text: &str) -> bool {
    framed(text, lower_alphanumeric, |b| {
        lower_alphanumeric(b) || b == b'-'
    })
}

fn is_qualified_part(text: &str) -> bool {
    framed(text, alphanumeric, |b| {
        alphanumeric(b) || matches!(b, b'-' | b'_' | b'.')
    })
}

pub fn is_dns1123_label(text: &str) -> Faults {
    let mut faults = Faults::new();
    if text.len() > LABEL_MAX {
        faults.push(max_len(LABEL_MAX));
    }
    if !is_label(text) {
        // Dots are worth their own hint upstream only for subdomains; the label's sentence is one.
        faults.push(with_pattern(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            DNS1123_LABEL,
            &["my-name", "123-abc"],
        ));
    }
    faults
}

pub fn is_dns1123_subdomain(text: &str) -> Faults {
    let mut faults = Faults::new();
    if text.len() > SUBDOMAIN_MAX {
        faults.push(max_len(SUBDOMAIN_MAX));
    }
    if !text.split('.').all(is_label) {
        faults.push(with_pattern(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            DNS1123_SUBDOMAIN,
            &["example.com"],
        ));
    }
    faults
}

/// `*.example.com`
pub fn is_wildcard_dns1123_subdomain(text: &str) -> Faults {
    let mut faults = Faults::new();
    if text.len() > SUBDOMAIN_MAX {
        faults.push(max_len(SUBDOMAIN_MAX));
    }
    if !text
        .strip_prefix("*.")
        .is_some_and(|rest| rest.split('.').all(is_label))
    {
        faults.push(with_pattern(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!(r"\*\.{DNS1123_SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    faults
}

pub fn is_dns1035_label(text: &str) -> Faults {
    let mut faults = Faults::new();
    if text.len() > LABEL_MAX {
        faults.push(max_len(LABEL_MAX));
    }
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        faults.push(with_pattern(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            DNS1035_LABEL,
            &["my-name", "abc-123"],
        ));
    }
    faults
}

/// A label or annotation key, a taint key, a resource name: `[prefix/]name`.
pub fn is_qualified_name(text: &str) -> Faults {
    let mut faults = Faults::new();
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) if !name.contains('/') => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else {
                faults.extend(
                    is_dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|m| format!("prefix part {m}")),
                );
            }
            name
        }
        Some(_) => {
            faults.push(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                with_pattern(QUALIFIED_NAME_RULE, QUALIFIED_NAME, &["MyName", "my.name", "123-abc"])
            ));
            return faults;
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        faults.push(format!("name part {}", max_len(LABEL_MAX)));
    }
    if !is_qualified_part(name) {
        faults.push(format!(
            "name part {}",
            with_pattern(
                QUALIFIED_NAME_RULE,
                QUALIFIED_NAME,
                &["MyName", "my.name", "123-abc"]
            )
        ));
    }
    faults
}

/// A qualified name whose prefix is required: finalizers of custom owners, readiness gates, extended resources.
pub fn is_domain_prefixed_path(text: &str) -> Faults {
    let mut faults = Faults::new();
    match text.split_once('/') {
        Some((host, path)) if !host.is_empty() && !path.is_empty() => {
            faults.extend(is_dns1123_subdomain(host));
            let legal = |b: u8| alphanumeric(b) || b"/-._~%!$&'()*+,;=:".contains(&b);
            if !path.bytes().all(legal) {
                faults.push(with_pattern(
                    "Invalid path",
                    r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+",
                    &[],
                ));
            }
        }
        _ => faults.push("must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned()),
    }
    faults
}

pub fn is_label_value(text: &str) -> Faults {
    let mut faults = Faults::new();
    if text.len() > LABEL_MAX {
        faults.push(max_len(LABEL_MAX));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        faults.push(with_pattern(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            LABEL_VALUE,
            &["MyValue", "my_value", "12345"],
        ));
    }
    faults
}

/// What may stand between two slashes of a URL: names of RBAC objects.
pub fn is_path_segment(text: &str) -> Faults {
    match text {
        "." => vec!["may not be '.'".to_owned()],
        ".." => vec!["may not be '..'".to_owned()],
        _ => ["/", "%"]
            .into_iter()
            .filter(|illegal| text.contains(illegal))
            .map(|illegal| format!("may not contain '{illegal}'"))
            .collect(),
    }
}

/// `must be between 1 and 65535, inclusive`
pub fn inclusive_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// An IANA service name: a container port's name.
pub fn is_valid_port_name(text: &str) -> Faults {
    let mut faults = Faults::new();
    if text.len() > 15 {
        faults.push(max_len(15));
    }
    if text.is_empty() || !text.bytes().all(|b| lower_alphanumeric(b) || b == b'-') {
        faults.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        faults.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        faults.push("must not begin or end with a hyphen".to_owned());
    }
    faults
}

/// A key of a ConfigMap or Secret: becomes a file's name.
pub fn is_config_map_key(text: &str) -> Faults {
    let mut faults = Faults::new();
    if text.len() > SUBDOMAIN_MAX {
        faults.push(max_len(SUBDOMAIN_MAX));
    }
    if text.is_empty()
        || !text
            .bytes()
            .all(|b| alphanumeric(b) || matches!(b, b'-' | b'.' | b'_'))
    {
        faults.push(with_pattern(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if text == "." {
        faults.push("must not be '.'".to_owned());
    } else if text == ".." {
        faults.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        faults.push("must not start with '..'".to_owned());
    }
    faults
}

/// The relaxed rule, which is generally available since v1.34.
pub fn is_env_var_name(text: &str) -> Faults {
    let mut faults = Faults::new();
    if text.is_empty() {
        faults.push("environment variable name must be non-empty".to_owned());
    }
    if !text
        .bytes()
        .all(|b| (b' '..=b'~').contains(&b) && b != b'=')
    {
        faults.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned(),
        );
    }
    faults
}

/// What is an identifier in its form, and yet none in an expression (CEL's language definition).
pub const CEL_KEYWORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

pub fn is_c_identifier(text: &str) -> Faults {
    let valid = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| alphanumeric(b) || b == b'_');
    if valid {
        return Faults::new();
    }
    vec![with_pattern(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

pub fn is_http_header_name(text: &str) -> Faults {
    if !text.is_empty() && text.bytes().all(|b| alphanumeric(b) || b == b'-') {
        return Faults::new();
    }
    vec![with_pattern(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

pub fn is_valid_ip(text: &str) -> Faults {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Faults::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
}

/// `10.0.0.0/8`; host bits may be set, as upstream's legacy parser allows.
pub fn is_valid_cidr(text: &str) -> Faults {
    let valid = text.split_once('/').is_some_and(|(address, bits)| {
        let max = match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        !bits.is_empty()
            && bits.bytes().all(|b| b.is_ascii_digit())
            && bits.parse::<u8>().is_ok_and(|bits| bits <= max)
    });
    if valid {
        return Faults::new();
    }
    vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(is_dns1123_label, &["a", "a-b", "0", "x1"], &["", "A", "-a", "a-", "a.b", "a_b", "ä"])]
    #[case(is_dns1123_subdomain, &["a", "a.b-c.d"], &["", ".a", "a..b", "a.", "a.-b", "A.b"])]
    #[case(is_dns1035_label, &["a", "a1-b"], &["", "1a", "a-", "A"])]
    #[case(is_qualified_name, &["a", "A.b_c-d", "example.com/A", "1"], &["", "/a", "a/", "a/b/c", "-a", "A/b", "a b"])]
    #[case(is_label_value, &["", "a", "A_b.c-1"], &["-a", "a-", "a/b", " "])]
    #[case(is_path_segment, &["a:b", "system:node", "..."], &[".", "..", "a/b", "a%b"])]
    #[case(is_valid_port_name, &["http", "a-1", "x"], &["", "1", "-a", "a--b", "a_b", "abcdefghijklmnop"])]
    #[case(is_config_map_key, &["a", ".a", "A_b-c.d"], &["", ".", "..", "..a", "a/b"])]
    #[case(is_env_var_name, &["A", "a b", "1", "a.b"], &["", "a=b", "ä", "a\n"])]
    #[case(is_valid_cidr, &["10.0.0.0/8", "fd00::/64", "10.0.0.1/32"], &["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/", "10.0.0.0/+8"])]
    #[case(is_wildcard_dns1123_subdomain, &["*.a", "*.a.b"], &["*", "a", "*.", "*.*.a", "**.a"])]
    fn names(
        #[case] rule: fn(&str) -> Vec<String>,
        #[case] valid: &[&str],
        #[case] invalid: &[&str],
    ) {
        for text in valid {
            assert_eq!(rule(text), Vec::<String>::new(), "{text}");
        }
        for text in invalid {
            assert!(!rule(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn sentences_are_upstreams() {
        assert_eq!(
            is_dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(
            is_label_value(&"a".repeat(64)),
            ["must be no more than 63 bytes"]
        );
    }
}
