//! The auditor shown to fail: sinks that are as they should be, made without the program, and then one fault in them.
//!
//! Each fault has to be found, under its name and under no other. No services are needed.

use std::fs::{self, File};
use std::path::Path;

use crate::commits::Committed;
use crate::invariants::{self, Evidence, Report, Targets};
use crate::manifest::{Kind, Manifest, Written};
use crate::model::{self, Draft, Fields, Form};
use crate::routes::{self, Feed};
use crate::workload::{Features, WorkloadOptions};

mod sinks;

use sinks::{Item, MadeCommit, MadeSink};

/// Records of a scene: enough for some bad ones in each half.
const RECORDS: usize = 200;
/// Seeds tried until all faults find a place in a scene.
const SEEDS_MAX: u64 = 50;
const VERSIONS: [u32; 2] = [1, 2];

/// How many cases were as expected, and what was wrong with the others.
pub struct Outcome {
    pub passed: usize,
    pub failures: Vec<String>,
}

/// All cases whose name contains one of `filters`; all of them if there is none.
pub fn run(filters: &[String]) -> Result<Outcome, String> {
    let mut outcome = Outcome { passed: 0, failures: Vec::new() };
    for form in Form::ALL {
        let scene = Scene::new(form)?;
        for case in CASES {
            for feed in case.feeds.iter().filter(|feed| (case.fits)(form, **feed)) {
                let name = format!("self-check/{}/{feed:?}/{}", form.name(), case.name).to_lowercase();
                let is_wanted = filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
                if !is_wanted {
                    continue;
                }
                match scene.try_case(case, *feed) {
                    Ok(()) => outcome.passed += 1,
                    Err(why) => outcome.failures.push(format!("{name}: {why}")),
                }
            }
        }
    }
    Ok(outcome)
}

/// One change of a scene, and what the report has to say of it.
struct Case {
    name: &'static str,
    /// The one list that may not be empty; none: the report has to be clean.
    expected: Option<&'static str>,
    /// Which sinks it is tried on.
    feeds: &'static [Feed],
    fits: fn(Form, Feed) -> bool,
    change: fn(&mut Scene, Feed) -> Option<()>,
}

const ALL: &[Feed] = &Feed::ALL;
const ONE: &[Feed] = &[Feed::Archive];

/// Bytes are never bad: that route has no dead letters.
fn has_rows(form: Form, feed: Feed) -> bool {
    form != Form::Raw || feed != Feed::Letters
}

fn always(_: Form, _: Feed) -> bool {
    true
}

const CASES: &[Case] = &[
    Case { name: "as it should be", expected: None, feeds: ONE, fits: always, change: |_, _| Some(()) },
    Case {
        name: "compaction took an overwritten record",
        expected: None,
        feeds: ONE,
        fits: |form, _| form == Form::Compact,
        change: |scene, _| scene.compact(),
    },
    Case {
        name: "a log that begins at a checkpoint",
        expected: None,
        feeds: ALL,
        fits: always,
        change: |scene, feed| {
            scene.sink(feed)?.is_pruned = true;
            Some(())
        },
    },
    Case {
        name: "a row is missing",
        expected: Some("lost"),
        feeds: ALL,
        fits: has_rows,
        change: |scene, feed| scene.commit(feed)?.items.pop().map(drop),
    },
    Case {
        name: "a row is there twice",
        expected: Some("doubled"),
        feeds: ALL,
        fits: has_rows,
        change: |scene, feed| {
            let items = &mut scene.commit(feed)?.items;
            items.push(items.last()?.clone());
            Some(())
        },
    },
    Case {
        name: "two rows of a partition are exchanged",
        expected: Some("reordered"),
        feeds: ALL,
        fits: has_rows,
        change: |scene, feed| {
            let commit = scene.commit(feed)?;
            let (first, second) = commit.pair()?;
            commit.items.swap(first, second);
            Some(())
        },
    },
    Case {
        name: "a value is another",
        expected: Some("wrong"),
        feeds: ALL,
        fits: has_rows,
        change: |scene, feed| scene.commit(feed)?.items.iter_mut().find_map(Item::change),
    },
    Case {
        name: "a row of an aborted transaction",
        expected: Some("phantom"),
        feeds: &[Feed::Archive, Feed::Lines],
        fits: |form, _| form == Form::Text,
        change: |scene, feed| {
            let aborted = scene.of(|record| record.is_aborted && record.kind == Kind::Row)?;
            scene.commit(feed)?.items.push(aborted);
            Some(())
        },
    },
    Case {
        name: "a bad record among rows",
        expected: Some("phantom"),
        feeds: &[Feed::Lines],
        fits: |form, _| matches!(form, Form::Avro | Form::Json | Form::Compact),
        change: |scene, feed| {
            let mut bad = scene.of(|record| record.kind == Kind::Bad)?;
            // Its bytes may be no text.
            bad.draft.value = Some(b"{}".to_vec());
            scene.commit(feed)?.items.push(bad);
            Some(())
        },
    },
    Case {
        name: "a row that nobody wrote",
        expected: Some("phantom"),
        feeds: ALL,
        fits: has_rows,
        change: |scene, feed| {
            let stranger = scene.stranger(feed)?;
            scene.commit(feed)?.items.push(stranger);
            Some(())
        },
    },
    Case {
        name: "a move that begins elsewhere",
        expected: Some("chain"),
        feeds: ALL,
        fits: always,
        change: |scene, feed| {
            let (_, start, _, _) = scene.commit(feed)?.moves.first_mut()?;
            *start = Some(start.as_ref()? - 1);
            Some(())
        },
    },
    Case {
        name: "a move that leaves out a record",
        expected: Some("miscounted"),
        feeds: ALL,
        fits: |form, _| form != Form::Compact,
        change: |scene, feed| {
            let (_, _, _, count) = scene.commit(feed)?.moves.first_mut()?;
            *count = count.checked_sub(1)?;
            Some(())
        },
    },
    Case {
        name: "an entry with another predecessor",
        expected: Some("chain"),
        feeds: ALL,
        fits: always,
        change: |scene, feed| {
            scene.commit(feed)?.is_forged = true;
            Some(())
        },
    },
    Case {
        name: "a file with fewer rows than listed",
        expected: Some("chain"),
        feeds: ALL,
        fits: has_rows,
        change: |scene, feed| {
            scene.commit(feed)?.rows_more = 1;
            Some(())
        },
    },
    Case {
        name: "a file that no entry lists",
        expected: Some("orphans"),
        feeds: ALL,
        fits: has_rows,
        change: |scene, feed| {
            scene.commit(feed)?.is_unlisted = true;
            Some(())
        },
    },
    Case {
        name: "a group beyond its sinks",
        expected: Some("ahead"),
        feeds: ONE,
        fits: always,
        change: |scene, _| {
            scene.evidence.committed.values_mut().next()?.offset += 1;
            Some(())
        },
    },
    Case {
        name: "a group that has seen an entry which is not there",
        expected: Some("ahead"),
        feeds: ALL,
        fits: always,
        change: |scene, feed| {
            let sink = scene.sink(feed)?;
            let word = sink.log_word(sink.last_entry() + 1);
            scene.evidence.committed.values_mut().next()?.metadata = format!("ss1 {word}");
            Some(())
        },
    },
];

/// One topic, its three sinks, and the group.
#[derive(Clone)]
struct Scene {
    options: WorkloadOptions,
    manifest: Manifest,
    /// All records as rows, in the order of the manifest.
    items: Vec<Item>,
    sinks: Vec<MadeSink>,
    /// Without the sinks, which are read from files.
    evidence: Evidence,
}

impl Scene {
    fn new(form: Form) -> Result<Scene, String> {
        let scenes = (1..=SEEDS_MAX).map(|seed| Scene::seeded(form, seed));
        let mut fitting = scenes.filter(|scene| {
            let mut sinks = scene.sinks.iter();
            sinks.all(|sink| sink.has_pair() || !has_rows(form, sink.place.feed))
        });
        fitting.next().ok_or_else(|| format!("no seed gives {} a place for every fault", form.name()))
    }

    fn seeded(form: Form, seed: u64) -> Scene {
        let features = Features { transactions: true, compacted: true, bad: true, schema_changes: false };
        let options = WorkloadOptions {
            bootstrap: String::new(),
            registry: String::new(),
            seed,
            prefix: "scene".to_owned(),
            rate: 0,
            partitions: 2,
            replication: 1,
            largest: 2000,
            features,
        };
        let (mut manifest, mut items) = (Manifest::default(), Vec::new());
        // Offsets do not begin at 0, and have gaps, as transactions and compaction leave them.
        let mut next = [5, 0];
        let seqs = (0..).filter(|seq| model::form_of(*seq, features) == form).take(RECORDS);
        for (index, seq) in seqs.enumerate() {
            let draft = Draft::new(&options, seq, &VERSIONS);
            let place = usize::try_from(draft.partition).unwrap_or_default();
            let offset = next[place];
            next[place] += if index % 10 == 9 { 2 } else { 1 };
            let fields = form.is_typed().then(|| Fields::of(&options, seq, VERSIONS.len()));
            manifest.records.push(Written {
                topic: model::topic(&options, form),
                partition: draft.partition,
                offset,
                seq,
                uuid: draft.uuid.clone(),
                sha: model::sha(draft.value.as_deref().unwrap_or_default()),
                kind: draft.kind,
                is_aborted: form == Form::Text && index % 30 < 10,
            });
            items.push(Item { offset, fields, draft });
        }
        Scene::with_sinks(options, form, manifest, items, next)
    }

    fn with_sinks(
        options: WorkloadOptions,
        form: Form,
        manifest: Manifest,
        items: Vec<Item>,
        ends: [i64; 2],
    ) -> Scene {
        let places = routes::sinks(&options).into_iter().filter(|place| place.form == form);
        let sinks: Vec<MadeSink> =
            places.map(|place| MadeSink::new(place, &manifest.records, &items, ends)).collect();
        let mut evidence = Evidence::default();
        let words: Vec<String> = sinks.iter().map(|sink| sink.log_word(sink.last_entry())).collect();
        for (partition, offset) in (0..).zip(ends) {
            let metadata = format!("ss1 {} z1=of-a-later-version", words.join(" "));
            let place = (model::topic(&options, form), partition);
            evidence.committed.insert(place.clone(), Committed { offset, metadata });
            evidence.firsts.insert(place, 0);
        }
        evidence.kept = manifest.records.iter().map(|record| (record.partition, record.offset)).collect();
        Scene { options, manifest, items, sinks, evidence }
    }

    fn sink(&mut self, feed: Feed) -> Option<&mut MadeSink> {
        self.sinks.iter_mut().find(|sink| sink.place.feed == feed)
    }

    /// The commit that faults are put into: the one in which two rows of a partition can be exchanged, else the last.
    fn commit(&mut self, feed: Feed) -> Option<&mut MadeCommit> {
        let sink = self.sink(feed)?;
        let index = sink.commits.iter().position(|commit| commit.pair().is_some());
        let last = sink.commits.len().checked_sub(1)?;
        sink.commits.get_mut(index.unwrap_or(last))
    }

    /// The row of the first record that is so.
    fn of(&self, is_so: fn(&Written) -> bool) -> Option<Item> {
        let index = self.manifest.records.iter().position(is_so)?;
        self.items.get(index).cloned()
    }

    /// A row that is right in itself, of a record that is nowhere.
    fn stranger(&self, feed: Feed) -> Option<Item> {
        let last = self.manifest.records.last()?;
        let mut seqs = last.seq + 1..last.seq + 10_000;
        let draft = seqs.find_map(|seq| {
            let draft = Draft::new(&self.options, seq, &VERSIONS);
            let is_fitting = (draft.kind == Kind::Bad) == (feed == Feed::Letters);
            (is_fitting && model::form_of(seq, self.options.features) == form_of(last)?).then_some(draft)
        })?;
        let fields = self.items.last()?.fields.as_ref();
        let fields = fields.map(|_| Fields::of(&self.options, draft.seq, VERSIONS.len()));
        Some(Item { offset: last.offset + 10_000, fields, draft })
    }

    /// Takes a record that is overwritten out of the topic and of all sinks.
    fn compact(&mut self) -> Option<()> {
        let records = &self.manifest.records;
        let (index, record) = records.iter().enumerate().find(|(index, record)| {
            let key = model::compact_key(record.seq);
            let mut later = records[index + 1..].iter();
            record.kind != Kind::Bad && later.any(|other| model::compact_key(other.seq) == key)
        })?;
        let gone = (record.partition, record.offset);
        self.evidence.kept.remove(&gone).then_some(())?;
        let seq = self.items.get(index)?.draft.seq;
        for commit in self.sinks.iter_mut().flat_map(|sink| &mut sink.commits) {
            commit.items.retain(|item| item.draft.seq != seq);
        }
        Some(())
    }

    fn try_case(&self, case: &Case, feed: Feed) -> Result<(), String> {
        let mut scene = self.clone();
        (case.change)(&mut scene, feed).ok_or("there is no place for the fault in the scene")?;
        let report = scene.audit()?;
        let found: Vec<&str> =
            report.lists().iter().filter(|(_, list)| !list.is_empty()).map(|(name, _)| *name).collect();
        let expected: Vec<&str> = case.expected.into_iter().collect();
        if found != expected || report.is_clean() != expected.is_empty() {
            return Err(format!("expected {expected:?}, found {found:?}:\n{report}"));
        }
        Ok(())
    }

    /// Writes the sinks into files, and audits these.
    fn audit(&self) -> Result<Report, String> {
        let place = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
        for sink in &self.sinks {
            sink.write(place.path())?;
        }
        // The manifest goes through its file too.
        let path = place.path().join("manifest");
        self.manifest.save(&path)?;
        let manifest = Manifest::load(&path)?;
        let targets =
            Targets { place: place.path().to_owned(), bootstrap: String::new(), group: String::new() };
        let mut evidence = self.evidence.clone();
        evidence.sinks = invariants::found(&self.options, &targets)?;
        Ok(invariants::check(&manifest, &evidence))
    }
}

fn form_of(record: &Written) -> Option<Form> {
    Form::ALL.into_iter().find(|form| record.topic.ends_with(&format!(".{}", form.name())))
}

/// Creates a file and the directories above it.
fn create(path: &Path) -> Result<File, String> {
    let cannot = |e: std::io::Error| format!("cannot create {}: {e}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(cannot)?;
    }
    File::create(path).map_err(cannot)
}
