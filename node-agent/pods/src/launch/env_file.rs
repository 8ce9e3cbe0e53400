//! Variables out of a file that another container of the pod wrote (KEP-3721).
//!
//! What such a file may say is the part of a shell's language that needs no shell:
//! comments, empty lines, and `NAME='value'` with nothing around the `=`.

/// What the file gives the variable; the first word on it counts.
pub(super) fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut rest = text;
    let mut line = 1;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Ok(None);
        }
        let wrong = |why: &str| {
            let why = match why {
                "" => String::new(),
                why => format!(": {why}"),
            };
            Err(format!(
                "invalid environment variable format at line {line}{why}"
            ))
        };
        let this = rest.lines().next().unwrap_or_default();
        if this.is_empty() || this.starts_with('#') {
            rest = after_line(rest);
            line += 1;
            continue;
        }
        let Some((name, _)) = this.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return wrong("");
        };
        if name.ends_with([' ', '\t']) {
            return wrong("whitespace before '=' is not allowed");
        }
        let Some(quoted) = rest[name.len() + 1..].strip_prefix('\'') else {
            return wrong("value must be enclosed in single quotes");
        };
        let Some((value, behind)) = quoted.split_once('\'') else {
            return wrong("unclosed single quote");
        };
        let behind_here = behind.lines().next().unwrap_or_default();
        let comment = behind_here.trim_start_matches([' ', '\t']);
        let is_apart = comment.len() < behind_here.len();
        if !(comment.is_empty() || is_apart && comment.starts_with('#')) {
            return wrong("unexpected content after closing quote");
        }
        if name == key {
            return Ok(Some(value.to_owned()));
        }
        rest = after_line(behind);
        line += 1 + value.matches('\n').count();
    }
}

fn after_line(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, after)| after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_a_shell_would_read() {
        let file =
            "# who\n\n  A='one' # first\n\tB='two\n  # lines'\nC='$A ${B} \"x=y\" \\'\nE=''\n";
        for (key, expected) in [
            ("A", Some("one")),
            ("B", Some("two\n  # lines")),
            ("C", Some("$A ${B} \"x=y\" \\")),
            ("E", Some("")),
            ("D", None),
        ] {
            assert_eq!(value(file, key).unwrap().as_deref(), expected, "{key}");
        }
        let last = value("A='1'\nB='2'", "B").unwrap();
        assert_eq!(last.as_deref(), Some("2"), "the last line needs no end");
    }

    #[test]
    fn what_a_shell_would_read_otherwise_is_refused() {
        for (file, why) in [
            ("A='1'\nhello\n", "at line 2"),
            ("='1'\n", "at line 1"),
            ("A ='1'\n", "whitespace before '='"),
            ("A= '1'\n", "enclosed in single quotes"),
            ("A=1\n", "enclosed in single quotes"),
            ("A=\"1\"\n", "enclosed in single quotes"),
            ("A='1''2'\n", "after closing quote"),
            ("A='1'#2\n", "after closing quote"),
            ("A='1\nB='2'\n", "after closing quote"),
            ("\n\nA='1\n", "at line 3: unclosed single quote"),
        ] {
            let error = value(file, "Z").unwrap_err();
            assert!(error.contains(why), "{file:?}: {error}");
        }
    }
}
