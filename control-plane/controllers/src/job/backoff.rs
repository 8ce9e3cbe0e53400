//! How long a failure is waited out: ten seconds after the first one, twice as long after each that follows. With
//! backoffLimitPerIndex each index waits by itself (KEP-3850).

use std::time::Duration;

use jiff::Timestamp;

use super::account::Account;

/// Upstream's DefaultJobPodFailureBackOff and MaxJobPodFailureBackOff.
const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(600);

/// The pause after so many failures.
pub(super) fn after(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        _ => FIRST.saturating_mul(1 << (failures - 1).min(10)).min(MOST),
    }
}

/// How long an index is still to wait; none if it need not.
pub(super) fn of_index(books: &Account, index: i32, now: Timestamp) -> Option<Duration> {
    let failures = u32::try_from(*books.index_failures.get(&index)?).ok()?;
    let since = Duration::try_from(now.duration_since(*books.index_failed_at.get(&index)?));
    let left = after(failures).saturating_sub(since.unwrap_or_default());
    (!left.is_zero()).then_some(left)
}

/// When the next index has waited long enough.
pub(super) fn next(books: &Account, now: Timestamp) -> Option<Duration> {
    let failed = books.index_failures.keys();
    failed
        .filter(|index| !books.done.contains(index) && !books.failed_indexes.contains(index))
        .filter_map(|index| of_index(books, *index, now))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_index_waits_by_itself_and_twice_as_long_each_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let books = Account {
            index_failures: [(1, 1), (2, 3), (3, 1)].into(),
            index_failed_at: [(1, at(100)), (2, at(100))].into(),
            ..Account::default()
        };
        let left = |index, now| of_index(&books, index, at(now)).map(|left| left.as_secs());
        assert_eq!((left(1, 104), left(1, 110)), (Some(6), None));
        assert_eq!((left(2, 104), left(2, 140)), (Some(36), None));
        assert_eq!(left(0, 100), None, "it has not failed");
        assert_eq!(left(3, 100), None, "nobody knows when");
        assert_eq!(next(&books, at(104)), Some(Duration::from_secs(6)));
        assert_eq!(next(&books, at(110)), Some(Duration::from_secs(30)));
        assert_eq!(next(&books, at(140)), None);
        assert_eq!(after(20), MOST);
    }
}
