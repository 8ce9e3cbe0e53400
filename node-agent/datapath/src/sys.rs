//! Raw system calls that neither aya nor nix offers: everything `unsafe` of this crate
//! apart from the `Pod` markers in `raw.rs`.
#![allow(unsafe_code, reason = "system calls without a safe wrapper")]

use std::{
    ffi::CString,
    io,
    mem::{size_of, zeroed},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::Pod;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Flag of BPF_MAP_UPDATE_ELEM.
pub(crate) const BPF_NOEXIST: u64 = 1;
pub(crate) const BPF_EXIST: u64 = 2;

/// `bpf(2)` with one of the attribute structs below.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a live repr(C) struct of the given size, zero-filled where
    // unused, and the pointers in it outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Opens a pinned object. `None` when nothing is pinned there.
pub(crate) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Attributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes {
        pathname: name.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    match bpf(BPF_OBJ_GET, &mut attributes) {
        // SAFETY: the kernel returned a new descriptor, owned by nobody else.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the program of a link in place: no packet and no connect sees a gap. Cgroup
/// links since 5.7, TCX links since 6.6.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attributes = Attributes {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(|_| ())
}

/// Takes a link's program off its hook (BPF_LINK_DETACH, 5.9), at once: removing the last
/// pin does so too, but some time later, in a work queue.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link_fd: u32,
    }
    let mut attributes = Attributes {
        link_fd: link.as_raw_fd() as u32,
    };
    bpf(BPF_LINK_DETACH, &mut attributes).map(|_| ())
}

/// The head of `bpf_link_info` and as much of its union as is needed here.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    union: [u64; 8],
}

/// The id of the cgroup that a cgroup link is attached to; 0 when the cgroup is gone.
pub(crate) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    #[repr(C)]
    struct Attributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    // SAFETY: all-zero is a valid LinkInfo.
    let mut info: LinkInfo = unsafe { zeroed() };
    let mut attributes = Attributes {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    // For cgroup links the union is { cgroup_id: u64, attach_type: u32 }.
    Ok(info.union[0])
}

/// The cookie of the network namespace of a socket (SO_NETNS_COOKIE, kernel 5.14).
pub(crate) fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is eight bytes long, as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes many elements of a hash map by one call (BPF_MAP_UPDATE_BATCH, 5.6), in order; those
/// before the one that fails are written.
pub(crate) fn update_map<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(keys.len(), values.len());
    let count = u32::try_from(keys.len()).map_err(io::Error::other)?;
    let mut attributes = BatchAttributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attributes).map(|_| ())
}

/// Everything in a hash map, thousands of elements a call (BPF_MAP_LOOKUP_BATCH, 5.6).
///
/// The kernel walks bucket by bucket under each bucket's lock: no element comes twice, and
/// one that is there all along is not missed.
pub(crate) fn visit_map<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(K, V),
) -> io::Result<()> {
    visit_raw(map, size_of::<K>(), size_of::<V>(), |key, value| {
        // SAFETY: Pod types are valid as any octets of their size, which the kernel filled;
        // the buffers are not aligned for them.
        unsafe {
            visit(
                std::ptr::read_unaligned(key.as_ptr().cast()),
                std::ptr::read_unaligned(value.as_ptr().cast()),
            );
        }
    })
}

/// The same for elements of sizes that are only known now.
pub(crate) fn visit_raw(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut size: u32 = 1_024;
    // The bucket to go on with; none at the start.
    let mut position: Option<u32> = None;
    loop {
        let mut keys = vec![0u8; size as usize * key_size];
        // The kernel strides by a multiple of eight only in arrays and per-CPU maps.
        let mut values = vec![0u8; size as usize * value_size];
        let mut next = 0u32;
        let mut attributes = BatchAttributes {
            in_batch: position
                .as_ref()
                .map_or(0, |position| std::ptr::from_ref(position) as u64),
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: size,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        let at_end = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(_) => false,
            // The end of the map; `count` elements came with it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // One bucket holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                size *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = attributes.count as usize;
        keys.chunks_exact(key_size)
            .zip(values.chunks_exact(value_size))
            .take(count)
            .for_each(|(key, value)| visit(key, value));
        if at_end {
            return Ok(());
        }
        position = Some(next);
    }
}

#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Everything in an array.
pub(crate) fn visit_array(
    map: BorrowedFd<'_>,
    length: u32,
    value_size: usize,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    for index in 0..length {
        let key = index.to_ne_bytes();
        let mut value = vec![0u8; value_size.next_multiple_of(8)];
        let mut attributes = ElementAttributes {
            map_fd: map.as_raw_fd() as u32,
            pad: 0,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes)?;
        visit(&key, &value[..value_size]);
    }
    Ok(())
}

/// Everything in a trie of prefixes, which says in keys where a batch ends, and only since 5.16.
pub(crate) fn visit_trie(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut last: Option<Vec<u8>> = None;
    loop {
        let mut key = vec![0u8; key_size];
        let mut value = vec![0u8; value_size];
        // The next key comes where otherwise the value does.
        let mut attributes = ElementAttributes {
            map_fd: map.as_raw_fd() as u32,
            pad: 0,
            key: last.as_ref().map_or(0, |last| last.as_ptr() as u64),
            value: key.as_mut_ptr() as u64,
            flags: 0,
        };
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attributes) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        attributes.key = key.as_ptr() as u64;
        attributes.value = value.as_mut_ptr() as u64;
        bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes)?;
        visit(&key, &value);
        last = Some(key);
    }
}

/// Puts an element unless there is one of that key; in an array, where there always is one,
/// over it.
pub(crate) fn put_new_element(
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    is_array: bool,
) -> io::Result<()> {
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: if is_array { 0 } else { BPF_NOEXIST },
    };
    match bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result.map(|_| ()),
    }
}

/// The memory of an array map of u32 that was made with BPF_F_MMAPABLE (5.5): a write is a
/// store, not a system call.
pub(crate) struct MappedArray {
    /// The kernel gives every element eight bytes, of which a u32 takes the first four.
    elements: NonNull<AtomicU32>,
    length: u32,
}

// SAFETY: the memory is the map's and shared by nature; all access is atomic.
unsafe impl Send for MappedArray {}
// SAFETY: as above.
unsafe impl Sync for MappedArray {}

impl MappedArray {
    const STRIDE: usize = 8;

    pub(crate) fn new(map: BorrowedFd<'_>, length: u32) -> io::Result<Self> {
        // SAFETY: a new mapping of a length that the kernel checks against the map's.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length as usize * Self::STRIDE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let elements = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { elements, length })
    }

    fn element(&self, index: u32) -> Option<&AtomicU32> {
        if index >= self.length {
            return None;
        }
        let words = Self::STRIDE / size_of::<AtomicU32>();
        // SAFETY: within the mapping, which lives as long as `self`; page-aligned at its start.
        Some(unsafe { self.elements.add(index as usize * words).as_ref() })
    }

    /// Beyond the end nothing is written.
    pub(crate) fn set(&self, index: u32, value: u32) {
        if let Some(element) = self.element(index) {
            element.store(value, Ordering::Release);
        }
    }

    pub(crate) fn read(&self) -> Vec<u32> {
        let value = |index| self.element(index).map(|it| it.load(Ordering::Acquire));
        (0..self.length).filter_map(value).collect()
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        let length = self.length as usize * Self::STRIDE;
        // SAFETY: the mapping that `new` made; nothing borrowed from it is left.
        unsafe { libc::munmap(self.elements.as_ptr().cast(), length) };
    }
}

/// Seconds of the clock that `bpf_ktime_get_coarse_ns` reads.
pub(crate) fn monotonic_seconds() -> u32 {
    (monotonic_nanoseconds() / 1_000_000_000) as u32
}

/// The clock that `bpf_ktime_get_ns` reads.
pub(crate) fn monotonic_nanoseconds() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a live timespec; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
