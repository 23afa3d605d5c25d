//! The main job, measured: three topics of Avro into Parquet on a real broker, `run --until latest`, against a bare
//! drain of the same topics by librdkafka. And the time from a start to the first file.
//!
//! `cargo bench --bench main_job`, with `-- --records 10000` for a small one, and `-- --bad 5` to compare it with topics of
//! which five records of a hundred are bad. Needs what the tests need: the fetched services, or `KAFKA_BOOTSTRAP_SERVERS`
//! and `SCHEMA_REGISTRY_URL`, where its topics (`bench-…`) then stay.
//!
//! The program runs as a child, and nothing of its library is linked: optimising DataFusion once more takes minutes.
//! All work is done in children, filling the topics too: the kernel counts a process's peak memory to its children as
//! well, so this one stays small. What broker and registry use is in none of the figures. A run whose table does not
//! account for every record ends the benchmark; targets are printed, not asserted.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures go to stdout, what is going on to stderr"
)]

/// As much of the configuration as `settings` asks for.
mod config {
    pub mod plan {
        use std::collections::BTreeMap;

        pub struct Kafka {
            pub properties: BTreeMap<String, String>,
        }
    }
}

/// The program's own: the drain has to fetch as it does.
#[path = "../../src/kafka/settings.rs"]
mod settings;

/// Broker and registry of the tests; it uses the standard library only.
#[path = "../../tests/it/support/probe.rs"]
#[expect(dead_code, reason = "tests also kill and restart them")]
mod probe;
#[path = "../../tests/it/support/services.rs"]
#[expect(dead_code, reason = "tests also ask whether they are there")]
mod services;

#[path = "../../tests/it/support/postgres.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "it is of the tests, which also kill and restart it")]
mod postgres;

mod child;
mod client;
mod job;
mod shapes;
mod table;

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::{env, fs, io};

use anyhow::{Context, anyhow, bail, ensure};

use child::{Cost, Running};
use job::Job;
use shapes::{SHAPES, Shape};

/// Figures of a pair: CPU-seconds per million of both and their ratio, wall seconds of both, millions a second, MiB.
const FIGURES: usize = 7;
const RATIO: usize = 2;
const PEAK: usize = 6;

/// Pairs of a job beside the main one: for comparison only.
const EXTRA_PAIRS: usize = 3;

/// New records before each start.
const START_RECORDS: i64 = 10;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["fill", bootstrap, topic, shape, schema_id, first, end, bad] => {
            let shape = Shape::named(shape).context("there is no such shape")?;
            let numbers = first.parse()?..end.parse()?;
            let bytes = client::fill(bootstrap, topic, shape, schema_id.parse()?, numbers, bad.parse()?)?;
            println!("{bytes}");
            Ok(())
        }
        ["drain", bootstrap, topics @ ..] => {
            let (records, bytes) = client::drain(bootstrap, topics)?;
            println!("{records} {bytes}");
            Ok(())
        }
        // `cargo test --benches` starts it without.
        arguments if !arguments.contains(&"--bench") => {
            eprintln!("not run; measure with: cargo bench --bench main_job");
            Ok(())
        }
        arguments => measure(&Options::parse(arguments)?),
    }
}

struct Options {
    /// Of each topic.
    records: i64,
    pairs: usize,
    starts: usize,
    /// Measured after the main job, in a table of their own.
    extra: Vec<Job>,
    /// Of a hundred records, in topics of their own that the main job is compared with.
    bad: i64,
    /// Also rows into PostgreSQL, against `\copy`.
    has_table: bool,
}

impl Options {
    fn parse(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut options =
            Self { records: 1_000_000, pairs: 7, starts: 5, extra: Vec::new(), bad: 0, has_table: false };
        if let Some(records) = variable("BENCH_RECORDS") {
            options.records = records.parse().context("BENCH_RECORDS is no number")?;
        }
        let mut rest = arguments.iter().copied();
        while let Some(argument) = rest.next() {
            let mut number = || {
                let number = rest.next().and_then(|text| text.parse::<u32>().ok());
                number.with_context(|| format!("{argument} takes a number"))
            };
            match argument {
                "--bench" => {}
                "--records" => options.records = i64::from(number()?),
                "--pairs" => options.pairs = number()? as usize,
                "--starts" => options.starts = number()? as usize,
                "--bad" => options.bad = i64::from(number()?),
                "--views" => options.extra.push(Job::Views),
                "--jsonl" => options.extra.push(Job::Jsonl),
                "--postgres" => options.has_table = true,
                _ => bail!(
                    "unknown: {argument}; there are --records N, --pairs N, --starts N, --bad N, --views, --jsonl, --postgres"
                ),
            }
        }
        ensure!(options.records > 0 && options.records % 2 == 0, "the number of records has to be even");
        ensure!(options.pairs > 0, "at least one pair is needed");
        ensure!((0..=100).contains(&options.bad), "--bad is how many of a hundred records are bad");
        Ok(options)
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn measure(options: &Options) -> anyhow::Result<()> {
    let machine = machine();
    let bench = Bench::start(options.records)?;
    let sizes = bench.fill_all()?;
    // The broker compiles what is used, and the page cache fills.
    eprintln!("warming up");
    bench.drain()?;
    bench.run(Job::Parquet)?;
    println!("\n{machine}");
    println!(
        "{} topics of {} partitions, {} records each, not compressed; values of {sizes} bytes",
        SHAPES.len(),
        client::PARTITIONS,
        options.records
    );

    let summary = report(Job::Parquet, &bench.pairs(Job::Parquet, options.pairs)?);
    println!("\nCPU time: {:.2} times the drain's; the target is at most 1.9", summary.typical[RATIO]);
    println!("peak memory: {:.0} MiB; the target is at most 400", summary.highest[PEAK]);
    for job in &options.extra {
        report(*job, &bench.pairs(*job, EXTRA_PAIRS)?);
    }
    if options.bad > 0 {
        bench.fill_bad(options.bad)?;
        let ratios = bench.bad_ratios(options.bad)?;
        let all: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        let (typical, all) = (median(ratios), all.join(", "));
        let bad = options.bad;
        println!("\nwith {bad} % bad records: {typical:.2} times the throughput, the median of {all}");
        println!("the target is more than 0.50");
    }
    if options.has_table {
        table::measure(&bench)?;
    }
    if options.starts > 0 {
        let starts = bench.starts(options.starts)?;
        let all: Vec<String> = starts.iter().map(|seconds| format!("{seconds:.2}")).collect();
        let (typical, all) = (median(starts), all.join(", "));
        println!("\nstart to first file in sight: {typical:.2} s, the median of {all}");
        println!("the first `write` comes before that; its target is at most 1.5 s");
    }
    Ok(())
}

/// When, and on what.
fn machine() -> String {
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
    format!("{date}, {cores} cores, load {load} before the start, librdkafka {librdkafka}")
}

/// The services, and what was put there.
struct Bench {
    bootstrap: String,
    registry: String,
    /// Begins the names of topics: the services may be others' too.
    prefix: String,
    records: i64,
    /// Stopped when dropped.
    _owned: Option<(services::Kafka, services::Registry)>,
}

impl Bench {
    fn start(records: i64) -> anyhow::Result<Self> {
        let prefix = unique();
        let given = (variable("KAFKA_BOOTSTRAP_SERVERS"), variable("SCHEMA_REGISTRY_URL"));
        if let (Some(bootstrap), Some(registry)) = given {
            return Ok(Self { bootstrap, registry, prefix, records, _owned: None });
        }
        eprintln!("starting broker and registry");
        let kafka = services::Kafka::start().map_err(|why| anyhow!(why))?;
        let registry = services::Registry::start().map_err(|why| anyhow!(why))?;
        Ok(Self {
            bootstrap: kafka.bootstrap().to_owned(),
            registry: registry.url().to_owned(),
            prefix,
            records,
            _owned: Some((kafka, registry)),
        })
    }

    fn topic(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The mean sizes of values, in words.
    fn fill_all(&self) -> anyhow::Result<String> {
        let mut sizes = Vec::new();
        for shape in &SHAPES {
            let topic = self.topic(shape.name);
            eprintln!("filling {topic}");
            let schema_id = self.create(&topic, shape)?;
            let bytes = self.fill(&topic, shape, schema_id, 0..self.records, 0)?;
            sizes.push(format!("{:.1}", bytes as f64 / self.records as f64));
        }
        Ok(sizes.join(", "))
    }

    /// The same topics again, with bad records.
    fn fill_bad(&self, bad: i64) -> anyhow::Result<()> {
        for shape in &SHAPES {
            let topic = self.bad_topic(shape.name);
            eprintln!("filling {topic}");
            let schema_id = self.create(&topic, shape)?;
            self.fill(&topic, shape, schema_id, 0..self.records, bad)?;
        }
        Ok(())
    }

    fn bad_topic(&self, name: &str) -> String {
        self.topic(&format!("bad-{name}"))
    }

    /// A topic and its schema, whose id it returns.
    fn create(&self, topic: &str, shape: &Shape) -> anyhow::Result<u32> {
        client::create(&self.bootstrap, topic)?;
        client::register(&self.registry, &format!("{topic}-value"), shape.schema)
    }

    /// The bytes of all values.
    fn fill(
        &self,
        topic: &str,
        shape: &Shape,
        schema_id: u32,
        numbers: Range<i64>,
        bad: i64,
    ) -> anyhow::Result<usize> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["fill", self.bootstrap.as_str(), topic, shape.name]);
        let numbers = [i64::from(schema_id), numbers.start, numbers.end, bad];
        command.args(numbers.map(|number| number.to_string()));
        let place = tempfile::tempdir()?;
        let (_, printed) = Running::start(&mut command, place.path())?.wait()?;
        printed.trim().parse().with_context(|| format!("`fill` printed `{printed}`"))
    }

    fn drain(&self) -> anyhow::Result<Cost> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["drain", self.bootstrap.as_str()]);
        command.args(SHAPES.iter().map(|shape| self.topic(shape.name)));
        let place = tempfile::tempdir()?;
        let (cost, printed) = Running::start(&mut command, place.path())?.wait()?;
        let expected = (SHAPES.len() as i64 * self.records).to_string();
        let is_all = printed.split_whitespace().next() == Some(expected.as_str());
        ensure!(is_all, "expected {expected} records; records and bytes of the drain: {printed}");
        Ok(cost)
    }

    /// A bounded run of a new group into a new directory.
    fn run(&self, job: Job) -> anyhow::Result<Cost> {
        self.run_on(job, 0, |name| self.topic(name))
    }

    /// The same, on other topics, with so many bad records of a hundred.
    fn run_on(&self, job: Job, bad: i64, topic_of: impl Fn(&str) -> String) -> anyhow::Result<Cost> {
        let place = tempfile::tempdir()?;
        let head = job::head(&self.bootstrap, &self.registry, &unique());
        fs::write(place.path().join("routes.yaml"), job.routes(&head, topic_of))?;
        let (cost, table) = Running::start(&mut bounded(place.path()), place.path())?.wait()?;
        job.audit(&table, self.records, shapes::bad_count(self.records, bad))?;
        Ok(cost)
    }

    /// The throughput with bad records against that without, which are measured by turns.
    fn bad_ratios(&self, bad: i64) -> anyhow::Result<Vec<f64>> {
        let mut ratios = Vec::new();
        for number in 1..=EXTRA_PAIRS {
            eprintln!("{}: pair {number} of {EXTRA_PAIRS}", Job::Bad.name());
            let (clean, with_bad) = if number % 2 == 1 {
                let clean = self.run(Job::Parquet)?;
                (clean, self.run_on(Job::Bad, bad, |name| self.bad_topic(name))?)
            } else {
                let with_bad = self.run_on(Job::Bad, bad, |name| self.bad_topic(name))?;
                (self.run(Job::Parquet)?, with_bad)
            };
            ratios.push(clean.wall / with_bad.wall);
        }
        Ok(ratios)
    }

    /// Drain and run by turns, each of them first in every other pair: neither always profits from the other.
    fn pairs(&self, job: Job, count: usize) -> anyhow::Result<Vec<Pair>> {
        let mut pairs = Vec::new();
        for number in 1..=count {
            eprintln!("{}: pair {number} of {count}", job.name());
            let is_drain_first = number % 2 == 1;
            let (drain, run) = if is_drain_first {
                let drain = self.drain()?;
                (drain, self.run(job)?)
            } else {
                let run = self.run(job)?;
                (self.drain()?, run)
            };
            let millions = SHAPES.len() as f64 * self.records as f64 / 1e6;
            pairs.push(Pair { is_drain_first, drain, run, millions });
        }
        Ok(pairs)
    }

    /// Seconds from the start of a service, whose positions are there already, to the first file that it puts in
    /// sight. The first `write` into the sink comes before that.
    fn starts(&self, count: usize) -> anyhow::Result<Vec<f64>> {
        let shape = &SHAPES[2];
        let topic = self.topic("starts");
        let schema_id = self.create(&topic, shape)?;
        let place = tempfile::tempdir()?;
        let head = job::head(&self.bootstrap, &self.registry, &unique());
        let routes = job::eager_routes(&head, shape, &topic, "out");
        fs::write(place.path().join("routes.yaml"), routes)?;
        let mut numbers = 0..START_RECORDS;
        self.fill(&topic, shape, schema_id, numbers.clone(), 0)?;
        Running::start(&mut bounded(place.path()), place.path())?.wait()?;
        let mut starts = Vec::new();
        for number in 1..=count {
            eprintln!("start {number} of {count}");
            numbers = numbers.end..numbers.end + START_RECORDS;
            self.fill(&topic, shape, schema_id, numbers.clone(), 0)?;
            let out = place.path().join("out");
            let before = files_in_sight(&out)?;
            let mut service = Running::start(sidestream(place.path()).arg("run"), place.path())?;
            starts.push(service.wait_until(|| Ok(files_in_sight(&out)? > before))?);
            service.terminate()?;
        }
        Ok(starts)
    }
}

/// The program, in `dir`.
fn sidestream(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidestream"));
    command.current_dir(dir).env_remove("RUST_LOG");
    command
}

fn bounded(dir: &Path) -> Command {
    let mut command = sidestream(dir);
    command.args(["run", "--until", "latest"]);
    command
}

fn files_in_sight(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        count += usize::from(entry?.path().extension().is_some_and(|extension| extension == "parquet"));
    }
    Ok(count)
}

/// A name that nobody else uses.
fn unique() -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("bench-{}", &id[..8])
}

/// A drain and a run, one right after the other.
struct Pair {
    is_drain_first: bool,
    drain: Cost,
    run: Cost,
    /// Of records that each of them read.
    millions: f64,
}

impl Pair {
    fn figures(&self) -> [f64; FIGURES] {
        let Self { drain, run, millions, .. } = self;
        [
            drain.cpu / millions,
            run.cpu / millions,
            run.cpu / drain.cpu,
            drain.wall,
            run.wall,
            millions / run.wall,
            run.peak_mib,
        ]
    }
}

/// Of each figure over all pairs.
struct Summary {
    typical: [f64; FIGURES],
    highest: [f64; FIGURES],
}

/// Prints a table of Markdown.
fn report(job: Job, pairs: &[Pair]) -> Summary {
    println!("\n{}:\n", job.name());
    println!(
        "| pair | first | drain, CPU-s/M | run, CPU-s/M | ratio | drain, s | run, s | run, M/s | run, peak MiB |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    let figures: Vec<[f64; FIGURES]> = pairs.iter().map(Pair::figures).collect();
    for (index, (pair, line)) in pairs.iter().zip(&figures).enumerate() {
        print_line(&(index + 1).to_string(), if pair.is_drain_first { "drain" } else { "run" }, line);
    }
    let column = |figure: usize| figures.iter().map(move |line| line[figure]);
    let summary = Summary {
        typical: std::array::from_fn(|figure| median(column(figure).collect())),
        highest: std::array::from_fn(|figure| column(figure).fold(0.0, f64::max)),
    };
    print_line("median", "", &summary.typical);
    summary
}

fn print_line(name: &str, first: &str, figures: &[f64; FIGURES]) {
    let cells = figures.map(|figure| format!("{figure:.2}"));
    println!("| {name} | {first} | {} |", cells.join(" | "));
}

/// Of an even count, the upper one of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
