//! The report for people, and its plots.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use plotters::style::RGBColor;

use super::results::{Measured, Place, Results};
use crate::plot::{Axis, Line, chart};
use crate::rounds::{CONNECTIONS, cell, compare, comparisons_head, comparisons_row, pair};
use crate::statistics::Spread;

pub fn markdown(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = String::from("# What the way between two pods costs, and policies on them\n\n");
    let _ = writeln!(
        text,
        "`cargo xtask bench policy` on {}.\n",
        machine.description()
    );
    let _ = writeln!(text, "{}\n", machine.load_note(results.load_after));
    text.push_str(HOW);
    let _ = writeln!(text, "The cluster has {} other pods.", results.pods);
    text.push_str(
        "\n![connections of plain routing](connections.svg)\n\n![time of a change](change.svg)\n",
    );
    for place in Place::ALL {
        let _ = writeln!(text, "\n## On {}\n", place.name());
        text.push_str(
            "| | connections/s | connect p50 / p99, us | CPU us/connection | requests/s | request p50 / p99, us | bulk, Gbit/s | change, ms: median (most) |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for one in results.at(place) {
            let _ = writeln!(text, "| {} | {} |", one.name(), cells(one).join(" | "));
        }
    }
    text.push_str(FOLLOWS);
    follows(&mut text, results);
    text
}

const HOW: &str = "\
Two pods, each in a namespace behind a pair of virtual interfaces, on one node or on two that a wire joins. \"Plain routing\" is the
same without any program: the kernel's routes, and for VXLAN routes that lead through the kernel's own tunnel. Windlass is the
datapath as the agent has it, socket hooks and all, with so many NetworkPolicies on both pods: one lets the two talk, the others are all
different and have nothing to say about it. One client, one connection or request at a time, on the processor that the server
is on; rounds alternate; a figure is the median of the rounds, with half of the spread between them (without the outermost round
on each side, from five rounds on). A change: the server is closed by so many policies, and one more lets the client in; the time from the
order to the first connection that gets through, with compiling and writing, seen every millisecond. The time from the API server to the
agent is in docs/promises.md.
";

const FOLLOWS: &str = "
## What follows

Windlass's figure divided by the other's, of paired rounds: the median and the spread. Where the spread holds 1, the rounds
contradict each other and nothing follows: \"same\".

";

fn follows(text: &mut String, results: &Results) {
    text.push_str(&comparisons_head(&["", "", "against"]));
    for place in Place::ALL {
        let baseline = |policies| results.at(place).find(move |it| it.policies == policies);
        for one in results.at(place) {
            for against in [None, Some(0)].into_iter().filter_map(baseline) {
                if one.policies.is_none() || one.policies == against.policies {
                    continue;
                }
                let of = [place.name(), &one.name(), &against.name()];
                text.push_str(&comparisons_row(&of, &one.rounds, &against.rounds));
            }
        }
    }
}

fn cells(one: &Measured) -> [String; 7] {
    [
        cell(one.spread(CONNECTIONS), 0),
        pair(
            one.spread(|round| Some(round.connect.p50_us)),
            one.spread(|round| Some(round.connect.p99_us)),
        ),
        cell(one.spread(|round| Some(round.cpu_us_per_connection)), 1),
        cell(one.spread(|round| Some(round.requests_per_second)), 0),
        pair(
            one.spread(|round| Some(round.request.p50_us)),
            one.spread(|round| Some(round.request.p99_us)),
        ),
        cell(one.spread(|round| round.bulk_gbit_per_second), 1),
        Spread::of(one.change_ms.iter().copied()).map_or(String::new(), |spread| {
            let most = one.change_ms.iter().copied().fold(0.0, f64::max);
            format!("{:.1} ({most:.1})", spread.median)
        }),
    ]
}

/// No policy at all stands at the left, as a tenth of one: the axis is logarithmic.
const NONE: f64 = 0.1;

pub fn draw(results: &Results, folder: &Path) -> Result<()> {
    let lines = |figure: &dyn Fn(&Measured) -> Option<f64>| -> Vec<Line> {
        let of = |place: Place| Line {
            name: place.name().to_owned(),
            colour: colour(place),
            points: results
                .at(place)
                .filter_map(|one| Some(((one.policies? as f64).max(NONE), figure(one)?)))
                .collect(),
        };
        Place::ALL.into_iter().map(of).collect()
    };
    let axis = Axis {
        across: "policies on both pods (at 0.1: none)",
        logarithmic: false,
    };
    let of_plain = lines(&|one| {
        let plain = results.at(one.place).find(|it| it.policies.is_none())?;
        let comparison = compare(&one.rounds, &plain.rounds, CONNECTIONS)?;
        Some(comparison.ratio.median)
    });
    let path = folder.join("connections.svg");
    chart(
        &path,
        "new connections per second, of plain routing",
        &axis,
        of_plain,
    )?;
    let changes = lines(&|one| Spread::of(one.change_ms.iter().copied()).map(|it| it.median));
    let path = folder.join("change.svg");
    chart(
        &path,
        "milliseconds until a policy's change works",
        &axis,
        changes,
    )
}

fn colour(place: Place) -> RGBColor {
    match place {
        Place::OneNode => RGBColor(27, 120, 55),
        Place::Direct => RGBColor(33, 102, 172),
        Place::Vxlan => RGBColor(146, 102, 178),
    }
}
