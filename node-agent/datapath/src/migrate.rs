//! From one layout to another under traffic: an agent whose maps are laid out differently
//! takes over what its predecessor left.
//!
//! Elements are copied octet by octet. That is right because of a rule for whoever changes a
//! layout: keys stay as they are, and values only grow at their end, where 0 means "as
//! before": of a newer build's values the part that is known here is taken. A map whose keys did change starts empty.
//! Connections alone are taken over entry by entry: until layout 3 each was an element of its own, and of two that have
//! grown the second does not begin where it did.
//!
//! Links are taken over with their pins, and switched to the new programs by whoever attaches
//! next; until then the old programs go on with the old maps. The connections that they add
//! meanwhile are copied between the switches, at most half of the time, and after the last one. A
//! packet whose connection was added in such a moment is dropped, not refused, so that its sender
//! repeats it when the copy is there.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map as AnyMap, MapData, MapError, MapInfo, MapType};
use windlass_ebpf_types::{Connection, Tuple, Ways};

use crate::{
    bpffs::{PinDirectory, entries, pin_error},
    error::{Error, Result},
    raw::{self, Raw},
    sys::{self, BPF_EXIST, BPF_NOEXIST},
};

/// What connections, services and policies consist of, and the ways to other nodes. All but the connections is told anew
/// once the API server has been read: until then, however long it is away, what was in force stays so. Everything else is
/// told at every start, or may be lost.
const MAPS: [&str; 22] = [
    "ID_CURSOR",
    "BACKENDS",
    "MEMBERS",
    "SLOTS",
    "SERVICES",
    "AFFINITY",
    "SOCKET_REVERSE",
    "SOCKET_DATAGRAMS",
    "SOCKET_FORWARD",
    "NETNS",
    "ENDPOINTS",
    "SOURCE_RANGES",
    "NODE_ADDRESSES",
    "TUNNELS",
    "NATIVE",
    "ANNOUNCED",
    "POLICY_PORTS",
    "POLICY_VERDICTS",
    "POLICY_NETWORKS",
    "POLICY_PEERS",
    "POLICY_PODS",
    // Only now are they asked.
    "POLICY_STATE",
];

const CONNTRACK: &str = "CONNTRACK";

/// What another layout left, until everything is switched over.
pub(crate) struct Migration {
    from: PathBuf,
    to: PathBuf,
    /// Connections made before this second are copied.
    copied_until: u32,
    /// When the last copy of them ended, and how long it took.
    last_copy: (Instant, Duration),
}

impl Migration {
    /// `None`: there is nothing to take over.
    pub(crate) fn begin(pins: &PinDirectory) -> Result<Option<Self>> {
        let Some(from) = pins.predecessor()? else {
            return Ok(None);
        };
        let mut migration = Self {
            from,
            to: pins.maps().to_owned(),
            copied_until: 0,
            last_copy: (Instant::now(), Duration::ZERO),
        };
        tracing::info!(from = %migration.from.display(), "taking over another layout's state");
        for name in MAPS {
            migration.copy(name)?;
        }
        migration.copy_connections()?;
        // The pins of the links move as they are; what hangs on them goes on.
        let links = migration.from.join("links");
        for link in entries(&links)? {
            let Some(name) = link.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let to = pins.link(name);
            if !to.exists() {
                fs::rename(&link, &to).map_err(|error| pin_error("move", &link, error))?;
            }
        }
        Ok(Some(migration))
    }

    /// Copies the connections that the old programs have added since, unless that was just done: of
    /// many switches in a row, each would wait for the whole table to be read.
    pub(crate) fn catch_up(&mut self) -> Result<()> {
        let (ended, took) = self.last_copy;
        if ended.elapsed() < took {
            return Ok(());
        }
        self.copy_connections()
    }

    /// Connections are never changed but by their own packets, which go by the new tables once their
    /// hook is switched: of what is copied already nothing is copied again.
    fn copy_connections(&mut self) -> Result<()> {
        let started = Instant::now();
        let (since, now) = (self.copied_until, sys::monotonic_seconds());
        self.copy_connections_since(since)?;
        // The programs' coarse clock may be a tick behind.
        self.copied_until = now.saturating_sub(1);
        self.last_copy = (Instant::now(), started.elapsed());
        Ok(())
    }

    /// Everything is switched: the old state is let go.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.copy_connections()?;
        for path in entries(&self.from.join("links"))? {
            crate::bpffs::remove_link(&path)?;
        }
        for path in entries(&self.from)? {
            let removed = match path.is_dir() {
                true => fs::remove_dir(&path),
                false => fs::remove_file(&path),
            };
            removed.map_err(|error| pin_error("remove", &path, error))?;
        }
        fs::remove_dir(&self.from).map_err(|error| pin_error("remove", &self.from, error))?;
        tracing::info!(from = %self.from.display(), "another layout's state is taken over");
        Ok(())
    }

    fn copy_connections_since(&self, since: u32) -> Result<()> {
        let Some(from) = open(&self.from, CONNTRACK)? else {
            return Ok(());
        };
        let failed = |error| Error::map("take over the elements of", CONNTRACK, error);
        let pin = MapData::from_pin(self.to.join(CONNTRACK)).map_err(failed)?;
        let mut to: Table = AnyMap::HashMap(pin).try_into().map_err(failed)?;
        let mut lost = 0;
        let put = |key: &[u8], value: &[u8]| {
            for (tuple, entry) in connections(key, value) {
                if entry.created >= since {
                    lost += usize::from(put_entry(&mut to, &tuple, entry).is_err());
                }
            }
        };
        sys::visit_raw(from.fd.as_fd(), from.key_size, from.value_size, put)
            .map_err(|source| failed_copy(CONNTRACK, source))?;
        if lost > 0 {
            tracing::warn!(lost, "connections of another layout found no room");
        }
        Ok(())
    }

    fn copy(&self, name: &'static str) -> Result<()> {
        let (Some(from), Some(to)) = (open(&self.from, name)?, open(&self.to, name)?) else {
            return Ok(());
        };
        if from.key_size != to.key_size || !is_read_as_one_value(from.kind) {
            tracing::warn!(
                map = name,
                "another layout's elements are not these; starting empty"
            );
            return Ok(());
        }
        let failed = |source| failed_copy(name, source);
        let mut lost = 0;
        // An array has all its elements from the beginning. Where this layout's state is the older one (an
        // upgrade that was broken off), its counts must not go back.
        let mut held = Vec::new();
        if to.kind == MapType::Array {
            let note = |_: &[u8], value: &[u8]| held.push(number(value));
            sys::visit_array(to.fd.as_fd(), to.length, to.value_size, note).map_err(failed)?;
        }
        let put = |key: &[u8], value: &[u8]| {
            let behind = |at: usize| held.get(at).is_some_and(|held| *held >= number(value));
            if from.kind == MapType::Array && behind(number(key) as usize) {
                return;
            }
            let mut value = value.to_vec();
            value.resize(to.value_size, 0);
            // What is there already is newer; a full map is no reason to stop.
            let put = sys::put_new_element(to.fd.as_fd(), key, &value, to.kind == MapType::Array);
            lost += usize::from(put.is_err());
        };
        let fd = from.fd.as_fd();
        match from.kind {
            MapType::Array => sys::visit_array(fd, from.length, from.value_size, put),
            MapType::LpmTrie => sys::visit_trie(fd, from.key_size, from.value_size, put),
            _ => sys::visit_raw(fd, from.key_size, from.value_size, put),
        }
        .map_err(failed)?;
        if lost > 0 {
            tracing::warn!(map = name, lost, "elements of another layout found no room");
        }
        Ok(())
    }
}

fn failed_copy(name: &str, source: io::Error) -> Error {
    Error::Link {
        doing: "take over the elements",
        target: format!("map {name}"),
        source,
    }
}

type Table = HashMap<MapData, Raw<Tuple>, Raw<Ways>>;

/// The connections in an element. One of a layout that had an element for each direction is as if nothing were known of
/// the other way.
fn connections(key: &[u8], value: &[u8]) -> impl Iterator<Item = (Tuple, Connection)> + use<> {
    let is_newer = value.len() > size_of::<Ways>();
    let way = if is_newer {
        value.len() / 2
    } else {
        size_of::<Connection>()
    };
    let mut ways = Vec::with_capacity(size_of::<Ways>());
    for entry in value.chunks(way) {
        ways.extend(&entry[..entry.len().min(size_of::<Connection>())]);
    }
    ways.resize(size_of::<Ways>(), 0);
    let element = raw::read(key).zip(raw::read(&ways));
    element
        .into_iter()
        .flat_map(|(Raw(ends), Raw(ways)): (Raw<Tuple>, Raw<Ways>)| ways.entries(&ends))
}

/// What is there already is newer.
fn put_entry(to: &mut Table, tuple: &Tuple, entry: Connection) -> Result<(), MapError> {
    let key = Raw(tuple.ends());
    let mut ways = Ways([Connection::NONE; 2]);
    ways.0[tuple.way()] = entry;
    let Err(error) = to.insert(key, Raw(ways), BPF_NOEXIST) else {
        return Ok(());
    };
    // Of both directions the second finds the first.
    let Ok(Raw(mut ways)) = to.get(&key, 0) else {
        return Err(error);
    };
    if ways.0[tuple.way()].is_there() {
        return Ok(());
    }
    ways.0[tuple.way()] = entry;
    to.insert(key, Raw(ways), BPF_EXIST)
}

/// The first four octets; of fewer, none.
fn number(octets: &[u8]) -> u32 {
    octets
        .first_chunk()
        .map_or(0, |octets| u32::from_ne_bytes(*octets))
}

/// One value for each key, for all processors.
fn is_read_as_one_value(kind: MapType) -> bool {
    matches!(
        kind,
        MapType::Hash | MapType::LruHash | MapType::Array | MapType::LpmTrie
    )
}

struct Map {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
    length: u32,
    kind: MapType,
}

fn open(directory: &Path, name: &'static str) -> Result<Option<Map>> {
    let path = directory.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let info = MapInfo::from_pin(&path).map_err(|error| Error::map("look at", name, error))?;
    let kind = info.map_type();
    let kind = kind.map_err(|error| Error::map("look at", name, error))?;
    let fd = sys::open_pin(&path).map_err(|error| pin_error("open", &path, error))?;
    Ok(fd.map(|fd| Map {
        fd,
        key_size: info.key_size() as usize,
        value_size: info.value_size() as usize,
        length: info.max_entries(),
        kind,
    }))
}

#[cfg(test)]
mod tests {
    use windlass_ebpf_types::Addr;

    use super::*;

    /// As it lies in a map.
    fn octets(tuple: &Tuple) -> Vec<u8> {
        let ports = [tuple.sport, tuple.dport].map(u16::to_ne_bytes);
        let mut octets = [tuple.src.octets(), tuple.dst.octets()].concat();
        octets.extend(ports.concat());
        octets.extend([tuple.protocol, 0, 0, 0]);
        octets
    }

    #[test]
    fn connections_are_read_from_elements_of_either_kind() {
        const LAST_SEEN: usize = std::mem::offset_of!(Connection, last_seen);
        let there = Tuple {
            src: Addr::v4([10, 0, 0, 2]),
            dst: Addr::v4([10, 0, 0, 1]),
            sport: 1,
            dport: 2,
            ..Tuple::EMPTY
        };
        let back = there.reversed();
        let entry = |to: &Tuple| {
            let mut octets = octets(to);
            octets.resize(size_of::<Connection>(), 0);
            octets[LAST_SEEN] = 7;
            octets
        };
        let read = |key: &Tuple, value: &[u8]| -> Vec<(Tuple, Tuple, u32)> {
            connections(&octets(key), value)
                .map(|(tuple, entry)| (tuple, entry.to, entry.last_seen))
                .collect()
        };
        // Each direction by itself, whichever end is the lower one.
        for tuple in [there, back] {
            assert_eq!(read(&tuple, &entry(&tuple)), [(tuple, tuple, 7)]);
        }
        // Both together, and one of them alone.
        let ends = there.ends();
        let other = ends.reversed();
        let (forth, nothing) = (entry(&ends), [0; size_of::<Connection>()]);
        let both = [forth, entry(&other)].concat();
        assert_eq!(read(&ends, &both), [(ends, ends, 7), (other, other, 7)]);
        let one = [&nothing[..], &entry(&other)].concat();
        assert_eq!(read(&ends, &one), [(other, other, 7)]);
        // Of a newer build, whose entries have grown.
        let more = [0xff; 12];
        let grown = [&entry(&ends)[..], &more, &entry(&other), &more].concat();
        assert_eq!(read(&ends, &grown), [(ends, ends, 7), (other, other, 7)]);
        assert_eq!(read(&ends, &nothing), []);
    }
}
