//! Typed views of the maps: one file for each group that one writer owns.

mod announce;
mod connections;
mod conntrack;
mod flows;
mod metrics;
mod node;
mod overlay;
mod policy;
mod services;
mod traffic;

pub(crate) use announce::AnnounceMaps;
pub use conntrack::CollectReport;
pub(crate) use conntrack::ConntrackMaps;
pub(crate) use flows::FlowMaps;
pub use flows::{FlowRing, PolicyDrops};
pub(crate) use metrics::MetricMaps;
pub use metrics::MetricSample;
pub(crate) use node::NodeMaps;
pub(crate) use overlay::OverlayMaps;
pub use policy::{PolicyMaps, PolicyPortPrefix, PolicySnapshot, PolicyWrite};
pub use services::{ServiceMaps, ServiceSnapshot, ServiceWrite};
pub(crate) use traffic::TrafficMaps;

use std::os::fd::AsFd as _;

use aya::{
    Ebpf, Pod,
    maps::{HashMap, IterableMap, Map, MapData, MapError},
    sys::SyscallError,
};

use crate::{
    error::{Error, Result},
    sys,
};

/// Takes a map out of the loaded object, by name and type.
fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or(Error::Missing { kind: "map", name })?;
    M::try_from(map).map_err(|error| Error::map("open", name, error))
}

/// A hash map that knows its name, for errors.
struct Table<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self> {
        Ok(Self {
            name,
            map: take(ebpf, name)?,
        })
    }

    fn get(&self, key: &K) -> Result<Option<V>> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(Error::map("read", self.name, error)),
        }
    }

    fn put(&mut self, key: K, value: V) -> Result<()> {
        self.map
            .insert(key, value, 0)
            .map_err(|error| Error::map("write to", self.name, error))
    }

    /// Many at once, in order: those before the one that fails are written.
    fn put_all(&mut self, keys: &[K], values: &[V]) -> Result<()> {
        let map = IterableMap::map(&self.map).fd().as_fd();
        sys::update_map(map, keys, values).map_err(|io_error| {
            let call = "bpf_map_update_batch";
            let error = MapError::SyscallError(SyscallError { call, io_error });
            Error::map("write to", self.name, error)
        })
    }

    /// Removing what is not there is no error: the caller wants it gone.
    fn remove(&mut self, key: &K) -> Result<()> {
        match self.map.remove(key) {
            Err(error) if !is_missing(&error) => Err(Error::map("remove from", self.name, error)),
            _ => Ok(()),
        }
    }

    /// How many elements there is room for: a map that was there already keeps its size.
    fn capacity(&self) -> Result<u32> {
        let info = IterableMap::map(&self.map).info();
        Ok(info
            .map_err(|error| Error::map("ask about", self.name, error))?
            .max_entries())
    }

    /// Everything in the map, as of some moment of the call for each element.
    fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.visit(|key, value| entries.push((key, value)))?;
        Ok(entries)
    }

    /// Looks at everything in the map without holding it all.
    fn visit(&self, visit: impl FnMut(K, V)) -> Result<()> {
        let map = IterableMap::map(&self.map).fd().as_fd();
        sys::visit_map(map, visit).map_err(|source| Error::Link {
            doing: "list the elements",
            target: format!("map {}", self.name),
            source,
        })
    }
}

fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}
