//! Packs things of one kind, by what the ones before them were like.

use std::sync::Arc;

use lz4_flex::block::{compress_into_with_dict, get_maximum_output_size};
use parking_lot::Mutex;

use crate::{Form, Packed, with_buffer};

/// Shorter ones have nothing to share that pays for the bookkeeping.
const SHORTEST: usize = 64;
/// A dictionary holds the latest things that it did not describe, up to so many bytes: the most that a packer
/// looks through for each.
const DICTIONARY: usize = 8 << 10;
/// A dictionary is learned anew at most after so many things, and each time after twice as many, up to the
/// second: those that are like nothing else must not bring a dictionary each.
const INTERVALS: (u32, u32) = (64, 4096);

/// Packs with a dictionary that follows what it is given.
#[derive(Default)]
pub struct Packer(Mutex<Learned>);

#[derive(Default)]
struct Learned {
    dictionary: Option<Arc<[u8]>>,
    /// Things packed since it was learned.
    since: u32,
    /// How many there must be before the next.
    interval: u32,
}

impl Packer {
    pub fn pack(&self, plain: &[u8]) -> Packed {
        if plain.len() < SHORTEST {
            return Packed::plain(plain);
        }
        let dictionary = {
            let mut learned = self.0.lock();
            learned.since = learned.since.saturating_add(1);
            learned.dictionary.clone()
        };
        let packed = pack_with(plain, dictionary.unwrap_or_default());
        if packed.weight() * 2 <= plain.len() {
            return packed;
        }
        match self.0.lock().learn(plain) {
            Some(better) => pack_with(plain, better),
            None => packed,
        }
    }

    /// The same bytes packed, where they are not yet.
    pub fn repack(&self, value: Packed) -> Packed {
        if value.is_plain() && value.len() >= SHORTEST {
            value.read(|plain| self.pack(plain))
        } else {
            value
        }
    }
}

impl Learned {
    /// A dictionary with `plain` in it, if it is time for one.
    fn learn(&mut self, plain: &[u8]) -> Option<Arc<[u8]>> {
        if self.dictionary.is_some() && self.since < self.interval {
            return None;
        }
        let plain = &plain[..plain.len().min(DICTIONARY)];
        let old = self.dictionary.take().unwrap_or_default();
        let kept = old.len().min(DICTIONARY - plain.len());
        // What is nearest to the end is referred to at the least cost.
        let dictionary: Arc<[u8]> = [&old[old.len() - kept..], plain].concat().into();
        self.dictionary = Some(dictionary.clone());
        self.since = 0;
        self.interval = (self.interval * 2).clamp(INTERVALS.0, INTERVALS.1);
        Some(dictionary)
    }
}

fn pack_with(plain: &[u8], dictionary: Arc<[u8]>) -> Packed {
    with_buffer(|buffer| {
        buffer.resize(get_maximum_output_size(plain.len()), 0);
        match compress_into_with_dict(plain, buffer, &dictionary) {
            // An eighth is the least that is worth the time to unpack it.
            Ok(length) if length <= plain.len() - plain.len() / 8 => {
                Packed::new(Form::Lz4(dictionary), plain.len(), &buffer[..length])
            }
            _ => Packed::plain(plain),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(number: usize) -> Vec<u8> {
        format!(
            r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"web-{number}","namespace":"default","uid":"{:032x}"}},
            "spec":{{"containers":[{{"name":"main","image":"example.test/library/server:1.2.3","resources":{{}},
            "terminationMessagePath":"/dev/termination-log","imagePullPolicy":"IfNotPresent"}}],"restartPolicy":"Always",
            "dnsPolicy":"ClusterFirst","schedulerName":"default-scheduler"}},"status":{{"phase":"Pending"}}}}"#,
            number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        )
        .into_bytes()
    }

    #[test]
    fn what_is_alike_takes_a_fraction() {
        let packer = Packer::default();
        let packed: Vec<_> = (0..1000).map(|number| packer.pack(&pod(number))).collect();
        let held: usize = packed.iter().map(Packed::weight).sum();
        let plain: usize = packed.iter().map(Packed::len).sum();
        assert!(held * 5 < plain, "{held} of {plain}");
        for (number, packed) in packed.iter().enumerate() {
            assert_eq!(packed.to_vec(), pod(number));
        }
    }

    #[test]
    fn a_dictionary_that_fits_no_more_is_replaced_but_not_at_every_turn() {
        let packer = Packer::default();
        packer.pack(&pod(1));
        let other = |number: usize| {
            format!("{number:<4}{}", "another kind of thing ".repeat(2)).repeat(1)
                + &{
                    (0..60)
                        .map(|i| char::from(b'a' + ((i * 7 + 3) % 26) as u8))
                        .collect::<String>()
                }
        };
        let first = packer.pack(other(0).as_bytes());
        let mut last = first.clone();
        for number in 1..200 {
            last = packer.pack(other(number).as_bytes());
        }
        assert!(
            last.weight() < first.weight() / 2,
            "{} {}",
            last.weight(),
            first.weight()
        );
    }

    #[test]
    fn equal_bytes_are_equal_however_they_are_held() {
        let packer = Packer::default();
        packer.pack(&pod(1));
        let packed = packer.pack(&pod(2));
        assert!(!packed.is_plain());
        assert_eq!(packed, Packed::plain(&pod(2)));
        assert_ne!(packed, packer.pack(&pod(3)));
        assert_eq!(
            packer.repack(Packed::plain(&pod(2))).weight(),
            packed.weight()
        );
    }

    proptest! {
        #[test]
        fn whatever_is_packed_is_unpacked(
            things in prop::collection::vec(prop::collection::vec(0u8..4, 0..3000), 1..40),
            noise in prop::collection::vec(any::<u8>(), 0..20_000),
        ) {
            let packer = Packer::default();
            for thing in things.iter().chain([&noise]).chain(&things) {
                let packed = packer.pack(thing);
                prop_assert_eq!(&packed.to_vec(), thing);
                prop_assert_eq!(packed.len(), thing.len());
                packed.read(|plain| assert_eq!(plain, &thing[..]));
            }
        }
    }
}
