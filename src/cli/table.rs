//! The table at exit: what went where.

use crate::engine::lane::Summary;

/// Rows of cells as lines; those of the columns in `numbers` are written to the right.
pub fn columns<const N: usize>(rows: &[[String; N]], numbers: &[usize]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if numbers.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        out.push_str(&format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end()));
    }
    out
}

/// One line per sink, and one per stopped route.
pub fn render(summaries: &[Summary]) -> String {
    let mut rows =
        vec![["route", "records", "bad", "dropped", "sink", "rows", "files", "bytes"].map(str::to_owned)];
    for summary in summaries {
        for (index, (sink, settled)) in summary.sinks.iter().enumerate() {
            let once = |text: String| if index == 0 { text } else { String::new() };
            rows.push([
                once(summary.route.clone()),
                once(summary.records.to_string()),
                once(summary.bad.to_string()),
                once(summary.dropped.to_string()),
                sink.clone(),
                settled.rows.to_string(),
                settled.files.to_string(),
                settled.bytes.to_string(),
            ]);
        }
    }
    // Names to the left, numbers to the right.
    let mut out = columns(&rows, &[1, 2, 3, 5, 6, 7]);
    for summary in summaries {
        if let Some(stop) = &summary.stop {
            out.push_str(&format!("\nroute {} stopped: {}\n", summary.route, stop.message));
            if let Some(hint) = &stop.hint {
                out.push_str(&format!("  hint: {hint}\n"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::message::Stop;
    use crate::sink::Settled;

    #[test]
    fn columns_line_up_and_stops_are_told() {
        let summaries = [Summary {
            route: "orders".into(),
            records: 120,
            bad: 1,
            sinks: vec![
                ("archive".into(), Settled { rows: 119, bytes: 5000, files: 1 }),
                ("paid".into(), Settled::default()),
            ],
            stop: Some(Stop { message: "no".into(), hint: Some("yes".into()), place: None }),
            ..Summary::default()
        }];
        assert_eq!(
            render(&summaries),
            "route   records  bad  dropped  sink     rows  files  bytes\n\
             orders      120    1        0  archive   119      1   5000\n\
             \x20                              paid        0      0      0\n\
             \nroute orders stopped: no\n  hint: yes\n"
        );
    }
}
