//! How much of what must be left, in the kubelet's words: `memory.available<100Mi`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use windlass_machinery::quantity::Quantity;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that is free or can be freed at once.
    MemoryAvailable,
    /// Space where pods' folders and logs lie.
    NodeFsAvailable,
    /// Inodes there.
    NodeFsInodesFree,
    /// Space where images and writable layers lie.
    ImageFsAvailable,
    /// Inodes there.
    ImageFsInodesFree,
    /// Process ids.
    PidAvailable,
}

impl Signal {
    const ALL: [(&'static str, Self); 6] = [
        ("memory.available", Self::MemoryAvailable),
        ("nodefs.available", Self::NodeFsAvailable),
        ("nodefs.inodesFree", Self::NodeFsInodesFree),
        ("imagefs.available", Self::ImageFsAvailable),
        ("imagefs.inodesFree", Self::ImageFsInodesFree),
        ("pid.available", Self::PidAvailable),
    ];

    /// As flags and messages have it.
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, signal)| *signal == self);
        found.map_or("", |(name, _)| name)
    }

    /// The resource that the node is low on.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodeFsAvailable | Self::ImageFsAvailable => "ephemeral-storage",
            Self::NodeFsInodesFree | Self::ImageFsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// Whether removing images and ended containers helps.
    pub(crate) fn is_disk(self) -> bool {
        !matches!(self, Self::MemoryAvailable | Self::PidAvailable)
    }
}

/// The least that must be left.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Least {
    Amount(i64),
    Percent(f64),
}

/// One threshold for each signal at most.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Thresholds(BTreeMap<Signal, Least>);

/// How much there is of something, and how much of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    /// Left.
    pub available: i64,
    /// In all.
    pub capacity: i64,
}

impl Thresholds {
    /// The least of `signal` that must be left of `capacity`, if anybody cares.
    pub fn least(&self, signal: Signal, capacity: i64) -> Option<i64> {
        Some(match self.0.get(&signal)? {
            Least::Amount(amount) => *amount,
            Least::Percent(percent) => (capacity as f64 * percent / 100.0) as i64,
        })
    }

    /// The signals of which too little is left.
    pub(crate) fn crossed<'a>(
        &'a self,
        levels: &'a BTreeMap<Signal, Level>,
    ) -> impl Iterator<Item = (Signal, Level, i64)> + 'a {
        levels.iter().filter_map(|(signal, level)| {
            let least = self.least(*signal, level.capacity)?;
            (level.available < least).then_some((*signal, *level, least))
        })
    }

    /// As the kubelet's configuration has them.
    pub fn by_signal(&self) -> BTreeMap<String, String> {
        let texts = self.0.iter();
        texts
            .map(|(signal, least)| (signal.name().to_owned(), least.to_string()))
            .collect()
    }
}

impl fmt::Display for Least {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amount(amount) => write!(out, "{amount}"),
            Self::Percent(percent) => write!(out, "{percent}%"),
        }
    }
}

impl FromStr for Thresholds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut thresholds = BTreeMap::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (name, least) = part
                .split_once('<')
                .ok_or_else(|| format!("{part:?}: expected SIGNAL<LEAST"))?;
            let signal = Signal::ALL.iter().find(|(known, _)| *known == name.trim());
            let (_, signal) = signal.ok_or_else(|| format!("unknown eviction signal {name:?}"))?;
            let least = match least.trim().strip_suffix('%') {
                Some(percent) => {
                    let percent: f64 = percent
                        .parse()
                        .map_err(|_| format!("{least:?} is no percentage"))?;
                    if !(0.0..=100.0).contains(&percent) {
                        return Err(format!("{least:?} is not between 0% and 100%"));
                    }
                    Least::Percent(percent)
                }
                None => {
                    let amount = Quantity::parse(least.trim());
                    Least::Amount(
                        amount
                            .map_err(|error| format!("{least:?}: {error}"))?
                            .value(),
                    )
                }
            };
            thresholds.insert(*signal, least);
        }
        Ok(Self(thresholds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_amounts_or_parts_of_what_there_is() {
        let text = "memory.available<100Mi, nodefs.available<10%";
        let thresholds: Thresholds = text.parse().unwrap();
        let level = |available, capacity| Level {
            available,
            capacity,
        };
        let crossed = |memory: i64, disk: i64| -> Vec<_> {
            let levels = BTreeMap::from([
                (Signal::MemoryAvailable, level(memory << 20, 1 << 30)),
                (Signal::NodeFsAvailable, level(disk, 1000)),
                (Signal::PidAvailable, level(0, 1000)),
            ]);
            let all = thresholds.crossed(&levels);
            all.map(|(signal, ..)| signal.name()).collect()
        };
        assert!(crossed(100, 100).is_empty());
        assert_eq!(crossed(99, 100), ["memory.available"]);
        assert_eq!(crossed(100, 99), ["nodefs.available"]);
        for bad in [
            "memory<1",
            "memory.available",
            "nodefs.available<x%",
            "nodefs.available<101%",
        ] {
            assert!(bad.parse::<Thresholds>().is_err(), "{bad}");
        }
        assert_eq!(thresholds.by_signal()["nodefs.available"], "10%");
    }
}
