//! Draws ratios as bars on a logarithmic axis, in SVG. Uses no library, since there are only rectangles and text.

use std::fmt::Write as _;

use crate::measure::Row;
use crate::report::{groups, systems};
use crate::text::{seconds, times_as_long};

/// Pixels.
const BAR: f64 = 9.0;
const GAP: f64 = 9.0;
const HEADING: f64 = 34.0;
const LEFT: f64 = 330.0;
const WIDTH: f64 = 760.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 86.0;

/// The axis: from a quarter to 64 times as long. Longer bars are cut off and marked.
const LEAST: f64 = 0.25;
const MOST: f64 = 64.0;

/// One colour for each system. People who cannot tell red from green can distinguish them.
const COLOURS: [(&str, &str); 8] = [
    ("image", "#56b4e9"),
    ("fork, through", "#0072b2"),
    ("fork, back", "#009e73"),
    ("overlayfs", "#e69f00"),
    ("fuse-overlayfs", "#d55e00"),
    ("pfimg diff", "#cc79a7"),
    ("pfimg diff -p", "#882255"),
    ("pfimg --version", "#999999"),
];

fn colour(system: &str) -> &'static str {
    COLOURS.iter().find(|(name, _)| *name == system).map_or("#888888", |(_, colour)| colour)
}

fn across(ratio: f64) -> f64 {
    LEFT + WIDTH * (ratio.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn text(out: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let _ = writeln!(out, r#"<text x="{x:.1}" y="{y:.1}" {attributes}>{}</text>"#, escape(text));
}

fn rectangle(out: &mut String, x: f64, y: f64, width: f64, height: f64, fill: &str) {
    let _ = writeln!(
        out,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"/>"#
    );
}

fn height(row: &Row) -> f64 {
    (row.series.len() - 1) as f64 * BAR + GAP
}

/// The picture of all rows.
pub(crate) fn svg(rows: &[Row], machine: &str) -> String {
    let groups = groups(rows);
    let down = TOP + groups.len() as f64 * HEADING + rows.iter().map(height).sum::<f64>();
    let (width, bottom) = (LEFT + WIDTH + RIGHT, down + 30.0);
    let mut out = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom}" font-family="sans-serif" font-size="11">"#
    );
    out.push('\n');
    rectangle(&mut out, 0.0, 0.0, width, bottom, "white");
    text(
        &mut out,
        16.0,
        26.0,
        r#"font-size="17" font-weight="bold""#,
        "Time taken, compared with a native folder in the same round",
    );
    let about = format!("medians of pairs; whiskers: least and most; shorter is faster; {machine}");
    text(&mut out, 16.0, 44.0, r##"fill="#555""##, &about);
    let mut x = 16.0;
    let seen = systems(rows);
    for (system, _) in COLOURS.iter().filter(|(name, _)| seen.contains(name)) {
        rectangle(&mut out, x, 54.0, 12.0, 12.0, colour(system));
        text(&mut out, x + 17.0, 64.0, "", system);
        x += 30.0 + 7.0 * system.len() as f64;
    }
    grid(&mut out, down);
    let mut y = TOP;
    for group in groups {
        text(&mut out, 16.0, y + 22.0, r#"font-size="14" font-weight="bold""#, group);
        y += HEADING;
        for row in rows.iter().filter(|row| row.group == group) {
            bars(&mut out, row, y);
            y += height(row);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// Lines for the powers of two, and a thick one where both take the same time.
fn grid(out: &mut String, down: f64) {
    let mut ratio = LEAST;
    while ratio <= MOST {
        let x = across(ratio);
        let (stroke, width) = if (ratio - 1.0).abs() < 1e-9 { ("#000", 1.4) } else { ("#ddd", 0.8) };
        let _ = writeln!(
            out,
            r#"<line x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{down:.1}" stroke="{stroke}" stroke-width="{width}"/>"#,
            TOP - 4.0
        );
        for y in [TOP - 8.0, down + 16.0] {
            text(out, x, y, r#"text-anchor="middle""#, &format!("{ratio}×"));
        }
        ratio *= 2.0;
    }
}

fn bars(out: &mut String, row: &Row, top: f64) {
    let middle = top + (height(row) - GAP) / 2.0;
    let label = format!("{}  ({})", row.label(), seconds(row.series[0].median()));
    text(out, LEFT - 52.0, middle + 4.0, r#"text-anchor="end""#, &label);
    for at in 1..row.series.len() {
        let (ratio, y) = (row.ratio(at), top + (at - 1) as f64 * BAR);
        let (one, end) = (across(1.0), across(ratio.paired));
        let fill = colour(row.series[at].system);
        rectangle(out, one.min(end), y, (end - one).abs().max(1.0), BAR - 1.5, fill);
        let (least, most) = (across(ratio.least), across(ratio.most));
        let line = y + (BAR - 1.5) / 2.0;
        let _ = writeln!(
            out,
            r##"<line x1="{least:.1}" x2="{most:.1}" y1="{line:.1}" y2="{line:.1}" stroke="#222" stroke-width="0.8"/>"##
        );
        let beyond = if ratio.paired > MOST || ratio.paired < LEAST { " …" } else { "" };
        let value = format!("{}{beyond}", times_as_long(ratio.paired));
        text(out, most.max(end).max(one) + 4.0, y + BAR - 2.2, r##"font-size="8" fill="#333""##, &value);
    }
}
