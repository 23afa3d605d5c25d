//! `sidestream offsets list`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::standing::{Ground, Instance, Seat};
use crate::cli::{DEFAULT_FILE, Failure, load, table};
use crate::config::plan::Target;
use crate::engine::message::Committed;
use crate::model::metadata::Saying;
use crate::model::{LeaderEpoch, Offset, Partition, PositionKey, TopicName, TopicPartition};
use crate::sink::owner::Owner;
use crate::sink::survey::{Account, Survey};

use super::print_text;

#[derive(Debug, Args)]
pub struct Options {
    /// The routes file.
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Only this route.
    #[arg(long)]
    route: Option<String>,
    #[arg(long, value_enum, default_value_t = Form::Table)]
    format: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    /// A list of objects.
    Json,
}

/// One sink in one partition. Empty route and sink: they are not in the file.
#[derive(Debug, Serialize)]
struct Row {
    route: String,
    sink: String,
    topic: TopicName,
    partition: Partition,
    /// The next offset that the sink wants.
    next: Option<Offset>,
    /// The group's.
    committed: Option<Offset>,
    /// The next one written.
    end: Option<Offset>,
    lag: Option<i64>,
    epoch: Option<LeaderEpoch>,
    /// The entry of the log that moved it last.
    entry: Option<u64>,
    log: Option<String>,
    identity: String,
    note: Option<String>,
}

/// # Errors
/// [`Failure`]
pub async fn list(options: &Options) -> Result<(), Failure> {
    let loaded = load::load(&options.file)?;
    let ground = Ground::look(&loaded.plan).await.map_err(anyhow::Error::from)?;
    let only = options.route.as_deref();
    if let Some(only) = only.filter(|_| !ground.has_route(only)) {
        return Err(load::usage(&format!("there is no route `{only}` in `{}`", options.file.display())));
    }
    let chosen: Vec<&Instance> = ground.instances.iter().filter(|instance| instance.is_named(only)).collect();
    let mut rows: Vec<Row> = Vec::new();
    for instance in &chosen {
        for seat in &instance.seats {
            let each = ground.partitions(&instance.topics).into_iter();
            rows.extend(each.map(|(source, key)| row(&ground, instance, seat, source, key)));
        }
    }
    rows.extend(others_in_targets(&ground, &chosen));
    rows.extend(others_in_group(&ground, &chosen));
    match options.format {
        Form::Table => print_text(&shown(&rows)),
        Form::Json => {
            let json = serde_json::to_string_pretty(&rows).map_err(anyhow::Error::from)?;
            print_text(&format!("{json}\n"));
        }
    }
    Ok(())
}

fn row(ground: &Ground, instance: &Instance, seat: &Seat, source: TopicPartition, key: PositionKey) -> Row {
    let position = seat.positions.get(&key);
    let next = position.map(|position| position.next);
    let committed = ground.committed(instance).get(&source);
    let survey = seat.place.survey();
    let log = survey.and_then(|survey| survey.log.clone());
    let standing = survey.and_then(|survey| survey.standing(&seat.claim));
    let entry = standing.and_then(|(_, account)| account.since.get(&key).copied());
    let note = match (seat.place.refusal(seat), next) {
        (Some((problem, _)), _) => Some(problem),
        (None, None) => Some("no position yet".to_owned()),
        (None, Some(next)) => {
            let is_moved = committed.is_some_and(|committed| committed.is_moved_from(next));
            let is_told = is_moved && !seat.place.is_group();
            is_told.then(|| "the group's offset was moved by something else".to_owned())
        }
    };
    let (committed, end, lag) = beside(ground, committed, &source, next);
    Row {
        route: instance.route.name.clone(),
        sink: seat.sink.name.clone(),
        topic: source.topic,
        partition: source.partition,
        next,
        committed,
        end,
        lag,
        epoch: position.and_then(|position| position.epoch),
        entry,
        log,
        identity: seat.sink.identity.clone(),
        note,
    }
}

/// The group's offset, the end, and how far it is from `next`.
fn beside(
    ground: &Ground,
    committed: Option<&Committed>,
    source: &TopicPartition,
    next: Option<Offset>,
) -> (Option<Offset>, Option<Offset>, Option<i64>) {
    let committed = committed.and_then(|committed| committed.offset);
    let end = ground.bounds.get(source).map(|(_, end)| *end);
    let lag = end.zip(next).map(|(end, next)| (end.get() - next.get()).max(0));
    (committed, end, lag)
}

/// Those who write to the directories and tables of the file and are not in it.
fn others_in_targets(ground: &Ground, chosen: &[&Instance]) -> Vec<Row> {
    let all = || ground.instances.iter().flat_map(|instance| &instance.seats);
    let mut known: BTreeSet<&Owner> = all().map(|seat| &seat.claim.owner).collect();
    known.extend(all().filter_map(|seat| seat.place.survey().and_then(Survey::adopted)));
    let mut seen: Vec<&Target> = Vec::new();
    let mut rows = Vec::new();
    for seat in chosen.iter().flat_map(|instance| &instance.seats) {
        let is_seen = seen.iter().any(|target| target.is_same_place(&seat.sink.target));
        let Some(survey) = seat.place.survey().filter(|_| !is_seen) else {
            continue;
        };
        seen.push(&seat.sink.target);
        for (owner, account) in &survey.accounts {
            if account.taken_by.is_none() && !known.contains(owner) {
                rows.extend(other_in_target(ground, survey, owner, account, &seat.claim.owner));
            }
        }
    }
    rows
}

fn other_in_target(
    ground: &Ground,
    survey: &Survey,
    owner: &Owner,
    account: &Account,
    ours: &Owner,
) -> Vec<Row> {
    let is_ours = owner.cluster == ours.cluster && owner.group == ours.group;
    let note = match is_ours {
        true => "not in the file".to_owned(),
        false => format!("of group `{}` on cluster `{}`", owner.group, owner.cluster),
    };
    let each = account.positions.iter().map(|(key, topic, position)| {
        let source = TopicPartition::new(topic, key.partition);
        let is_known = is_ours && ground.infos.get(topic).is_some_and(|info| info.id == key.topic_id);
        let committed = ground.groups[0].committed.get(&source);
        let (committed, end, lag) = if is_known {
            beside(ground, committed, &source, Some(position.next))
        } else {
            (None, None, None)
        };
        Row {
            route: String::new(),
            sink: String::new(),
            topic: source.topic,
            partition: source.partition,
            next: Some(position.next),
            committed,
            end,
            lag,
            epoch: position.epoch,
            entry: account.since.get(key).copied(),
            log: survey.log.clone(),
            identity: owner.identity.clone(),
            note: Some(note.clone()),
        }
    });
    each.collect()
}

/// Sinks that a group has words of, and that it does not run by this file. Their identities are known by hash only.
fn others_in_group(ground: &Ground, chosen: &[&Instance]) -> Vec<Row> {
    let topics: BTreeSet<&TopicName> = chosen.iter().flat_map(|instance| &instance.topics).collect();
    let is_meant = |place: usize| place == 0 || chosen.iter().any(|instance| instance.group == place);
    let mut rows = Vec::new();
    for (place, group) in ground.groups.iter().enumerate().filter(|(place, _)| is_meant(*place)) {
        let (sinks, starts) = ground.known(place);
        let read = group.committed.iter().filter(|(source, _)| topics.contains(&source.topic));
        for (source, known) in read {
            for stranger in known.metadata.strangers(&sinks, &starts) {
                let (next, log, entry) = match stranger.says {
                    Saying::Position(next) => (Some(next), None, None),
                    Saying::Log { id, entry } => (None, Some(id), Some(entry)),
                    Saying::Start(_) => continue,
                };
                let (committed, end, lag) = beside(ground, Some(known), source, next);
                rows.push(Row {
                    route: String::new(),
                    sink: String::new(),
                    topic: source.topic.clone(),
                    partition: source.partition,
                    next,
                    committed,
                    end,
                    lag,
                    epoch: None,
                    entry,
                    log,
                    identity: format!("hash {}", stranger.hash),
                    note: Some(format!("not in the file, of group `{}`", group.name)),
                });
            }
        }
    }
    rows
}

fn shown(rows: &[Row]) -> String {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(|| "-".to_owned(), |value| value.to_string())
    }
    let name = |name: &str| if name.is_empty() { "-".to_owned() } else { name.to_owned() };
    let head = [
        "route",
        "sink",
        "topic",
        "partition",
        "next",
        "committed",
        "end",
        "lag",
        "epoch",
        "entry",
        "log",
        "identity",
        "",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            name(&row.route),
            name(&row.sink),
            row.topic.to_string(),
            row.partition.to_string(),
            text(row.next),
            text(row.committed),
            text(row.end),
            text(row.lag),
            text(row.epoch.map(|epoch| epoch.0)),
            text(row.entry),
            // Enough to tell logs apart; `--format json` has all of it.
            text(row.log.as_deref().map(|log| log.get(..8).unwrap_or(log))),
            row.identity.clone(),
            row.note.clone().unwrap_or_default(),
        ]
    }));
    table::columns(&lines, &[3, 4, 5, 6, 7, 8, 9])
}
