//! Line charts with bands as SVG: small multiples whose rows share a scale.

use std::fmt::Write;

/// Size of a panel's plot and of the space around it, in pixels.
const PLOT: (f64, f64) = (230.0, 170.0);
const LEFT: f64 = 58.0;
const ABOVE: f64 = 30.0;
const BELOW: f64 = 44.0;
const GAP: f64 = 16.0;
/// Height of the title and of the legend.
const TITLE: f64 = 34.0;
const LEGEND: f64 = 26.0;
/// A letter of the title, and one of the legend, are at most this wide on average.
const TITLE_LETTER: f64 = 8.2;
const LEGEND_LETTER: f64 = 6.5;
/// What the sign of a line takes in the legend, and the space behind its label.
const SIGN: f64 = 46.0;

/// A line with a band around it.
pub(super) struct Line {
    /// What it is, in the legend.
    pub(super) label: String,
    /// Its colour, as SVG writes it.
    pub(super) colour: &'static str,
    /// Whether it is dashed, to be seen over another.
    pub(super) dashed: bool,
    /// Place, height, and half the height of the band there; at least one point.
    pub(super) points: Vec<(f64, f64, f64)>,
}

/// One chart.
pub(super) struct Panel {
    /// What stands over it.
    pub(super) title: String,
    /// Its lines, the last on top.
    pub(super) lines: Vec<Line>,
}

/// Charts in rows; those of a row share the scale of their heights, and all have the legend of the first.
pub(super) struct Figure {
    /// What stands over all of them.
    pub(super) title: String,
    /// What is along the charts, and up.
    pub(super) axes: (&'static str, &'static str),
    /// The charts.
    pub(super) rows: Vec<Vec<Panel>>,
}

impl Figure {
    /// The figure as an SVG document.
    pub(super) fn to_svg(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0) as f64;
        let (across, down) = (LEFT + PLOT.0 + GAP, ABOVE + PLOT.1 + BELOW);
        let height = TITLE + LEGEND + self.rows.len() as f64 * down + GAP;
        let width = (columns * across).max(self.words()) + GAP;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        text(&mut svg, (GAP, 22.0), "start", "font-size=\"15\"", &self.title);
        self.legend(&mut svg);
        for (row, panels) in self.rows.iter().enumerate() {
            let highest = panels.iter().map(highest).fold(0.0, f64::max);
            for (column, panel) in panels.iter().enumerate() {
                let corner = (column as f64 * across + LEFT, TITLE + LEGEND + row as f64 * down + ABOVE);
                draw(&mut svg, panel, corner, if highest > 0.0 { highest } else { 1.0 }, self.axes);
            }
        }
        svg + "</svg>\n"
    }

    /// The lines of the first chart: all have the same.
    fn lines(&self) -> impl Iterator<Item = &Line> {
        self.rows.iter().flatten().next().into_iter().flat_map(|panel| &panel.lines)
    }

    /// How wide title and legend are.
    fn words(&self) -> f64 {
        let title = GAP + letters(&self.title, TITLE_LETTER);
        self.lines().map(|line| SIGN + letters(&line.label, LEGEND_LETTER)).fold(GAP, |sum, one| sum + one).max(title)
    }

    fn legend(&self, svg: &mut String) {
        let mut x = GAP;
        for line in self.lines() {
            let y = TITLE + LEGEND / 2.0;
            put(svg, format_args!("<path d=\"M{x} {y}h24\" {}/>\n", stroke(line)));
            text(svg, (x + 30.0, y + 4.0), "start", "", &line.label);
            x += SIGN + letters(&line.label, LEGEND_LETTER);
        }
    }
}

fn letters(text: &str, width: f64) -> f64 {
    width * text.chars().count() as f64
}

/// Where the tallest band of a chart ends.
fn highest(panel: &Panel) -> f64 {
    panel.lines.iter().flat_map(|line| &line.points).map(|(_, y, half)| y + half).fold(0.0, f64::max)
}

fn draw(svg: &mut String, panel: &Panel, (left, top): (f64, f64), highest: f64, (along, up): (&str, &str)) {
    let furthest = panel.lines.iter().flat_map(|line| &line.points).map(|(x, ..)| *x).fold(1.0, f64::max);
    let x_at = |x: f64| left + x / furthest * PLOT.0;
    let y_at = |y: f64| top + PLOT.1 - y / (highest * 1.05) * PLOT.1;
    text(svg, (left + PLOT.0 / 2.0, top - 8.0), "middle", "font-weight=\"bold\"", &panel.title);
    for tick in ticks(highest) {
        let y = y_at(tick);
        put(svg, format_args!("<path d=\"M{left:.1} {y:.1}h{}\" stroke=\"#e4e4e4\"/>\n", PLOT.0));
        text(svg, (left - 6.0, y + 4.0), "end", "", &tick.to_string());
    }
    for tick in ticks(furthest) {
        text(svg, (x_at(tick), top + PLOT.1 + 16.0), "middle", "", &tick.to_string());
    }
    text(svg, (left + PLOT.0 / 2.0, top + PLOT.1 + 32.0), "middle", "", along);
    let turned = format!("transform=\"rotate(-90 {:.1} {:.1})\"", left - 42.0, top + PLOT.1 / 2.0);
    text(svg, (left - 42.0, top + PLOT.1 / 2.0), "middle", &turned, up);
    for line in &panel.lines {
        let edge = |side: f64| line.points.iter().map(move |(x, y, half)| (x_at(*x), y_at((y + side * half).max(0.0))));
        let band = path(edge(1.0).chain(edge(-1.0).rev()));
        put(svg, format_args!("<path d=\"{band}Z\" fill=\"{}\" fill-opacity=\"0.18\"/>\n", line.colour));
        put(svg, format_args!("<path d=\"{}\" {}/>\n", path(edge(0.0)), stroke(line)));
    }
    put(svg, format_args!("<path d=\"M{left:.1} {top:.1}v{}h{}\" fill=\"none\" stroke=\"#222\"/>\n", PLOT.1, PLOT.0));
}

fn stroke(line: &Line) -> String {
    let dashes = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    format!("fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"{dashes}", line.colour)
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (place, (x, y)) in points.enumerate() {
        put(&mut path, format_args!("{}{x:.1} {y:.1}", if place == 0 { 'M' } else { 'L' }));
    }
    path
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, more: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{what}</text>\n"));
}

fn put(svg: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(what); // writing to a String cannot fail
}

/// Three to six round numbers from 0 up to `highest`.
fn ticks(highest: f64) -> Vec<f64> {
    let rough = highest / 5.0;
    let magnitude = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * magnitude >= rough).unwrap_or(10.0) * magnitude;
    // Products of a step are not round to the last digit: 3 × 0.1.
    (0..=(highest / step) as u32).map(|count| (f64::from(count) * step * 1e9).round() / 1e9).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (highest, expected) in [
            (1_000.0, vec![0.0, 200.0, 400.0, 600.0, 800.0, 1_000.0]),
            (249.75, vec![0.0, 50.0, 100.0, 150.0, 200.0]),
            (0.31, vec![0.0, 0.1, 0.2, 0.3]),
            (7.3, vec![0.0, 2.0, 4.0, 6.0]),
        ] {
            assert_eq!(ticks(highest), expected, "{highest}");
        }
    }

    #[test]
    fn a_figure_has_every_line_with_its_band_and_hides_no_sign_of_xml() {
        let line = |label: &str, y| Line {
            label: label.to_owned(),
            colour: "#000",
            dashed: false,
            points: vec![(0.0, 0.0, 0.0), (10.0, y, 1.0)],
        };
        let panel = |title: &str| Panel { title: title.to_owned(), lines: vec![line("a < b & c", 4.0), line("d", 9.0)] };
        let figure =
            Figure { title: "<title>".into(), axes: ("round", "regret"), rows: vec![vec![panel("left"), panel("right")]] };
        let svg = figure.to_svg();
        assert_eq!(svg.matches("fill-opacity").count(), 4, "{svg}");
        assert_eq!(svg.matches("stroke-width").count(), 4 + 2, "{svg}");
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("&lt;title&gt;"), "{svg}");
        assert!(!svg.contains("NaN") && svg.ends_with("</svg>\n"), "{svg}");
        // Title and legend have room where the charts are narrower.
        let (title, mut alone) = ("t".repeat(60), panel("alone"));
        alone.lines[1].label = "l".repeat(70);
        for (title, lines, at_least) in [(title, 1, 60.0 * 7.0), (String::new(), 2, 71.0 * 6.0)] {
            let lines: Vec<Line> = alone.lines.drain(..lines.min(alone.lines.len())).collect();
            let svg = Figure { title, axes: ("x", "y"), rows: vec![vec![Panel { title: String::new(), lines }]] }.to_svg();
            let width = svg.split("width=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<f64>().ok());
            assert!(width > Some(at_least), "{width:?}");
            alone = panel("alone");
            alone.lines[1].label = "l".repeat(70);
        }
    }
}
