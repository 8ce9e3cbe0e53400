//! Sets of completion indexes in the API's notation: `1,3-5,7`.

use std::collections::BTreeSet;

pub(super) type Indexes = BTreeSet<i32>;

/// Reads the notation; what is outside `0..completions` or not a number is left out.
pub(super) fn parse(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(completions - 1));
        }
    }
    indexes
}

/// Writes the notation; two neighbours are `1,2`, three are `1-3`.
pub(super) fn format(indexes: &Indexes) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut iter = indexes.iter().copied().peekable();
    while let Some(first) = iter.next() {
        let mut last = first;
        while iter.peek() == Some(&(last + 1)) {
            last += 1;
            iter.next();
        }
        match last - first {
            0 => parts.push(first.to_string()),
            1 => parts.extend([first.to_string(), last.to_string()]),
            _ => parts.push(format!("{first}-{last}")),
        }
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notation_reads_back_what_it_wrote() {
        for text in ["", "0", "1,3-5,7", "0-9", "1,2,4"] {
            assert_eq!(format(&parse(text, 10)), text);
        }
        assert_eq!(format(&parse("1-20,x,30", 5)), "1-4");
    }
}
