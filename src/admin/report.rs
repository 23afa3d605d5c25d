//! `/status`: what the boards say, as JSON. The fields of `progress` are those of Spark's streaming queries.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::model::{Offset, TopicPartition};
use crate::status::{FAULTS, LaneView, SinkStatus, Stage, Trouble, View};

use super::ends::{Known, lag, lag_of, required};

/// Routes that are shown, of thousands that a `per_topic` route may have. Those that have stopped or recover come first.
const ROUTES_MAX: usize = 200;

/// Partitions of a route that are shown, unless it is asked for by name. Those that are furthest behind come first.
const PARTITIONS_MAX: usize = 20;

/// Partitions of one route that is asked for.
const PARTITIONS_OF_ONE_MAX: usize = 10_000;

/// The report; `None` if there is no route `only`: one instance, or all of an entry of the file.
pub fn report(view: &View, ends: &Known, unready: &[String], only: Option<&str>) -> Option<Value> {
    let is_wanted = |lane: &&LaneView| only.is_none_or(|only| lane.route == only || lane.entry == only);
    let mut lanes: Vec<&LaneView> = view.lanes.iter().filter(is_wanted).collect();
    if only.is_some() && lanes.is_empty() {
        return None;
    }
    lanes.sort_by_key(|lane| std::cmp::Reverse(lane.state));
    let shown_max = if lanes.len() == 1 && only.is_some() { PARTITIONS_OF_ONE_MAX } else { PARTITIONS_MAX };
    let routes: Map<String, Value> = lanes
        .iter()
        .take(ROUTES_MAX)
        .map(|lane| (lane.route.clone(), route(lane, ends, shown_max)))
        .collect();
    let engine = &view.engine;
    let mut report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "group": view.group,
        "started": time(view.started),
        "uptimeSeconds": view.uptime.as_secs(),
        "ready": unready.is_empty(),
        "reasons": unready,
        "joined": engine.has_joined,
        "partitionsOwned": engine.owned,
        "rebalances": {"assigned": engine.assigned, "revoked": engine.revoked, "lost": engine.lost},
        "commits": {
            "ok": engine.commits,
            "failed": engine.commits_failed,
            "last": engine.last_commit.map(time),
        },
        "memory": {"heldBytes": view.held_bytes, "budgetBytes": view.budget_bytes},
        "routes": routes,
    });
    if lanes.len() > ROUTES_MAX {
        report["routesNotShown"] = json!(lanes.len() - ROUTES_MAX);
    }
    Some(report)
}

fn time(at: Timestamp) -> String {
    format!("{at:.3}")
}

fn trouble(trouble: &Trouble) -> Value {
    json!({"message": trouble.message, "hint": trouble.hint, "time": time(trouble.at)})
}

fn route(lane: &LaneView, ends: &Known, shown_max: usize) -> Value {
    let (status, counts) = (&lane.status, &lane.status.counts);
    let total = lag_of(lane, ends);
    let sinks: Map<String, Value> =
        status.sinks.iter().map(|sink| (sink.name.to_string(), settled(sink))).collect();
    let mut topics: Vec<&str> = status.partitions.keys().map(|source| source.topic.as_str()).collect();
    topics.dedup();
    let topic_count = topics.len();
    topics.truncate(shown_max);
    let mut route = json!({
        "state": lane.state.name(),
        "lastError": lane.stop.as_ref().or(status.trouble.as_ref()).map(trouble),
        "paused": lane.paused_for(),
        "topics": topics,
        "lag": total.map(|lag| lag.sum),
        "lagMax": total.map(|lag| lag.max),
        "records": {
            "read": counts.read,
            "settled": counts.settled,
            "bad": counts.bad,
            "dropped": counts.dropped,
            "abandoned": counts.abandoned,
            "inFlight": counts.in_flight,
        },
        "recordsPerSecond": {"read": rate(lane.rates.0), "done": rate(lane.rates.1)},
        "heldBytes": lane.held_bytes,
        "schemasWaiting": status.schemas_waiting,
        "schemasNewer": status.schemas_newer,
        "readerSchemas": *status.reader_schemas,
        "sinks": sinks,
        "partitions": partitions(lane, ends, shown_max),
        "progress": progress(lane, ends),
    });
    if topic_count > shown_max {
        route["topicsNotShown"] = json!(topic_count - shown_max);
    }
    if status.partitions.len() > shown_max {
        route["partitionsNotShown"] = json!(status.partitions.len() - shown_max);
    }
    route
}

/// One digit is enough, and all of them are noise.
fn rate(per_second: f64) -> f64 {
    (per_second * 10.0).round() / 10.0
}

fn settled(sink: &SinkStatus) -> Value {
    let failures: Map<String, Value> = FAULTS
        .into_iter()
        .zip(sink.failures)
        .filter(|(_, count)| *count > 0)
        .map(|((_, name), count)| (name.to_owned(), json!(count)))
        .collect();
    let mut settled = json!({
        "rows": sink.rows,
        "bytes": sink.bytes,
        "files": sink.files,
        "flushes": sink.flush.count(),
        "lastFlush": sink.last_flush.map(time),
        "failures": failures,
    });
    if !sink.is_required {
        settled["required"] = json!(false);
        settled["away"] = json!(sink.away.as_ref().map(trouble));
        settled["owed"] = json!(sink.owed);
        settled["skipped"] = json!(sink.skipped);
    }
    settled
}

fn behind(lane: &LaneView, ends: &Known, source: &TopicPartition, next: &[Offset]) -> Option<u64> {
    ends.get(source).map(|end| lag(&required(lane, next), *end))
}

/// Those that are furthest behind, by name.
fn partitions(lane: &LaneView, ends: &Known, shown_max: usize) -> Value {
    let mut all: Vec<(&TopicPartition, &Vec<Offset>)> = lane.status.partitions.iter().collect();
    all.sort_by_key(|(source, next)| std::cmp::Reverse(behind(lane, ends, source, next)));
    all.truncate(shown_max);
    let shown = all.into_iter().map(|(source, next)| {
        let sinks = lane.status.sinks.iter().zip(next);
        let of_sinks: BTreeMap<&str, i64> =
            sinks.map(|(sink, next)| (sink.name.as_ref(), next.get())).collect();
        let shown = json!({
            "next": of_sinks,
            "durable": required(lane, next).iter().min().map(|next| next.get()),
            "end": ends.get(source).map(|end| end.get()),
            "lag": behind(lane, ends, source, next),
        });
        (source.to_string(), shown)
    });
    Value::Object(shown.collect())
}

/// The last batch, as Spark's `StreamingQueryProgress` has it.
fn progress(lane: &LaneView, ends: &Known) -> Value {
    let Some(batch) = &lane.status.last_batch else {
        return Value::Null;
    };
    let millis: Map<String, Value> = Stage::ALL
        .into_iter()
        .zip(&lane.status.stages)
        .map(|(stage, times)| (stage.name().to_owned(), json!(times.last.as_millis() as u64)))
        .collect();
    let mut sources: BTreeMap<&str, [Map<String, Value>; 3]> = BTreeMap::new();
    for (source, start, end) in &batch.ranges {
        let [starts, finishes, latest] = sources.entry(source.topic.as_str()).or_default();
        let partition = source.partition.to_string();
        starts.insert(partition.clone(), json!(start.get()));
        finishes.insert(partition.clone(), json!(end.get()));
        latest.insert(partition, json!(ends.get(source).map(|end| end.get())));
    }
    let sources = sources.into_iter().map(|(topic, [starts, finishes, latest])| {
        json!({
            "description": format!("Kafka[{topic}]"),
            "startOffset": {topic: starts},
            "endOffset": {topic: finishes},
            "latestOffset": {topic: latest},
        })
    });
    let names: Vec<&str> = lane.status.sinks.iter().map(|sink| sink.name.as_ref()).collect();
    json!({
        "timestamp": time(batch.at),
        "numInputRows": batch.records,
        "inputRowsPerSecond": rate(lane.rates.0),
        "processedRowsPerSecond": rate(lane.rates.1),
        "durationMs": millis,
        "sources": sources.collect::<Vec<Value>>(),
        "sink": {"description": names.join(", "), "numOutputRows": batch.rows},
    })
}
