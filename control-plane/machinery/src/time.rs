//! Times and durations as Kubernetes writes them.
//!
//! Nothing here reads a clock: callers pass seconds of the Unix epoch.

use jiff::Timestamp;

/// `2026-01-02T03:04:05Z`; years outside 1..=9999 do not occur.
pub fn format(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => String::new(),
    }
}

/// `2026-01-02T03:04:05.000006Z`: MicroTime, as Events and Leases have it.
pub fn format_micros(seconds: i64, micros: u32) -> String {
    match Timestamp::new(seconds, micros.min(999_999) as i32 * 1000) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        Err(_) => String::new(),
    }
}

/// Seconds of the Unix epoch and nanoseconds, from RFC 3339 with any offset.
pub fn parse(text: &str) -> Option<(i64, u32)> {
    // jiff accepts more than RFC 3339 (a space, a zone in brackets); Go does not.
    let bytes = text.as_bytes();
    let shaped = bytes.get(4) == Some(&b'-')
        && bytes.get(7) == Some(&b'-')
        && bytes.get(10) == Some(&b'T')
        && bytes.get(13) == Some(&b':')
        && bytes.get(16) == Some(&b':')
        && bytes.len() <= 40
        && (bytes.ends_with(b"Z") || bytes.len() > 6 && bytes[bytes.len() - 3] == b':');
    if !shaped {
        return None;
    }
    let time: Timestamp = text.parse().ok()?;
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    Some((seconds, nanos as u32))
}

/// Whole seconds of the Unix epoch.
pub fn parse_seconds(text: &str) -> Option<i64> {
    parse(text).map(|(seconds, _)| seconds)
}

/// How kubectl shows an age: `5m30s`, `3h`, `12d`.
pub fn duration_words(seconds: i64) -> String {
    let with_rest = |value: i64, unit: &str, rest: i64, rest_unit: &str| {
        if rest == 0 {
            format!("{value}{unit}")
        } else {
            format!("{value}{unit}{rest}{rest_unit}")
        }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        // A small deviation between clocks is no news.
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => with_rest(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => with_rest(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => with_rest(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => with_rest(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// The age of something created at `created` (RFC 3339), or `<unknown>`.
pub fn age(created: Option<&str>, now: i64) -> String {
    match created.and_then(parse_seconds) {
        Some(created) => duration_words(now - created),
        None => "<unknown>".to_owned(),
    }
}

/// Nanoseconds of a Go duration: `1h30m`, `1.5s`, `-3ms`, `0`.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let end = rest
            .bytes()
            .position(|b| !b.is_ascii_digit() && b != b'.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail
            .bytes()
            .position(|b| b.is_ascii_digit() || b == b'.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        if !fraction.is_empty() {
            if fraction.contains('.') {
                return None;
            }
            let share = format!("0.{fraction}").parse::<f64>().ok()? * unit as f64;
            total = total.checked_add(share as i64)?;
        }
        rest = tail;
    }
    Some(if negative { -total } else { total })
}

/// As Go prints a duration: `1h30m0s`, `1.5s`, `3ms`.
pub fn format_duration(nanos: i64) -> String {
    let fraction = |value: u64, unit: u64| {
        let (whole, rest) = (value / unit, value % unit);
        let digits = unit.ilog10() as usize;
        let text = format!("{whole}.{rest:0digits$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let sign = if nanos < 0 { "-" } else { "" };
    let size = nanos.unsigned_abs();
    let text = match size {
        0 => "0s".to_owned(),
        1..1_000 => format!("{size}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(size, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(size, 1_000_000)),
        _ => {
            let minutes = size / 60_000_000_000;
            let seconds = fraction(size % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2026-01-02T03:04:05Z", Some((1_767_323_045, 0)))]
    #[case("2026-01-02T04:04:05+01:00", Some((1_767_323_045, 0)))]
    #[case("2026-01-02T03:04:05.25Z", Some((1_767_323_045, 250_000_000)))]
    #[case("1969-12-31T23:59:59.5Z", Some((-1, 500_000_000)))]
    #[case("2026-01-02 03:04:05Z", None)]
    #[case("2026-01-02T03:04:05", None)]
    #[case("2026-13-02T03:04:05Z", None)]
    #[case("2026-01-02T03:04:05Z[UTC]", None)]
    #[case("yesterday", None)]
    #[case("", None)]
    fn rfc3339(#[case] text: &str, #[case] expected: Option<(i64, u32)>) {
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn formats_are_kubernetes() {
        assert_eq!(format(1_767_323_045), "2026-01-02T03:04:05Z");
        assert_eq!(
            format_micros(1_767_323_045, 6),
            "2026-01-02T03:04:05.000006Z"
        );
        assert_eq!(format(-62_135_596_800), "0001-01-01T00:00:00Z");
    }

    #[rstest]
    #[case(-5, "<invalid>")]
    #[case(-1, "0s")]
    #[case(119, "119s")]
    #[case(120, "2m")]
    #[case(330, "5m30s")]
    #[case(3600, "60m")]
    #[case(3 * 3600 + 60, "3h1m")]
    #[case(9 * 3600 + 60, "9h")]
    #[case(50 * 3600, "2d2h")]
    #[case(10 * 86400, "10d")]
    #[case(800 * 86400, "2y70d")]
    #[case(9 * 365 * 86400, "9y")]
    fn ages(#[case] seconds: i64, #[case] words: &str) {
        assert_eq!(duration_words(seconds), words);
    }

    #[rstest]
    #[case("1h30m", 5_400_000_000_000, "1h30m0s")]
    #[case("1.5s", 1_500_000_000, "1.5s")]
    #[case("-3ms", -3_000_000, "-3ms")]
    #[case("0", 0, "0s")]
    #[case("100us", 100_000, "100µs")]
    fn go_durations(#[case] text: &str, #[case] nanos: i64, #[case] printed: &str) {
        assert_eq!(parse_duration(text), Some(nanos));
        assert_eq!(format_duration(nanos), printed);
    }

    #[test]
    fn broken_durations_are_refused() {
        for text in [
            "",
            "1",
            "s",
            "1x",
            "1.s2",
            ".s",
            "1..5s",
            "99999999999h",
            "-",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
