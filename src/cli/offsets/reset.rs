//! `sidestream offsets reset`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, anyhow, ensure};
use clap::Args;

use crate::cli::plan::other_logs;
use crate::cli::standing::{Ground, Group, Instance, Seat};
use crate::cli::{DEFAULT_FILE, Failure, build, load, table};
use crate::config::plan::{TableRows, Target};
use crate::engine::message::Committed;
use crate::failpoint;
use crate::kafka::{Cluster, Commit};
use crate::model::metadata::{GroupMetadata, IdentityHash};
use crate::model::{Move, Offset, Partition, Position, PositionKey, Reason, Start, TopicPartition};
use crate::sink::{delta, file, postgres};

use super::{ensure_alone, print_text};

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// The route whose sinks are moved; of a `per_topic` route also one topic's, `route/topic`.
    #[arg(long)]
    route: String,
    /// Only this sink; without it all of the route, those of dead letters (`dead_letter/name`) too.
    #[arg(long)]
    sink: Option<String>,
    /// Only this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Only this partition of each topic.
    #[arg(long)]
    partition: Option<i32>,
    /// Where to: `earliest`, `latest`, a time (2026-11-01T00:00:00Z), a time ago (-2h), records before the end (-100), or
    /// offsets ('{topic: {0: 500}}'; partitions that are not named stay).
    #[arg(long, allow_hyphen_values = true, value_parser = crate::config::parse_start)]
    to: Start,
    /// Do it.
    #[arg(long)]
    execute: bool,
}

/// One sink in one partition.
struct Step<'a> {
    instance: &'a Instance,
    seat: &'a Seat,
    source: TopicPartition,
    key: PositionKey,
    from: Option<Offset>,
    to: Offset,
}

impl Step<'_> {
    /// Where it goes; `None` if it stays.
    fn target(&self) -> Option<(Offset, Offset)> {
        self.from.filter(|from| *from != self.to).map(|from| (from, self.to))
    }

    fn told(&self) -> String {
        match self.from {
            None => "no position yet: it begins as `start:` says".to_owned(),
            Some(from) if from > self.to => format!("{} offsets again", from.get() - self.to.get()),
            Some(from) if from < self.to => format!("{} offsets skipped", self.to.get() - from.get()),
            Some(_) => "stays".to_owned(),
        }
    }
}

/// # Errors
/// [`Failure`]
pub async fn reset(options: &Options) -> Result<(), Failure> {
    let loaded = load::load(&options.file)?;
    let ground = Ground::look(&loaded.plan).await.map_err(anyhow::Error::from)?;
    let chosen = chosen(options, &ground)?;
    let steps = steps(options, &ground, &chosen).await?;
    let commits = commits(&ground, &steps)?;
    print_text(&shown(&ground, &steps, &commits));
    if commits.is_empty() && steps.iter().all(|step| step.target().is_none()) {
        print_text("\nthere is nothing to move\n");
        return Ok(());
    }
    if !options.execute {
        print_text("\nnothing was changed; with --execute it is done, while the group has no members\n");
        return Ok(());
    }
    for place in steps.iter().map(|step| step.instance.group).collect::<BTreeSet<usize>>() {
        ensure_alone(&ground.groups[place]).await?;
    }
    // A member may have committed and left since the first look.
    let again = Ground::look(&loaded.plan).await.map_err(anyhow::Error::from)?;
    let chosen_now = self::chosen(options, &again)?;
    let steps_now = self::steps(options, &again, &chosen_now).await?;
    let commits_now = self::commits(&again, &steps_now)?;
    let is_same =
        commits_now == commits && shown(&again, &steps_now, &commits_now) == shown(&ground, &steps, &commits);
    if !is_same {
        return Err(
            anyhow!("the group or a sink has moved on meanwhile; nothing was changed, run it again").into()
        );
    }
    failpoint::hit("reset.moving");
    // The group comes last: it only follows, but for sinks that have no other place, and those can be moved again.
    move_sinks(&steps).await?;
    for (place, commits) in commits {
        move_group(&ground.groups[place], commits).await?;
    }
    print_text("\nmoved\n");
    Ok(())
}

/// The sinks that are meant.
fn chosen<'a>(options: &Options, ground: &'a Ground) -> Result<Vec<(&'a Instance, &'a Seat)>, Failure> {
    let (route, file) = (options.route.as_str(), options.file.display());
    let instances = || ground.instances.iter().filter(move |instance| instance.is_named(Some(route)));
    if !ground.has_route(Some(route)) {
        return Err(load::usage(&format!("there is no route `{route}` in `{file}`")));
    }
    let all = instances().flat_map(|instance| instance.seats.iter().map(move |seat| (instance, seat)));
    let is_meant = |name: &str| options.sink.as_deref().is_none_or(|only| only == name);
    let chosen: Vec<_> = all.filter(|(_, seat)| is_meant(&seat.sink.name)).collect();
    if chosen.is_empty() {
        return Err(load::usage(&match &options.sink {
            Some(sink) => format!("route `{route}` has no sink `{sink}`"),
            None => format!("no topic matches route `{route}`"),
        }));
    }
    let mut named: BTreeSet<&str> = options.topic.as_deref().into_iter().collect();
    if let Start::Offsets(topics) = &options.to {
        named.extend(topics.keys().map(|topic| topic.as_str()));
    }
    let is_read =
        |topic: &str| instances().any(|instance| instance.topics.iter().any(|it| it.as_str() == topic));
    if let Some(topic) = named.into_iter().find(|topic| !is_read(topic)) {
        return Err(load::usage(&format!("route `{route}` does not read topic `{topic}`")));
    }
    Ok(chosen)
}

/// Is the partition one of those to be moved?
fn is_meant(options: &Options, source: &TopicPartition) -> bool {
    let is_given = match &options.to {
        Start::Offsets(topics) => {
            topics.get(&source.topic).is_some_and(|given| given.contains_key(&source.partition))
        }
        _ => true,
    };
    is_given
        && options.topic.as_deref().is_none_or(|only| only == source.topic.as_str())
        && options.partition.is_none_or(|only| Partition(only) == source.partition)
}

async fn steps<'a>(
    options: &Options,
    ground: &Ground,
    chosen: &[(&'a Instance, &'a Seat)],
) -> anyhow::Result<Vec<Step<'a>>> {
    let mut wanted: BTreeMap<TopicPartition, &Start> = BTreeMap::new();
    for &(instance, seat) in chosen {
        if let Some((problem, hint)) = seat.place.refusal(seat) {
            let hint = hint.map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
            return Err(anyhow!("sink `{}`: {problem}{hint}", seat.sink.name));
        }
        // Also its siblings: the group's offset follows the lowest of them.
        for sibling in &instance.seats {
            if let Some((problem, _)) = other_logs(ground, instance, sibling) {
                return Err(anyhow!("{problem}: is this the directory that the service works in?"));
            }
        }
        for topic in &instance.topics {
            if let Some(error) = ground.missing.get(topic) {
                return Err(anyhow!("topic `{topic}`: {error}"));
            }
        }
        let all = ground.partitions(&instance.topics).into_iter().map(|(source, _)| source);
        wanted.extend(all.filter(|source| is_meant(options, source)).map(|source| (source, &options.to)));
    }
    ensure!(!wanted.is_empty(), "none of the route's partitions is meant");
    let wanted: Vec<(TopicPartition, &Start)> = wanted.into_iter().collect();
    let resolved = ground.cluster().resolve(&wanted).await?;
    for (source, to) in resolved.iter().filter(|_| matches!(options.to, Start::Offsets(_))) {
        let (first, end) = ground.bounds.get(source).copied().unwrap_or_default();
        // It would be taken for lost records.
        ensure!(
            (first..=end).contains(to),
            "{source} has the offsets from {first} to {end}: no sink can go on at {to}"
        );
    }
    let mut steps = Vec::new();
    for &(instance, seat) in chosen {
        for (source, key) in ground.partitions(&instance.topics) {
            if let Some(to) = resolved.get(&source) {
                let from = seat.positions.get(&key).map(|position| position.next);
                steps.push(Step { instance, seat, source, key, from, to: *to });
            }
        }
    }
    Ok(steps)
}

/// What the group has to hold for a partition once the sinks of its topic stand at `standing`: of each its identity,
/// whether the group keeps its position, and where it stands.
fn recommit(
    committed: &Committed,
    standing: &[(IdentityHash, bool, Offset)],
) -> Option<(Offset, GroupMetadata)> {
    let before = committed.offset?;
    let next = standing.iter().map(|(_, _, next)| *next).min().unwrap_or(before);
    let kept = standing.iter().filter(|(_, is_kept, _)| *is_kept);
    let kept = kept.map(|(identity, _, next)| (identity.clone(), *next)).collect();
    let mut metadata = committed.metadata.clone();
    metadata.keep_positions(&kept, next);
    (next != before || metadata != committed.metadata).then_some((next, metadata))
}

/// What each group is told, by its place: the lowest position of all sinks of all its routes that read a topic, and
/// beside it those of sinks that have no other place.
fn commits(ground: &Ground, steps: &[Step<'_>]) -> anyhow::Result<BTreeMap<usize, Vec<Commit>>> {
    let moved: BTreeMap<(&str, &TopicPartition), Offset> = steps
        .iter()
        .filter_map(|step| Some(((step.seat.sink.identity.as_str(), &step.source), step.target()?.1)))
        .collect();
    // Also where the sinks are there already: a command that was interrupted is repeated.
    let standing = steps.iter().filter(|step| step.from.is_some());
    let sources: BTreeSet<(usize, &TopicPartition)> =
        standing.map(|step| (step.instance.group, &step.source)).collect();
    let mut commits: BTreeMap<usize, Vec<Commit>> = BTreeMap::new();
    for (place, source) in sources {
        let committed = ground.groups[place].committed.get(source);
        let Some((committed, info)) = committed.zip(ground.infos.get(&source.topic)) else {
            continue;
        };
        let key = PositionKey { topic_id: info.id, partition: source.partition };
        let of_group = ground.instances.iter().filter(|instance| instance.group == place);
        let readers = of_group.filter(|instance| instance.topics.contains(&source.topic));
        let standing: Vec<(IdentityHash, bool, Offset)> = readers
            .flat_map(|instance| &instance.seats)
            .filter_map(|seat| {
                let identity = seat.sink.identity.as_str();
                let stands = seat.positions.get(&key).map(|position| position.next);
                let next = moved.get(&(identity, source)).copied().or(stands)?;
                Some((IdentityHash::of(identity), seat.place.is_group(), next))
            })
            .collect();
        if let Some((next, metadata)) = recommit(committed, &standing) {
            let metadata = metadata.render().with_context(|| format!("cannot move {source}"))?;
            let commit = Commit { source: source.clone(), next, epoch: None, metadata };
            commits.entry(place).or_default().push(commit);
        }
    }
    Ok(commits)
}

/// One entry for each directory, one transaction for each table.
async fn move_sinks(steps: &[Step<'_>]) -> anyhow::Result<()> {
    // Identities are unique in a file.
    let mut moves: BTreeMap<&str, (&Seat, Vec<Move>)> = BTreeMap::new();
    for step in steps.iter().filter(|step| step.seat.place.survey().is_some()) {
        let Some((from, to)) = step.target() else {
            continue;
        };
        let identity = step.seat.sink.identity.as_str();
        let (_, moves) = moves.entry(identity).or_insert((step.seat, Vec::new()));
        moves.push(Move {
            key: step.key,
            topic: step.source.topic.clone(),
            start: Some(from),
            end: Position { next: to, epoch: None },
            reason: Reason::Reset,
            records: 0,
        });
    }
    for (seat, moves) in moves.into_values() {
        let place = match &seat.sink.target {
            Target::Files { path, storage, .. } => {
                let home = build::home(&seat.sink, path, storage.as_deref())?;
                file::reset(&home, &seat.claim, moves)?;
                path.display().to_string()
            }
            Target::Postgres(table) => {
                postgres::reset(table, &seat.claim, &moves).await?;
                table.shown()
            }
            Target::Delta(table) => {
                delta::reset(table, &seat.claim, &moves)?;
                table.path.display().to_string()
            }
            // The group has their positions.
            Target::Kafka { .. } | Target::Console { .. } | Target::Http(_) => continue,
        };
        failpoint::check("reset.log.moved")?;
        print_text(&format!("sink {}: moved in `{place}`\n", seat.sink.name));
    }
    Ok(())
}

async fn move_group(group: &Group, commits: Vec<Commit>) -> anyhow::Result<()> {
    let wanted: BTreeMap<TopicPartition, Offset> =
        commits.iter().map(|commit| (commit.source.clone(), commit.next)).collect();
    let failed = "the group's offsets could not be moved; run the command again";
    group.cluster.commit(commits).await.context(failed)?;
    failpoint::check("reset.group.moved").context(failed)?;
    let sources: Vec<TopicPartition> = wanted.keys().cloned().collect();
    if sources.is_empty() {
        return Ok(());
    }
    let found = group.cluster.committed(&sources).await.context(failed)?;
    for (source, next) in wanted {
        let is_there = found.get(&source).is_some_and(|(offset, _)| *offset == next);
        ensure!(is_there, "{source}: {failed}");
    }
    Ok(())
}

fn shown(ground: &Ground, steps: &[Step<'_>], commits: &BTreeMap<usize, Vec<Commit>>) -> String {
    let head = ["route", "sink", "topic", "partition", "from", "to", ""].map(str::to_owned);
    let mut lines = vec![head];
    lines.extend(steps.iter().map(|step| {
        [
            step.instance.route.name.clone(),
            step.seat.sink.name.clone(),
            step.source.topic.to_string(),
            step.source.partition.to_string(),
            step.from.map_or_else(|| "-".to_owned(), |from| from.to_string()),
            step.from.map_or_else(|| "-".to_owned(), |_| step.to.to_string()),
            step.told(),
        ]
    }));
    let mut text = table::columns(&lines, &[3, 4, 5]);
    text.push('\n');
    for consequence in consequences(steps) {
        text.push_str(&consequence);
    }
    for (place, commits) in commits {
        let group = &ground.groups[*place];
        for commit in commits {
            let before = group.committed.get(&commit.source).and_then(|committed| committed.offset);
            let before = before.map_or_else(|| "-".to_owned(), |before| before.to_string());
            let (name, source, next) = (&group.name, &commit.source, commit.next);
            text.push_str(&format!("offset of group `{name}` for {source}: {before} to {next}\n"));
        }
    }
    text
}

/// What becomes of the rows, for each sink.
fn consequences(steps: &[Step<'_>]) -> Vec<String> {
    let mut sums: BTreeMap<(&str, &str), (&Seat, i64, i64)> = BTreeMap::new();
    for step in steps {
        let Some((from, to)) = step.target() else {
            continue;
        };
        let name = (step.instance.route.name.as_str(), step.seat.sink.name.as_str());
        let (_, again, skipped) = sums.entry(name).or_insert((step.seat, 0, 0));
        *again += (from.get() - to.get()).max(0);
        *skipped += (to.get() - from.get()).max(0);
    }
    let mut told = Vec::new();
    for ((route, sink), (seat, again, skipped)) in sums {
        if again > 0 {
            let what = match &seat.sink.target {
                Target::Files { .. } => "files that are there stay, so their rows will be there twice",
                Target::Postgres(table) if table.rows == TableRows::Append => {
                    "rows that are there stay, so they will be there twice"
                }
                Target::Delta(_) => "rows that are there stay, so they will be there twice",
                Target::Postgres(_) => "they are written over those of their keys, older ones for a while",
                Target::Kafka { .. } => "their rows are written to the topic again",
                Target::Console { .. } => "their rows are shown again",
                Target::Http(_) => "their rows are sent again, under the same keys",
            };
            told.push(format!("{route}, sink {sink}: {again} offsets are read again; {what}\n"));
        }
        if skipped > 0 {
            let what = "their rows will be missing";
            told.push(format!("{route}, sink {sink}: {skipped} offsets are never read; {what}\n"));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(raw: i64) -> Offset {
        Offset::new(raw).unwrap()
    }

    fn committed(offset: i64, text: &str) -> Committed {
        Committed::read(Some(&(at(offset), text.to_owned()))).0
    }

    #[test]
    fn the_group_follows_the_slowest_sink_and_keeps_the_others_that_have_no_other_place() {
        let (files, one, two) = (IdentityHash::of("r/f"), IdentityHash::of("r/1"), IdentityHash::of("r/2"));
        let before = committed(9, &format!("ss1 l{files}=ab.3 z1=later"));
        let standing = |f, first, second| {
            [(files.clone(), false, at(f)), (one.clone(), true, at(first)), (two.clone(), true, at(second))]
        };
        let words = |standing: &[(IdentityHash, bool, Offset)]| {
            recommit(&before, standing).map(|(next, metadata)| (next.get(), metadata.render().unwrap()))
        };
        assert_eq!(words(&standing(9, 9, 9)), None);
        // One of two goes back: the other one must not follow it.
        let text = |word: String| {
            let mut all = [format!("l{files}=ab.3"), "z1=later".to_owned(), word];
            all.sort();
            format!("ss1 {}", all.join(" "))
        };
        assert_eq!(words(&standing(9, 4, 9)), Some((4, text(format!("p{two}=9")))));
        // Files go back: both others stay.
        let (next, said) = words(&standing(0, 9, 9)).unwrap();
        assert!(
            next == 0 && said.contains(&format!("p{one}=9")) && said.contains(&format!("p{two}=9")),
            "{said}"
        );
        // All go on.
        assert_eq!(words(&standing(12, 12, 12)).map(|(next, _)| next), Some(12));
        // A group without an offset has nobody to remember.
        assert_eq!(recommit(&Committed::default(), &standing(0, 4, 4)), None);
    }
}
