//! Bar charts as SVG: logarithmic, readable on a light and on a dark page.

use std::fmt::Write as _;

use super::super::stats::{Spread, number};

const WIDTH: f64 = 760.0;
/// Where bars begin, right of their labels, and where their room ends, left of the values.
const LEFT: f64 = 140.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 56.0;
const BAR: f64 = 12.0;
const GAP: f64 = 10.0;
/// Distinct on white and on black, and for those who do not see red or green apart.
const COLOURS: [&str; 4] = ["#4a90d9", "#d98a1f", "#3aa387", "#a86fc0"];

/// A chart with a group of bars for each label.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) series: Vec<Series>,
}

/// The bars of one colour.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) bars: Vec<Bar>,
}

/// A median with a line from the least to the greatest value.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: Spread,
}

impl Chart {
    /// Draws the chart. Values that are not above zero have no place on its axis and are left out.
    pub(super) fn svg(&self) -> String {
        let labels = self.labels();
        let group = BAR * self.series.len() as f64 + GAP;
        let height = TOP + group * labels.len() as f64 + 30.0;
        let axis = Axis::of(self.series.iter().flat_map(|series| &series.bars).map(|bar| bar.value));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<style>text {{ fill: #24292f }} .grid {{ stroke: \
             #8886 }} .range {{ stroke: #24292f }} @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} .range \
             {{ stroke: #e6edf3 }} }}</style>\n"
        );
        text(&mut svg, (10.0, 20.0), "start", &self.title);
        let mut at = LEFT;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            if !series.name.is_empty() {
                rect(&mut svg, (at, 32.0, 10.0), colour);
                text(&mut svg, (at + 15.0, 41.0), "start", &series.name);
                at += 30.0 + 8.0 * series.name.len() as f64;
            }
        }
        for tick in axis.ticks() {
            let (x, bottom) = (axis.place(tick), height - 25.0);
            line(&mut svg, "grid", (x, TOP - 6.0), (x, bottom));
            text(&mut svg, (x, height - 10.0), "middle", &tick_name(tick));
        }
        for (row, label) in labels.iter().enumerate() {
            let top = TOP + group * row as f64;
            text(&mut svg, (LEFT - 8.0, top + (group - GAP) / 2.0 + 4.0), "end", label);
            for (number_of, (series, colour)) in self.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
                let y = top + BAR * number_of as f64;
                let bar = series.bars.iter().find(|bar| bar.label == *label && bar.value.min > 0.0);
                let Some(value) = bar.map(|bar| bar.value) else { continue };
                rect(&mut svg, (LEFT, y, axis.place(value.median) - LEFT), colour);
                let middle = y + BAR / 2.0 - 1.0;
                line(&mut svg, "range", (axis.place(value.min), middle), (axis.place(value.max), middle));
                text(&mut svg, (axis.place(value.max) + 6.0, y + BAR - 2.0), "start", &number(value.median));
            }
        }
        svg + "</svg>\n"
    }

    /// The labels of all series, in the order they appear.
    fn labels(&self) -> Vec<&str> {
        let mut labels: Vec<&str> = Vec::new();
        for bar in self.series.iter().flat_map(|series| &series.bars) {
            if !labels.contains(&bar.label.as_str()) {
                labels.push(&bar.label);
            }
        }
        labels
    }
}

/// A logarithmic axis over whole decades.
#[derive(Debug)]
struct Axis {
    from: i32,
    to: i32,
}

impl Axis {
    fn of(values: impl Iterator<Item = Spread>) -> Self {
        let ends = values.filter(|value| value.min > 0.0).map(|value| (value.min.log10(), value.max.log10()));
        let (least, most) =
            ends.fold((f64::INFINITY, f64::NEG_INFINITY), |all, (min, max)| (all.0.min(min), all.1.max(max)));
        if least > most {
            return Self { from: 0, to: 1 };
        }
        let from = least.floor() as i32;
        Self { from, to: (most.ceil() as i32).max(from + 1) }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (self.from..=self.to).map(|decade| 10_f64.powi(decade))
    }
}

fn tick_name(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{value}") }
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>")
        .expect("a string takes all");
}

fn rect(svg: &mut String, (x, y, width): (f64, f64, f64), colour: &str) {
    let height = BAR - 2.0;
    writeln!(svg, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>")
        .expect("a string takes all");
}

fn line(svg: &mut String, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    writeln!(svg, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>")
        .expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64) -> Bar {
        Bar { label: label.to_owned(), value: Spread { min: value / 2.0, median: value, max: value * 2.0 } }
    }

    #[test]
    fn axes_have_whole_decades() {
        let axis = Axis::of([bar("a", 3.0).value, bar("b", 400.0).value].into_iter());
        assert_eq!(axis.ticks().collect::<Vec<f64>>(), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!((axis.place(1.0), axis.place(1000.0)), (LEFT, RIGHT));
        let nothing = Axis::of([Spread { min: 0.0, median: 0.0, max: 0.0 }].into_iter());
        assert_eq!(nothing.ticks().count(), 2);
    }

    #[test]
    fn charts_show_every_bar_once() {
        let chart = Chart {
            title: "a < b & c".to_owned(),
            series: vec![
                Series { name: "10000".to_owned(), bars: vec![bar("nft", 1.5), bar("mc-proxy", 10.0)] },
                Series { name: "1000000".to_owned(), bars: vec![bar("mc-proxy", 5.0), bar("none", 0.0)] },
            ],
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("prefers-color-scheme: dark"), "{svg}");
        // Two marks of the legend, and three bars above zero.
        assert_eq!(svg.matches("<rect").count(), 5, "{svg}");
        assert_eq!(svg.matches("class=\"range\"").count(), 3, "{svg}");
        assert_eq!(svg.matches(">mc-proxy<").count(), 1);
        assert!(svg.ends_with("</svg>\n"));
    }
}
