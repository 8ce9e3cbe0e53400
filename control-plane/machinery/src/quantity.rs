//! Resource quantities: `500m`, `1.5Gi`, `2e3`.
//!
//! A value is held exactly, in billionths (the finest step that Kubernetes knows; finer ones are rounded up), and
//! capped at 10^28, beyond anything that is counted. The suffix' family is remembered, because the canonical text keeps it.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANOS: i128 = 1_000_000_000;
/// In billionths; twice as much still fits, so sums cannot overflow.
const LIMIT: i128 = 10_i128.pow(28) * NANOS;

/// The family of suffixes in which a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi`, …
    BinarySi,
    /// `m`, `k`, `M`, …
    DecimalSi,
    /// `e3`
    DecimalExponent,
}

/// A parsed quantity; compared by value, whatever it is written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// A text that is no quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSi,
    };

    pub fn parse(text: &str) -> Result<Self, ParseError> {
        text.parse()
    }

    pub fn new(value: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(value) * NANOS,
            format,
        }
    }

    /// `milli` thousandths, as CPU is counted.
    pub fn from_milli(milli: i64) -> Self {
        Self {
            nanos: i128::from(milli) * (NANOS / 1000),
            format: Format::DecimalSi,
        }
    }

    /// Billionths, as CPU is measured.
    pub fn from_nanos(nanos: i64) -> Self {
        Self {
            nanos: i128::from(nanos),
            format: Format::DecimalSi,
        }
    }

    /// Rounded up to a whole number.
    pub fn value(&self) -> i64 {
        self.scaled(NANOS)
    }

    /// Thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANOS / 1000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let rounded = self.nanos.div_euclid(unit) + i128::from(self.nanos.rem_euclid(unit) != 0);
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANOS as f64
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the value has no fraction.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANOS == 0
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Keeps this one's format, unless it is zero.
    #[must_use]
    pub fn add(&self, other: &Self) -> Self {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: (self.nanos + other.nanos).clamp(-LIMIT, LIMIT),
            format,
        }
    }

    #[must_use]
    pub fn sub(&self, other: &Self) -> Self {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: (self.nanos - other.nanos).clamp(-LIMIT, LIMIT),
            format,
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.as_bytes() {
            [] => return Err(ParseError::Format),
            [b'-', ..] => (true, &text[1..]),
            [b'+', ..] => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned
            .bytes()
            .position(|b| !b.is_ascii_digit() && b != b'.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        if number.is_empty() {
            return Err(ParseError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(ParseError::Numeric);
        }
        let (scale, format) = scale(suffix)?;
        let magnitude = match scale {
            Scale::Binary(shift) => times(whole, fraction, 0, 1_i128 << shift),
            Scale::Decimal(exponent) => times(whole, fraction, exponent, 1),
        };
        Ok(Self {
            nanos: if negative { -magnitude } else { magnitude },
            format,
        })
    }
}

enum Scale {
    /// 2^n
    Binary(u32),
    /// 10^n
    Decimal(i32),
}

fn scale(suffix: &str) -> Result<(Scale, Format), ParseError> {
    let decimal = |exponent| Ok((Scale::Decimal(exponent), Format::DecimalSi));
    let binary = |shift| Ok((Scale::Binary(shift), Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or_else(|| {
                let legal = |b: u8| b.is_ascii_digit() || b"eEinumkKMGTP+-".contains(&b);
                if suffix.bytes().all(legal) {
                    ParseError::Suffix
                } else {
                    ParseError::Format
                }
            })?;
            let exponent: i32 = exponent.parse().map_err(|_| ParseError::Suffix)?;
            Ok((Scale::Decimal(exponent), Format::DecimalExponent))
        }
    }
}

/// whole.fraction * 10^exponent * factor in billionths, rounded up and capped.
fn times(whole: &str, fraction: &str, exponent: i32, factor: i128) -> i128 {
    // Digits are added one by one and the text may be as long as a request: what lies beyond the cap or below a
    // billionth only sets a flag.
    let mut magnitude: i128 = 0;
    let mut rest = false;
    let digits = whole.bytes().chain(fraction.bytes());
    let first_power = whole.len() as i64 - 1 + i64::from(exponent) + 9;
    for (index, digit) in digits.enumerate() {
        let digit = i128::from(digit - b'0');
        let power = first_power - index as i64;
        if digit == 0 {
            continue;
        }
        if power > 36 {
            return LIMIT;
        }
        if power >= 0 {
            magnitude += digit * 10_i128.pow(power as u32);
        } else if factor == 1 || power < -18 {
            rest = true;
        } else {
            // A binary factor may lift a fraction above a billionth; handled below with more digits.
            return times_binary(whole, fraction, factor);
        }
    }
    let scaled = magnitude.checked_mul(factor).unwrap_or(LIMIT);
    (scaled + i128::from(rest)).min(LIMIT)
}

/// The same for a binary suffix and a fraction of more than nine digits: counted in 10^-18.
fn times_binary(whole: &str, fraction: &str, factor: i128) -> i128 {
    let Some(whole) = whole.parse::<i128>().ok().or(whole.is_empty().then_some(0)) else {
        return LIMIT;
    };
    let Some(whole) = whole.checked_mul(factor).and_then(|w| w.checked_mul(NANOS)) else {
        return LIMIT;
    };
    let mut atto: i128 = 0;
    for index in 0..18 {
        atto = atto * 10
            + fraction
                .as_bytes()
                .get(index)
                .map_or(0, |b| i128::from(b - b'0'));
    }
    let more = fraction.bytes().skip(18).any(|b| b != b'0');
    // atto < 10^18 and factor <= 2^60: the product stays below 2^120.
    let scaled = atto * factor;
    let nanos = scaled / NANOS + i128::from(scaled % NANOS != 0 || more);
    (whole + nanos).min(LIMIT)
}

impl fmt::Display for Quantity {
    /// The canonical text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.is_integer() {
            let mut value = self.nanos / NANOS;
            // Below 1024 a decimal suffix says it better.
            if value.abs() >= 1024 {
                let mut power = 0;
                while value % 1024 == 0 && power < 6 {
                    value /= 1024;
                    power += 1;
                }
                return write!(
                    f,
                    "{value}{}",
                    ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]
                );
            }
        }
        let mut mantissa = self.nanos;
        let mut exponent = -9;
        while mantissa % 10 == 0 {
            mantissa /= 10;
            exponent += 1;
        }
        while exponent % 3 != 0 || exponent > 18 {
            mantissa *= 10;
            exponent -= 1;
        }
        write!(f, "{mantissa}")?;
        if self.format == Format::DecimalExponent {
            return if exponent == 0 {
                Ok(())
            } else {
                write!(f, "e{exponent}")
            };
        }
        f.write_str(
            ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][((exponent + 9) / 3) as usize],
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", "0", 0, 0)]
    #[case("1", "1", 1, 1000)]
    #[case("0.5", "500m", 1, 500)]
    #[case("1.5Gi", "1536Mi", 1_610_612_736, 1_610_612_736_000)]
    #[case("1024Mi", "1Gi", 1 << 30, 1000 << 30)]
    #[case("1000m", "1", 1, 1000)]
    #[case("100Ki", "100Ki", 102_400, 102_400_000)]
    #[case("512", "512", 512, 512_000)]
    #[case("0.5Ki", "512", 512, 512_000)]
    #[case("1e3", "1e3", 1000, 1_000_000)]
    #[case("1E", "1E", 1_000_000_000_000_000_000, i64::MAX)]
    #[case("12345", "12345", 12345, 12_345_000)]
    #[case("1n", "1n", 1, 1)]
    #[case("0.1n", "1n", 1, 1)]
    #[case("-1500m", "-1500m", -1, -1500)]
    #[case("+2k", "2k", 2000, 2_000_000)]
    #[case(".5", "500m", 1, 500)]
    #[case("5.", "5", 5, 5000)]
    #[case("1.1Ki", "1126400m", 1127, 1_126_400)]
    #[case("100E", "100E", i64::MAX, i64::MAX)]
    #[case("9223372036854775808", "9223372036854775808", i64::MAX, i64::MAX)]
    #[case("3e20", "300e18", i64::MAX, i64::MAX)]
    #[case("9e99", "10000000000e18", i64::MAX, i64::MAX)]
    #[case("1e-3", "1e-3", 1, 1)]
    fn parsed_and_printed(
        #[case] text: &str,
        #[case] canonical: &str,
        #[case] value: i64,
        #[case] milli: i64,
    ) {
        let quantity = Quantity::parse(text).unwrap();
        assert_eq!(quantity.to_string(), canonical);
        assert_eq!((quantity.value(), quantity.milli_value()), (value, milli));
    }

    #[rstest]
    #[case("", ParseError::Format)]
    #[case("abc", ParseError::Format)]
    #[case("1.2.3", ParseError::Numeric)]
    #[case("1x", ParseError::Format)]
    #[case("1KiB", ParseError::Format)]
    #[case("1mm", ParseError::Suffix)]
    #[case("1K", ParseError::Suffix)]
    #[case("1e", ParseError::Suffix)]
    #[case("1e99999999999", ParseError::Suffix)]
    #[case("--1", ParseError::Format)]
    #[case("1 ", ParseError::Format)]
    fn refused(#[case] text: &str, #[case] error: ParseError) {
        assert_eq!(Quantity::parse(text).unwrap_err(), error, "{text}");
    }

    #[test]
    fn hostile_lengths_cost_little() {
        let long = "9".repeat(1_000_000);
        assert_eq!(Quantity::parse(&long).unwrap().value(), i64::MAX);
        assert_eq!(
            Quantity::parse(&format!("0.{long}Gi")).unwrap().value(),
            1 << 30
        );
        assert_eq!(
            Quantity::parse(&format!("0.{}1", "0".repeat(100_000)))
                .unwrap()
                .to_string(),
            "1n"
        );
    }

    proptest! {
        #[test]
        fn the_canonical_text_means_the_same(
            whole in 0_u64..1_000_000_000, fraction in 0_u32..1000,
            suffix in prop::sample::select(vec!["", "n", "u", "m", "k", "M", "G", "Ki", "Mi", "Gi", "e2", "E-2"]),
        ) {
            let quantity = Quantity::parse(&format!("{whole}.{fraction:03}{suffix}")).unwrap();
            let again = Quantity::parse(&quantity.to_string()).unwrap();
            prop_assert_eq!(quantity, again);
            prop_assert_eq!(quantity.to_string(), again.to_string());
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[-+]?[0-9.]{0,40}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let _ = (quantity.to_string(), quantity.value(), quantity.milli_value());
            }
        }
    }
}
