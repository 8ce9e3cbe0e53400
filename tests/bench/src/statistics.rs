//! What may be said of two ways that were measured in alternating rounds, and what may not.

use serde::Serialize;

/// The middle of the rounds and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    /// `low` and `high` are the extremes, of five rounds and more without the outermost on each side: one
    /// round that another program disturbed is no property of what was measured.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let outer = usize::from(values.len() >= 5);
        let (low, high) = (
            *values.get(outer)?,
            *values.get(values.len().checked_sub(1 + outer)?)?,
        );
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            (values[middle - 1] + values[middle]) / 2.0
        } else {
            values[middle]
        };
        Some(Self { low, median, high })
    }

    /// Half the width, as a part of the median.
    pub fn relative(&self) -> f64 {
        if self.median == 0.0 {
            return 0.0;
        }
        (self.high - self.low) / 2.0 / self.median
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    More,
    Less,
    /// The rounds contradict each other: nothing follows.
    WithinTheSpread,
}

/// One way against another, round by round: what disturbs a whole round disturbs both of its halves.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Comparison {
    pub ratio: Spread,
    pub verdict: Verdict,
}

impl Comparison {
    pub fn of(
        ours: impl IntoIterator<Item = f64>,
        theirs: impl IntoIterator<Item = f64>,
    ) -> Option<Self> {
        let pairs = ours.into_iter().zip(theirs);
        let ratio = Spread::of(
            pairs
                .filter(|(_, theirs)| *theirs > 0.0)
                .map(|(a, b)| a / b),
        )?;
        let verdict = if ratio.low > 1.0 {
            Verdict::More
        } else if ratio.high < 1.0 {
            Verdict::Less
        } else {
            Verdict::WithinTheSpread
        };
        Some(Self { ratio, verdict })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disturbed_round_of_five_does_not_widen_the_spread() {
        let spread = Spread::of([10.0, 11.0, 500.0, 12.0, 1.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (10.0, 11.0, 12.0));
        assert!(Spread::of([]).is_none());
    }

    #[test]
    fn rounds_that_contradict_each_other_allow_no_conclusion() {
        let verdict = |ours: [f64; 3]| Comparison::of(ours, [10.0, 10.0, 10.0]).unwrap().verdict;
        assert_eq!(verdict([12.0, 9.0, 12.0]), Verdict::WithinTheSpread);
        assert_eq!(verdict([12.0, 11.0, 12.0]), Verdict::More);
        assert_eq!(verdict([9.0, 8.0, 9.5]), Verdict::Less);
    }

    #[test]
    fn what_disturbs_a_whole_round_is_not_taken_for_a_difference() {
        let comparison = Comparison::of([20.0, 4.0, 21.0], [10.0, 2.0, 10.0]).unwrap();
        assert_eq!(comparison.verdict, Verdict::More);
        assert!((comparison.ratio.median - 2.0).abs() < 1e-9);
    }
}
