//! The plots: each way a line over the number of Services.

use std::path::Path;

use anyhow::Result;
use plotters::style::RGBColor;

use super::results::{Measured, Results};
use super::way::Way;
use crate::plot::{Axis, Line, chart};
use crate::statistics::Spread;

pub fn draw(results: &Results, folder: &Path) -> Result<()> {
    lines(
        results,
        &folder.join("connections.svg"),
        "new connections per second",
        false,
        |measured| {
            measured
                .spread(|round| Some(round.connections_per_second))
                .map(|spread| spread.median)
        },
    )?;
    lines(
        results,
        &folder.join("load.svg"),
        "seconds to load all Services",
        true,
        |measured| {
            let loaded = measured.loaded.filter(|_| measured.way != Way::Direct)?;
            Some(loaded.seconds)
        },
    )?;
    lines(
        results,
        &folder.join("change.svg"),
        "milliseconds until one endpoint's change works",
        true,
        |measured| Spread::of(measured.change_ms.iter().copied()).map(|spread| spread.median),
    )
}

fn lines(
    results: &Results,
    path: &Path,
    title: &str,
    logarithmic: bool,
    figure: impl Fn(&Measured) -> Option<f64>,
) -> Result<()> {
    let lines = Way::ALL.into_iter().map(|way| {
        let points = results
            .sizes()
            .into_iter()
            .filter_map(|size| Some((size as f64, figure(results.of(way, size)?)?)));
        Line {
            name: way.name().to_owned(),
            colour: colour(way),
            points: points.collect(),
        }
    });
    let axis = Axis {
        across: "Services",
        logarithmic,
    };
    chart(path, title, &axis, lines.collect())
}

fn colour(way: Way) -> RGBColor {
    match way {
        Way::Direct => RGBColor(120, 120, 120),
        Way::IptablesLegacy => RGBColor(214, 96, 77),
        Way::IptablesNft => RGBColor(244, 165, 130),
        Way::Nftables => RGBColor(146, 102, 178),
        Way::Ipvs => RGBColor(166, 118, 29),
        Way::SocketHook => RGBColor(27, 120, 55),
        Way::Xdp => RGBColor(0, 150, 150),
        Way::Tc | Way::Cluster => RGBColor(33, 102, 172),
    }
}
