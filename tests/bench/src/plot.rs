//! The plots: lines over a logarithmic axis.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

pub struct Line {
    pub name: String,
    pub colour: RGBColor,
    pub points: Vec<(f64, f64)>,
}

pub struct Axis {
    /// What the points' first numbers count.
    pub across: &'static str,
    /// Upwards too.
    pub logarithmic: bool,
}

/// Nothing is drawn of lines without points, and no plot without lines.
pub fn chart(path: &Path, title: &str, axis: &Axis, lines: Vec<Line>) -> Result<()> {
    let lines: Vec<Line> = lines
        .into_iter()
        .filter(|line| !line.points.is_empty())
        .collect();
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, 0.0), |(least, most): (f64, f64), value| {
            (least.min(value), most.max(value))
        })
    };
    let (first, last) = span(&mut points().map(|(across, _)| across));
    let (least, most) = span(&mut points().map(|(_, up)| up));
    if lines.is_empty() || most <= 0.0 {
        return Ok(());
    }
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
    if axis.logarithmic {
        let up = (least.max(1e-4) * 0.7..most * 1.5).log_scale();
        let chart = builder.build_cartesian_2d(across, up).map_err(failed)?;
        draw(chart, axis.across, &lines)?;
    } else {
        let up = 0.0..most * 1.1;
        let chart = builder.build_cartesian_2d(across, up).map_err(failed)?;
        draw(chart, axis.across, &lines)?;
    }
    area.present().map_err(failed)
}

fn draw<'a, X, Y>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    across: &str,
    lines: &[Line],
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(across)
        .draw()
        .map_err(failed)?;
    for line in lines {
        let style = line.colour.stroke_width(2).filled();
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style).point_size(3))
            .map_err(failed)?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(failed)
}

/// The backend's errors borrow; what they say is enough.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing a plot: {error}")
}
