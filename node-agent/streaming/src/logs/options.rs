//! What of a log a client wants: the query of `/containerLogs`, which is that of the pod's `log` subresource.

use std::time::{Duration, SystemTime};

use crate::query::Query;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(super) tail_lines: Option<u64>,
    pub(super) limit_bytes: Option<u64>,
    pub(super) since: Option<SystemTime>,
    pub(super) streams: Streams,
}

/// KEP-3288: one of the outputs alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Streams {
    #[default]
    All,
    Stdout,
    Stderr,
}

impl LogOptions {
    /// The error says which parameter is wrong, and how.
    pub(crate) fn parse(query: &Query, now: SystemTime) -> Result<Self, String> {
        let since_seconds = match query.number("sinceSeconds")? {
            Some(0) => return Err("sinceSeconds must be greater than 0".into()),
            Some(seconds) => now.checked_sub(Duration::from_secs(seconds)),
            None => None,
        };
        let since_time = match query.get("sinceTime").filter(|text| !text.is_empty()) {
            Some(text) => Some(parse_time(text).ok_or_else(|| {
                format!("sinceTime {text:?} is not a time as RFC 3339 writes it")
            })?),
            None => None,
        };
        if since_seconds.is_some() && since_time.is_some() {
            return Err("at most one of sinceTime or sinceSeconds may be specified".into());
        }
        let limit_bytes = query.number("limitBytes")?;
        if limit_bytes == Some(0) {
            return Err("limitBytes must be greater than 0".into());
        }
        let streams = match query.get("stream").unwrap_or_default() {
            "" | "All" => Streams::All,
            "Stdout" => Streams::Stdout,
            "Stderr" => Streams::Stderr,
            other => {
                return Err(format!(
                    "stream {other:?} is not one of All, Stdout, Stderr"
                ));
            }
        };
        Ok(Self {
            follow: query.flag("follow")?,
            previous: query.flag("previous")?,
            timestamps: query.flag("timestamps")?,
            tail_lines: query.number("tailLines")?,
            limit_bytes,
            since: since_seconds.or(since_time),
            streams,
        })
    }
}

pub(super) fn parse_time(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<LogOptions, String> {
        LogOptions::parse(
            &Query::parse(query),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
        )
    }

    #[test]
    fn the_query_is_read() {
        let options = parse("follow=true&tailLines=0&sinceSeconds=10&timestamps=1").expect("valid");
        assert!(options.follow && options.timestamps && !options.previous);
        assert_eq!(options.tail_lines, Some(0));
        assert_eq!(
            options.since,
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(990))
        );
        let options = parse("sinceTime=1970-01-01T00:10:00%2B00:00").expect("valid");
        assert_eq!(
            options.since,
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(600))
        );
    }

    #[test]
    fn nonsense_is_named() {
        for (query, named) in [
            ("tailLines=-1", "tailLines"),
            ("tailLines=many", "tailLines"),
            ("limitBytes=0", "limitBytes"),
            ("sinceSeconds=0", "sinceSeconds"),
            ("sinceTime=yesterday", "sinceTime"),
            ("follow=perhaps", "follow"),
            ("stream=Stdin", "stream"),
            (
                "sinceSeconds=1&sinceTime=1970-01-01T00:10:00Z",
                "at most one",
            ),
        ] {
            let error = parse(query).expect_err(query);
            assert!(error.contains(named), "{error}");
        }
    }
}
