//! Optional fields (`object.?spec.?replicas.orValue(1)`) and macros of two variables (`labels.all(k, v, …)`), written out in the
//! language that the evaluator knows.
//!
//! The rewriting is one of texts, since the compiler takes texts. It knows no grammar beyond what an operand is: a name, literal
//! or bracket, and what is selected from, indexed in or called on it. Everything else is copied as it stands.

use std::borrow::Cow;

/// The expression without what the evaluator does not know; what cannot be read is left to the compiler to refuse.
pub(crate) fn plain(expression: &str) -> Cow<'_, str> {
    const SIGNS: [&str; 9] = [
        ".?",
        "[?",
        ".optMap(",
        ".optFlatMap(",
        ".transform",
        ".all(",
        ".exists(",
        ".existsOne(",
        ".exists_one(",
    ];
    if !SIGNS.iter().any(|sign| expression.contains(sign)) {
        return Cow::Borrowed(expression);
    }
    let mut reader = Reader {
        rest: expression,
        depth: 0,
    };
    match reader.until_closed() {
        Some(text) if reader.rest.is_empty() && text != expression => Cow::Owned(text),
        _ => Cow::Borrowed(expression),
    }
}

/// The expression with a variable that may be there or not: `list` holds its value, or nothing.
pub(crate) fn with_optional(expression: &str, variable: &str, list: &str) -> String {
    let mut text = String::with_capacity(expression.len() + 32);
    let mut rest = expression;
    let mut is_field = false;
    while let Some(first) = rest.chars().next() {
        let length = match (literal_length(rest), name_length(rest)) {
            (Some(length), _) => length,
            (None, 0) => first.len_utf8(),
            (None, length) => length,
        };
        let (token, after) = rest.split_at(length);
        match token == variable && !is_field {
            true => {
                text.push_str(list);
                text.push_str("[?0]");
            }
            false => text.push_str(token),
        }
        is_field = match token {
            "." => true,
            // As in `self.?name`; elsewhere it stands between a condition and what follows.
            "?" => is_field,
            blank if blank.trim().is_empty() => is_field,
            _ => false,
        };
        rest = after;
    }
    text
}

/// Deeper nesting is the compiler's to refuse.
const MAX_DEPTH: usize = 64;

struct Reader<'t> {
    rest: &'t str,
    depth: usize,
}

/// An operand so far.
struct Operand {
    text: String,
    /// What must hold for it to be there; empty for what is no optional.
    conditions: Vec<String>,
}

impl Operand {
    fn plain(text: String) -> Self {
        Self {
            text,
            conditions: Vec::new(),
        }
    }

    fn is_optional(&self) -> bool {
        !self.conditions.is_empty()
    }

    fn present(&self) -> String {
        self.conditions.join(" && ")
    }

    /// The value as the evaluator's own optional.
    fn finish(self) -> String {
        match self.is_optional() {
            true => format!(
                "({} ? optional.of({}) : optional.none())",
                self.present(),
                self.text
            ),
            false => self.text,
        }
    }

    fn select(mut self, name: &str, optional: bool) -> Self {
        let selected = format!("{}.{name}", self.text);
        if optional || self.is_optional() {
            self.conditions.push(format!("has({selected})"));
        }
        self.text = selected;
        self
    }

    fn index(mut self, index: &str, optional: bool) -> Self {
        let of = &self.text;
        if optional || self.is_optional() {
            let key = index.trim();
            self.conditions.push(match key.chars().next() {
                Some('0'..='9') => format!("{of}.size() > {key}"),
                Some('\'' | '"') => format!("{key} in {of}"),
                _ => format!("({} ? {key} < {of}.size() : {key} in {of})", is_list(of)),
            });
        }
        self.text = format!("{of}[{index}]");
        self
    }

    /// A method that is a macro here, or the evaluator's own.
    fn call(self, name: &str, arguments: &[String]) -> Self {
        if self.is_optional() {
            return self.call_of_optional(name, arguments);
        }
        let of = &self.text;
        let trimmed: Vec<&str> = arguments.iter().map(|a| a.trim()).collect();
        let text = match (name, trimmed.as_slice()) {
            ("optMap", [variable, body]) => format!(
                "({of}.hasValue() ? optional.of([{of}.value()].map({variable}, {body})[0]) : optional.none())"
            ),
            ("optFlatMap", [variable, body]) => format!(
                "({of}.hasValue() ? [{of}.value()].map({variable}, {body})[0] : optional.none())"
            ),
            ("all" | "exists", [key, value, body]) => {
                format!(
                    "{}.{name}({key}, [{of}[{key}]].{name}({value}, {body}))",
                    keys(of)
                )
            }
            ("existsOne" | "exists_one", [key, value, body]) => {
                format!(
                    "{}.exists_one({key}, [{of}[{key}]].exists({value}, {body}))",
                    keys(of)
                )
            }
            ("transformList", [key, value, .., body]) => {
                let each = format!("[{of}[{key}]].map({value}, {body})[0]");
                format!("{}.map({key}, {each})", filtered(of, &trimmed))
            }
            ("transformMap", [key, value, .., body]) => {
                let each = format!("[{of}[{key}]].map({value}, [{key}, {body}])[0]");
                format!("mapOfPairs({}.map({key}, {each}))", filtered(of, &trimmed))
            }
            ("transformMapEntry", [key, value, .., body]) => {
                let each = format!("[{of}[{key}]].map({value}, {body})[0]");
                format!("mapOfMaps({}.map({key}, {each}))", filtered(of, &trimmed))
            }
            _ => format!("{of}.{name}({})", arguments.join(",")),
        };
        Self::plain(text)
    }

    fn call_of_optional(self, name: &str, arguments: &[String]) -> Self {
        let (present, of) = (self.present(), &self.text);
        let trimmed: Vec<&str> = arguments.iter().map(|a| a.trim()).collect();
        Self::plain(match (name, trimmed.as_slice()) {
            ("orValue", [other]) => format!("({present} ? {of} : ({other}))"),
            ("hasValue", []) => format!("({present})"),
            ("value", []) => format!("({present} ? {of} : optional.none().value())"),
            ("or", [other]) => format!("({present} ? optional.of({of}) : ({other}))"),
            ("optMap", [variable, body]) => format!(
                "({present} ? optional.of([{of}].map({variable}, {body})[0]) : optional.none())"
            ),
            ("optFlatMap", [variable, body]) => {
                format!("({present} ? [{of}].map({variable}, {body})[0] : optional.none())")
            }
            _ => format!("{}.{name}({})", self.finish(), arguments.join(",")),
        })
    }
}

/// Whether a value is a list: what a list's macro visits are its elements, what a map's visits are keys.
fn is_list(of: &str) -> String {
    format!("{of} == {of}.map(e__, e__)")
}

/// A list's indices, or a map's keys.
fn keys(of: &str) -> String {
    format!(
        "({} ? lists.range({of}.size()) : {of}.map(e__, e__))",
        is_list(of)
    )
}

/// The keys for which the third of four arguments holds.
fn filtered(of: &str, arguments: &[&str]) -> String {
    match arguments {
        [key, value, filter, _] => {
            format!(
                "{}.filter({key}, [{of}[{key}]].exists({value}, {filter}))",
                keys(of)
            )
        }
        _ => keys(of),
    }
}

impl<'t> Reader<'t> {
    /// Up to the bracket that closes what was opened before, or the end.
    fn until_closed(&mut self) -> Option<String> {
        let mut text = String::new();
        self.copy_until(&mut text, |c| matches!(c, ')' | ']' | '}'))?;
        Some(text)
    }

    fn copy_until(&mut self, text: &mut String, end: impl Fn(char) -> bool) -> Option<()> {
        if self.depth > MAX_DEPTH {
            return None;
        }
        while let Some(c) = self.rest.chars().next() {
            if end(c) {
                break;
            }
            if c.is_ascii_alphanumeric() || matches!(c, '_' | '\'' | '"' | '(' | '[' | '{') {
                if &self.rest[..name_length(self.rest)] == "in" {
                    text.push_str(self.take(2));
                    continue;
                }
                let operand = self.operand()?;
                text.push_str(&operand);
            } else {
                text.push_str(self.take(c.len_utf8()));
            }
        }
        Some(())
    }

    fn operand(&mut self) -> Option<String> {
        let mut operand = Operand::plain(self.primary()?);
        loop {
            let rest = self.rest;
            let after = rest.trim_start();
            if let Some(selected) = after.strip_prefix('.') {
                let (optional, selected) = match selected.strip_prefix('?') {
                    Some(selected) => (true, selected),
                    None => (false, selected),
                };
                let selected = selected.trim_start();
                let length = name_length(selected);
                if length == 0 {
                    return None;
                }
                let name = &selected[..length];
                self.rest = &selected[length..];
                operand = match !optional && self.rest.starts_with('(') {
                    true => {
                        let arguments = self.arguments()?;
                        operand.call(name, &arguments)
                    }
                    false => operand.select(name, optional),
                };
            } else if let Some(indexed) = after.strip_prefix('[') {
                self.rest = indexed;
                let optional = self.rest.starts_with('?');
                self.take(usize::from(optional));
                let index = self.bracketed(']')?;
                operand = operand.index(&index, optional);
            } else {
                self.rest = rest;
                return Some(operand.finish());
            }
        }
    }

    /// A name, a literal, a call of a function or something in brackets.
    fn primary(&mut self) -> Option<String> {
        let first = self.rest.chars().next()?;
        if matches!(first, '(' | '[' | '{') {
            self.take(1);
            let close = match first {
                '(' => ')',
                '[' => ']',
                _ => '}',
            };
            return Some(format!("{first}{}{close}", self.bracketed(close)?));
        }
        if let Some(length) = literal_length(self.rest) {
            return Some(self.take(length).to_owned());
        }
        let length = name_length(self.rest);
        let name = self.take(length.max(1)).to_owned();
        if self.rest.starts_with('(') {
            return Some(format!("{name}({})", self.arguments()?.join(",")));
        }
        Some(name)
    }

    /// What the bracket that was opened holds; takes the one that closes it.
    fn bracketed(&mut self, close: char) -> Option<String> {
        self.depth += 1;
        let inside = self.until_closed()?;
        self.depth -= 1;
        self.rest = self.rest.strip_prefix(close)?;
        Some(inside)
    }

    fn arguments(&mut self) -> Option<Vec<String>> {
        self.take(1);
        self.depth += 1;
        let mut arguments = Vec::new();
        loop {
            let mut text = String::new();
            self.copy_until(&mut text, |c| matches!(c, ',' | ')' | ']' | '}'))?;
            let closed = self.rest.starts_with(')');
            if !closed || !arguments.is_empty() || !text.trim().is_empty() {
                arguments.push(text);
            }
            if closed {
                self.take(1);
                self.depth -= 1;
                return Some(arguments);
            }
            self.rest = self.rest.strip_prefix(',')?;
        }
    }

    fn take(&mut self, length: usize) -> &'t str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }
}

/// The length of a name, quoted or not; 0 for what is none.
fn name_length(text: &str) -> usize {
    if let Some(quoted) = text.strip_prefix('`') {
        return quoted.find('`').map_or(0, |end| end + 2);
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    end.unwrap_or(text.len())
}

/// The length of a number or of a quoted text.
fn literal_length(text: &str) -> Option<usize> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let digits = text
            .find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(text.len());
        let fraction = text[digits..]
            .strip_prefix('.')
            .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        return Some(match fraction {
            Some(rest) => {
                digits
                    + 1
                    + rest
                        .find(|c: char| !c.is_ascii_alphanumeric())
                        .unwrap_or(rest.len())
            }
            None => digits,
        });
    }
    let quote = text.find(['\'', '"']).filter(|at| *at <= 2)?;
    let prefix = &text[..quote];
    if !prefix.chars().all(|c| matches!(c, 'r' | 'R' | 'b' | 'B')) {
        return None;
    }
    let is_raw = prefix.contains(['r', 'R']);
    let quoted = &text[quote..];
    let mark = &quoted[..1];
    let delimiter = match quoted.starts_with(&mark.repeat(3)) {
        true => mark.repeat(3),
        false => mark.to_owned(),
    };
    let mut at = delimiter.len();
    loop {
        let rest = quoted.get(at..)?;
        if rest.starts_with(&delimiter) {
            return Some(quote + at + delimiter.len());
        }
        let c = rest.chars().next()?;
        at += c.len_utf8();
        if c == '\\' && !is_raw {
            at += quoted.get(at..)?.chars().next()?.len_utf8();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_stays_as_it_is() {
        for text in [
            "object.spec.containers.all(c, c.image.startsWith('x.?y'))",
            "has(self.a) && self.b[0].c in ['[?', \"it's\"] || 1.5 > 2.0e3",
            r#"self.name.matches(r'^[?]\.') && self.x == '\'.?' "#,
            "{'a': 1}.exists( k , k == 'a' ) ? -1 : self.items.map(i, i > 0, i)[0]",
            "broken.?(",
            "a.?b)",
        ] {
            assert_eq!(plain(text), text);
        }
    }

    #[test]
    fn a_variable_may_be_missing() {
        for (text, expected) in [
            ("oldSelf.hasValue()", "(old.size() > 0)"),
            (
                "self == oldSelf.orValue(self)",
                "self == (old.size() > 0 ? old[0] : (self))",
            ),
            (
                "self.x ? oldSelf.?a.orValue(1) == 1 : self.oldSelf == 'oldSelf'",
                "self.x ? (old.size() > 0 && has(old[0].a) ? old[0].a : (1)) == 1 : self.oldSelf == 'oldSelf'",
            ),
        ] {
            assert_eq!(plain(&with_optional(text, "oldSelf", "old")), expected);
        }
    }

    #[test]
    fn optional_fields_are_asked_for() {
        let table = [
            ("self.?a.orValue(1) < 5", "(has(self.a) ? self.a : (1)) < 5"),
            ("self.?a.b.hasValue()", "(has(self.a) && has(self.a.b))"),
            (
                "object.?m['k'].orValue('')",
                "(has(object.m) && 'k' in object.m ? object.m['k'] : (''))",
            ),
            (
                "l[?0]",
                "(l.size() > 0 ? optional.of(l[0]) : optional.none())",
            ),
            (
                "self.?a.optMap(v, v + 1).orValue(0)",
                "(has(self.a) ? optional.of([self.a].map(v, v + 1)[0]) : optional.none()).orValue(0)",
            ),
            (
                "[self.?a.orValue(self.?b.orValue(2))]",
                "[(has(self.a) ? self.a : ((has(self.b) ? self.b : (2))))]",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(plain(text), expected);
        }
    }
}
