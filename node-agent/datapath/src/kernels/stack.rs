//! How much stack the programs take, as the oldest supported verifier counts it: every function's part is
//! rounded up to 32 octets (later kernels round to 16), and along any chain of calls they may be 512 together.

use std::collections::BTreeMap;

use super::OBJECT;

const LIMIT: usize = 512;
const ROUND: usize = 32;

const SYMBOL_TABLE: usize = 2;
const RELOCATIONS: usize = 9;
const FUNCTION: usize = 2;

/// A number of the file at a place, in so many octets.
fn number(at: usize, octets: usize) -> usize {
    let digits = OBJECT[at..at + octets].iter().rev();
    digits.fold(0, |value, octet| value << 8 | usize::from(*octet))
}

fn signed(at: usize, octets: usize) -> i64 {
    let shift = 64 - 8 * octets as u32;
    (number(at, octets) as i64) << shift >> shift
}

struct Section {
    kind: usize,
    start: usize,
    size: usize,
    /// Of relocations: the symbols, and the section that they are about.
    link: usize,
    info: usize,
}

fn sections() -> Vec<Section> {
    let (table, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    (0..count)
        .map(|index| {
            let at = table + index * size;
            Section {
                kind: number(at + 4, 4),
                start: number(at + 24, 8),
                size: number(at + 32, 8),
                link: number(at + 40, 4),
                info: number(at + 44, 4),
            }
        })
        .collect()
}

/// Where a function is: section and offset.
type Place = (usize, usize);

#[derive(Default)]
struct Function {
    name: String,
    depth: usize,
    calls: Vec<Place>,
}

fn functions() -> BTreeMap<Place, Function> {
    let sections = sections();
    let symbols = sections.iter().find(|section| section.kind == SYMBOL_TABLE);
    let symbols = symbols.expect("a symbol table");
    let names = &sections[symbols.link];
    let symbol = |index: usize| {
        let at = symbols.start + index * 24;
        let name = names.start + number(at, 4);
        let end = OBJECT[name..].iter().position(|octet| *octet == 0);
        let name = &OBJECT[name..name + end.expect("names end")];
        let place = (number(at + 6, 2), number(at + 8, 8));
        (number(at + 4, 1) & 15, place, number(at + 16, 8), name)
    };
    let mut relocated: BTreeMap<Place, Place> = BTreeMap::new();
    for section in sections.iter().filter(|it| it.kind == RELOCATIONS) {
        for at in (section.start..section.start + section.size).step_by(16) {
            let (_, place, ..) = symbol(number(at + 12, 4));
            relocated.insert((section.info, number(at, 8)), place);
        }
    }
    let mut found = BTreeMap::new();
    for index in 0..symbols.size / 24 {
        let (kind, place, size, name) = symbol(index);
        if kind != FUNCTION {
            continue;
        }
        let mut function = Function {
            name: String::from_utf8_lossy(name).into_owned(),
            ..Function::default()
        };
        let mut points = [false; 16];
        for offset in (place.1..place.1 + size).step_by(8) {
            let at = sections[place.0].start + offset;
            let (operation, registers) = (number(at, 1), number(at + 1, 1));
            let (to, from) = (registers & 15, registers >> 4);
            let (short, long) = (signed(at + 2, 2), signed(at + 4, 4));
            let base = if operation & 7 == 1 { from } else { to };
            let mut reaches = |depth: i64| {
                function.depth = function.depth.max(usize::try_from(-depth).unwrap_or(0));
            };
            match operation {
                // Loads and stores by the frame pointer.
                _ if (1..=3).contains(&(operation & 7)) && base == 10 => reaches(short),
                // A pointer into the frame: copied, then moved.
                0xbf => points[to] = from == 10,
                0x07 if std::mem::take(&mut points[to]) => reaches(long),
                0x85 if from == 1 => {
                    let (section, start) = relocated
                        .get(&(place.0, offset))
                        .copied()
                        .unwrap_or((place.0, offset));
                    let target = start as i64 + (long + 1) * 8;
                    function.calls.push((section, target as usize));
                }
                _ => {}
            }
        }
        found.insert(place, function);
    }
    found
}

/// The deepest chain of calls from a function.
fn deepest(functions: &BTreeMap<Place, Function>, from: Place) -> (usize, Vec<String>) {
    let function = &functions[&from];
    let own = function.depth.max(1).next_multiple_of(ROUND);
    let calls = function.calls.iter().map(|call| deepest(functions, *call));
    let (below, mut chain) = calls.max_by_key(|(depth, _)| *depth).unwrap_or_default();
    chain.insert(0, format!("{} ({})", function.name, function.depth));
    (own + below, chain)
}

#[test]
fn no_chain_of_calls_takes_more_stack_than_the_oldest_kernel_gives() {
    let functions = functions();
    let named = |name: &str| functions.iter().find(|(_, function)| function.name == name);
    for program in [
        "connect6",
        "sendmsg6",
        "from_pod",
        "to_pod",
        "from_uplink",
        "to_uplink",
        "xdp_uplink",
    ] {
        let (place, _) = named(program).unwrap_or_else(|| panic!("no function {program}"));
        let (depth, chain) = deepest(&functions, *place);
        assert!(depth <= LIMIT, "{depth} octets: {chain:?}");
    }
    // Calls were followed, and frames seen.
    let (place, _) = named("from_uplink").expect("seen above");
    let (depth, chain) = deepest(&functions, *place);
    assert!(chain.len() > 2 && depth > 256, "{depth}: {chain:?}");
}
