//! Rows of a topic into a table of six columns, against `psql`'s `\copy` of the same rows into another one, by turns.
//!
//! A run that has nothing to read shows what starting, joining and leaving cost; without that it is rows a second.

use std::fs;
use std::time::Instant;

use anyhow::{anyhow, ensure};

use crate::child::Running;
use crate::postgres::Postgres;
use crate::{Bench, bounded, job, median, unique};

/// Copies and runs, each of them as often.
const ROUNDS: usize = 3;

/// Rows a second that the program has to reach on two cores that it shares with broker and server.
const TARGET: f64 = 100_000.0;

/// Prints one line for each round, and the medians.
///
/// # Errors
/// If a service does not start, or a row is missing.
pub fn measure(bench: &Bench) -> anyhow::Result<()> {
    eprintln!("starting PostgreSQL");
    let postgres = Postgres::start().map_err(|why| anyhow!(why))?;
    println!("\nPostgreSQL, {} rows of six columns:\n", bench.records);
    println!(
        "| round | run, rows/s | run without rows, s | `\\copy`, rows/s | ratio |\n|---|---:|---:|---:|---:|"
    );
    let mut figures: [Vec<f64>; 4] = Default::default();
    for round in 1..=ROUNDS {
        eprintln!("table: round {round} of {ROUNDS}");
        let line = compare(bench, &postgres)?;
        println!("| {round} | {} |", shown(line));
        for (all, figure) in figures.iter_mut().zip(line) {
            all.push(figure);
        }
    }
    let typical = figures.map(median);
    println!("| median | {} |", shown(typical));
    println!("\nrows a second: {:.0}; the target is at least {TARGET:.0}", typical[0]);
    Ok(())
}

fn shown(line: [f64; 4]) -> String {
    let [run, idle, copy, ratio] = line;
    format!("{run:.0} | {idle:.2} | {copy:.0} | {ratio:.2}")
}

/// Rows a second of a run, seconds of one without rows, rows a second of a copy, and the part that the run reaches.
fn compare(bench: &Bench, postgres: &Postgres) -> anyhow::Result<[f64; 4]> {
    postgres.sql("DROP TABLE IF EXISTS orders, copied, sidestream_owners, sidestream_positions; CHECKPOINT;");
    let place = tempfile::tempdir()?;
    let head = job::head(&bench.bootstrap, &bench.registry, &unique());
    let routes = job::table_routes(&head, &bench.topic("orders"), postgres.url());
    fs::write(place.path().join("routes.yaml"), routes)?;
    let (full, _) = Running::start(&mut bounded(place.path()), place.path())?.wait()?;
    let (idle, _) = Running::start(&mut bounded(place.path()), place.path())?.wait()?;
    let expected = [bench.records.to_string()];
    ensure!(postgres.sql("SELECT count(*) FROM orders;") == expected, "rows are missing or doubled");
    let file = place.path().join("rows.copy");
    let file = file.display();
    postgres.sql(&format!("\\copy orders TO '{file}'\nCREATE TABLE copied (LIKE orders); CHECKPOINT;"));
    let begun = Instant::now();
    postgres.sql(&format!("\\copy copied FROM '{file}'\n"));
    let copied = begun.elapsed().as_secs_f64();
    ensure!(postgres.sql("SELECT count(*) FROM copied;") == expected, "the copy lacks rows");
    let rows = bench.records as f64;
    let (run, copy) = (rows / (full.wall - idle.wall).max(0.001), rows / copied);
    Ok([run, idle.wall, copy, run / copy])
}
