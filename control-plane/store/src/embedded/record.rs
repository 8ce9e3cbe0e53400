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

pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !crc32_update(!0, bytes)
}

fn checksum(revision: Revision, body: &[u8]) -> u32 {
    let crc = crc32_update(!0, &revision.0.to_le_bytes());
    !crc32_update(crc, body)
}

/// CRC-32 (IEEE 802.3, reflected), eight bytes at a step: a commit's checksum must cost nothing beside
/// its fdatasync, and opening a store of 200 MB must not wait for it.
fn crc32_update(mut crc: u32, bytes: &[u8]) -> u32 {
    let (chunks, tail) = bytes.as_chunks::<8>();
    for chunk in chunks {
        let low = crc ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        crc = CRC32[7][(low & 0xff) as usize]
            ^ CRC32[6][(low >> 8 & 0xff) as usize]
            ^ CRC32[5][(low >> 16 & 0xff) as usize]
            ^ CRC32[4][(low >> 24) as usize]
            ^ CRC32[3][chunk[4] as usize]
            ^ CRC32[2][chunk[5] as usize]
            ^ CRC32[1][chunk[6] as usize]
            ^ CRC32[0][chunk[7] as usize];
    }
    for byte in tail {
        crc = crc >> 8 ^ CRC32[0][((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    crc
}

static CRC32: [[u32; 256]; 8] = {
    let mut tables = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut i = 0;
        while i < 256 {
            let before = tables[table - 1][i];
            tables[table][i] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            i += 1;
        }
        table += 1;
    }
    tables
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_crc32() {
        assert_eq!(!crc32_update(!0, b"123456789"), 0xcbf4_3926);
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
