//! What names are said to be: the addresses that this node's DNS server gave to pods, for as long as they may be
//! dialled. Kept in a file too, since whoever got an answer does not know of this agent's restarts.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use ahash::{AHashMap, AHashSet};
use windlass_domain_names::{DomainMap, DomainPattern, normal};

/// The names of each address.
pub type Names = HashMap<IpAddr, BTreeSet<String>>;

/// How long after its life an address is still one of the name's: who asked at the last moment has yet to dial.
const GRACE: Duration = Duration::from_secs(60);
/// How long an address stays that somebody still talks to, until it is looked at again.
const WHILE_IN_USE: Duration = Duration::from_secs(30);
/// Pairs of names and addresses. More are not learned, so that no pod can fill the tables by asking.
const MOST: usize = 16_384;
/// So many lines that say nothing any more may the file have before it is written anew.
const IDLE_LINES: usize = 4_096;

/// What a DNS server tells.
#[derive(Clone, Debug)]
pub struct Lesson {
    pub name: String,
    /// Each with the time for which it may be remembered.
    pub addresses: Vec<(IpAddr, Duration)>,
    /// From outside the cluster: it must not say who the cluster's own pods are.
    pub foreign: bool,
}

/// Whole seconds since 1970.
type Seconds = u64;

#[derive(Debug, Default)]
pub(super) struct LearnedNames {
    patterns: BTreeSet<DomainPattern>,
    wanted: DomainMap<()>,
    names: Names,
    until: AHashMap<(IpAddr, String), Seconds>,
    journal: Option<Journal>,
}

#[derive(Debug)]
struct Journal {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl LearnedNames {
    /// With what an earlier agent has learned, as the file says.
    pub(super) fn recover(path: PathBuf) -> Self {
        let mut learned = Self::default();
        match fs::read_to_string(&path) {
            Ok(text) => text.lines().for_each(|line| learned.read(line)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "learned names are not known any more")
            }
        }
        learned.begin(path);
        learned
    }

    /// A line that was cut off by the agent's death says nothing.
    fn read(&mut self, line: &str) {
        let mut words = line.split(' ');
        if let (Some(until), Some(address), Some(name), Some("."), None) = (
            words.next(),
            words.next(),
            words.next(),
            words.next(),
            words.next(),
        ) && let (Ok(until), Ok(address)) = (until.parse(), address.parse())
        {
            self.keep(address, name.to_owned(), until);
        }
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    pub(super) fn patterns(&self) -> &BTreeSet<DomainPattern> {
        &self.patterns
    }

    /// Takes over what policies ask for. Returns the addresses of names that nobody asks for any more.
    pub(super) fn want(&mut self, patterns: BTreeSet<DomainPattern>) -> Vec<IpAddr> {
        self.wanted = patterns.iter().collect();
        self.patterns = patterns;
        let unwanted = self.until.keys().filter(|(_, name)| !self.is_wanted(name));
        let unwanted: Vec<_> = unwanted.cloned().collect();
        unwanted.into_iter().map(|pair| self.forget(pair)).collect()
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.wanted.matching(name).next().is_some()
    }

    /// Returns the addresses that are something new. `own`: where the cluster's pods get their addresses from.
    pub(super) fn learn(&mut self, lesson: Lesson, own: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        let name = normal(&lesson.name);
        let mut new = Vec::new();
        if !self.is_wanted(&name) {
            return new;
        }
        for (address, lives) in lesson.addresses {
            if lesson.foreign && (own(address) || !is_somewhere(address)) {
                tracing::debug!(name, %address, "an address that is not the name's to give");
                continue;
            }
            let until = now() + (lives + GRACE).as_secs();
            let pair = (address, name.clone());
            match self.until.get(&pair) {
                Some(held) if *held >= until => continue,
                None if self.until.len() >= MOST => {
                    tracing::warn!(name, %address, "too many addresses of names; this one is not let in");
                    continue;
                }
                _ => {}
            }
            self.write(&pair, until);
            if self.keep(address, name.clone(), until) {
                new.push(address);
            }
        }
        new
    }

    /// Addresses whose time is over, if nobody talks to them.
    pub(super) fn over(&self) -> AHashSet<IpAddr> {
        let now = now();
        let over = self.until.iter().filter(|(_, until)| **until <= now);
        over.map(|((address, _), _)| *address).collect()
    }

    /// Lets go of what is over, but for those that are in use. Returns their addresses.
    pub(super) fn expire(&mut self, in_use: &AHashSet<IpAddr>) -> Vec<IpAddr> {
        let now = now();
        let over = self.until.iter().filter(|(_, until)| **until <= now);
        let over: Vec<_> = over.map(|(pair, _)| pair.clone()).collect();
        let (kept, gone): (Vec<_>, Vec<_>) =
            over.into_iter().partition(|it| in_use.contains(&it.0));
        for pair in kept {
            let until = now + WHILE_IN_USE.as_secs();
            self.write(&pair, until);
            self.until.insert(pair, until);
        }
        gone.into_iter().map(|pair| self.forget(pair)).collect()
    }

    /// Whether the address did not have the name before.
    fn keep(&mut self, address: IpAddr, name: String, until: Seconds) -> bool {
        let new = self.names.entry(address).or_default().insert(name.clone());
        self.until.insert((address, name), until);
        new
    }

    fn forget(&mut self, pair: (IpAddr, String)) -> IpAddr {
        self.until.remove(&pair);
        let (address, name) = pair;
        if let Some(names) = self.names.get_mut(&address) {
            names.remove(&name);
            if names.is_empty() {
                self.names.remove(&address);
            }
        }
        address
    }

    fn write(&mut self, (address, name): &(IpAddr, String), until: Seconds) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        if journal.lines > self.until.len() + IDLE_LINES {
            let path = journal.path.clone();
            self.begin(path);
        }
        let Some(journal) = &mut self.journal else {
            return;
        };
        journal.lines += 1;
        if let Err(error) = journal
            .file
            .write_all(line(*address, name, until).as_bytes())
        {
            tracing::warn!(path = %journal.path.display(), %error, "a learned name would not outlive this agent");
        }
    }

    /// Writes the file anew, with nothing in it but what holds.
    fn begin(&mut self, path: PathBuf) {
        let lines = self.until.iter();
        let text: String = lines
            .map(|((address, name), until)| line(*address, name, *until))
            .collect();
        let new = path.with_extension("new");
        let written = fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| OpenOptions::new().append(true).open(&path));
        self.journal = match written {
            Ok(file) => Some(Journal {
                path,
                file,
                lines: self.until.len(),
            }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "learned names will not outlive this agent");
                None
            }
        };
    }
}

fn line(address: IpAddr, name: &str, until: Seconds) -> String {
    format!("{until} {address} {name} .\n")
}

fn now() -> Seconds {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Not the asking pod itself, nor whoever is on its link (a cloud's metadata among them), nor a group.
fn is_somewhere(address: IpAddr) -> bool {
    let here = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(here || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;

    fn patterns(texts: &[&str]) -> BTreeSet<DomainPattern> {
        let parsed = texts.iter().map(|text| DomainPattern::parse(text).unwrap());
        parsed.collect()
    }

    fn lesson(name: &str, addresses: &[&str], seconds: u64) -> Lesson {
        let addresses = addresses
            .iter()
            .map(|it| (it.parse().unwrap(), Duration::from_secs(seconds)));
        Lesson {
            name: name.into(),
            addresses: addresses.collect(),
            foreign: true,
        }
    }

    fn own(address: IpAddr) -> bool {
        let pods: IpNet = "10.244.0.0/16".parse().unwrap();
        pods.contains(&address)
    }

    fn age(learned: &mut LearnedNames, seconds: u64) {
        learned
            .until
            .values_mut()
            .for_each(|until| *until -= seconds);
    }

    #[test]
    fn only_names_that_policies_ask_for_are_learned() {
        let mut learned = LearnedNames::default();
        learned.want(patterns(&["*.example.org"]));
        let new = learned.learn(
            lesson("WWW.example.org.", &["192.0.2.1", "2001:db8::1"], 5),
            own,
        );
        assert_eq!(new.len(), 2);
        assert!(
            learned
                .learn(lesson("example.org", &["192.0.2.2"], 5), own)
                .is_empty()
        );
        // Again, for longer: nothing new.
        assert!(
            learned
                .learn(lesson("www.example.org", &["192.0.2.1"], 50), own)
                .is_empty()
        );
        assert_eq!(learned.want(patterns(&["example.net"])).len(), 2);
        assert!(learned.names().is_empty());
    }

    #[test]
    fn the_outside_cannot_say_who_is_inside() {
        let mut learned = LearnedNames::default();
        learned.want(patterns(&["*.example.org"]));
        let addresses = [
            "10.244.1.2",
            "127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::ffff:10.244.1.2",
        ];
        assert!(
            learned
                .learn(lesson("a.example.org", &addresses, 5), own)
                .is_empty()
        );
        let inside = Lesson {
            foreign: false,
            ..lesson("a.example.org", &["10.244.1.2"], 5)
        };
        assert_eq!(learned.learn(inside, own).len(), 1);
    }

    #[test]
    fn an_address_goes_when_its_time_is_over_and_nobody_talks_to_it() {
        let mut learned = LearnedNames::default();
        learned.want(patterns(&["example.org"]));
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        learned.learn(lesson("example.org", &["192.0.2.1"], 30), own);
        age(&mut learned, 60);
        assert!(learned.over().is_empty(), "in its grace");
        age(&mut learned, 31);
        assert_eq!(learned.over(), [address].into_iter().collect());
        assert!(learned.expire(&learned.over()).is_empty(), "in use");
        assert!(learned.over().is_empty(), "for a while");
        age(&mut learned, 31);
        assert_eq!(learned.expire(&AHashSet::new()), [address]);
        assert!(learned.names().is_empty());
    }

    #[test]
    fn what_was_learned_outlives_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names");
        let wanted = || patterns(&["*.example.org"]);
        {
            let mut learned = LearnedNames::recover(path.clone());
            learned.want(wanted());
            for last in 1..=3 {
                let address = format!("192.0.2.{last}");
                learned.learn(lesson("a.example.org", &[&address], 30), own);
            }
            learned.learn(lesson("b.example.org", &["192.0.2.3"], 30), own);
        }
        // Killed in the middle of a line.
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}99999999999 192.0.2.9 c.exam")).unwrap();
        let mut learned = LearnedNames::recover(path.clone());
        learned.want(wanted());
        assert_eq!(learned.names().len(), 3);
        assert_eq!(
            learned.names()[&"192.0.2.3".parse::<IpAddr>().unwrap()].len(),
            2
        );
    }

    #[test]
    fn neither_the_memory_nor_the_file_grows_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names");
        let mut learned = LearnedNames::recover(path.clone());
        learned.want(patterns(&["*.example.org"]));
        for number in 0..2 * IDLE_LINES as u64 {
            learned.learn(lesson("a.example.org", &["192.0.2.1"], number), own);
        }
        assert!(fs::read_to_string(&path).unwrap().lines().count() <= IDLE_LINES + 2);
        for number in 0..MOST + 10 {
            let name = format!("n{number}.example.org");
            learned.learn(lesson(&name, &["192.0.2.1"], 30), own);
        }
        assert_eq!(learned.until.len(), MOST);
    }
}
