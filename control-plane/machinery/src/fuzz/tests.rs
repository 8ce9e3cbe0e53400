use super::*;
use crate::schema::arbitrary::{self, Seed};

/// Pieces that mean something to one of the readers.
const PIECES: [&[u8]; 16] = [
    b"null",
    b"{}",
    b"[]",
    b"\"$patch\":\"delete\",",
    b"\"$retainKeys\":[\"name\"],",
    b"\"$setElementOrder/containers\":[],",
    b"{\"op\":\"test\",\"path\":\"/a\",\"value\":1},",
    b"1e999",
    b"-9223372036854775808",
    b"\\ud800",
    b"&a [*a]",
    b" notin (x,)",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x0a\x00",
    b"\x80",
    &[SEPARATOR],
];

/// A few changes of the kind that breaks readers: a flipped bit, a lost, doubled or foreign stretch.
fn damage(bytes: &mut Vec<u8>, other: &[u8], seed: &mut Seed) {
    for _ in 0..seed.below(4) {
        let at = seed.below(bytes.len() as u64 + 1) as usize;
        let end = (at + seed.below(12) as usize).min(bytes.len());
        match seed.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << seed.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let doubled = bytes[at..end].to_vec();
                bytes.splice(at..at, doubled);
            }
            3 => {
                let piece = PIECES[seed.below(PIECES.len() as u64) as usize];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {
                let from = seed.below(other.len() as u64 + 1) as usize;
                let to = (from + 20).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
}

/// Types whose lists, maps and unions meet all of the code; every third run takes any other.
const RICH: [&str; 3] = [
    "io.k8s.api.core.v1.Pod",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.apps.v1.Deployment",
];

/// Calls `target` with `runs` inputs: the choice of a type, then `written` of an object of it, damaged.
fn drive(runs: u64, target: fn(&[u8]), written: fn(&Schema, TypeId, &mut Seed) -> Vec<u8>) {
    let schema = Schema::builtin();
    for run in 0..runs {
        let mut seed = Seed(run);
        let types = schema.types().count() as u64;
        let choice = match run % 3 {
            0 => seed.below(types) as usize,
            _ => {
                let id = schema.type_id(RICH[seed.below(3) as usize]).unwrap();
                schema.types().position(|(other, _)| other == id).unwrap()
            }
        };
        let (id, _) = schema.types().nth(choice).unwrap();
        let mut body = written(&schema, id, &mut seed);
        let other = written(&schema, id, &mut seed);
        damage(&mut body, &other, &mut seed);
        let mut input = u16::try_from(choice).unwrap().to_le_bytes().to_vec();
        input.append(&mut body);
        // The one before a panic is the one to look at.
        let input = std::panic::AssertUnwindSafe(&input);
        if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
            eprintln!("run {run}: {}", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
    }
}

fn text(schema: &Schema, id: TypeId, seed: &mut Seed) -> Vec<u8> {
    arbitrary::object(schema, id, seed, 0)
        .to_string()
        .into_bytes()
}

fn two_texts(schema: &Schema, id: TypeId, seed: &mut Seed) -> Vec<u8> {
    [text(schema, id, seed), text(schema, id, seed)].join(&SEPARATOR)
}

#[test]
fn protobuf_holds() {
    drive(3_000, protobuf, |schema, id, seed| {
        let object = arbitrary::object(schema, id, seed, 0);
        protobuf::encode(schema, id, &object).unwrap()
    });
}

#[test]
fn documents_hold() {
    drive(3_000, document, text);
}

#[test]
fn patches_hold() {
    drive(3_000, patches, two_texts);
}

#[test]
fn server_side_apply_holds() {
    drive(1_500, server_side_apply, two_texts);
}

#[test]
fn selectors_hold() {
    const PARTS: [&str; 12] = [
        "a", "!", "=", "==", "!=", " in ", " notin ", "(", ")", ",", "b.c/d", ">1",
    ];
    for run in 0..20_000 {
        let mut seed = Seed(run);
        let parts = (0..seed.below(9)).map(|_| PARTS[seed.below(12) as usize]);
        selectors(parts.collect::<String>().as_bytes());
    }
}
