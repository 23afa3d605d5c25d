//! `sidestream run`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use futures::future::join_all;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::plan::{Kafka, Plan, Route};
use crate::config::topics::matched as matched_by;
use crate::engine::lane::Summary;
use crate::engine::message::Stop;
use crate::engine::run::{EngineError, EngineParts, Until};
use crate::engine::{self, chain, retry};
use crate::kafka::{
    self, Budget, Cluster, ClusterError, KafkaCluster, KafkaSource, KafkaSources, Membership, Source, Sources,
};
use crate::model::metadata::{GroupMetadata, IdentityHash};
use crate::model::{Classify, Partition, Start, TimePoint, TopicName, TopicPartition};
use crate::status::{Board, Held};

use super::factory::Factory;
use super::progress::Progress;
use super::replay::{Letters, LettersCluster, LettersSource, LettersSources};
use super::transactions::Groups;
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
    /// What is there now is read, everything is committed, then the program ends. A route whose schemas the registry
    /// refuses for a minute, or does not answer for in ten, is stopped; without this it waits for ever.
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
    let runtime = new_runtime()?;
    let loaded = Arc::new(loaded);
    let result = runtime.block_on(work(&loaded, options.until.as_ref(), options.join, None));
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
    runtime.block_on(work(loaded, Some(&Start::Latest), true, None))
}

/// A bounded run of everything that is there now, after members of its groups have ended. With `letters` these are read,
/// and no topic.
///
/// # Errors
/// [`Failure`]
pub fn run_alone(loaded: load::Loaded, letters: Option<Arc<Letters>>) -> Result<(), Failure> {
    let runtime = new_runtime()?;
    let loaded = Arc::new(loaded);
    let result = runtime.block_on(work(&loaded, Some(&Start::Latest), false, letters.as_ref()));
    runtime.shutdown_background();
    result
}

fn new_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::Failed(error.into()))
}

async fn work(
    loaded: &Arc<load::Loaded>,
    until: Option<&Start>,
    join: bool,
    letters: Option<&Arc<Letters>>,
) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    listen_for_signals(&shutdown).map_err(anyhow::Error::from)?;
    let board = Board::new(&loaded.plan.kafka.group);
    // Before the brokers are asked, so that who watches sees that they are away; until all is committed.
    let _eyes = eyes::open(&loaded.plan, &board, until.is_some()).await?;
    let prepared = tokio::select! {
        prepared = prepare(loaded, &board, until, join, letters) => prepared?,
        // Before the engine runs there is nothing to drain.
        () = shutdown.cancelled() => return interrupted(until),
    };
    let engines = prepared.into_iter().map(|parts| run_one(parts, shutdown.clone()));
    let (mut summaries, mut result) = (Vec::new(), Ok(()));
    for (of_one, ended) in join_all(engines).await {
        summaries.extend(of_one);
        result = result.and(ended);
    }
    finish(&summaries, result, until.is_some())?;
    if shutdown.is_cancelled() { interrupted(until) } else { Ok(()) }
}

/// Runs the routes of one group. If its client cannot go on, the program ends as it would with one group alone: the
/// others drain.
async fn run_one(parts: EngineParts, shutdown: CancellationToken) -> (Vec<Summary>, Result<(), EngineError>) {
    let (summaries, result) = Box::pin(engine::run::run(parts, shutdown.clone())).await;
    if result.is_err() {
        shutdown.cancel();
    }
    (summaries, result)
}

/// The routes that share a group and a consumer.
struct Party {
    kafka: Kafka,
    cluster: Arc<dyn Cluster>,
    routes: Vec<Route>,
    /// Those of the file that it does not run.
    others: Vec<Route>,
    membership: Membership,
}

/// The routes that are not isolated together, and each of the others by itself.
fn parties(plan: &Plan, cluster: &Arc<dyn Cluster>, groups: &mut Groups) -> Vec<Party> {
    let (isolated, together): (Vec<Route>, Vec<Route>) =
        plan.routes.iter().cloned().partition(|route| route.is_isolated);
    let mut parties = Vec::new();
    if !together.is_empty() {
        let others = plan.others.iter().chain(&isolated).cloned().collect();
        let (kafka, cluster) = (plan.kafka.clone(), cluster.clone());
        let membership = groups.add(&kafka, &together);
        parties.push(Party { kafka, cluster, routes: together, others, membership });
    }
    for route in isolated {
        let kafka = match route.replays {
            Some(_) => plan.kafka.of_isolated(&format!("replay.{}", route.name)),
            None => plan.kafka.of_isolated(&route.name),
        };
        info!(route = route.name, group = kafka.group, "the route has a consumer of its own");
        let cluster: Arc<dyn Cluster> = Arc::new(KafkaCluster::new(kafka::client_config(&kafka)));
        let rest = plan.routes.iter().filter(|other| other.name != route.name);
        let others = plan.others.iter().chain(rest).cloned().collect();
        let routes = vec![route];
        let membership = groups.add(&kafka, &routes);
        parties.push(Party { kafka, cluster, routes, others, membership });
    }
    parties
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
    letters: Option<&Arc<Letters>>,
) -> Result<Vec<EngineParts>, Failure> {
    let plan = &loaded.plan;
    let registry = build::cached_registry(plan, board)?;
    let cluster: Arc<dyn Cluster> = Arc::new(KafkaCluster::new(kafka::client_config(&plan.kafka)));
    let cluster_id = wait_for(|| cluster.id()).await;
    info!(cluster = %cluster_id, librdkafka = kafka::version(), routes = plan.routes.len(), "starting");
    let cluster: Arc<dyn Cluster> = match letters {
        Some(letters) => Arc::new(LettersCluster { letters: letters.clone(), id: cluster_id.clone() }),
        None => cluster,
    };
    let mut groups = Groups::default();
    let parties = parties(plan, &cluster, &mut groups);
    if until.is_some() && !join {
        for party in &parties {
            wait_alone(&party.kafka, party.cluster.as_ref()).await.map_err(anyhow::Error::from)?;
        }
    }
    let names = if plan.routes.iter().any(|route| route.topics.is_pattern()) {
        wait_for(|| cluster.names()).await
    } else {
        BTreeSet::new()
    };
    let matched = matched_by(&plan.routes, &plan.others, &names);
    if let Some(Start::Offsets(given)) = until
        && let Some(topic) = given.keys().find(|topic| !matched.iter().any(|topics| topics.contains(topic)))
    {
        return Err(load::usage(&format!("`--until` names topic `{topic}`, which no route reads")));
    }
    let is_bounded = until.is_some();
    let factory = Factory::new(loaded.clone(), registry, cluster.clone(), cluster_id, groups, is_bounded);
    let problems = factory.first_look(&instances(plan, &matched)).await;
    if !problems.is_empty() {
        loaded.print(&problems);
        return Err(Failure::Usage);
    }
    let factory = Arc::new(factory);
    // Half of the memory is for records as they came, the other half for what is made of them.
    let budget = Budget::new(usize::try_from(plan.memory / 2).unwrap_or(usize::MAX));
    let held = budget.clone();
    let limit = held.limit() as u64;
    board.watch_memory(
        Box::new(move || Held { bytes: held.used() as u64, is_full: held.used() >= held.limit() }),
        limit,
    );
    let watchers = Progress::shared("reading", parties.len());
    let mut prepared = Vec::new();
    for (party, watcher) in parties.into_iter().zip(watchers) {
        let Party { kafka, cluster, routes, others, membership } = party;
        let matched = matched_by(&routes, &others, &names);
        let until = match until {
            Some(until) => Some(ends(&matched, cluster.as_ref(), until).await),
            None => None,
        };
        let (source, catch_up) = sources(&kafka, plan.topic_refresh, board, letters, membership)?;
        prepared.push(EngineParts {
            source,
            catch_up,
            ran_before: ran_before(&routes, &matched, cluster.as_ref()).await,
            cluster,
            routes,
            others,
            factory: factory.clone(),
            budget: budget.clone(),
            names: names.clone(),
            topic_refresh: plan.topic_refresh,
            watcher: until.is_some().then_some(watcher),
            until,
            board: board.clone(),
        });
    }
    Ok(prepared)
}

/// What a party reads with.
fn sources(
    kafka: &Kafka,
    topic_refresh: Duration,
    board: &Board,
    letters: Option<&Arc<Letters>>,
    membership: Membership,
) -> anyhow::Result<(Box<dyn Source>, Box<dyn Sources>)> {
    if let Some(letters) = letters {
        let source = LettersSource::start(letters.clone(), true)?;
        return Ok((Box::new(source), Box::new(LettersSources(letters.clone()))));
    }
    let source = KafkaSource::start(&kafka::consumer_config(kafka, topic_refresh), membership)?;
    board.watch_source(source.counts().clone());
    Ok((Box::new(source), Box::new(KafkaSources::new(kafka, topic_refresh))))
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
async fn ran_before(
    routes: &[Route],
    matched: &[BTreeSet<TopicName>],
    cluster: &dyn Cluster,
) -> BTreeSet<usize> {
    let mut ran = BTreeSet::new();
    for (index, (route, topics)) in routes.iter().zip(matched).enumerate() {
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
