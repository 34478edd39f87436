//! A plot of a comparison, as SVG: a pair of bars for each test, with spread and ratio.
//!
//! Bars are to scale within a test, since prompts and answers are worlds apart. Colours follow the
//! reader's light or dark scheme, and no meaning hangs on them alone.

use std::fmt::Write as _;

use super::summary::{Comparison, Row};

const WIDTH: f64 = 760.0;
/// Where bars begin, and the length of the longest.
const LEFT: f64 = 130.0;
const LONGEST: f64 = 400.0;
const BAR: f64 = 18.0;
/// From one test to the next.
const ROW: f64 = 62.0;
const TOP: f64 = 72.0;
/// A line of small print.
const LINE: f64 = 16.0;

const STYLE: &str = "\
<style>
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 }
  .small { font-size: 11px; fill: #59636e }
  .ratio { font-size: 16px; font-weight: 600 }
  .page { fill: #ffffff }
  .ours { fill: #0b6e4f }
  .theirs { fill: #a9b4c0 }
  .spread { stroke: #1f2328; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .small { fill: #9198a1 }
    .page { fill: #0d1117 }
    .ours { fill: #3fb68b }
    .theirs { fill: #57616d }
    .spread { stroke: #e6edf3 }
  }
</style>
";

/// Draws the comparison.
pub(super) fn svg(comparison: &Comparison) -> String {
    let rows = comparison.tests();
    let notes = notes(comparison);
    let height = TOP + ROW * rows.len() as f64 + LINE * (notes.len() + 1) as f64;
    let [ours, theirs] = comparison.engines.each_ref().map(|about| escaped(&about.name));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{ours} and {theirs}, tokens per second\">\n{STYLE}\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    text(&mut svg, "title", 16.0, 28.0, &format!("{ours} and {theirs}: tokens per second"));
    let name = comparison.model.rsplit('/').next().unwrap_or_default();
    let about = format!(
        "{}, {} threads, {} rounds by turns; bars to scale within a test, longer is faster",
        escaped(name),
        comparison.threads,
        comparison.rounds.len()
    );
    text(&mut svg, "small", 16.0, 48.0, &about);
    for (index, row) in rows.iter().enumerate() {
        draw(&mut svg, TOP + ROW * index as f64, row, [&ours, &theirs]);
    }
    for (index, note) in notes.iter().enumerate() {
        let y = TOP + ROW * rows.len() as f64 + LINE * (index + 1) as f64;
        text(&mut svg, "small", 16.0, y, &escaped(note));
    }
    svg.push_str("</svg>\n");
    svg
}

/// One test: a bar for each engine, and the ratio beside them.
fn draw(svg: &mut String, top: f64, row: &Row, names: [&str; 2]) {
    let most = row.rates[0].max.max(row.rates[1].max);
    let scale = LONGEST / most;
    text(svg, "", 16.0, top + BAR + 6.0, &row.test.to_string());
    for (index, (rate, class)) in row.rates.iter().zip(["ours", "theirs"]).enumerate() {
        let y = top + index as f64 * (BAR + 4.0);
        let (length, middle) = (rate.median * scale, y + BAR / 2.0);
        let (from, to) = (LEFT + rate.min * scale, LEFT + rate.max * scale);
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" \
             height=\"{BAR}\" rx=\"2\"/>\n\
             <line class=\"spread\" x1=\"{from:.1}\" y1=\"{middle:.1}\" x2=\"{to:.1}\" \
             y2=\"{middle:.1}\"/>"
        );
        let label = format!("{:.1} {}", rate.median, names[index]);
        text(svg, "small", LEFT + LONGEST + 8.0, middle + 4.0, &label);
    }
    let right = WIDTH - 84.0;
    text(svg, "ratio", right, top + BAR, &format!("{:.2} ×", row.ratio.median));
    let spread = format!("{:.2} to {:.2}", row.ratio.min, row.ratio.max);
    text(svg, "small", right, top + BAR + 16.0, &spread);
}

fn notes(comparison: &Comparison) -> Vec<String> {
    let versions =
        comparison.engines.iter().map(|about| format!("{} {}", about.name, about.version));
    let loads = comparison.rounds.iter().flat_map(|round| round.load);
    let highest = loads.fold(0.0, f64::max);
    let mut notes = vec![
        format!(
            "Bars: medians. Lines: slowest to fastest round. Ratios: within rounds, median and \
             spread. Load of the machine: up to {highest:.1}."
        ),
        versions.collect::<Vec<_>>().join("; "),
    ];
    notes.extend(comparison.remarks.iter().flat_map(|remark| wrapped(remark)));
    notes
}

/// Words in lines that fit the width of the plot.
fn wrapped(words: &str) -> Vec<String> {
    /// Characters of small print in a line.
    const MOST: usize = 118;
    let mut lines = vec![String::new()];
    for word in words.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + word.chars().count() >= MOST {
            lines.push(word.to_owned());
        } else {
            *line = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        }
    }
    lines
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, words: &str) {
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>");
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_vs::summary::tests::sample;

    #[test]
    fn a_plot_has_two_bars_with_spread_and_a_ratio_for_each_test() {
        let svg = svg(&sample());
        let count = |what: &str| svg.matches(what).count();
        assert_eq!((count("class=\"ours\""), count("class=\"theirs\"")), (2, 2));
        assert_eq!((count("class=\"spread\""), count("class=\"ratio\"")), (4, 2));
        for words in ["prefill 512", "decode 64", "500.0 moeba", "4.00 ×", "3.00 to 5.00"] {
            assert!(svg.contains(words), "no `{words}` in:\n{svg}");
        }
        assert!(svg.contains("prefers-color-scheme: dark"));
        // The longest bar or line ends where the longest may.
        assert!(svg.contains("x2=\"530.0\""));
        assert!(svg.contains("1 &lt;&amp;&gt; 2") && !svg.contains("<&>"));
    }

    #[test]
    fn long_remarks_go_on_in_another_line() {
        let words = ["a word or two"; 20].join(" ");
        let lines = wrapped(&words);
        assert!(lines.len() == 3 && lines.iter().all(|line| line.len() <= 118), "{lines:?}");
        assert_eq!(lines.join(" "), words);
    }

    #[test]
    fn a_plot_is_well_formed() {
        let svg = svg(&sample());
        let opened = svg.matches("<text").count();
        assert_eq!(opened, svg.matches("</text>").count());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.matches('"').count().is_multiple_of(2));
    }
}
