//! `sidestream run`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::plan::{Kafka, Plan, Route};
use crate::config::topics::matched;
use crate::engine::lane::Summary;
use crate::engine::message::Stop;
use crate::engine::run::{EngineError, EngineParts, Until};
use crate::engine::{self, Watcher, chain, retry};
use crate::kafka::{self, Budget, Cluster, ClusterError, KafkaCluster, KafkaSource};
use crate::model::metadata::{GroupMetadata, IdentityHash};
use crate::model::{Classify, Partition, Start, TimePoint, TopicName, TopicPartition};
use crate::status::{Board, Held};

use super::factory::Factory;
use super::progress::Progress;
use super::{Failure, build, eyes, load, table};

/// librdkafka's default.
const SESSION_MS: u64 = 45_000;

const SESSION_SLACK: Duration = Duration::from_secs(2);

/// How often the group is looked at while it has members.
const MEMBERS_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = super::DEFAULT_FILE)]
    file: PathBuf,
    /// End there: `latest`, a time (2026-11-01T00:00:00Z), or offsets ('{topic: {0: 500}}').
    /// What is there now is read, everything is committed, then the program ends.
    #[arg(long, value_parser = parse_until)]
    until: Option<Start>,
    /// With `--until`: read together with members that the group has already. Without this, a bounded run waits for
    /// them to end for as long as a session lasts, and gives up.
    #[arg(long, requires = "until")]
    join: bool,
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
        let (run, others) =
            std::mem::take(&mut loaded.plan.routes).into_iter().partition(|route| route.name == *only);
        (loaded.plan.routes, loaded.plan.others) = (run, others);
        if loaded.plan.routes.is_empty() {
            return Err(load::usage(&format!("there is no route `{only}` in `{}`", options.file.display())));
        }
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let result = runtime.block_on(work(&Arc::new(loaded), options.until.as_ref(), options.join));
    // librdkafka's threads may still wait for brokers; everything of ours is durable.
    runtime.shutdown_background();
    result
}

/// A bounded run of everything that is there now.
///
/// # Errors
/// [`Failure`]
pub fn run_until_latest(
    runtime: &tokio::runtime::Runtime,
    loaded: &Arc<load::Loaded>,
) -> Result<(), Failure> {
    runtime.block_on(work(loaded, Some(&Start::Latest), true))
}

async fn work(loaded: &Arc<load::Loaded>, until: Option<&Start>, join: bool) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    listen_for_signals(&shutdown).map_err(anyhow::Error::from)?;
    let board = Board::new(&loaded.plan.kafka.group);
    // Before the brokers are asked, so that who watches sees that they are away; until all is committed.
    let _eyes = eyes::open(&loaded.plan, &board, until.is_some()).await?;
    let prepared = tokio::select! {
        prepared = prepare(loaded, &board, until, join) => prepared?,
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

/// Asks brokers and registry what has to be known before records flow, waiting for the brokers if they are away.
async fn prepare(
    loaded: &Arc<load::Loaded>,
    board: &Arc<Board>,
    until: Option<&Start>,
    join: bool,
) -> Result<EngineParts, Failure> {
    let plan = &loaded.plan;
    let registry = build::cached_registry(plan, board)?;
    let cluster: Arc<dyn Cluster> = Arc::new(KafkaCluster::new(kafka::client_config(&plan.kafka)));
    let cluster_id = wait_for(|| cluster.id()).await;
    info!(cluster = %cluster_id, librdkafka = kafka::version(), routes = plan.routes.len(), "starting");
    if until.is_some() && !join {
        wait_alone(&plan.kafka, cluster.as_ref()).await.map_err(anyhow::Error::from)?;
    }
    let names = if plan.routes.iter().any(|route| route.topics.is_pattern()) {
        wait_for(|| cluster.names()).await
    } else {
        BTreeSet::new()
    };
    let matched = matched(&plan.routes, &plan.others, &names);
    if let Some(Start::Offsets(given)) = until
        && let Some(topic) = given.keys().find(|topic| !matched.iter().any(|topics| topics.contains(topic)))
    {
        return Err(load::usage(&format!("`--until` names topic `{topic}`, which no route reads")));
    }
    let until = match until {
        Some(until) => Some(ends(&matched, cluster.as_ref(), until).await),
        None => None,
    };
    let ran_before = ran_before(plan, &matched, cluster.as_ref()).await;
    let factory = Factory::new(loaded.clone(), registry, cluster.clone(), cluster_id, until.is_some());
    let problems = factory.first_look(&instances(plan, &matched)).await;
    if !problems.is_empty() {
        loaded.print(&problems);
        return Err(Failure::Usage);
    }
    let source = KafkaSource::start(&kafka::consumer_config(&plan.kafka, plan.topic_refresh))
        .map_err(anyhow::Error::from)?;
    // Half of the memory is for records as they came, the other half for what is made of them.
    let budget = Budget::new(usize::try_from(plan.memory / 2).unwrap_or(usize::MAX));
    board.watch_source(source.counts().clone());
    let held = budget.clone();
    let limit = held.limit() as u64;
    board.watch_memory(
        Box::new(move || Held { bytes: held.used() as u64, is_full: held.used() >= held.limit() }),
        limit,
    );
    Ok(EngineParts {
        source: Box::new(source),
        cluster,
        routes: plan.routes.clone(),
        others: plan.others.clone(),
        factory: Arc::new(factory),
        budget,
        names,
        ran_before,
        topic_refresh: plan.topic_refresh,
        watcher: until.is_some().then(|| Box::new(Progress::new("reading")) as Box<dyn Watcher>),
        until,
        board: board.clone(),
    })
}

/// Waits until the group has no members: a predecessor that was killed stays one until its session ends.
async fn wait_alone(kafka: &Kafka, cluster: &dyn Cluster) -> Result<(), ClusterError> {
    let given = kafka.properties.get("session.timeout.ms").and_then(|text| text.parse().ok());
    let session = Duration::from_millis(given.unwrap_or(SESSION_MS));
    // The coordinator looks at sessions now and then, not at the moment they end.
    let deadline = Instant::now() + session + SESSION_SLACK;
    let mut is_said = false;
    loop {
        let count = match cluster.member_count().await {
            Ok(0) => return Ok(()),
            Ok(count) if Instant::now() >= deadline => return Err(ClusterError::Members { count }),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Ok(count) => count,
            Err(error) => {
                debug!(error = chain(&error), "the group's members are not known yet");
                0
            }
        };
        if !is_said {
            is_said = true;
            info!(members = count, "waiting for the group's members to end, as long as a session lasts");
        }
        tokio::time::sleep(MEMBERS_INTERVAL).await;
    }
}

/// The routes that are known from the file: one for each named topic where it says so. A topic that a template
/// cannot take is told when its lane starts.
fn instances(plan: &Plan, matched: &[BTreeSet<TopicName>]) -> Vec<Route> {
    let each = plan.routes.iter().zip(matched);
    // One topic that a pattern matches must not keep the others from starting: its own lane tells.
    let known = each.filter(|(route, _)| !(route.is_per_topic && route.topics.is_pattern()));
    known
        .flat_map(|(route, topics)| match route.is_per_topic {
            true => topics.iter().filter_map(|topic| route.instance(topic).ok()).collect(),
            false => vec![route.clone()],
        })
        .collect()
}

/// The routes that the group has run with the same topics and start: what they have not seen is new.
async fn ran_before(plan: &Plan, matched: &[BTreeSet<TopicName>], cluster: &dyn Cluster) -> BTreeSet<usize> {
    let mut ran = BTreeSet::new();
    for (index, (route, topics)) in plan.routes.iter().zip(matched).enumerate() {
        // It is kept beside the offset of every partition.
        let firsts: Vec<TopicPartition> =
            topics.iter().map(|topic| TopicPartition::new(topic, Partition(0))).collect();
        if firsts.is_empty() {
            continue;
        }
        let name = IdentityHash::of(&route.name);
        let committed = wait_for(|| cluster.committed(&firsts)).await;
        let starts = committed.values().filter_map(|(_, text)| GroupMetadata::parse(text).ok()?.start(&name));
        if starts.into_iter().any(|hash| hash == route.start_hash) {
            ran.insert(index);
        }
    }
    ran
}

/// The end offsets of a bounded run: every partition of every topic, as they are now.
async fn ends(matched: &[BTreeSet<TopicName>], cluster: &dyn Cluster, until: &Start) -> Until {
    let topics: BTreeSet<TopicName> = matched.iter().flatten().cloned().collect();
    let mut missing = BTreeMap::new();
    let mut sources: Vec<TopicPartition> = Vec::new();
    for (topic, described) in wait_for(|| cluster.describe(&topics)).await {
        match described {
            Ok(info) => {
                let count = i32::try_from(info.partition_count).unwrap_or(i32::MAX);
                sources.extend((0..count).map(|number| TopicPartition::new(&topic, Partition(number))));
            }
            Err(error) => {
                let hint = error.hint().map(|hint| hint.into_owned());
                missing.insert(topic, Stop { message: chain(&error), hint, place: None });
            }
        }
    }
    let wanted: Vec<(TopicPartition, &Start)> = match until {
        // Partitions that are not named are not read.
        Start::Offsets(given) => sources
            .into_iter()
            .filter(|source| given.get(&source.topic).is_some_and(|of| of.contains_key(&source.partition)))
            .map(|source| (source, until))
            .collect(),
        _ => sources.into_iter().map(|source| (source, until)).collect(),
    };
    Until { ends: wait_for(|| cluster.resolve(&wanted)).await, missing }
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
