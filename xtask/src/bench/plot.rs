//! The plots of the report, as SVG.

use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::{
    BLACK, ChartBuilder, Color, IntoDrawingArea, IntoLogRange, IntoSegmentedCoord, LineSeries, PathElement,
    Rectangle, SVGBackend, SeriesLabelPosition, TRANSPARENT, WHITE,
};
use plotters::style::{Palette, Palette99};

use super::rounds::Spread;

const WIDTH: u32 = 760;
const CURVES_HEIGHT: u32 = 380;
/// Of a bar, and of what is around all bars.
const BAR_HEIGHT: u32 = 26;
const AROUND_BARS: u32 = 70;

/// Quantiles shown: the last one is one request in ten thousand.
const RARE: f64 = 10_000.0;

/// A latency in microseconds at each rarity: 1 is the least latency, 10 what one in ten requests exceeds, 100 what one in a hundred does.
pub(crate) type Curve = Vec<(f64, f64)>;

/// Where curves have their points: evenly on a logarithmic axis.
pub(crate) fn rarities() -> impl Iterator<Item = f64> {
    (0_u32..=80).map(|step| RARE.powf(f64::from(step) / 80.0))
}

/// The distribution of latencies on each path.
pub(crate) fn latencies(curves: &[(String, Curve)]) -> anyhow::Result<String> {
    let all = || curves.iter().flat_map(|(_, curve)| curve.iter().map(|(_, latency)| *latency));
    let least = all().fold(f64::INFINITY, f64::min).max(0.1);
    let most = all().fold(least * 10.0, f64::max);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, CURVES_HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((1.0..RARE).log_scale(), (least * 0.8..most * 1.2).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("share of requests that are faster")
            .y_desc("microseconds")
            .x_label_formatter(&|rarity| share(*rarity))
            .y_label_formatter(&|latency| format!("{latency:.0}"))
            .draw()?;
        for (number, (name, curve)) in curves.iter().enumerate() {
            let style = Palette99::pick(number).stroke_width(2);
            chart
                .draw_series(LineSeries::new(curve.iter().copied(), style))?
                .label(name.clone())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// What share of requests is below what one in so many exceeds.
fn share(rarity: f64) -> String {
    let percent = 100.0 * (1.0 - 1.0 / rarity);
    if percent > 99.0 { format!("{percent:.2} %") } else { format!("{percent:.0} %") }
}

/// A figure on each path: the median as a bar, and the range over the rounds as a line on it.
pub(crate) fn bars(unit: &str, bars: &[(String, Spread)]) -> anyhow::Result<String> {
    let most = bars.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let count = u32::try_from(bars.len())?;
    let mut svg = String::new();
    {
        let size = (WIDTH, AROUND_BARS + BAR_HEIGHT * count);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(110)
            .build_cartesian_2d(0.0..most * 1.05, (0..count).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(unit)
            .y_labels(bars.len())
            .y_label_formatter(&|place| match place {
                SegmentValue::CenterOf(number) | SegmentValue::Exact(number) => usize::try_from(*number)
                    .ok()
                    .and_then(|number| Some(bars.get(number)?.0.clone()))
                    .unwrap_or_default(),
                SegmentValue::Last => String::new(),
            })
            .draw()?;
        for (number, (_, spread)) in (0_u32..).zip(bars) {
            let place = SegmentValue::CenterOf(number);
            let upper =
                if number + 1 == count { SegmentValue::Last } else { SegmentValue::Exact(number + 1) };
            let corners = [(0.0, SegmentValue::Exact(number)), (spread.median, upper)];
            let mut bar = Rectangle::new(corners, Palette99::pick(number as usize).mix(0.7).filled());
            bar.set_margin(4, 4, 0, 0);
            chart.draw_series([bar])?;
            let range = vec![(spread.min, place.clone()), (spread.max, place)];
            chart.draw_series([PathElement::new(range, BLACK.stroke_width(2))])?;
        }
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_its_curve_and_its_bar() {
        let names = ["direct", "culvert-other"].map(str::to_owned);
        let curves =
            names.clone().map(|name| (name, rarities().map(|rarity| (rarity, 10.0 * rarity)).collect()));
        let svg = latencies(&curves).unwrap();
        assert!(svg.matches("<polyline").count() >= 2);
        let spread = Spread { median: 5.0, min: 4.0, max: 6.0 };
        let drawn = bars("requests/s", &names.clone().map(|name| (name, spread))).unwrap();
        for name in &names {
            assert!(svg.contains(name.as_str()) && drawn.contains(name.as_str()), "{name}");
        }
        assert!(drawn.contains("requests/s"));
    }

    #[test]
    fn shares_are_those_of_the_rarities() {
        for (rarity, expected) in [(1.0, "0 %"), (10.0, "90 %"), (1000.0, "99.90 %")] {
            assert_eq!(share(rarity), expected);
        }
    }
}
