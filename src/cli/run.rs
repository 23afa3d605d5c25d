//! `sidestream run`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::codec::letters;
use crate::config::plan::{Plan, Route, Sink};
use crate::engine::lane::{Feed, Lane, LaneHandle, LaneParts, LaneSink, Summary};
use crate::engine::message::LaneId;
use crate::engine::run::{EngineError, EngineParts};
use crate::engine::{self, chain, retry};
use crate::kafka::{self, Cluster, ClusterError, Gauge, KafkaCluster, KafkaSource, Outlet};
use crate::model::{ClusterId, Offset, Start, TimePoint, TopicName, TopicPartition};
use crate::registry::Registry;

use super::{Failure, build, load, table};

/// Reports of lanes that wait for the engine, which takes them at once.
const REPORTS_MAX: usize = 1024;

/// A lane holds at least this much, however many share `memory:`; less would fetch in crumbs.
const LANE_BYTES_MIN: usize = 4 << 20;

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = super::DEFAULT_FILE)]
    file: PathBuf,
    /// End there: `latest`, a time (2026-11-01T00:00:00Z), or offsets ('{topic: {0: 500}}').
    /// What is there now is read, everything is committed, then the program ends.
    #[arg(long, value_parser = parse_until)]
    until: Option<Start>,
    /// Run only this route.
    #[arg(long)]
    route: Option<String>,
}

fn parse_until(text: &str) -> Result<Start, String> {
    let expected = "expected `latest`, a time like `2026-11-01T00:00:00Z`, or `{topic: {partition: offset}}`";
    if text == "latest" {
        return Ok(Start::Latest);
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(Start::Time(TimePoint::At(time.as_millisecond())));
    }
    // The braces of `routes.yaml`'s `start:`, and JSON.
    crate::config::parse_offsets(text).map(Start::Offsets).map_err(|_| expected.to_owned())
}

/// # Errors
/// [`Failure`]
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut loaded = load::load(&options.file)?;
    if let Some(only) = &options.route {
        loaded.plan.routes.retain(|route| route.name == *only);
        if loaded.plan.routes.is_empty() {
            return Err(load::usage(&format!("there is no route `{only}` in `{}`", options.file.display())));
        }
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let result = runtime.block_on(work(&loaded, options.until.as_ref()));
    // librdkafka's threads may still wait for brokers; everything of ours is durable.
    runtime.shutdown_background();
    result
}

/// A bounded run of everything that is there now.
///
/// # Errors
/// [`Failure`]
pub fn run_until_latest(runtime: &tokio::runtime::Runtime, loaded: &load::Loaded) -> Result<(), Failure> {
    runtime.block_on(work(loaded, Some(&Start::Latest)))
}

async fn work(loaded: &load::Loaded, until: Option<&Start>) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    listen_for_signals(&shutdown).map_err(anyhow::Error::from)?;
    let prepared = tokio::select! {
        prepared = prepare(loaded, until) => prepared?,
        // Before the engine runs there is nothing to drain.
        () = shutdown.cancelled() => return interrupted(until),
    };
    let (summaries, result) = engine::run::run(prepared, shutdown.clone()).await;
    finish(&summaries, result, until.is_some())?;
    if shutdown.is_cancelled() { interrupted(until) } else { Ok(()) }
}

/// A service that is asked to end has done its work; a bounded run has not.
fn interrupted(until: Option<&Start>) -> Result<(), Failure> {
    match until {
        None => Ok(()),
        Some(_) => {
            Err(Failure::Failed(anyhow!("interrupted before the end; the next run goes on from here")))
        }
    }
}

/// The first SIGTERM or SIGINT drains, the second ends at once: kill -9 is safe, so is that.
fn listen_for_signals(shutdown: &CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = shutdown.clone();
    #[expect(clippy::disallowed_methods, reason = "lives as long as the process")]
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        info!("draining; a second signal ends at once");
        shutdown.cancel();
        next().await;
        warn!("ended by a second signal");
        #[expect(clippy::exit, reason = "asked for: whatever is not durable is read again")]
        std::process::exit(i32::from(super::FAILED));
    });
    Ok(())
}

/// Asks brokers and registry what has to be known before records flow, waiting for them if they are away.
async fn prepare(loaded: &load::Loaded, until: Option<&Start>) -> Result<EngineParts, Failure> {
    let plan = &loaded.plan;
    let registry = build::registry(plan)?;
    let cluster: Arc<dyn Cluster> = Arc::new(KafkaCluster::new(kafka::client_config(&plan.kafka)));
    let cluster_id = wait_for(|| cluster.id()).await;
    info!(cluster = %cluster_id, librdkafka = kafka::version(), routes = plan.routes.len(), "starting");
    let ends = match until {
        Some(until) => Some(ends(plan, cluster.as_ref(), until).await?),
        None => None,
    };
    let (report_tx, reports) = mpsc::channel(REPORTS_MAX);
    let mut lanes: Vec<(Vec<TopicName>, Lane, LaneHandle)> = Vec::new();
    let mut problems = Vec::new();
    for (index, route) in plan.routes.iter().enumerate() {
        let parts = lane_parts(plan, route, &registry, &cluster, &cluster_id).await?;
        match parts {
            Ok(parts) => {
                let (lane, handle) = Lane::new(LaneId(index), parts, report_tx.clone());
                lanes.push((route.topics.clone(), lane, handle));
            }
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        loaded.print(&problems);
        return Err(Failure::Usage);
    }
    drop(report_tx);
    let source = KafkaSource::start(&kafka::consumer_config(&plan.kafka), outlets(&lanes));
    Ok(EngineParts {
        source: Box::new(source.map_err(anyhow::Error::from)?),
        cluster,
        lanes,
        reports,
        until: ends,
    })
}

/// Every lane of a topic gets its chunks.
fn outlets(lanes: &[(Vec<TopicName>, Lane, LaneHandle)]) -> HashMap<TopicName, Vec<Box<dyn Outlet>>> {
    let mut outlets: HashMap<TopicName, Vec<Box<dyn Outlet>>> = HashMap::new();
    for (topics, _, handle) in lanes {
        for topic in topics {
            outlets.entry(topic.clone()).or_default().push(handle.outlet());
        }
    }
    outlets
}

async fn lane_parts(
    plan: &Plan,
    route: &Route,
    registry: &Option<Arc<dyn Registry>>,
    cluster: &Arc<dyn Cluster>,
    cluster_id: &ClusterId,
) -> anyhow::Result<Result<LaneParts, Vec<crate::config::Problem>>> {
    let codec = build::codec_when_there(route, registry.as_deref()).await?;
    let bound = match build::bind(route, codec).await {
        Ok(bound) => bound,
        Err(problems) => return Ok(Err(problems)),
    };
    let around = build::Surroundings { kafka: &plan.kafka, cluster: cluster_id };
    let lane_sink = |sink: &Sink, feed, schema| {
        let built = build::sink(sink, schema, around)?;
        Ok(LaneSink { name: sink.name.clone(), identity: sink.identity.clone(), feed, sink: built })
    };
    let outputs = route.sinks.iter().map(|sink| {
        let feed = sink.from.map_or(Feed::Fields, Feed::View);
        lane_sink(sink, feed, bound.schema(sink))
    });
    let letters = route.dead_letters.iter().map(|sink| lane_sink(sink, Feed::DeadLetters, letters::schema()));
    let sinks = outputs.chain(letters);
    let sinks = sinks.collect::<anyhow::Result<Vec<_>>>()?;
    // Half of the memory is for records as they came, the other half for what is made of them.
    let share = usize::try_from(plan.memory).unwrap_or(usize::MAX) / 2 / plan.routes.len();
    Ok(Ok(LaneParts {
        route: route.name.clone(),
        sinks,
        codec: bound.codec,
        handler: Box::new(bound.views),
        meta: bound.meta,
        registry: registry.clone(),
        cluster: cluster.clone(),
        key: route.key,
        limits: route.batch,
        start: route.start.clone(),
        start_hash: route.start_hash.clone(),
        bad_records: route.bad_records,
        gauge: Gauge::new(share.max(LANE_BYTES_MIN)),
    }))
}

/// The end offsets of a bounded run: every partition of every topic, as they are now.
async fn ends(
    plan: &Plan,
    cluster: &dyn Cluster,
    until: &Start,
) -> anyhow::Result<BTreeMap<TopicPartition, Offset>> {
    let mut ends = BTreeMap::new();
    for topic in plan.routes.iter().flat_map(|route| &route.topics) {
        let info = cluster.topic(topic).await?;
        for (partition, end) in cluster.resolve(topic, info.partition_count, until).await? {
            ends.insert(TopicPartition::new(topic, partition), end);
        }
    }
    Ok(ends)
}

/// Asks again until the brokers answer: a service starts when it can.
async fn wait_for<T, F: Future<Output = Result<T, ClusterError>>>(ask: impl Fn() -> F) -> T {
    let mut attempt = 0;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                attempt += 1;
                if attempt == 1 {
                    warn!(error = chain(&error), "waiting for the brokers");
                }
                tokio::time::sleep(retry::pause(attempt)).await;
            }
        }
    }
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn finish(summaries: &[Summary], result: Result<(), EngineError>, is_bounded: bool) -> Result<(), Failure> {
    print!("{}", table::render(summaries));
    result.map_err(anyhow::Error::from)?;
    let stopped = summaries.iter().filter(|summary| summary.stop.is_some()).count();
    if is_bounded && stopped > 0 {
        let routes = if stopped == 1 { "a route" } else { "routes" };
        return Err(Failure::Failed(anyhow!("{routes} stopped before the end")));
    }
    Ok(())
}
