//! Amounts such as `250m`, `1.5Gi` and `2e3`, exactly, in thousandths.

use std::str::FromStr;

/// An amount in thousandths. Smaller fractions round up, as Kubernetes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Quantity {
    milli: i128,
}

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity")]
pub struct ParseQuantityError(String);

impl Quantity {
    /// From thousandths.
    pub const fn from_milli(milli: i128) -> Self {
        Self { milli }
    }

    /// From whole units.
    pub const fn from_units(units: i128) -> Self {
        Self {
            milli: units * 1000,
        }
    }

    /// In thousandths (CPU: millicores).
    pub fn milli(self) -> i64 {
        i64::try_from(self.milli).unwrap_or(i64::MAX)
    }

    /// In whole units, rounded up (memory: bytes).
    pub fn units(self) -> i64 {
        i64::try_from(ceil_div(self.milli, 1000)).unwrap_or(i64::MAX)
    }

    /// How many `divisor`s this is, rounded up; a zero divisor counts as one.
    pub fn divided_by(self, divisor: Self) -> i64 {
        let divisor = if divisor.milli == 0 {
            1000
        } else {
            divisor.milli
        };
        i64::try_from(ceil_div(self.milli, divisor)).unwrap_or(i64::MAX)
    }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text)
            .map(|milli| Self { milli })
            .ok_or_else(|| ParseQuantityError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<i128> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // The number as digits * 10^-scale, times the suffix's factor, in thousandths.
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = u32::try_from(fraction.len()).ok()?;
    let (multiply, divide) = factor(suffix)?;
    let numerator = digits.checked_mul(multiply)?.checked_mul(1000)?;
    let denominator = divide.checked_mul(10i128.checked_pow(scale)?)?;
    let milli = ceil_div(numerator, denominator);
    Some(if negative { -milli } else { milli })
}

fn factor(suffix: &str) -> Option<(i128, i128)> {
    let power = |base: i128, exponent: u32| Some((base.checked_pow(exponent)?, 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => power(10, 3),
        "M" => power(10, 6),
        "G" => power(10, 9),
        "T" => power(10, 12),
        "P" => power(10, 15),
        "E" => power(10, 18),
        "Ki" => power(2, 10),
        "Mi" => power(2, 20),
        "Gi" => power(2, 30),
        "Ti" => power(2, 40),
        "Pi" => power(2, 50),
        "Ei" => power(2, 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let size = 10i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, size) } else { (size, 1) })
        }
    }
}

fn ceil_div(numerator: i128, denominator: i128) -> i128 {
    numerator.div_euclid(denominator) + i128::from(numerator.rem_euclid(denominator) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly() {
        for (text, milli) in [
            ("0", 0),
            ("1", 1000),
            ("250m", 250),
            ("0.1", 100),
            ("1.5Gi", 1_610_612_736_000),
            ("128Mi", 134_217_728_000),
            ("2e3", 2_000_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("5E-1", 500),
            ("100n", 1),
            ("+.5", 500),
            ("-1", -1000),
        ] {
            assert_eq!(
                text.parse::<Quantity>().map(|q| q.milli),
                Ok(milli),
                "{text}"
            );
        }
        for text in ["", "m", "1x", "1.2.3", "Gi", ".", "1 Gi", "--1"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn division_rounds_up() {
        let of = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(of("250m").divided_by(of("1")), 1);
        assert_eq!(of("250m").divided_by(of("1m")), 250);
        assert_eq!(of("64Mi").divided_by(of("1Mi")), 64);
        assert_eq!(of("1500m").divided_by(of("0")), 2);
    }
}
