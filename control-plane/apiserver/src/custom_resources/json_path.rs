//! The part of JSONPath that printer columns, scale paths and selectable fields use: fields, indices, slices, `[*]`,
//! and filters by equality (`.status.conditions[?(@.type=="Ready")].status`).

use serde_json::Value;

/// The value at a plain path such as `.spec.replicas` or `spec.replicas`.
pub(super) fn value<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    select(object, path).first().copied()
}

/// Everything that `path` selects; nothing for a path that cannot be read.
pub(super) fn select<'v>(object: &'v Value, path: &str) -> Vec<&'v Value> {
    let mut found = vec![object];
    let mut rest = path.trim().trim_start_matches('$');
    while !rest.is_empty() {
        let step;
        (step, rest) = next_step(rest);
        found = found
            .into_iter()
            .flat_map(|value| take(value, &step))
            .collect();
    }
    found
}

enum Step<'p> {
    Field(String),
    Index(i64),
    /// From, to, and in which steps: `[-1:]`.
    Slice(Option<i64>, Option<i64>, usize),
    Every,
    /// Elements in which the value at the path equals the text.
    Filter(&'p str, &'p str),
    Nothing,
}

fn next_step(path: &str) -> (Step<'_>, &str) {
    if let Some(inside) = path.strip_prefix('[') {
        let Some(end) = closing(inside) else {
            return (Step::Nothing, "");
        };
        return (bracket(&inside[..end]), &inside[end + 1..]);
    }
    let path = path.strip_prefix('.').unwrap_or(path);
    // A dot may be escaped: `.metadata.annotations.example\.com/x`.
    let mut name = String::new();
    let mut chars = path.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (Step::Field(name), &path[at..]),
            _ => name.push(c),
        }
    }
    (Step::Field(name), "")
}

/// Where the bracket ends, quotes and inner brackets respected.
fn closing(inside: &str) -> Option<usize> {
    let mut quote = None;
    let mut depth = 0;
    for (at, c) in inside.char_indices() {
        match (quote, c) {
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inside: &str) -> Step<'_> {
    if inside == "*" {
        return Step::Every;
    }
    if let Some(quoted) = unquoted(inside) {
        return Step::Field(quoted.to_owned());
    }
    if let Ok(index) = inside.parse() {
        return Step::Index(index);
    }
    if let Some(slice) = slice(inside) {
        return slice;
    }
    let filter = inside
        .strip_prefix("?(@")
        .and_then(|rest| rest.strip_suffix(')'));
    let sides = filter.and_then(|filter| filter.split_once("=="));
    match sides.and_then(|(path, text)| Some((path.trim(), unquoted(text.trim())?))) {
        Some((path, text)) => Step::Filter(path, text),
        None => Step::Nothing,
    }
}

/// `[from:to]` or `[from:to:step]`, of which each may be left out.
fn slice<'p>(inside: &str) -> Option<Step<'p>> {
    let mut bounds = inside.split(':').map(|bound| match bound.trim() {
        "" => Some(None),
        bound => bound.parse::<i64>().ok().map(Some),
    });
    let (from, to) = (bounds.next()??, bounds.next()??);
    let step = match bounds.next() {
        None => 1,
        Some(step) => usize::try_from(step?.unwrap_or(1))
            .ok()
            .filter(|step| *step > 0)?,
    };
    bounds
        .next()
        .is_none()
        .then_some(Step::Slice(from, to, step))
}

/// Where a bound of a slice is; from the end, if it is negative.
fn bound(bound: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let at = if bound < 0 { length + bound } else { bound };
    usize::try_from(at).ok()
}

fn unquoted(text: &str) -> Option<&str> {
    let single = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\''));
    single.or_else(|| text.strip_prefix('"').and_then(|t| t.strip_suffix('"')))
}

fn take<'v>(value: &'v Value, step: &Step<'_>) -> Vec<&'v Value> {
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            let Some(items) = value.as_array() else {
                return Vec::new();
            };
            bound(*index, items.len())
                .and_then(|at| items.get(at))
                .into_iter()
                .collect()
        }
        Step::Slice(from, to, step) => {
            let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let from = bound(from.unwrap_or(0), items.len());
            let to = to.map_or(Some(items.len()), |to| bound(to, items.len()));
            let range = from.zip(to).and_then(|(from, to)| items.get(from..to));
            range.unwrap_or_default().iter().step_by(*step).collect()
        }
        Step::Every => match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Filter(path, text) => {
            let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let fits = |item: &&Value| {
                select(item, path)
                    .first()
                    .is_some_and(|found| *found == text)
            };
            items.iter().filter(fits).collect()
        }
        Step::Nothing => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_find_their_cells() {
        let object = json!({
            "metadata": {"annotations": {"example.com/x": "a"}},
            "spec": {"replicas": 3, "list": [{"n": 1}, {"n": 2}]},
            "status": {"conditions": [
                {"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        let table = [
            (".spec.replicas", json!([3])),
            ("spec.replicas", json!([3])),
            (".spec.list[*].n", json!([1, 2])),
            (".spec.list[-1].n", json!([2])),
            (".spec.list[-1:].n", json!([2])),
            (".spec.list[:1].n", json!([1])),
            (".spec.list[0:2:2].n", json!([1])),
            (".spec.list[5:].n", json!([])),
            (".spec.list[1:0].n", json!([])),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                json!(["True"]),
            ),
            (
                ".status.conditions[?(@.type=='Ready')].status",
                json!(["True"]),
            ),
            (".metadata.annotations.example\\.com/x", json!(["a"])),
            (".metadata.annotations['example.com/x']", json!(["a"])),
            (".spec.missing.deeper", json!([])),
            (".spec.list[", json!([])),
        ];
        for (path, expected) in table {
            assert_eq!(json!(select(&object, path)), expected, "{path}");
        }
    }
}
