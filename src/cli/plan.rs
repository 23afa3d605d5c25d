//! `sidestream plan`: what a start would do, without doing any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use crate::config::plan::{OnDataLoss, Target};
use crate::engine::chain;
use crate::engine::lane::MOVED_HINT;
use crate::engine::lane::begin::{Begin, Gap, Unseen};
use crate::kafka::{Cluster, ClusterError};
use crate::model::metadata::IdentityHash;
use crate::model::{Offset, Position, PositionKey, Positions, Start, TopicId, TopicName, TopicPartition};
use crate::sink::owner::{Admission, Owner};
use crate::sink::survey::Survey;

use super::check::reader_lines;
use super::standing::{Ground, Instance, Place, Seat};
use super::{DEFAULT_FILE, Failure, load};

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Only this route.
    #[arg(long)]
    route: Option<String>,
}

/// # Errors
/// [`Failure::Failed`] also if a route would stop at once.
pub fn plan(options: &Options) -> Result<(), Failure> {
    let loaded = load::load(&options.file)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let only = options.route.as_deref();
    let told = runtime.block_on(async {
        let ground = Ground::look(&loaded.plan).await.map_err(anyhow::Error::from)?;
        if let Some(only) = only.filter(|_| !ground.has_route(only)) {
            let message = format!("there is no route `{only}` in `{}`", options.file.display());
            return Err(load::usage(&message));
        }
        tell(&ground, only).await.map_err(|error| Failure::from(anyhow::Error::from(error)))
    });
    // librdkafka's threads may still wait for brokers.
    runtime.shutdown_background();
    let told = told?;
    print_text(&told.text);
    match told.stops {
        0 => Ok(()),
        count => Err(Failure::Failed(anyhow!("routes that would stop at once: {count}"))),
    }
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn print_text(text: &str) {
    print!("{text}");
}

/// What was found out.
#[derive(Default)]
struct Told {
    text: String,
    /// Routes that would stop.
    stops: usize,
}

impl Told {
    fn line(&mut self, depth: usize, line: &str) {
        self.text.push_str(&format!("{}{line}\n", "  ".repeat(depth)));
    }
}

async fn tell(ground: &Ground, only: Option<&str>) -> Result<Told, ClusterError> {
    let mut told = Told::default();
    for instance in ground.instances.iter().filter(|instance| instance.is_named(only)) {
        tell_route(ground, instance, &mut told).await?;
    }
    for (family, name, problem) in &ground.unfit {
        if only.is_none_or(|only| only == family || only == name) {
            told.stops += 1;
            told.line(0, &format!("route {name}"));
            told.line(1, &format!("would stop: {problem}"));
            told.line(2, "hint: leave the topic out with `exclude`, or change the template");
        }
    }
    for family in ground.families.keys().filter(|family| only.is_none_or(|only| only == family.as_str())) {
        let is_told = ground.instances.iter().any(|instance| instance.family == *family)
            || ground.unfit.iter().any(|(of, _, _)| of == family);
        if !is_told {
            told.line(0, &format!("route {family}: no topic matches"));
        }
    }
    if only.is_none() {
        tell_gone(ground, &mut told);
    }
    Ok(told)
}

async fn tell_route(ground: &Ground, instance: &Instance, told: &mut Told) -> Result<(), ClusterError> {
    told.line(0, &format!("route {}: {}", instance.route.name, topics(ground, instance)));
    for line in reader_lines(&instance.route) {
        told.line(1, &line);
    }
    if instance.route.is_isolated {
        told.line(1, &format!("isolated, in group `{}`", ground.groups[instance.group].name));
    }
    for (topic, error) in instance.topics.iter().filter_map(|it| Some((it, ground.missing.get(it)?))) {
        told.line(
            1,
            &format!("topic {topic}: {}; a service waits for it, a bounded run stops", chain(error)),
        );
    }
    if is_edited(ground, instance) {
        let what = "`topics:` or `start:` was edited: topics that are stored go on where they stand";
        told.line(1, what);
    }
    for topic in gone_topics(instance) {
        told.line(1, &format!("topic {topic} is no longer read; its positions are kept"));
    }
    let mut stops: Vec<(String, Option<String>)> = Vec::new();
    let recreated = recreated(ground, instance);
    if instance.route.on_data_loss == OnDataLoss::Stop {
        stops.extend(recreated.iter().map(|topic| {
            let hint = "its offsets mean other records now; read it with another `group.id` and other paths, or \
                        set `on_data_loss: continue` to read what is there";
            (format!("topic `{topic}` was deleted and created again"), Some(hint.to_owned()))
        }));
    }
    let mut positions: Vec<Positions> = instance.seats.iter().map(|seat| seat.positions.clone()).collect();
    for (index, seat) in instance.seats.iter().enumerate() {
        stops.extend(seat.place.refusal(seat));
        stops.extend(other_logs(ground, instance, seat));
        let outlooks = outlooks(ground, instance, index, &mut positions, &recreated).await?;
        tell_sink(ground, instance, seat, &outlooks, told);
        if instance.route.on_data_loss == OnDataLoss::Stop {
            stops.extend(outlooks.iter().filter_map(|outlook| {
                let gap = outlook.gap()?;
                Some((gap.told(&outlook.source, &seat.sink.name), Some(gap.hint().to_owned())))
            }));
        }
    }
    told.stops += usize::from(!stops.is_empty());
    for (problem, hint) in stops {
        told.line(1, &format!("would stop: {problem}"));
        if let Some(hint) = hint {
            told.line(2, &format!("hint: {hint}"));
        }
    }
    Ok(())
}

/// `orders (3 partitions), clicks (1 partition)`.
fn topics(ground: &Ground, instance: &Instance) -> String {
    let each = instance.topics.iter().map(|topic| match ground.infos.get(topic) {
        Some(info) if info.partition_count == 1 => format!("{topic} (1 partition)"),
        Some(info) => format!("{topic} ({} partitions)", info.partition_count),
        None => format!("{topic} (not there)"),
    });
    let each: Vec<String> = each.collect();
    let shown = instance.route.topics.shown();
    match (instance.route.topics.is_pattern(), each.is_empty()) {
        (true, true) => format!("{shown}, which no topic matches"),
        (true, false) => format!("{shown}: {}", each.join(", ")),
        (false, _) => each.join(", "),
    }
}

/// Was the route last started with other topics or another start?
fn is_edited(ground: &Ground, instance: &Instance) -> bool {
    let in_logs = instance.seats.iter().filter(|seat| !seat.place.is_group());
    let in_logs: Vec<bool> = in_logs
        .filter_map(|seat| Some(seat.positions.start_hash()? != seat.start_hash(&instance.route)))
        .collect();
    if !in_logs.is_empty() {
        return in_logs.contains(&true);
    }
    let hash = &instance.route.start_hash;
    let name = IdentityHash::of(&instance.family);
    let sources = ground.partitions(&instance.topics);
    let mut in_group = sources
        .iter()
        .filter_map(|(source, _)| ground.committed(instance).get(source)?.metadata.start(&name));
    !instance.has_run && in_group.any(|known| known != *hash)
}

/// Topics that sinks have positions in and that the route does not read any more.
fn gone_topics(instance: &Instance) -> BTreeSet<TopicName> {
    let all = instance.seats.iter().flat_map(|seat| seat.positions.iter());
    all.map(|(_, topic, _)| topic).filter(|topic| !instance.topics.contains(*topic)).cloned().collect()
}

/// Topics that were deleted and created again since a sink has read them.
fn recreated(ground: &Ground, instance: &Instance) -> BTreeSet<TopicName> {
    let infos = instance.topics.iter().filter_map(|topic| Some((topic, ground.infos.get(topic)?.id)));
    let is_former = |topic: &TopicName, id: TopicId| {
        instance.seats.iter().any(|seat| seat.positions.former_id(topic, id).is_some())
    };
    infos.filter(|(topic, id)| is_former(topic, *id)).map(|(topic, _)| topic.clone()).collect()
}

/// The group says that a sink wrote to another commit log than the one in its directory.
pub fn other_logs(ground: &Ground, instance: &Instance, seat: &Seat) -> Option<(String, Option<String>)> {
    let here = match &seat.place {
        Place::Fresh => "none",
        place => place.survey()?.log.as_deref()?,
    };
    let identity = IdentityHash::of(&seat.sink.identity);
    let sources = ground.partitions(&instance.topics);
    let (source, there) = sources.iter().find_map(|(source, _)| {
        let (there, _) = ground.committed(instance).get(source)?.metadata.log(&identity)?;
        (there != here).then_some((source, there))
    })?;
    let problem = format!(
        "sink `{}`: the group says that {source} was written under commit log {there}, and its directory has {here}",
        seat.sink.name
    );
    let hint = "instances of one group share the sink's `path`; if the directory was deleted to start again, use \
                another `group.id`";
    Some((problem, Some(hint.to_owned())))
}

/// What a start means for a sink in one partition.
struct Outlook {
    source: TopicPartition,
    next: Offset,
    /// How it begins, if it has no position yet.
    begin: Option<Begin>,
    bounds: (Offset, Offset),
}

impl Outlook {
    fn gap(&self) -> Option<Gap> {
        Gap::of(self.next, self.bounds)
    }
}

/// As `resume` of a lane decides it: one sink after the other, so that each sees where those before it begin.
async fn outlooks(
    ground: &Ground,
    instance: &Instance,
    index: usize,
    positions: &mut [Positions],
    recreated: &BTreeSet<TopicName>,
) -> Result<Vec<Outlook>, ClusterError> {
    let (route, seat) = (&instance.route, &instance.seats[index]);
    let mut own = instance.seats.iter().filter(|seat| !seat.place.is_group());
    let is_new =
        instance.has_run || own.any(|seat| seat.positions.start_hash() == Some(seat.start_hash(route)));
    let all = ground.partitions(&instance.topics);
    let mut begun: BTreeMap<&TopicPartition, (PositionKey, Begin)> = BTreeMap::new();
    for (source, key) in &all {
        if positions[index].get(key).is_some() {
            continue;
        }
        let beside =
            instance.seats.iter().zip(positions.iter()).filter(|(seat, _)| seat.sink.start.is_none());
        let before = instance.seats.iter().filter_map(|seat| seat.positions.get(key));
        let unseen = Unseen {
            is_added: !seat.place.is_group() && positions[index].knows(key.topic_id),
            is_new,
            is_recreated: recreated.contains(&source.topic),
            has_start: seat.sink.start.is_some(),
            siblings: beside.filter_map(|(_, of)| Some(of.get(key)?.next)).min(),
            living: before.map(|position| position.next).min(),
        };
        begun.insert(source, (*key, unseen.begin()));
    }
    let said = seat.sink.start.as_ref().map_or(&route.start, |(start, _)| start);
    let start = |begin: Begin| if begin == Begin::Whole { &Start::Earliest } else { said };
    let wanted: Vec<(TopicPartition, &Start)> =
        begun.iter().map(|(source, (_, begin))| ((*source).clone(), start(*begin))).collect();
    let resolved = ground.cluster().resolve(&wanted).await?;
    for (source, (key, begin)) in &begun {
        let next = match begin {
            Begin::WithSiblings(next) => Some(*next),
            Begin::Whole | Begin::AtStart => resolved.get(*source).copied(),
        };
        if let Some(next) = next {
            positions[index].restore(*key, source.topic.clone(), Position { next, epoch: None });
        }
    }
    let outlook = |(source, key): &(TopicPartition, PositionKey)| {
        let begin = begun.get(source).map(|(_, begin)| *begin);
        let next = positions[index].get(key)?.next;
        Some(Outlook { source: source.clone(), next, begin, bounds: *ground.bounds.get(source)? })
    };
    Ok(all.iter().filter_map(outlook).collect())
}

fn tell_sink(ground: &Ground, instance: &Instance, seat: &Seat, outlooks: &[Outlook], told: &mut Told) {
    told.line(1, &format!("sink {}: {}", seat.sink.name, seat.sink.guarantee()));
    if let Some(weakness) = seat.place.survey().and_then(|survey| survey.weakness.as_deref()) {
        told.line(2, weakness);
    }
    match seat.place.survey().map(|survey| &survey.admission) {
        Some(Ok(Admission::Adopts(former))) => {
            told.line(2, &format!("takes the positions of {former} over"));
        }
        Some(Ok(Admission::Joins)) => {
            let what = format!("joins others in its {}, with positions of its own", noun(seat));
            told.line(2, &what);
        }
        Some(Ok(Admission::Known) | Err(_)) | None => {}
    }
    if seat.place.refusal(seat).is_some() {
        return;
    }
    if outlooks.iter().any(|outlook| outlook.begin.is_some()) && seat.positions.iter().next().is_none() {
        told.line(2, "is new");
    }
    for outlook in outlooks {
        told.line(2, &format!("{}: {}", outlook.source, outlook_told(instance, outlook)));
        let committed = ground.committed(instance).get(&outlook.source).filter(|_| outlook.begin.is_none());
        let moved = committed.filter(|committed| committed.is_moved_from(outlook.next));
        if let Some(offset) = moved.filter(|_| !seat.place.is_group()).and_then(|moved| moved.offset) {
            let what =
                format!("something else has moved the group's offset to {offset}, which is not obeyed");
            told.line(3, &format!("{what}; {MOVED_HINT}"));
        }
    }
}

/// What a sink with an owner writes to.
fn noun(seat: &Seat) -> &'static str {
    match &seat.sink.target {
        Target::Postgres(_) | Target::Delta(_) => "table",
        Target::Files { .. } | Target::Console { .. } | Target::Kafka { .. } | Target::Http(_) => "directory",
    }
}

/// `goes on at 120, 5 to read`.
fn outlook_told(instance: &Instance, outlook: &Outlook) -> String {
    let Outlook { next, bounds: (_, end), .. } = outlook;
    if let (Some(gap), OnDataLoss::Continue) = (outlook.gap(), instance.route.on_data_loss) {
        return format!("stands at {next}, which is lost; goes on at {}", gap.to());
    }
    let left = (end.get() - next.get()).max(0);
    match outlook.begin {
        None => format!("goes on at {next}, {left} to read"),
        Some(Begin::AtStart) => format!("begins at {next} (`start:`), {left} to read"),
        Some(Begin::Whole) => format!("begins at {next} (it is new: all of it), {left} to read"),
        Some(Begin::WithSiblings(_)) => {
            format!("begins at {next} (where the other sinks stand), {left} to read")
        }
    }
}

/// Sinks and routes that are no longer in the file.
fn tell_gone(ground: &Ground, told: &mut Told) {
    let seats = || ground.instances.iter().flat_map(|instance| &instance.seats);
    let known: BTreeSet<&Owner> = seats().map(|seat| &seat.claim.owner).collect();
    let adopted: BTreeSet<&Owner> =
        seats().filter_map(|seat| seat.place.survey().and_then(Survey::adopted)).collect();
    let mut gone: BTreeSet<String> = BTreeSet::new();
    for seat in seats() {
        let owners = seat.place.survey().into_iter().flat_map(|survey| &survey.accounts);
        let left = owners.filter(|(owner, account)| {
            account.taken_by.is_none() && !known.contains(owner) && !adopted.contains(owner)
        });
        gone.extend(left.map(|(owner, _)| {
            format!("{owner} writes to the {} of `{}` too, or did", noun(seat), seat.sink.identity)
        }));
    }
    for (place, group) in ground.groups.iter().enumerate() {
        let (sinks, starts) = ground.known(place);
        let words =
            group.committed.values().flat_map(|committed| committed.metadata.strangers(&sinks, &starts));
        gone.extend(words.map(|word| {
            format!(
                "group `{}` keeps `{}` of what it does not run by this file; `sidestream offsets forget` drops it",
                group.name, word.key
            )
        }));
    }
    for line in gone {
        told.line(0, &line);
    }
}
