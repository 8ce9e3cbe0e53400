//! One write as it lies in the file, with a checksum over all of it.
//!
//! redb verifies its pages only when it repairs after a crash; a bit that flips on a disk at rest would
//! otherwise be served as truth. Layout, integers little endian:
//!
//! ```text
//! flags u8 | create revision u64 | [expiry, Unix milliseconds u64] | key length u32 | key | value | crc32 u32
//! ```
//!
//! The checksum also covers the revision, which is the record's key in the table and not repeated here.

use std::sync::Arc;

use bytes::Bytes;

use crate::Revision;

const DELETED: u8 = 1;
const EXPIRES: u8 = 2;

/// A write that has a revision: the unit of the log, of the file and of the memory, which keeps it packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write<V = Bytes> {
    pub(super) revision: Revision,
    pub(super) key: Arc<str>,
    /// `None`: the key was deleted.
    pub(super) put: Option<Put<V>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Put<V = Bytes> {
    pub(super) value: V,
    pub(super) create_revision: Revision,
    /// Unix time in milliseconds at which the key goes away by itself.
    pub(super) expires_at: Option<u64>,
}

impl<V> Write<V> {
    /// The same write with its value in another form.
    pub(super) fn map<W>(self, form: impl FnOnce(V) -> W) -> Write<W> {
        Write {
            revision: self.revision,
            key: self.key,
            put: self.put.map(|put| Put {
                value: form(put.value),
                create_revision: put.create_revision,
                expires_at: put.expires_at,
            }),
        }
    }
}

impl Write<&[u8]> {
    pub(super) fn into_owned(self) -> Write {
        self.map(Bytes::copy_from_slice)
    }
}

impl Write {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        let (flags, create_revision, expires_at, value) = match &self.put {
            None => (DELETED, Revision::default(), None, &[][..]),
            Some(put) => {
                let flags = if put.expires_at.is_some() { EXPIRES } else { 0 };
                (flags, put.create_revision, put.expires_at, &put.value[..])
            }
        };
        let key_length = u32::try_from(self.key.len()).expect("keys are far below 4 GiB");
        out.push(flags);
        out.extend_from_slice(&create_revision.0.to_le_bytes());
        if let Some(at) = expires_at {
            out.extend_from_slice(&at.to_le_bytes());
        }
        out.extend_from_slice(&key_length.to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(value);
        let sum = checksum(self.revision, out);
        out.extend_from_slice(&sum.to_le_bytes());
    }
}

impl<'a> Write<&'a [u8]> {
    /// Reads back what [`encode`](Write::encode) wrote; the error says what is wrong with the bytes.
    pub(super) fn decode(revision: Revision, record: &'a [u8]) -> Result<Self, &'static str> {
        let (body, sum) = record
            .split_last_chunk::<4>()
            .ok_or("a record is too short")?;
        if checksum(revision, body) != u32::from_le_bytes(*sum) {
            return Err("a record's checksum does not match");
        }
        let mut rest = body;
        let flags = take::<1>(&mut rest)?[0];
        let create_revision = Revision(u64::from_le_bytes(take(&mut rest)?));
        let expires_at = if flags & EXPIRES != 0 {
            Some(u64::from_le_bytes(take(&mut rest)?))
        } else {
            None
        };
        let key_length = u32::from_le_bytes(take(&mut rest)?) as usize;
        let (key, value) = rest
            .split_at_checked(key_length)
            .ok_or("a record's key is cut off")?;
        let key = std::str::from_utf8(key).map_err(|_| "a record's key is not UTF-8")?;
        let put = (flags & DELETED == 0).then_some(Put {
            value,
            create_revision,
            expires_at,
        });
        Ok(Self {
            revision,
            key: Arc::from(key),
            put,
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], &'static str> {
    let (head, tail) = rest
        .split_first_chunk::<N>()
        .ok_or("a record is too short")?;
    *rest = tail;
    Ok(*head)
}

fn checksum(revision: Revision, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&revision.0.to_le_bytes());
    crc.update(body);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// CRC-32 of IEEE 802.3: what files that exist were written with.
    #[test]
    fn the_checksum_is_crc32() {
        let revision = Revision(u64::from_le_bytes(*b"12345678"));
        assert_eq!(checksum(revision, b"9"), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            revision: u64, key in ".{0,40}", value: Vec<u8>, create: u64,
            expires_at: Option<u64>, deleted: bool,
        ) {
            let put = Put { value: value.into(), create_revision: Revision(create), expires_at };
            let write = Write {
                revision: Revision(revision),
                key: Arc::from(key.as_str()),
                put: (!deleted).then_some(put),
            };
            let mut record = Vec::new();
            write.encode(&mut record);
            prop_assert_eq!(Write::decode(Revision(revision), &record).map(Write::into_owned), Ok(write));
        }

        #[test]
        fn a_flipped_bit_is_noticed(value: Vec<u8>, position: prop::sample::Index, bit in 0u8..8) {
            let put = Put { value: value.into(), create_revision: Revision(1), expires_at: None };
            let write = Write { revision: Revision(7), key: "/a/b".into(), put: Some(put) };
            let mut record = Vec::new();
            write.encode(&mut record);
            let position = position.index(record.len());
            record[position] ^= 1 << bit;
            prop_assert!(Write::decode(Revision(7), &record).is_err());
        }

        #[test]
        fn a_cut_record_is_refused(value: Vec<u8>, length: prop::sample::Index) {
            let put = Put { value: value.into(), create_revision: Revision(1), expires_at: Some(9) };
            let write = Write { revision: Revision(7), key: "/a/b".into(), put: Some(put) };
            let mut record = Vec::new();
            write.encode(&mut record);
            let cut = &record[..length.index(record.len())];
            prop_assert!(Write::decode(Revision(7), cut).is_err());
        }
    }
}
