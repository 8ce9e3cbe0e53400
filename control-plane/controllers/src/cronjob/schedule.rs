//! Cron schedules, as the API accepts them: five fields, names, ranges, steps, `@daily` and its like,
//! and a time zone. Pure.

use jiff::{
    SignedDuration, Timestamp, ToSpan, Zoned,
    civil::{Date, DateTime},
    tz::TimeZone,
};

/// A set of numbers below 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bits(u64);

impl Bits {
    fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| self.0 >> number & 1 == 1)
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    rule: Rule,
    zone: TimeZone,
}

#[derive(Clone, Debug)]
enum Rule {
    Fields(Box<Fields>),
    /// `@every`: a fixed distance.
    Every(SignedDuration),
}

#[derive(Clone, Debug)]
struct Fields {
    minutes: Bits,
    hours: Bits,
    days: Bits,
    months: Bits,
    weekdays: Bits,
    /// Days of month and week are both restricted: then either will do (crontab(5)).
    either_day: bool,
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule such as 30 February never comes: give up after this many years, as upstream's parser does.
const HORIZON_YEARS: i16 = 5;

impl Schedule {
    /// Reads a schedule; the time zone is UTC unless given, or written as `TZ=` in front.
    pub(super) fn parse(text: &str, zone: Option<&str>) -> Result<Self, String> {
        let (own, text) = match text.strip_prefix("TZ=").or(text.strip_prefix("CRON_TZ=")) {
            Some(rest) => rest.split_once(' ').map(|(zone, rest)| (Some(zone), rest)),
            None => Some((None, text)),
        }
        .ok_or_else(|| format!("schedule {text:?} has a time zone only"))?;
        let zone = match own.or(zone) {
            Some(name) => TimeZone::get(name).map_err(|_| format!("unknown time zone {name:?}"))?,
            None => TimeZone::UTC,
        };
        Ok(Self {
            rule: rule(text.trim())?,
            zone,
        })
    }

    /// The first time after `after`.
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            Rule::Every(distance) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*distance).ok()
            }
            Rule::Fields(fields) => fields.next(&after.to_zoned(self.zone.clone())),
        }
    }

    /// The latest time in `(from, to]`, and whether more than 100 were passed over on the way.
    pub(super) fn latest(&self, from: Timestamp, to: Timestamp) -> (Option<Timestamp>, bool) {
        let mut latest = None;
        let mut missed = 0;
        let mut at = from;
        while let Some(next) = self.next(at).filter(|next| *next <= to) {
            missed += 1;
            latest = Some(next);
            at = next;
            if missed > 100 {
                // Far behind: leap near the end instead of walking there.
                let distance = self.next(next).map(|after| after.duration_since(next));
                let near = distance.and_then(|distance| to.checked_sub(distance * 2).ok());
                at = near.filter(|near| *near > next).unwrap_or(next);
            }
        }
        (latest, missed > 100)
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    if let Some(distance) = text.strip_prefix("@every ") {
        let span: SignedDuration = distance
            .parse()
            .map_err(|_| format!("{distance:?} is no duration"))?;
        return Ok(Rule::Every(span.max(SignedDuration::from_secs(1))));
    }
    let text = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other => other,
    };
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = parts[..] else {
        return Err(format!(
            "expected exactly 5 fields, found {}: {text:?}",
            parts.len()
        ));
    };
    let open = |field: &str| field.starts_with('*') || field.starts_with('?');
    let mut week = field(weekdays, 0, 7, &WEEKDAYS, 0)?;
    // Sunday is 0 and 7.
    if week.has(7) {
        week = Bits((week.0 | 1) & 0x7f);
    }
    Ok(Rule::Fields(Box::new(Fields {
        minutes: field(minutes, 0, 59, &[], 0)?,
        hours: field(hours, 0, 23, &[], 0)?,
        days: field(days, 1, 31, &[], 0)?,
        months: field(months, 1, 12, &MONTHS, 1)?,
        weekdays: week,
        either_day: !open(days) && !open(weekdays),
    })))
}

fn field(text: &str, min: i8, max: i8, names: &[&str], first_name: i8) -> Result<Bits, String> {
    let mut bits = Bits::default();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step: i8 = step.parse().map_err(|_| format!("{part:?}: not a step"))?;
                (
                    range,
                    Some(step).filter(|step| *step > 0).ok_or("a step of 0")?,
                )
            }
            None => (part, 1),
        };
        let number = |text: &str| -> Result<i8, String> {
            let named = names
                .iter()
                .position(|name| name.eq_ignore_ascii_case(text));
            let value = match named {
                Some(at) => i8::try_from(at).unwrap_or(i8::MAX) + first_name,
                None => text
                    .parse()
                    .map_err(|_| format!("{text:?} is not a number"))?,
            };
            if (min..=max).contains(&value) {
                Ok(value)
            } else {
                Err(format!("{value} is not in {min}-{max}"))
            }
        };
        let (from, to) = match range {
            "*" | "?" => (min, max),
            _ => match range.split_once('-') {
                Some((from, to)) => (number(from)?, number(to)?),
                // `5/15` runs from 5 to the end.
                None if part.contains('/') => (number(range)?, max),
                None => (number(range)?, number(range)?),
            },
        };
        if from > to {
            return Err(format!("{part:?} runs backwards"));
        }
        for value in (from..=to).step_by(usize::from(step.unsigned_abs())) {
            bits.0 |= 1 << value;
        }
    }
    Ok(bits)
}

impl Fields {
    fn day_matches(&self, date: Date) -> bool {
        let day = self.days.has(date.day());
        let week = self.weekdays.has(date.weekday().to_sunday_zero_offset());
        self.months.has(date.month())
            && if self.either_day {
                day || week
            } else {
                day && week
            }
    }

    fn next(&self, after: &Zoned) -> Option<Timestamp> {
        let zone = after.time_zone();
        let start = after.datetime();
        let mut date = start.date();
        let last_year = date.year() + HORIZON_YEARS;
        while date.year() <= last_year {
            if self.day_matches(date) {
                let found = self.times(date).find_map(|at| {
                    // A time that a change of the clocks leaves out comes when it would have been.
                    let moment = at.to_zoned(zone.clone()).ok()?.timestamp();
                    (moment > after.timestamp()).then_some(moment)
                });
                if found.is_some() {
                    return found;
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn times(&self, date: Date) -> impl Iterator<Item = DateTime> {
        let hours = (0..24).filter(|hour| self.hours.has(*hour));
        hours.flat_map(move |hour| {
            let minutes = (0..60).filter(|minute| self.minutes.has(*minute));
            minutes.map(move |minute| date.at(hour, minute, 0, 0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn schedules_come_when_they_should() {
        let cases = [
            (
                "*/15 * * * *",
                "2026-03-01T10:07:00Z",
                "2026-03-01T10:15:00Z",
            ),
            (
                "0 9-17/4 * * mon-fri",
                "2026-03-06T18:00:00Z",
                "2026-03-09T09:00:00Z",
            ),
            (
                "30 4 1,15 * 5",
                "2026-03-02T00:00:00Z",
                "2026-03-06T04:30:00Z",
            ),
            ("0 0 * * 7", "2026-03-02T00:00:00Z", "2026-03-08T00:00:00Z"),
            ("0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            (
                "5/20 * * * *",
                "2026-03-01T10:06:00Z",
                "2026-03-01T10:25:00Z",
            ),
            ("@daily", "2026-03-01T10:07:00Z", "2026-03-02T00:00:00Z"),
            (
                "@every 1h30m",
                "2026-03-01T10:07:00Z",
                "2026-03-01T11:37:00Z",
            ),
            (
                "0 12 * JUL ?",
                "2026-03-01T10:07:00Z",
                "2026-07-01T12:00:00Z",
            ),
        ];
        for (text, after, expected) in cases {
            let schedule = Schedule::parse(text, None).unwrap();
            assert_eq!(schedule.next(at(after)), Some(at(expected)), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_or_never_comes() {
        for text in [
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "a * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
        ] {
            assert!(Schedule::parse(text, None).is_err(), "{text}");
        }
        let never = Schedule::parse("0 0 30 2 *", None).unwrap();
        assert_eq!(never.next(at("2026-03-01T00:00:00Z")), None);
    }

    #[test]
    fn a_long_pause_is_leapt_over() {
        let schedule = Schedule::parse("* * * * *", None).unwrap();
        let (latest, many) =
            schedule.latest(at("2020-01-01T00:00:00Z"), at("2026-03-01T10:07:30Z"));
        assert_eq!(latest, Some(at("2026-03-01T10:07:00Z")));
        assert!(many);
        let (latest, many) =
            schedule.latest(at("2026-03-01T10:05:00Z"), at("2026-03-01T10:07:30Z"));
        assert_eq!((latest, many), (Some(at("2026-03-01T10:07:00Z")), false));
    }
}
