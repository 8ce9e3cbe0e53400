//! The cron notation of CronJobs, as `robfig/cron`'s standard parser takes it.

/// What is wrong with a schedule, in that parser's words; `None` when it is fine.
pub fn problem(schedule: &str) -> Option<String> {
    check(schedule).err()
}

/// A field's range, and the names that may stand for its numbers.
struct Field {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const FIELDS: [Field; 5] = [
    Field {
        min: 0,
        max: 59,
        names: &[],
    },
    Field {
        min: 0,
        max: 23,
        names: &[],
    },
    Field {
        min: 1,
        max: 31,
        names: &[],
    },
    Field {
        min: 1,
        max: 12,
        names: MONTHS,
    },
    Field {
        min: 0,
        max: 6,
        names: DAYS,
    },
];

fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".to_owned());
    }
    if let Some(descriptor) = schedule.strip_prefix('@') {
        return check_descriptor(descriptor);
    }
    let parts: Vec<_> = schedule.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            parts.len(),
            parts.join(" ")
        ));
    }
    FIELDS.iter().zip(parts).try_for_each(|(field, text)| {
        text.split(',')
            .filter(|range| !range.is_empty())
            .try_for_each(|range| check_range(range, field))
    })
}

fn check_descriptor(name: &str) -> Result<(), String> {
    if let Some(every) = name.strip_prefix("every ") {
        return windlass_machinery::time::parse_duration(every)
            .map(|_| ())
            .ok_or_else(|| {
                format!("failed to parse duration @{name}: time: invalid duration {every:?}")
            });
    }
    match name {
        "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => Ok(()),
        _ => Err(format!("unrecognized descriptor: @{name}")),
    }
}

fn check_range(text: &str, field: &Field) -> Result<(), String> {
    let mut steps = text.split('/');
    let range = steps.next().unwrap_or_default();
    let step = steps.next();
    if steps.next().is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    let mut ends = range.split('-');
    let first = ends.next().unwrap_or_default();
    let last = ends.next();
    let (low, high) = if matches!(first, "*" | "?") {
        (field.min, field.max)
    } else {
        let low = number(first, field)?;
        let high = match last {
            Some(last) => number(last, field)?,
            // `5/15` means from 5 to the end.
            None if step.is_some() => field.max,
            None => low,
        };
        if ends.next().is_some() {
            return Err(format!("too many hyphens: {text}"));
        }
        (low, high)
    };
    if let Some(step) = step {
        let step: u32 = parse(step)?;
        if step == 0 {
            return Err(format!("step of range should be a positive number: {text}"));
        }
    }
    if low < field.min {
        return Err(format!(
            "beginning of range ({low}) below minimum ({}): {text}",
            field.min
        ));
    }
    if high > field.max {
        return Err(format!(
            "end of range ({high}) above maximum ({}): {text}",
            field.max
        ));
    }
    if low > high {
        return Err(format!(
            "beginning of range ({low}) beyond end of range ({high}): {text}"
        ));
    }
    Ok(())
}

fn number(text: &str, field: &Field) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    match field.names.iter().position(|name| *name == lower) {
        Some(position) => Ok(field.min + u32::try_from(position).unwrap_or_default()),
        None => parse(text),
    }
}

fn parse(text: &str) -> Result<u32, String> {
    if text.starts_with('-') {
        return Err(format!("negative number ({text}) not allowed: {text}"));
    }
    text.parse().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_schedules_are_fine() {
        for schedule in [
            "* * * * *",
            "*/5 0-12/2 1,15 jan-mar MON",
            "0 22 ? * 1-5",
            "5/15 * * * *",
            "@hourly",
            "@every 1h30m",
        ] {
            assert_eq!(problem(schedule), None, "{schedule}");
        }
    }

    #[test]
    fn faults_are_named() {
        for (schedule, expected) in [
            ("", "empty spec string"),
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            (
                "5-1 * * * *",
                "beginning of range (5) beyond end of range (1): 5-1",
            ),
            (
                "x * * * *",
                "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax",
            ),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert_eq!(problem(schedule).as_deref(), Some(expected), "{schedule}");
        }
    }
}
