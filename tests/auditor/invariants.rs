//! What has to hold between what was written and what is there. [`check`] is pure; [`audit`] reads first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::commits::{self, Committed, Followed, Listed, Log};
use crate::manifest::{Kind, Manifest, Written};
use crate::model::{self, Form};
use crate::readers::{self, DataFile, Row};
use crate::routes::{self, Feed, SinkPlace};
use crate::topics::{self, Isolation, Place};
use crate::workload::{self, WorkloadOptions};

/// Of each list, as many are printed.
const SHOWN: usize = 10;

/// What is audited.
pub struct Targets {
    /// Working directory of the instances: sinks are below `out/`.
    pub place: PathBuf,
    pub bootstrap: String,
    pub group: String,
}

/// What is wrong. Each line says where.
#[derive(Debug, Default)]
pub struct Report {
    /// I1: records that no sink, or not every sink, has.
    pub lost: Vec<String>,
    /// I2: records that a sink has more than once.
    pub doubled: Vec<String>,
    /// I3: rows of a partition that are not in the order of offsets.
    pub reordered: Vec<String>,
    /// I5: rows with another content than their record.
    pub wrong: Vec<String>,
    /// I4: rows of aborted transactions, bad records among rows, rows of records that nobody wrote.
    pub phantom: Vec<String>,
    /// I6, I8: the commit log is no chain, or does not fit the files.
    pub chain: Vec<String>,
    /// I7: the group's offset is beyond a sink.
    pub ahead: Vec<String>,
    /// I12: a move counts other records than were there to be read.
    pub miscounted: Vec<String>,
    /// I15: data files that no entry lists, and committed ones that are not in sight.
    pub orphans: Vec<String>,
    /// Nothing wrong, but worth a look.
    pub notes: Vec<String>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.lists().iter().all(|(_, list)| list.is_empty())
    }

    /// All lists of what is wrong, by name.
    pub fn lists(&self) -> [(&'static str, &[String]); 9] {
        [
            ("lost", self.lost.as_slice()),
            ("doubled", self.doubled.as_slice()),
            ("reordered", self.reordered.as_slice()),
            ("wrong", self.wrong.as_slice()),
            ("phantom", self.phantom.as_slice()),
            ("chain", self.chain.as_slice()),
            ("ahead", self.ahead.as_slice()),
            ("miscounted", self.miscounted.as_slice()),
            ("orphans", self.orphans.as_slice()),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.lists().map(|(name, list)| format!("{name} {}", list.len()));
        writeln!(f, "{}", counts.join(", "))?;
        for (name, list) in self.lists().into_iter().chain([("note", self.notes.as_slice())]) {
            for line in list.iter().take(SHOWN) {
                writeln!(f, "  {name}: {line}")?;
            }
            if list.len() > SHOWN {
                writeln!(f, "  {name}: and {} more", list.len() - SHOWN)?;
            }
        }
        Ok(())
    }
}

/// What was found of one sink.
#[derive(Debug, Clone)]
pub struct SinkFound {
    pub sink: SinkPlace,
    pub files: Vec<DataFile>,
    pub log: Option<Log>,
}

/// All that is compared with the manifest.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    pub sinks: Vec<SinkFound>,
    /// What the group has.
    pub committed: BTreeMap<Place, Committed>,
    /// The first offset that each partition still has.
    pub firsts: BTreeMap<Place, i64>,
    /// What the compacted topic still has.
    pub kept: BTreeSet<(i32, i64)>,
}

/// Reads everything and compares it. The program has to have ended, and nobody may write.
pub fn audit(manifest: &Manifest, options: &WorkloadOptions, targets: &Targets) -> Result<Report, String> {
    let topics = workload::topics(options);
    let bounds = topics::bounds(&targets.bootstrap, &topics, Isolation::Uncommitted)?;
    let mut evidence = Evidence {
        sinks: found(options, targets)?,
        committed: commits::committed(&targets.bootstrap, &targets.group, &topics)?,
        firsts: bounds.into_iter().map(|(place, (first, _))| (place, first)).collect(),
        kept: BTreeSet::new(),
    };
    if options.features.compacted {
        let topic = model::topic(options, Form::Compact);
        let kept = topics::read(&targets.bootstrap, &topic, &BTreeMap::new(), Isolation::Uncommitted)?;
        evidence.kept = kept.into_iter().map(|found| (found.partition, found.offset)).collect();
    }
    Ok(check(manifest, &evidence))
}

/// Reads the sinks.
pub fn found(options: &WorkloadOptions, targets: &Targets) -> Result<Vec<SinkFound>, String> {
    let read = |sink: SinkPlace| -> Result<SinkFound, String> {
        let root = targets.place.join(&sink.dir);
        let files = readers::data_files(&root, &sink)?;
        let log = commits::read_log(&root)?;
        Ok(SinkFound { sink, files, log })
    };
    routes::sinks(options).into_iter().map(read).collect()
}

/// Compares what was found with what was written.
pub fn check(manifest: &Manifest, evidence: &Evidence) -> Report {
    let mut report = Report::default();
    let mut topics: BTreeMap<&str, Records<'_>> = BTreeMap::new();
    for record in &manifest.records {
        topics.entry(record.topic.as_str()).or_default().add(record);
    }
    let nothing = Records::default();
    for found in &evidence.sinks {
        let records = topics.get(found.sink.topic.as_str()).unwrap_or(&nothing);
        let followed = found.log.as_ref().map(Log::follow).unwrap_or_default();
        let mut checker = Checker {
            records,
            evidence,
            found,
            followed: &followed,
            seen: BTreeSet::new(),
            report: &mut report,
        };
        checker.log();
        checker.rows();
        checker.losses();
        checker.counts();
        checker.group();
    }
    report
}

/// What was written to a topic.
#[derive(Default)]
struct Records<'a> {
    by_place: BTreeMap<(i32, i64), &'a Written>,
    by_seq: BTreeMap<u64, &'a Written>,
    /// The last offset of each key of the compacted topic.
    last_of_key: BTreeMap<(i32, String), i64>,
}

impl<'a> Records<'a> {
    fn add(&mut self, record: &'a Written) {
        self.by_place.insert((record.partition, record.offset), record);
        self.by_seq.insert(record.seq, record);
        let key = (record.partition, model::compact_key(record.seq));
        let last = self.last_of_key.entry(key).or_insert(record.offset);
        *last = record.offset.max(*last);
    }

    fn find(&self, row: &Row) -> Option<&'a Written> {
        match row.place {
            Some(place) => self.by_place.get(&place).copied(),
            None => self.by_seq.get(&row.seq?).copied(),
        }
    }

    /// Is there a later record of its key? Compaction may have removed it before anybody has read it.
    fn is_overwritten(&self, record: &Written) -> bool {
        let key = (record.partition, model::compact_key(record.seq));
        self.last_of_key.get(&key).is_some_and(|last| *last > record.offset)
    }
}

/// Looks at one sink.
struct Checker<'a> {
    records: &'a Records<'a>,
    evidence: &'a Evidence,
    found: &'a SinkFound,
    followed: &'a Followed,
    /// Records that the sink has.
    seen: BTreeSet<(i32, i64)>,
    report: &'a mut Report,
}

impl Checker<'_> {
    fn at(&self, text: &str) -> String {
        format!("{}: {text}", self.found.sink.identity)
    }

    /// The chain, and whether the log and the files in sight belong together.
    fn log(&mut self) {
        let Some(log) = &self.found.log else {
            if !self.found.files.is_empty() {
                self.report.chain.push(self.at("there are files and no commit log"));
            }
            return;
        };
        for problem in &self.followed.problems {
            self.report.chain.push(self.at(problem));
        }
        if self.followed.identity != self.found.sink.identity {
            self.report.chain.push(self.at(&format!("the log is that of `{}`", self.followed.identity)));
        }
        let in_sight: BTreeMap<&str, &DataFile> =
            self.found.files.iter().map(|file| (file.path.as_str(), file)).collect();
        let mut listed = BTreeSet::new();
        for (_, file) in &self.followed.listed {
            if !listed.insert(file.path.as_str()) {
                self.report.chain.push(self.at(&format!("{} is listed twice", file.path)));
            }
            self.listed_file(file, in_sight.get(file.path.as_str()).copied(), log);
        }
        for file in &self.found.files {
            if !listed.contains(file.path.as_str()) && !self.may_be_forgotten(&file.path) {
                self.report.orphans.push(self.at(&format!("no entry lists {}", file.path)));
            }
        }
        self.leftovers(log);
    }

    fn listed_file(&mut self, file: &Listed, in_sight: Option<&DataFile>, log: &Log) {
        match in_sight {
            Some(found) if found.rows.len() as u64 != file.rows => {
                let text =
                    format!("{} has {} rows, not {} as listed", file.path, found.rows.len(), file.rows);
                self.report.chain.push(self.at(&text));
            }
            Some(_) => {}
            None => {
                let text = format!("{} is committed with {} rows and not in sight", file.path, file.rows);
                self.report.orphans.push(self.at(&text));
            }
        }
        if in_sight.is_some() && log.staged.contains(&file.staged) {
            self.report.orphans.push(self.at(&format!("{} is in sight and still staged", file.path)));
        }
    }

    /// Entries before the oldest checkpoint are gone, and with them the names of their files. Their witnesses are
    /// below its positions.
    fn may_be_forgotten(&self, path: &str) -> bool {
        let Some((key, start)) = commits::witness(path) else {
            return false;
        };
        let mut base = self.followed.base.iter();
        !self.followed.is_whole && base.any(|(known, next)| commits::plain(known) == key && start < *next)
    }

    /// Staged files that no entry lists are allowed: the next instance that reads this log removes them.
    fn leftovers(&mut self, log: &Log) {
        let listed: BTreeSet<&str> =
            self.followed.listed.iter().map(|(_, file)| file.staged.as_str()).collect();
        let staged = log.staged.iter().filter(|name| !listed.contains(name.as_str())).count();
        if staged + log.unfinished > 0 {
            let text =
                format!("{staged} staged files that no entry lists, {} unfinished entries", log.unfinished);
            self.report.notes.push(self.at(&text));
        }
    }

    /// All rows in sight: listed files in the order of their commits, then the others.
    fn rows(&mut self) {
        let found = self.found;
        let by_path: BTreeMap<&str, &DataFile> =
            found.files.iter().map(|file| (file.path.as_str(), file)).collect();
        let mut listed = BTreeSet::new();
        let mut last = BTreeMap::new();
        for (number, file) in &self.followed.listed {
            if let Some(file) = by_path.get(file.path.as_str())
                && listed.insert(file.path.as_str())
            {
                self.file_rows(*number, file, &mut last);
            }
        }
        for file in found.files.iter().filter(|file| !listed.contains(file.path.as_str())) {
            // Their place among the others is not known.
            self.file_rows(None, file, &mut BTreeMap::new());
        }
    }

    fn file_rows(&mut self, entry: Option<u64>, file: &DataFile, last: &mut BTreeMap<i32, i64>) {
        for (index, row) in file.rows.iter().enumerate() {
            let place = format!("{}, row {}", file.path, index + 1);
            let Some(record) = self.records.find(row) else {
                let text = format!("{place}: nobody wrote a record {}", describe(row));
                self.report.phantom.push(self.at(&text));
                continue;
            };
            if let Some(why) = self.is_out_of_place(record) {
                self.report.phantom.push(self.at(&format!("{place}: {} {why}", name(record))));
                continue;
            }
            if let Some(why) = difference(row, record) {
                self.report.wrong.push(self.at(&format!("{place}: {}: {why}", name(record))));
            }
            if !self.seen.insert((record.partition, record.offset)) {
                self.report.doubled.push(self.at(&format!("{place}: {}", name(record))));
                continue;
            }
            if let Some(number) = entry
                && !self.is_in_range(number, record)
            {
                let text = format!("{place}: {} is in no range of entry {number}", name(record));
                self.report.chain.push(self.at(&text));
            }
            let before = last.insert(record.partition, record.offset);
            if before.is_some_and(|before| before > record.offset) {
                let text = format!("{place}: {} comes after {}", name(record), before.unwrap_or_default());
                self.report.reordered.push(self.at(&text));
            }
        }
    }

    /// Rows become durable in the same step as the range they are of.
    fn is_in_range(&self, number: u64, record: &Written) -> bool {
        let moves = self.followed.moves.get(&number).map(Vec::as_slice).unwrap_or_default();
        moves.iter().any(|step| {
            let is_partition = step.topic == record.topic && step.partition == record.partition;
            let start = step.start.unwrap_or_default();
            is_partition && (start..step.end.next).contains(&record.offset)
        })
    }

    /// May this sink not have that record?
    fn is_out_of_place(&self, record: &Written) -> Option<&'static str> {
        match (record.is_aborted, record.kind, self.found.sink.feed) {
            (true, _, _) => Some("was aborted"),
            (false, Kind::Bad, Feed::Archive | Feed::Lines) => Some("is a bad record"),
            (false, Kind::Row | Kind::Tombstone, Feed::Letters) => Some("is no bad record"),
            _ => None,
        }
    }

    /// Every record has to be in the sink that it belongs to.
    fn losses(&mut self) {
        let mut passed = 0;
        for (place, record) in &self.records.by_place {
            if self.seen.contains(place) || record.is_aborted || self.is_out_of_place(record).is_some() {
                continue;
            }
            if self.is_excused(record) {
                passed += 1;
                continue;
            }
            let sink = &self.found.sink.identity;
            self.report.lost.push(format!("{sink}: {}, record {}", name(record), record.seq));
        }
        if passed > 0 {
            self.report.notes.push(self.at(&format!("{passed} records were gone before they were read")));
        }
    }

    /// Was it gone before the sink could have it? Then it is no longer in the topic, and either overwritten, or in a
    /// range that the log says is lost.
    fn is_excused(&self, record: &Written) -> bool {
        if self.found.sink.form == Form::Compact {
            let is_kept = self.evidence.kept.contains(&(record.partition, record.offset));
            return !is_kept && self.records.is_overwritten(record);
        }
        let first = self.evidence.firsts.get(&(record.topic.clone(), record.partition));
        let is_gone = first.is_some_and(|first| record.offset < *first);
        is_gone
            && self.followed.moves.values().flatten().any(|step| {
                let is_partition = step.topic == record.topic && step.partition == record.partition;
                let start = step.start.unwrap_or_default();
                is_partition && step.is_lost() && (start..step.end.next).contains(&record.offset)
            })
    }

    /// Every record of a range is counted in its move, whatever became of it: nothing is left out in silence. Not of the
    /// compacted topic, whose records go at any time.
    fn counts(&mut self) {
        if self.found.sink.form == Form::Compact || !self.followed.problems.is_empty() {
            return;
        }
        for step in self.followed.moves.values().flatten().filter(|step| step.is_read()) {
            let first = self.evidence.firsts.get(&(step.topic.clone(), step.partition));
            let Some(start) = step.start.filter(|start| first.is_none_or(|first| first <= start)) else {
                continue;
            };
            let places = (step.partition, start)..(step.partition, step.end.next.max(start));
            let there = self.records.by_place.range(places).filter(|(_, record)| !record.is_aborted);
            let there = there.count() as u64;
            if there != step.records {
                let text = format!("{} counts {} records, and {there} are there", step.range(), step.records);
                self.report.miscounted.push(self.at(&text));
            }
        }
    }

    /// The group is never beyond a sink, and has seen no entry that is not there.
    fn group(&mut self) {
        let sink = &self.found.sink;
        for ((topic, partition), committed) in &self.evidence.committed {
            if *topic != sink.topic {
                continue;
            }
            let position = self.followed.places.get(&(topic.clone(), *partition)).copied();
            if position.is_none_or(|position| committed.offset > position) {
                let position = position.map_or_else(|| "nowhere".to_owned(), |position| position.to_string());
                let offset = committed.offset;
                let text = format!("{topic}/{partition}: the group is at {offset}, the sink at {position}");
                self.report.ahead.push(self.at(&text));
            }
            let Some((id, number)) = committed.log_of(&sink.identity) else {
                continue;
            };
            if id != self.followed.id || number > self.followed.last {
                let last = self.followed.last;
                let text = format!(
                    "{topic}/{partition}: the group has seen entry {number} of log {id}, and {last} is the last"
                );
                self.report.ahead.push(self.at(&text));
            }
        }
    }
}

fn name(record: &Written) -> String {
    format!("{}/{} offset {}", record.topic, record.partition, record.offset)
}

fn describe(row: &Row) -> String {
    match (row.place, row.seq) {
        (Some((partition, offset)), _) => format!("at {partition}/{offset}"),
        (None, Some(seq)) => format!("with number {seq}"),
        (None, None) => "without a number".to_owned(),
    }
}

/// In what a row is not its record.
fn difference(row: &Row, record: &Written) -> Option<String> {
    let is_other = |is_other: bool, what: &str| is_other.then(|| format!("another {what}"));
    let is_null = record.kind == Kind::Tombstone;
    let form = Form::ALL.into_iter().find(|form| record.topic.ends_with(&format!(".{}", form.name())));
    let is_compact = form == Some(Form::Compact);
    row.fault
        .clone()
        .or_else(|| is_other(row.seq.is_some_and(|seq| seq != record.seq), "number"))
        .or_else(|| is_other(row.uuid.as_ref().is_some_and(|uuid| *uuid != record.uuid), "uuid"))
        .or_else(|| is_other(row.sha.as_ref().is_some_and(|sha| *sha != record.sha), "value"))
        .or_else(|| is_other(row.is_null.is_some_and(|found| found != is_null), "null"))
        .or_else(|| {
            let key = row.key.as_ref().filter(|_| is_compact);
            is_other(key.is_some_and(|key| *key != model::compact_key(record.seq)), "key")
        })
}
