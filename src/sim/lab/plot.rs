//! Figures as SVG: lines over two axes, each linear or logarithmic, with a legend. Draws what it is given.

use std::path::Path;

use plotters::{
    coord::ranged1d::{AsRangedCoord, ValueFormatter},
    prelude::*,
};

use super::{Failure, table};

/// Colours that stay apart for the colour-blind (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
const SIZE: (u32, u32) = (900, 540);

/// A line: its name, its points, and whether it is a reference, drawn without marks.
pub(super) type Line = (String, Vec<(f64, f64)>, bool);

/// A figure.
pub(super) struct Figure<'a> {
    pub(super) title: &'a str,
    /// What is along, and whether its scale is logarithmic.
    pub(super) x: (&'a str, bool),
    pub(super) y: (&'a str, bool),
    pub(super) lines: Vec<Line>,
}

impl Figure<'_> {
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE)?;
            let ((x_lo, x_hi), (y_lo, y_hi)) =
                (self.bounds(|p| p.0, self.x.1), self.bounds(|p| p.1, self.y.1));
            match (self.x.1, self.y.1) {
                (true, true) => self.draw(&area, (x_lo..x_hi).log_scale(), (y_lo..y_hi).log_scale())?,
                (true, false) => self.draw(&area, (x_lo..x_hi).log_scale(), y_lo..y_hi)?,
                (false, true) => self.draw(&area, x_lo..x_hi, (y_lo..y_hi).log_scale())?,
                (false, false) => self.draw(&area, x_lo..x_hi, y_lo..y_hi)?,
            }
            area.present()?;
        }
        table::write(path, &svg)
    }

    fn bounds(&self, of: impl Fn(&(f64, f64)) -> f64, log: bool) -> (f64, f64) {
        let all =
            self.lines.iter().flat_map(|(_, points, _)| points).map(of).filter(|value| value.is_finite());
        let (lo, hi) = all
            .filter(|value| !log || *value > 0.0)
            .fold((f64::MAX, f64::MIN), |(lo, hi), value| (lo.min(value), hi.max(value)));
        if lo > hi {
            return (0.1, 1.0);
        }
        if log { (lo * 0.8, hi * 1.25) } else { (lo.min(0.0), hi + (hi - lo.min(0.0)).max(1e-9) * 0.05) }
    }

    fn draw<X, Y>(
        &self,
        area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        x: X,
        y: Y,
    ) -> Result<(), Failure>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 20))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)?;
        let number = |value: &f64| short(*value);
        chart
            .configure_mesh()
            .x_desc(self.x.0)
            .y_desc(self.y.0)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .light_line_style(WHITE)
            .label_style(("sans-serif", 14))
            .draw()?;
        for (place, (name, points, reference)) in self.lines.iter().enumerate() {
            let colour = COLOURS[place % COLOURS.len()];
            let points = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite());
            let points: Vec<_> =
                points.filter(|(x, y)| (!self.x.1 || *x > 0.0) && (!self.y.1 || *y > 0.0)).collect();
            let style = if *reference { colour.mix(0.6).stroke_width(1) } else { colour.stroke_width(2) };
            chart
                .draw_series(LineSeries::new(points.clone(), style))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            if !*reference {
                chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
            }
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 14))
            .draw()?;
        Ok(())
    }
}

/// A number as short as it can be read.
fn short(value: f64) -> String {
    if value == 0.0 || (0.01..100_000.0).contains(&value.abs()) {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:e}")
    }
}
