//! The chart of `flotilla bench scale`.

use daemon::{Code, Failure};
use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{EmptyElement, Rectangle, Text};
use plotters::prelude::{IntoFont, RGBColor, ShapeStyle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, TextStyle, WHITE};

use super::scale::Figures;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 480;

/// What the bars of each shape show.
const BARS: [(&str, RGBColor); 3] = [
    ("writes", RGBColor(31, 94, 148)),
    ("reads", RGBColor(46, 139, 87)),
    ("entries made durable, all members", RGBColor(178, 124, 32)),
];

/// How many units of the axis one shape has: its bars, and a gap.
const SLOT: usize = BARS.len() + 1;

/// Draws what was measured beside what is projected, as SVG.
pub(super) fn draw(all: &[Figures], processors: usize, clients: u32) -> Result<String, Failure> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let (left, right) = root.split_horizontally(WIDTH / 2);
        let measured = format!("measured: all on one machine of {processors} processors");
        let bars = |it: &Figures| vec![it.writes.measured, it.reads.measured, it.entries];
        panel(&left, &measured, &format!("{clients} clients"), all, bars)?;
        let projected = format!("PROJECTED: each member with {processors} processors of its own");
        let bars = |it: &Figures| vec![it.writes.projected, it.reads.projected];
        panel(&right, &projected, "from processor time per request", all, bars)?;
        root.present().map_err(failed)?;
    }
    Ok(text)
}

type Area<'a> = plotters::drawing::DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

#[expect(clippy::cast_precision_loss, reason = "places on an axis")]
fn panel(
    area: &Area<'_>,
    title: &str,
    subtitle: &str,
    all: &[Figures],
    bars: impl Fn(&Figures) -> Vec<f64>,
) -> Result<(), Failure> {
    let highest = all.iter().flat_map(&bars).fold(1.0, f64::max) * 1.15;
    let width = (all.len() * SLOT) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..width, 0.0..highest)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc(format!("per second, {subtitle}"))
        .y_label_formatter(&|value| thousands(*value))
        .draw()
        .map_err(failed)?;
    let label = TextStyle::from(("sans-serif", 11).into_font());
    let above = label.pos(Pos::new(HPos::Center, VPos::Bottom));
    let below = TextStyle::from(("sans-serif", 13).into_font());
    let below = below.pos(Pos::new(HPos::Center, VPos::Top));
    for (slot, figures) in all.iter().enumerate() {
        let left = (slot * SLOT) as f64 + 0.5;
        for (place, (value, (_, color))) in bars(figures).into_iter().zip(BARS).enumerate() {
            let from = left + place as f64;
            let style: ShapeStyle = color.filled();
            let bar = Rectangle::new([(from, 0.0), (from + 0.9, value)], style);
            let at = (from + 0.45, value);
            let told = EmptyElement::at(at) + Text::new(thousands(value), (0, -3), above.clone());
            chart.draw_series([bar]).map_err(failed)?;
            chart.draw_series([told]).map_err(failed)?;
        }
        let Figures { groups, members, .. } = figures;
        let name = format!("{groups} x {members}");
        let middle = left + bars(figures).len() as f64 / 2.0;
        let named = EmptyElement::at((middle, 0.0)) + Text::new(name, (0, 8), below.clone());
        chart.draw_series([named]).map_err(failed)?;
    }
    for (number, (name, color)) in BARS.iter().enumerate() {
        let top = 8 + 16 * i32::try_from(number).unwrap_or(0);
        let square = Rectangle::new([(84, 34 + top), (94, 44 + top)], color.filled());
        let name =
            Text::new(*name, (100, 33 + top), TextStyle::from(("sans-serif", 12).into_font()));
        area.draw(&square).map_err(failed)?;
        area.draw(&name).map_err(failed)?;
    }
    Ok(())
}

/// In thousands where there are many.
fn thousands(value: f64) -> String {
    if value >= 10_000.0 { format!("{:.0}k", value / 1e3) } else { format!("{value:.0}") }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::new(Code::Failed, "the chart cannot be drawn").because(error)
}
