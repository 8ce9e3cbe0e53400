//! Objects at rest in memory, a fraction of their size.
//!
//! A cluster's objects are many and alike: of a pod's 2.4 KB all but its names, uid and times are also in the
//! pod before it. LZ4 against a dictionary of such neighbours leaves about a tenth, and costs some microseconds
//! to write and one to read. Compressing each object by itself leaves half.
//! [`Packer`] keeps the dictionary of one kind of thing and learns a new one when it fits no more; a [`Packed`]
//! holds on to the dictionary that it was made with. Nothing here is ever written to a disk.
//!
//! Pure: depends on no other crate of the workspace; whoever keeps many objects may depend on it.

mod packer;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

pub use packer::Packer;

/// A scratch buffer that has grown beyond this is given back.
const SCRATCH: usize = 256 << 10;

/// Bytes, packed or, where that would save nothing, as they are. A clone shares them.
#[derive(Clone)]
pub struct Packed(Arc<Inner>);

struct Inner {
    form: Form,
    /// Of the plain bytes.
    length: usize,
    held: Box<[u8]>,
}

enum Form {
    Plain,
    Lz4(Arc<[u8]>),
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of this thread; a caller within the caller gets one of its own.
fn with_buffer<R>(work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = BUFFER.with_borrow_mut(std::mem::take);
    buffer.clear();
    let result = work(&mut buffer);
    if buffer.capacity() <= SCRATCH {
        BUFFER.with_borrow_mut(|kept| *kept = buffer);
    }
    result
}

impl Packed {
    /// Keeps bytes as they are.
    pub fn plain(bytes: &[u8]) -> Self {
        Self::new(Form::Plain, bytes.len(), bytes)
    }

    fn new(form: Form, length: usize, held: &[u8]) -> Self {
        Self(Arc::new(Inner {
            form,
            length,
            held: held.into(),
        }))
    }

    /// The length of the plain bytes.
    pub fn len(&self) -> usize {
        self.0.length
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is held in memory, apart from a dictionary that is shared.
    pub fn weight(&self) -> usize {
        self.0.held.len()
    }

    /// Whether packing was not tried, or saved nothing.
    pub fn is_plain(&self) -> bool {
        matches!(self.0.form, Form::Plain)
    }

    /// The bytes, where they are held as they are.
    pub fn as_plain(&self) -> Option<&[u8]> {
        self.is_plain().then_some(&self.0.held)
    }

    /// Appends the plain bytes.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match &self.0.form {
            Form::Plain => out.extend_from_slice(&self.0.held),
            Form::Lz4(dictionary) => {
                let start = out.len();
                out.resize(start + self.0.length, 0);
                let unpacked = lz4_flex::block::decompress_into_with_dict(
                    &self.0.held,
                    &mut out[start..],
                    dictionary,
                );
                assert!(
                    unpacked.is_ok_and(|length| length == self.0.length),
                    "what this process packed can be unpacked"
                );
            }
        }
    }

    /// The plain bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        self.append_to(&mut out);
        out
    }

    /// Lets `work` look at the plain bytes, without an allocation for them.
    pub fn read<R>(&self, work: impl FnOnce(&[u8]) -> R) -> R {
        match &self.0.form {
            Form::Plain => work(&self.0.held),
            Form::Lz4(_) => with_buffer(|buffer| {
                self.append_to(buffer);
                work(buffer)
            }),
        }
    }
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || self.len() == other.len() && self.read(|own| other.read(|others| own == others))
    }
}

impl Eq for Packed {}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read(|bytes| f.write_str(&String::from_utf8_lossy(bytes)))
    }
}
