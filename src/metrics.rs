//! Every metric: one table, from which `docs/metrics.md` is made, and the page that Prometheus reads.
//!
//! The page is made of one look at the boards, so what belongs together in it was true at one moment. Labels are names of
//! the file (routes, sinks) and words of ours, never what comes in records; a route that is one for each topic is counted
//! as one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use prometheus::TextEncoder;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use crate::status::{
    Answer, BOUNDS, Board, FAULTS, HELD_BACK, Histogram, LaneStatus, LaneView, OTHER, Stage, State, View,
};

/// What the page is sent as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Series of one metric. Each costs memory where it is kept: what comes beyond is counted under the labels `other`.
const SERIES_MAX: usize = 2000;

/// Routes with a name of their own, in all metrics or in none: the records of each add up. A file may have thousands.
const ROUTES_MAX: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, labels, help }
}

macro_rules! table {
    ($($id:ident = $metric:expr;)*) => {
        $(static $id: Metric = $metric;)*

        /// All metrics, in the order of the page.
        pub static TABLE: &[&Metric] = &[$(&$id),*];
    };
}

table! {
    RECORDS_READ = counter("sidestream_records_read_total", &["route"], "Records taken from the consumer, also those that were read again.");
    RECORD_BYTES = counter("sidestream_record_bytes_read_total", &["route"], "Bytes of keys, values and headers of the records read.");
    ROWS_DECODED = counter("sidestream_rows_decoded_total", &["route"], "Rows made of records, also of those that were read again.");
    RECORDS_SETTLED = counter("sidestream_records_settled_total", &["route"], "Good records whose range is durable in all required sinks of the route.");
    RECORDS_BAD = counter("sidestream_records_bad_total", &["route", "code"], "Bad records by code (docs/bad-records.md), once their range is durable in all sinks, dead letters included.");
    RECORDS_DROPPED = counter("sidestream_records_dropped_total", &["route"], "Records left out by a rule of the file (tombstones: skip), once their range is durable in all sinks.");
    RECORDS_ABANDONED = counter("sidestream_records_abandoned_total", &["route"], "Records let go before they were durable (they are read again, by this instance or another), or that all sinks had already.");
    RECORDS_IN_FLIGHT = gauge("sidestream_records_in_flight", &["route"], "Records held now, or with sinks that have not made them durable yet.");
    LAG = gauge("sidestream_lag_records", &["route"], "Offsets between what is durable in all required sinks and the ends of the partitions owned, summed. Missing while the ends are not known.");
    LAG_MAX = gauge("sidestream_lag_records_max", &["route"], "The same, of the partition that is furthest behind.");
    PARTITIONS = gauge("sidestream_route_partitions", &["route"], "Partitions that the route has taken up in this instance.");
    ROUTE_STATE = gauge("sidestream_route_state", &["route", "state"], "Instances of the route in each state: 1 or 0, but for routes that are one for each topic.");
    ROUTES = gauge("sidestream_routes", &["state"], "Routes by state: waiting (for its schema), running, recovering (tries again by itself), stopped (needs a person).");
    SCHEMAS_WAITING = gauge("sidestream_schemas_waiting", &["route"], "Schema ids that the registry is asked for while a batch waits.");
    SCHEMAS_NEWER = gauge("sidestream_schemas_newer", &["route"], "Subjects that have a newer version than the route reads as: on_new_schema is pin or stop, or it does not fit.");
    SCHEMA_CHANGES = counter("sidestream_schema_changes_total", &["route"], "How often a newer version of a subject was taken as the reader schema while running.");
    ROUTE_HELD = gauge("sidestream_route_held_bytes", &["route"], "Bytes of records held for the route.");
    BATCHES = counter("sidestream_batches_total", &["route"], "Batches that all their sinks have taken.");
    BATCH_SECONDS = histogram("sidestream_batch_seconds", &["route", "stage"], "How long parts of the work took: decode, views and write (all sinks) for a batch, flush for a sink.");
    SINK_ROWS = counter("sidestream_sink_rows_total", &["route", "sink"], "Rows that the sink has made durable.");
    SINK_BYTES = counter("sidestream_sink_bytes_total", &["route", "sink"], "Bytes that the sink has made durable.");
    SINK_FILES = counter("sidestream_sink_files_total", &["route", "sink"], "Files that the sink has brought into sight.");
    SINK_WRITE = histogram("sidestream_sink_write_seconds", &["route", "sink"], "How long writes took, failed ones too.");
    SINK_FLUSH = histogram("sidestream_sink_flush_seconds", &["route", "sink"], "How long flushes took that succeeded; its _count is their number.");
    SINK_FAILURES = counter("sidestream_sink_failures_total", &["route", "sink", "fault"], "Failed calls by who must act: transient (it is tried again), conflict (another writer), refused (a row), stop (a person).");
    SINK_LET_GO = counter("sidestream_sink_let_go_total", &["route", "sink"], "Records that the sink refused and the route went on without, by refused_rows: each sink counts its own.");
    SINK_AWAY = gauge("sidestream_sink_away", &["route", "sink"], "Instances of the route that go on without the sink now (required: false); 0 for a sink that takes part.");
    SINK_OWED = gauge("sidestream_sink_owed_records", &["route", "sink"], "Offsets that the required sinks have durable and this one (required: false) has not.");
    SINK_SKIPPED = counter("sidestream_sink_skipped_total", &["route", "sink"], "Offsets that a sink (required: false) never saw: the brokers had deleted them before it was back.");
    SINK_LAST_FLUSH = gauge("sidestream_sink_last_flush_timestamp_seconds", &["route", "sink"], "When the sink last made something durable.");
    MEMORY_HELD = gauge("sidestream_memory_held_bytes", &[], "Bytes of records held for all routes.");
    MEMORY_BUDGET = gauge("sidestream_memory_budget_bytes", &[], "What may be held for all routes: half of the file's memory.");
    PAUSED = gauge("sidestream_partitions_paused", &["reason"], "Partitions not fetched now: a route holds its share (memory) or has too many chunks (inbox); or it is not known yet where to begin, as the group's offsets are not read (offsets), a route has not said where its sinks stand (positions), or the group has not taken a first commit (commit).");
    OWNED = gauge("sidestream_partitions_owned", &[], "Partitions that the group has given to this instance.");
    REBALANCES = counter("sidestream_rebalances_total", &["event"], "Partitions were assigned or revoked; lost: revoked by being thrown out of the group.");
    COMMITS = counter("sidestream_commits_total", &["outcome"], "Commits of offsets to the group: ok or failed.");
    LAST_COMMIT = gauge("sidestream_last_commit_timestamp_seconds", &[], "When offsets were last committed to the group.");
    KAFKA_ERRORS = counter("sidestream_kafka_errors_total", &["code"], "Errors of the consumer by librdkafka's code; most pass by themselves.");
    REGISTRY_REQUESTS = counter("sidestream_registry_requests_total", &["outcome"], "Calls to the schema registry: found, unknown, unauthorised, unavailable, unusable.");
    REGISTRY_HITS = counter("sidestream_registry_cache_hits_total", &["cache"], "Schema ids found in memory or on disk instead.");
    LOOP_AGE = gauge("sidestream_loop_age_seconds", &[], "Since the engine's loop last turned; /health is 503 from 30 on.");
    UPTIME = gauge("sidestream_uptime_seconds", &[], "Since the start.");
    BUILD = gauge("sidestream_build_info", &["version"], "Always 1.");
    START_TIME = gauge("process_start_time_seconds", &[], "When the process started, as seconds since 1970.");
    RESIDENT = gauge("process_resident_memory_bytes", &[], "Memory of the process (Linux).");
    OPEN_FDS = gauge("process_open_fds", &[], "Open file descriptors of the process (Linux).");
}

/// Offsets that a route's partitions are behind: all together, and the worst of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    pub sum: u64,
    pub max: u64,
}

/// The page that Prometheus reads. `lags` has those of the lanes, in their order, as far as they are known.
///
/// # Errors
/// If the library refuses what it is given: a defect of ours.
pub fn page(board: &Board, view: &View, lags: &[Option<Lag>]) -> Result<String, prometheus::Error> {
    let mut page = Page::default();
    for (lane, lag) in view.lanes.iter().zip(lags) {
        page.add_lane(lane, *lag);
    }
    for (entry, status) in &view.ended {
        page.add_counters(entry, status);
    }
    for state in State::ALL {
        let count = view.lanes.iter().filter(|lane| lane.state == state).count();
        page.add(&ROUTES, &[state.name()], count as f64);
    }
    page.add_process(board, view);
    page.encode()
}

/// Values of one series.
#[derive(Debug, Clone, Copy)]
enum Value {
    Number(f64),
    /// Of several the greatest counts, not the sum.
    Greatest(f64),
    Times(Histogram),
}

impl Value {
    fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Number(number), Self::Number(other)) => *number += other,
            (Self::Greatest(number), Self::Greatest(other)) => *number = number.max(other),
            (Self::Times(times), Self::Times(other)) => times.add(&other),
            _ => debug_assert!(false, "one metric has values of one kind"),
        }
    }
}

#[derive(Default)]
struct Page {
    /// Those with a name of their own.
    routes: BTreeSet<String>,
    series: BTreeMap<&'static str, BTreeMap<Vec<String>, Value>>,
}

impl Page {
    fn add(&mut self, metric: &'static Metric, labels: &[&str], number: f64) {
        self.put(metric, labels, Value::Number(number));
    }

    fn put(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let series = self.series.entry(metric.name).or_default();
        let mut labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        if series.len() >= SERIES_MAX && !series.contains_key(&labels) {
            labels.fill(OTHER.to_owned());
        }
        match series.get_mut(&labels) {
            Some(known) => known.add(value),
            None => {
                series.insert(labels, value);
            }
        }
    }

    /// The name that a route of the file has on this page.
    fn name<'a>(&mut self, entry: &'a str) -> &'a str {
        if self.routes.len() < ROUTES_MAX {
            self.routes.insert(entry.to_owned());
        }
        if self.routes.contains(entry) { entry } else { OTHER }
    }

    fn add_lane(&mut self, lane: &LaneView, lag: Option<Lag>) {
        self.add_counters(&lane.entry, &lane.status);
        let (route, status) = (self.name(&lane.entry), &lane.status);
        for (metric, count) in [
            (&RECORDS_IN_FLIGHT, status.counts.in_flight),
            (&PARTITIONS, status.partitions.len() as u64),
            (&SCHEMAS_WAITING, status.schemas_waiting as u64),
            (&SCHEMAS_NEWER, status.schemas_newer as u64),
            (&SCHEMA_CHANGES, status.schema_changes),
            (&ROUTE_HELD, lane.held_bytes),
        ] {
            self.add(metric, &[route], count as f64);
        }
        if let Some(lag) = lag {
            self.add(&LAG, &[route], lag.sum as f64);
            self.put(&LAG_MAX, &[route], Value::Greatest(lag.max as f64));
        }
        for state in State::ALL {
            self.add(&ROUTE_STATE, &[route, state.name()], f64::from(u8::from(state == lane.state)));
        }
        for sink in status.sinks.iter().filter(|sink| !sink.is_required) {
            self.add(&SINK_AWAY, &[route, &sink.name], f64::from(u8::from(sink.away.is_some())));
            self.add(&SINK_OWED, &[route, &sink.name], sink.owed as f64);
        }
    }

    /// What only grows, also of lanes that are no more.
    fn add_counters(&mut self, entry: &str, status: &LaneStatus) {
        let (route, counts) = (self.name(entry), &status.counts);
        for (metric, count) in [
            (&RECORDS_READ, counts.read),
            (&RECORD_BYTES, counts.bytes),
            (&ROWS_DECODED, counts.decoded),
            (&RECORDS_SETTLED, counts.settled),
            (&RECORDS_DROPPED, counts.dropped),
            (&RECORDS_ABANDONED, counts.abandoned),
            (&BATCHES, status.batches),
        ] {
            self.add(metric, &[route], count as f64);
        }
        for (code, count) in &counts.bad {
            self.add(&RECORDS_BAD, &[route, code], *count as f64);
        }
        for (stage, times) in Stage::ALL.into_iter().zip(&status.stages) {
            self.put(&BATCH_SECONDS, &[route, stage.name()], Value::Times(times.all));
        }
        for sink in &status.sinks {
            let labels: [&str; 2] = [route, &sink.name];
            self.add(&SINK_ROWS, &labels, sink.rows as f64);
            self.add(&SINK_BYTES, &labels, sink.bytes as f64);
            self.add(&SINK_FILES, &labels, sink.files as f64);
            self.put(&SINK_WRITE, &labels, Value::Times(sink.write));
            self.put(&SINK_FLUSH, &labels, Value::Times(sink.flush));
            for ((_, fault), count) in FAULTS.into_iter().zip(sink.failures) {
                self.add(&SINK_FAILURES, &[route, &sink.name, fault], count as f64);
            }
            self.add(&SINK_LET_GO, &labels, sink.let_go as f64);
            if !sink.is_required {
                self.add(&SINK_SKIPPED, &labels, sink.skipped as f64);
            }
            if let Some(at) = sink.last_flush {
                self.put(&SINK_LAST_FLUSH, &labels, Value::Greatest(seconds(at)));
            }
        }
    }

    fn add_process(&mut self, board: &Board, view: &View) {
        let engine = &view.engine;
        self.add(&MEMORY_HELD, &[], view.held_bytes as f64);
        self.add(&MEMORY_BUDGET, &[], view.budget_bytes as f64);
        self.add(&OWNED, &[], engine.owned as f64);
        for (event, count) in
            [("assigned", engine.assigned), ("revoked", engine.revoked), ("lost", engine.lost)]
        {
            self.add(&REBALANCES, &[event], count as f64);
        }
        for (outcome, count) in [("ok", engine.commits), ("failed", engine.commits_failed)] {
            self.add(&COMMITS, &[outcome], count as f64);
        }
        if let Some(at) = engine.last_commit {
            self.add(&LAST_COMMIT, &[], seconds(at));
        }
        for (reason, count) in HELD_BACK.into_iter().zip(engine.held_back) {
            self.add(&PAUSED, &[reason], count as f64);
        }
        for source in board.sources() {
            for (reason, count) in source.paused_for() {
                self.add(&PAUSED, &[reason], count as f64);
            }
            for (code, count) in source.errors() {
                self.add(&KAFKA_ERRORS, &[&code], count as f64);
            }
        }
        for answer in Answer::ALL {
            self.add(&REGISTRY_REQUESTS, &[answer.name()], board.registry().answers(answer) as f64);
        }
        let (in_memory, on_disk) = board.registry().hits();
        self.add(&REGISTRY_HITS, &["memory"], in_memory as f64);
        self.add(&REGISTRY_HITS, &["disk"], on_disk as f64);
        self.add(&LOOP_AGE, &[], view.beat.unwrap_or(Duration::ZERO).as_secs_f64());
        self.add(&UPTIME, &[], view.uptime.as_secs_f64());
        self.add(&BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
        self.add(&START_TIME, &[], seconds(view.started));
        if let Some(bytes) = resident_bytes() {
            self.add(&RESIDENT, &[], bytes as f64);
        }
        if let Some(count) = open_files() {
            self.add(&OPEN_FDS, &[], count as f64);
        }
    }

    fn encode(mut self) -> Result<String, prometheus::Error> {
        let families = TABLE.iter().filter_map(|metric| {
            let series = self.series.remove(metric.name)?;
            let mut family = MetricFamily::default();
            family.set_name(metric.name.to_owned());
            family.set_help(metric.help.to_owned());
            family.set_field_type(match metric.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            let series = series.into_iter().map(|(values, value)| sample(metric, values, value));
            family.set_metric(series.collect());
            Some(family)
        });
        let families: Vec<MetricFamily> = families.collect();
        TextEncoder::new().encode_to_string(&families)
    }
}

fn sample(metric: &Metric, values: Vec<String>, value: Value) -> proto::Metric {
    let labels = metric.labels.iter().zip(values).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value);
        pair
    });
    let mut sample = proto::Metric::from_label(labels.collect());
    match (value, metric.kind) {
        (Value::Number(number) | Value::Greatest(number), Kind::Counter) => {
            let mut counter = proto::Counter::default();
            counter.set_value(number);
            sample.set_counter(counter);
        }
        (Value::Number(number) | Value::Greatest(number), _) => {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(number);
            sample.set_gauge(gauge);
        }
        (Value::Times(times), _) => {
            let buckets = times.cumulative().map(|(bound, count)| {
                let mut bucket = proto::Bucket::default();
                bucket.set_upper_bound(bound);
                bucket.set_cumulative_count(count);
                bucket
            });
            let mut histogram = proto::Histogram::default();
            histogram.set_bucket(buckets.collect());
            histogram.set_sample_count(times.count());
            histogram.set_sample_sum(times.seconds());
            sample.set_histogram(histogram);
        }
    }
    sample
}

fn seconds(at: jiff::Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

/// What Linux says of this process; `None` elsewhere.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn open_files() -> Option<usize> {
    // One of them is the directory itself, while it is read.
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

/// `docs/metrics.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         Made by `sidestream config-schema --metrics` from `src/metrics.rs`; a test keeps it fresh.\n\n\
         `/metrics` of the admin port, in Prometheus' text format. Counters begin at 0 with the process. The routes of a\n\
         `per_topic` route are counted together, under its name; `/status` has them one by one. A metric has at most\n",
    );
    let bounds: Vec<String> = BOUNDS.iter().map(ToString::to_string).collect();
    // Writing to a text cannot fail.
    let written = write!(
        out,
        "{SERIES_MAX} series and {ROUTES_MAX} routes by name, what comes beyond has the labels `{OTHER}`. Buckets end at {} seconds.\n\n\
         ## Every record is somewhere\n\n\
         For each route, at every scrape:\n\n\
         ```text\n{} =\n    {} + sum({}) + {}\n  + {} + {}\n```\n\n\
         A record that is read again is read twice and abandoned once; it is settled, bad or dropped once. After an error\n\
         whose outcome is unknown, what turns out to be durable after all is settled.\n\n\
         | metric | type | labels | |\n|---|---|---|---|\n",
        bounds.join(", "),
        RECORDS_READ.name,
        RECORDS_SETTLED.name,
        RECORDS_BAD.name,
        RECORDS_DROPPED.name,
        RECORDS_ABANDONED.name,
        RECORDS_IN_FLIGHT.name,
    );
    debug_assert!(written.is_ok());
    for metric in TABLE {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        out.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            metric.name,
            metric.kind.name(),
            labels.join(", "),
            metric.help.replace('|', "\\|")
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::status::{About, Counts, Held, LaneBoard, LaneStatus, SinkStatus, SourceCounts};

    fn lane(board: &Board, route: &str, entry: &str) {
        let lane = LaneBoard::new(route);
        let held = Box::new(Held::default);
        lane.describe(About { entry: entry.to_owned(), patience: Duration::ZERO, held });
        let mut sink = SinkStatus::new("archive");
        sink.last_flush = Some(jiff::Timestamp::UNIX_EPOCH);
        sink.is_required = false;
        let counts = Counts {
            read: 20,
            settled: 10,
            bad: BTreeMap::from([("framing", 3)]),
            dropped: 2,
            abandoned: 1,
            in_flight: 4,
            ..Counts::default()
        };
        lane.show(LaneStatus { state: State::Running, counts, sinks: vec![sink], ..LaneStatus::default() });
        board.add_lane(lane);
    }

    fn board() -> Arc<Board> {
        let board = Board::new("g");
        let source = Arc::<SourceCounts>::default();
        source.failed("_TRANSPORT");
        board.watch_source(source);
        let place = board.add_engine();
        board.engine(place, |told| told.last_commit = Some(jiff::Timestamp::UNIX_EPOCH));
        board
    }

    fn shown(board: &Board) -> String {
        let view = board.view();
        let lag = Lag { sum: 7, max: 5 };
        page(board, &view, &vec![Some(lag); view.lanes.len()]).unwrap()
    }

    #[test]
    fn every_metric_of_the_table_is_on_the_page_and_the_page_has_no_others() {
        let board = board();
        lane(&board, "orders", "orders");
        let page = shown(&board);
        let types: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let linux_only = |name: &&str| *name == RESIDENT.name || *name == OPEN_FDS.name;
        let expected: Vec<&str> = TABLE.iter().map(|metric| metric.name).collect();
        if cfg!(target_os = "linux") {
            assert_eq!(types, expected);
        } else {
            assert_eq!(types, expected.into_iter().filter(|name| !linux_only(name)).collect::<Vec<_>>());
        }
        assert!(
            page.contains("sidestream_records_bad_total{route=\"orders\",code=\"framing\"} 3\n"),
            "{page}"
        );
        assert!(page.contains("sidestream_route_state{route=\"orders\",state=\"running\"} 1\n"), "{page}");
    }

    #[test]
    fn names_follow_the_conventions() {
        for metric in TABLE {
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            let is_ours = metric.name.starts_with("sidestream_") || metric.name.starts_with("process_");
            assert!(is_ours, "{}", metric.name);
        }
    }

    #[test]
    fn routes_of_topics_are_one_and_their_lag_is_that_of_the_worst() {
        let board = board();
        for topic in ["a", "b", "c"] {
            lane(&board, &format!("each/{topic}"), "each");
        }
        let page = shown(&board);
        for line in [
            "sidestream_records_read_total{route=\"each\"} 60\n",
            "sidestream_lag_records{route=\"each\"} 21\n",
            "sidestream_lag_records_max{route=\"each\"} 5\n",
            "sidestream_route_state{route=\"each\",state=\"running\"} 3\n",
        ] {
            assert!(page.contains(line), "no {line:?} in\n{page}");
        }
        assert!(!page.contains("each/"), "{page}");
    }

    #[test]
    fn labels_are_escaped_and_series_are_bounded() {
        let board = board();
        lane(&board, "0", "a\"b\\c\nd");
        for number in 0..SERIES_MAX + 500 {
            lane(&board, "r", &format!("route {number}"));
        }
        let page = shown(&board);
        assert!(page.contains("sidestream_records_read_total{route=\"a\\\"b\\\\c\\nd\"} 20\n"));
        let reads: Vec<&str> =
            page.lines().filter(|line| line.starts_with("sidestream_records_read_total{")).collect();
        assert_eq!(reads.len(), ROUTES_MAX + 1);
        assert!(reads.contains(&"sidestream_records_read_total{route=\"other\"} 46020"), "{}", reads.len());
    }
}
