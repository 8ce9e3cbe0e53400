//! The report for people.

use std::fmt::Write as _;

use super::conclusion;
use super::results::{Measured, Results};
use super::way::Way;
use crate::rounds::{CONNECTIONS, cell, compare, pair};
use crate::statistics::Spread;

pub fn report(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = String::from("# What a Service costs\n\n");
    let _ = writeln!(
        text,
        "`cargo xtask bench service` on {}.\n",
        machine.description()
    );
    let _ = writeln!(text, "{}\n", machine.load_note(results.load_after));
    text.push_str(HOW);
    for (way, reason) in &results.absent {
        let _ = writeln!(text, "\nNot measured: {} ({reason}).", way.name());
    }
    text.push_str("\n![connections per second](connections.svg)\n\n![time to load](load.svg)\n\n![time of a change](change.svg)\n");
    for size in results.sizes() {
        let _ = writeln!(
            text,
            "\n## {size} Services of {} endpoints\n",
            results.endpoints_per_service
        );
        table(&mut text, results, size);
    }
    text.push_str(FOLLOWS);
    text.push_str(&conclusion::table(results));
    text
}

const HOW: &str = "\
Every way has namespaces of its own: a client, a node that forwards, a server; all ways of a size stand beside each other
and their rounds alternate. One client, one connection or request at a time, on the
processor that the server is on: what is measured is what the path costs. A figure is the median of the rounds, with
half of the spread between them (without the outermost round on each side, from five rounds on). \"Of direct\" is the median
of the paired ratios. Processor time is that of client and server together, the kernel's work for them included. The asked
Service stands in the middle of the others. \"Load\" and \"change\" of the other ways begin with the finished text and include
the tool; Windlass's begin with the API's answer and include decoding and compiling. \"Change\" ends with the first connection
that the new endpoint answers. Memory is what the kernel holds for the rules (memory cgroup); for Windlass it includes
all maps at their default capacities, for connections too. The process is Windlass's datapath and service controller
with, in the same process, the API that feeds it (its objects lie in a file). With XDP both ends are outside of the node, and do without
the offloads of a pair of virtual interfaces, as XDP needs it: its bulk is no driver's.
";

const FOLLOWS: &str = "
## What follows

Windlass's figure divided by the other's, of paired rounds: the median and the spread. Where the spread holds 1, the rounds
contradict each other and nothing follows: \"same\".

";

fn table(text: &mut String, results: &Results, size: usize) {
    text.push_str(
        "| | connections/s | of direct | connect p50 / p99, us | CPU us/connection | requests/s | request p50 / p99, us | bulk, Gbit/s | load, s | change, ms | kernel memory / process, MiB |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let direct = results.of(Way::Direct, size);
    for way in Way::ALL {
        let Some(measured) = results.of(way, size) else {
            continue;
        };
        if let Some(limit) = measured.not_loaded_within {
            let _ = writeln!(
                text,
                "| {} | not loaded within {limit:.0} s | | | | | | | | | |",
                way.name()
            );
            continue;
        }
        let _ = writeln!(
            text,
            "| {} | {} |",
            way.name(),
            cells(measured, direct).join(" | ")
        );
    }
}

fn cells(measured: &Measured, direct: Option<&Measured>) -> Vec<String> {
    let ratio = direct
        .filter(|_| measured.way != Way::Direct)
        .and_then(|direct| compare(&measured.rounds, &direct.rounds, CONNECTIONS));
    let loaded = measured.loaded.unwrap_or_default();
    let is_direct = measured.way == Way::Direct;
    vec![
        cell(
            measured.spread(|round| Some(round.connections_per_second)),
            0,
        ),
        ratio.map_or(String::new(), |comparison| {
            format!("{:.2}", comparison.ratio.median)
        }),
        pair(
            measured.spread(|round| Some(round.connect.p50_us)),
            measured.spread(|round| Some(round.connect.p99_us)),
        ),
        cell(
            measured.spread(|round| Some(round.cpu_us_per_connection)),
            1,
        ),
        cell(measured.spread(|round| Some(round.requests_per_second)), 0),
        pair(
            measured.spread(|round| Some(round.request.p50_us)),
            measured.spread(|round| Some(round.request.p99_us)),
        ),
        cell(measured.spread(|round| round.bulk_gbit_per_second), 1),
        if is_direct {
            String::new()
        } else {
            format!("{:.3}", loaded.seconds)
        },
        cell(Spread::of(measured.change_ms.iter().copied()), 1),
        match (loaded.kernel_mib, loaded.process_mib) {
            (Some(kernel), Some(process)) => format!("{kernel:.1} / {process:.1}"),
            (Some(kernel), None) => format!("{kernel:.1}"),
            _ => String::new(),
        },
    ]
}
