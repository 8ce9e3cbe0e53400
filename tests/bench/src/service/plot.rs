//! The plots: each way a line over the number of Services.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::results::{Measured, Results};
use super::way::Way;
use crate::statistics::Spread;

pub fn draw(results: &Results, folder: &Path) -> Result<()> {
    chart(
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
    chart(
        results,
        &folder.join("load.svg"),
        "seconds to load all Services",
        true,
        |measured| {
            let loaded = measured.loaded.filter(|_| measured.way != Way::Direct)?;
            Some(loaded.seconds)
        },
    )?;
    chart(
        results,
        &folder.join("change.svg"),
        "milliseconds until one endpoint's change works",
        true,
        |measured| Spread::of(measured.change_ms.iter().copied()).map(|spread| spread.median),
    )
}

fn chart(
    results: &Results,
    path: &Path,
    title: &str,
    logarithmic: bool,
    figure: impl Fn(&Measured) -> Option<f64>,
) -> Result<()> {
    let lines: Vec<(Way, Vec<(f64, f64)>)> = Way::ALL
        .into_iter()
        .map(|way| {
            let points = results
                .sizes()
                .into_iter()
                .filter_map(|size| Some((size as f64, figure(results.of(way, size)?)?)));
            (way, points.collect::<Vec<_>>())
        })
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let values = || {
        lines
            .iter()
            .flat_map(|(_, points)| points.iter().map(|(_, value)| *value))
    };
    let (least, most) = (
        values().fold(f64::MAX, f64::min),
        values().fold(0.0, f64::max),
    );
    if lines.is_empty() || most <= 0.0 {
        return Ok(());
    }
    let sizes = results.sizes();
    let (first, last) = (sizes[0] as f64, sizes[sizes.len() - 1] as f64);
    let across = (first * 0.8..last * 1.3).log_scale();

    let area = SVGBackend::new(path, (860, 480)).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let mut builder = ChartBuilder::on(&area);
    builder
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(70);
    // The two kinds of axis are two types.
    if logarithmic {
        let up = (least.max(1e-4) * 0.7..most * 1.5).log_scale();
        let mut chart = builder.build_cartesian_2d(across, up).map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("Services")
            .draw()
            .map_err(failed)?;
        for (way, points) in &lines {
            let style = style(*way);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style).point_size(3))
                .map_err(failed)?
                .label(way.name())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        legend(&mut chart)?;
    } else {
        let mut chart = builder
            .build_cartesian_2d(across, 0.0..most * 1.1)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("Services")
            .draw()
            .map_err(failed)?;
        for (way, points) in &lines {
            let style = style(*way);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style).point_size(3))
                .map_err(failed)?
                .label(way.name())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        legend(&mut chart)?;
    }
    area.present().map_err(failed)
}

fn legend<'a, C: CoordTranslate>(chart: &mut ChartContext<'a, SVGBackend<'a>, C>) -> Result<()> {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(failed)
}

fn style(way: Way) -> ShapeStyle {
    let colour = match way {
        Way::Direct => RGBColor(120, 120, 120),
        Way::IptablesLegacy => RGBColor(214, 96, 77),
        Way::IptablesNft => RGBColor(244, 165, 130),
        Way::Nftables => RGBColor(146, 102, 178),
        Way::Ipvs => RGBColor(166, 118, 29),
        Way::SocketHook => RGBColor(27, 120, 55),
        Way::Xdp => RGBColor(0, 150, 150),
        Way::Tc | Way::Cluster => RGBColor(33, 102, 172),
    };
    colour.stroke_width(2).filled()
}

/// The backend's errors borrow; what they say is enough.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing a plot: {error}")
}
