//! What every sink has to stand, and what it promises: one line for each sink, one column for each case, all on the real
//! program and the real component.
//!
//! A new sink is a [`Target`](targets::Target) in `targets.rs` and a line in [`TABLE`]. `CONFORMANCE=kafka` or
//! `CONFORMANCE=kafka/outage` chooses cells by how their names begin.

mod cases;
mod proxy;
mod stage;
mod targets;

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::support;
use stage::Stage;
use targets::{Ground, Opened};

/// Bytes of a `body` that every target takes.
pub const BODY_MAX: usize = 1000;

/// What rows a target has, whatever happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Each once.
    ExactlyOnce,
    /// Each, perhaps more than once.
    AtLeastOnce,
    /// The same, and those that come again have the key they had.
    Idempotent,
}

impl Promise {
    fn name(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly once",
            Self::AtLeastOnce => "at least once",
            Self::Idempotent => "idempotent",
        }
    }
}

/// A sink.
pub struct Line {
    pub name: &'static str,
    pub promise: Promise,
    /// Steps of it where the program is killed, each with which time it is come to. A round has 2000 rows in batches of 200,
    /// and files of 500.
    pub points: &'static [&'static str],
    /// A new target; `None` where its component is not installed.
    pub open: fn(&Ground) -> Opened<'_>,
}

const TABLE: &[Line] = &[
    Line {
        name: "parquet",
        promise: Promise::ExactlyOnce,
        points: &["file.data.synced:2", "file.entry.linked:3", "file.data.linked:2"],
        open: targets::parquet,
    },
    Line {
        name: "jsonl",
        promise: Promise::ExactlyOnce,
        points: &["file.entry.linked:3"],
        open: targets::jsonl,
    },
    Line { name: "csv", promise: Promise::ExactlyOnce, points: &["file.entry.linked:3"], open: targets::csv },
    Line {
        name: "avro",
        promise: Promise::ExactlyOnce,
        points: &["file.entry.linked:3"],
        open: targets::avro,
    },
    Line {
        name: "objects",
        promise: Promise::ExactlyOnce,
        points: &["file.data.synced:2", "file.entry.linked:3", "file.data.linked:2"],
        open: targets::objects,
    },
    Line {
        name: "delta",
        promise: Promise::ExactlyOnce,
        points: &[
            "delta.file.synced:2",
            "delta.entry.written:3",
            "delta.entry.linked:3",
            "delta.committed:2",
        ],
        open: targets::delta,
    },
    Line {
        name: "transactions",
        promise: Promise::ExactlyOnce,
        points: &[
            "kafka.transaction.delivered:2",
            "kafka.transaction.offsets:2",
            "kafka.transaction.committed:2",
        ],
        open: targets::transactions,
    },
    Line {
        name: "kafka",
        promise: Promise::AtLeastOnce,
        points: &["kafka.send.half:2", "kafka.flush.done:2"],
        open: targets::kafka,
    },
    Line {
        name: "http",
        promise: Promise::Idempotent,
        points: &["lane.sink.written:2"],
        open: targets::http,
    },
    Line {
        name: "postgres",
        promise: Promise::ExactlyOnce,
        points: &["postgres.merged:2", "postgres.moved:3", "postgres.committed:3"],
        open: targets::postgres,
    },
];

/// Something that may happen to a sink.
pub struct Case {
    pub name: &'static str,
    /// How many rows are there more than once.
    pub run: fn(&Stage<'_>) -> usize,
}

/// What came of a case for a sink.
enum Cell {
    /// In so many seconds.
    Held {
        again: usize,
        seconds: f64,
    },
    Failed(String),
    /// The component is not installed.
    Absent,
    /// Not asked for.
    Left,
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Held { again: 0, seconds } => format!("{seconds:.1} s"),
            Self::Held { again, seconds } => format!("{again} again, {seconds:.1} s"),
            Self::Failed(_) => "FAILED".to_owned(),
            Self::Absent => "not installed".to_owned(),
            Self::Left => String::new(),
        }
    }
}

#[test]
fn every_sink_keeps_its_promise_in_every_case() {
    let _turn = support::turn();
    let Some(ground) = Ground::new("every_sink_keeps_its_promise_in_every_case") else {
        return;
    };
    let wanted = std::env::var("CONFORMANCE").unwrap_or_default();
    let since = Instant::now();
    let mut lines = Vec::new();
    for line in TABLE {
        let cells: Vec<Cell> = cases::ALL
            .iter()
            .map(|case| {
                let is_wanted = format!("{}/{}", line.name, case.name).starts_with(&wanted);
                if is_wanted { carry_out(&ground, line, case) } else { Cell::Left }
            })
            .collect();
        lines.push((line, cells));
    }
    // Not captured by the test runner: whoever adds a sink wants to see it.
    let shown = format!("\n{}{:.0} s\n", table(&lines), since.elapsed().as_secs_f64());
    std::io::stderr().write_all(shown.as_bytes()).unwrap();

    let cells = || lines.iter().flat_map(|(_, cells)| cells);
    let failures: Vec<&str> = cells()
        .filter_map(|cell| match cell {
            Cell::Failed(problem) => Some(problem.as_str()),
            _ => None,
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let held = cells().filter(|cell| matches!(cell, Cell::Held { .. })).count();
    assert!(held > 0, "`CONFORMANCE={wanted}` names nothing");
    if wanted.is_empty() && ground.is_whole() {
        assert_eq!(held, TABLE.len() * cases::ALL.len(), "the table has holes");
    }
}

/// A case that fails is told with the others: the next one has a topic and a target of its own.
fn carry_out(ground: &Ground, line: &Line, case: &Case) -> Cell {
    let since = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let stage = Stage::new(ground, line)?;
        Some((case.run)(&stage))
    }));
    match result {
        Ok(Some(again)) => Cell::Held { again, seconds: since.elapsed().as_secs_f64() },
        Ok(None) => Cell::Absent,
        Err(panic) => Cell::Failed(format!("{}/{}: {}", line.name, case.name, words(&*panic))),
    }
}

/// Of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

fn table(lines: &[(&Line, Vec<Cell>)]) -> String {
    let heads: Vec<&str> = cases::ALL.iter().map(|case| case.name).collect();
    let mut text =
        format!("| sink | promise | {} |\n|---|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for (line, cells) in lines {
        let cells: Vec<String> = cells.iter().map(Cell::text).collect();
        text.push_str(&format!("| {} | {} | {} |\n", line.name, line.promise.name(), cells.join(" | ")));
    }
    text
}

/// Whether the suite would notice.
#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Promise::{AtLeastOnce, ExactlyOnce, Idempotent};
    use super::stage::judge;
    use super::targets::Row;

    fn rows(seqs: &[i64]) -> Vec<Row> {
        seqs.iter().map(|seq| Row::from(*seq)).collect()
    }

    fn keyed(rows: &[(i64, &str)]) -> Vec<Row> {
        rows.iter().map(|(seq, key)| Row { seq: *seq, key: Some((*key).to_owned()) }).collect()
    }

    #[test]
    fn a_lost_row_and_a_strange_one_break_every_promise() {
        let expected = BTreeSet::from([0, 1, 2]);
        for promise in [ExactlyOnce, AtLeastOnce] {
            assert_eq!(judge(promise, &expected, &rows(&[2, 1, 0])), Ok(0));
            assert_eq!(judge(promise, &expected, &rows(&[0, 2])).unwrap_err(), "1 lost, the first 1");
            let strange = judge(promise, &expected, &rows(&[0, 1, 2, 3])).unwrap_err();
            assert_eq!(strange, "1 never written, the first 3");
        }
    }

    #[test]
    fn a_row_may_be_there_twice_where_that_is_promised() {
        let expected = BTreeSet::from([0, 1]);
        let twice = rows(&[0, 1, 1]);
        assert_eq!(judge(ExactlyOnce, &expected, &twice).unwrap_err(), "1 doubled, the first 1");
        assert_eq!(judge(AtLeastOnce, &expected, &twice), Ok(1));
    }

    #[test]
    fn a_row_that_comes_again_has_the_key_it_had_and_no_other_row_has_it() {
        let expected = BTreeSet::from([0, 1]);
        let of = |rows: &[(i64, &str)]| judge(Idempotent, &expected, &keyed(rows));
        assert_eq!(of(&[(0, "a"), (1, "b"), (1, "b")]), Ok(1));
        assert_eq!(of(&[(0, "a"), (1, "b"), (1, "c")]).unwrap_err(), "1 under several keys, the first 1");
        assert_eq!(of(&[(0, "a"), (1, "a")]).unwrap_err(), "2 rows have 1 keys");
        assert!(judge(Idempotent, &expected, &rows(&[0, 1])).is_err());
    }
}
