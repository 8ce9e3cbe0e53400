//! Numbers that may be given as a share of the replicas: `maxSurge: 25%`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which way a share that is no whole number is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Up,
    Down,
}

/// The number behind `value` out of `total`; `None` when it is neither a number nor a percentage.
pub(crate) fn resolve(value: &IntOrString, total: i32, round: Round) -> Option<i32> {
    match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let scaled = percent * i64::from(total);
            let resolved = match round {
                Round::Up => (scaled + 99).div_euclid(100),
                Round::Down => scaled.div_euclid(100),
            };
            i32::try_from(resolved).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let percent = |text: &str| IntOrString::String(text.into());
        let cases = [
            (IntOrString::Int(3), 10, Round::Up, Some(3)),
            (percent("25%"), 10, Round::Up, Some(3)),
            (percent("25%"), 10, Round::Down, Some(2)),
            (percent("100%"), 7, Round::Up, Some(7)),
            (percent("0%"), 7, Round::Up, Some(0)),
            (percent("25"), 7, Round::Up, None),
            (percent("x%"), 7, Round::Up, None),
        ];
        for (value, total, round, expected) in cases {
            assert_eq!(
                resolve(&value, total, round),
                expected,
                "{value:?} of {total}"
            );
        }
    }
}
