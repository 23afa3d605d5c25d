//! Several writers of one directory, each step of a commit by itself, in an order that a seed decides.
//!
//! A writer stages files, proposes an entry, creates it, reads who has won, brings files into sight, makes a checkpoint:
//! what [`Log::commit`] does in a row. Between any two of these it may be killed, sleep while others pass checkpoints, or
//! lose the reply. Nobody owns a partition here: writers take each other's positions all the time. Checkpoints come every
//! few entries. Once in some seeds the directory is put back from a copy while writers live.
//!
//! After every step a reader that knows nothing of [`Log`] but the form of entries looks: entries follow from each other,
//! moves form a chain, rows of a range are in the files of its entry, no file is listed twice, what is in sight is listed
//! and whole and stays, what was acknowledged is in the log and in sight. At the end a fresh writer finds all of it, and no
//! orphan outlives recovery.
//!
//! What [`Log`] does within one step (a checkpoint that appears while entries are read; entries that are deleted one
//! checkpoint late, for readers on their way) is not taken apart.
//!
//! Gone through on paper, each is to make a seed fail:
//!
//! | in `log.rs` | changed to | what fails |
//! |---|---|---|
//! | `propose` | no `accounts.check` | "moves form a chain" |
//! | `has_won` | no look at `checkpoint` (void entries) | acknowledged, and not in the log |
//! | `has_won` | no comparison of `commit` | acknowledged, and not in the log |
//! | `meet` | no `is_last_there` | `a_copy_put_back_under_a_living_writer_stops_it`, by the entry behind the hole |
//! | `refresh` | does not go to a newer checkpoint | "is gone or another one" without a copy |
//! | `refresh` | only to checkpoints above `last` | `writers_share_their_checkpoints` |
//! | `maybe_checkpoint` | no look at the newest one | a file is in two checkpoints |
//! | `read_entries` | no comparison of `previous` | not here: the unit test beside it |
//! | `maybe_checkpoint` | no `show` before it | a listed file never comes into sight |
//! | `recover` | no `show` | as above, at the end |
//! | `recover` | `>=` for `>` at the witness, or no look at `listed` | a listed file never comes into sight |
//! | `recover` | no removal | orphans at the end |

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::model::{ClusterId, Offset, Partition, Position, PositionKey, Reason, TopicId, TopicName};
use crate::sink::file::durable::{
    create_dir_durably, link, list, parent, remove_if_there, show, write_durably,
};
use crate::sink::file::names::{data_file_name, log_dir, staged_dir, staged_name, staged_path, tmp_dir};

const PARTITIONS: i32 = 3;
const WRITERS: usize = 3;
const STEPS: usize = 300;

/// Each takes some milliseconds in memory. `LOG_SIMULATION_SEEDS` runs more.
const SEEDS_DEFAULT: u64 = 150;

/// Seeds above those, that once failed: each with a comment why.
const REGRESSIONS: &[u64] = &[];

/// So often that a sleeper is passed by several.
const OFTEN: Intervals = Intervals { entries: 4, files: 7 };

fn owner() -> Claim {
    Owner { cluster: ClusterId("c".into()), group: "g".into(), identity: "r/s".into() }.into()
}

fn key(partition: i32) -> PositionKey {
    PositionKey { topic_id: TopicId(Uuid::from_u128(5)), partition: Partition(partition) }
}

fn step(partition: i32, start: Option<i64>, end: i64) -> Move {
    Move {
        key: key(partition),
        topic: TopicName::new("t"),
        start: start.and_then(Offset::new),
        end: Position { next: Offset::new(end).unwrap(), epoch: None },
        reason: if start.is_some() { Reason::Data } else { Reason::Idle },
        records: 0,
    }
}

/// In memory where there is such a place: every step syncs.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).unwrap()
}

type Row = (i32, i64);

fn text(rows: &[Row]) -> String {
    rows.iter().map(|(partition, offset)| format!("{partition} {offset}\n")).collect()
}

/// What a writer does next with the entry it is at.
enum State {
    Idle,
    Staged(Entry),
    Proposed(Entry, u64),
    Created(Entry, u64),
    Won(Entry),
    Shown(Entry),
}

struct Writer {
    log: Option<Log>,
    state: State,
    /// Staged files of a commit whose outcome is unknown.
    unsettled: Vec<String>,
    /// Steps for which it does nothing.
    asleep: usize,
}

impl Writer {
    fn new() -> Self {
        Self { log: None, state: State::Idle, unsettled: Vec::new(), asleep: 0 }
    }
}

/// What a reader has seen.
#[derive(Clone, Default)]
struct Reader {
    next: u64,
    last_hash: String,
    commits: BTreeSet<Uuid>,
    fold: BTreeMap<PositionKey, i64>,
    /// Path and staged name of all files ever listed.
    listed: BTreeMap<String, String>,
    staged: BTreeSet<String>,
    seen: BTreeSet<String>,
    checkpoints: BTreeMap<String, BTreeSet<String>>,
}

struct World {
    dice: fastrand::Rng,
    dir: tempfile::TempDir,
    writers: Vec<Writer>,
    reader: Reader,
    /// Rows of every staged file there ever was.
    rows: BTreeMap<String, Vec<Row>>,
    copy: Option<(tempfile::TempDir, Reader)>,
    /// The directory was put back from a copy: who knows what is gone stops.
    was_put_back: bool,
    notes: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let world = Self {
            dice: fastrand::Rng::with_seed(seed),
            dir: scratch(),
            writers: (0..WRITERS).map(|_| Writer::new()).collect(),
            reader: Reader::default(),
            rows: BTreeMap::new(),
            copy: None,
            was_put_back: false,
            notes: Vec::new(),
        };
        let mut log = Log::open(world.root(), &owner(), OFTEN).unwrap();
        log.commit((0..PARTITIONS).map(|partition| step(partition, None, 0)).collect(), Vec::new()).unwrap();
        world
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn run(&mut self, seed: u64) {
        let copy_at = seed.is_multiple_of(3).then(|| self.dice.usize(20..STEPS));
        for number in 0..STEPS {
            if copy_at == Some(number) {
                self.put_away();
            }
            if self.copy.is_some() && self.dice.usize(..40) == 0 {
                self.put_back();
            }
            self.any_step();
            self.look();
        }
        self.end();
    }

    fn any_step(&mut self) {
        let index = self.dice.usize(..WRITERS);
        let action = self.dice.usize(..60);
        self.notes.push(format!("writer {index}, action {action}"));
        let writer = &mut self.writers[index];
        match action {
            0 | 1 => self.kill(index),
            // Many entries of the others: checkpoints pass it, and what it knows is deleted.
            2 => writer.asleep = self.dice.usize(10..70),
            _ if writer.asleep > 0 => writer.asleep -= 1,
            3 => {
                let staged = self.staged_by(index);
                self.give_up(index, staged);
            }
            _ => {
                let staged = self.staged_by(index);
                if let Err(error) = self.advance(index) {
                    self.failed(index, staged, &error);
                }
            }
        }
    }

    fn staged_by(&self, index: usize) -> Vec<String> {
        match &self.writers[index].state {
            State::Idle => Vec::new(),
            State::Staged(entry)
            | State::Proposed(entry, _)
            | State::Created(entry, _)
            | State::Won(entry)
            | State::Shown(entry) => entry.files.iter().map(|file| file.staged.clone()).collect(),
        }
    }

    /// The next step of a commit, or of getting there.
    fn advance(&mut self, index: usize) -> Result<(), LogError> {
        let root = self.root();
        let writer = &mut self.writers[index];
        let Some(log) = &mut writer.log else {
            return self.open(index);
        };
        let next = match std::mem::replace(&mut writer.state, State::Idle) {
            State::Idle => return self.stage(index),
            State::Staged(mut entry) => {
                for file in &entry.files {
                    create_dir_durably(&parent(&root.join(&file.path)))?;
                }
                let base = log.last();
                let number = log.propose(&mut entry, base)?;
                State::Proposed(entry, number)
            }
            State::Proposed(entry, number) => {
                create_entry(&root, number, &entry)?;
                State::Created(entry, number)
            }
            State::Created(entry, number) => {
                if log.has_won(number, &entry)? {
                    State::Won(entry)
                } else {
                    State::Staged(entry)
                }
            }
            State::Won(entry) => {
                show(&root, &entry.files)?;
                State::Shown(entry)
            }
            State::Shown(entry) => {
                log.maybe_checkpoint()?;
                self.acknowledged(&entry);
                State::Idle
            }
        };
        self.writers[index].state = next;
        Ok(())
    }

    fn open(&mut self, index: usize) -> Result<(), LogError> {
        let root = self.root();
        let mut log = Log::open(&root, &owner(), OFTEN)?;
        log.recover()?;
        let writer = &mut self.writers[index];
        for staged in writer.unsettled.drain(..) {
            if !log.lists(&staged) {
                remove_if_there(&staged_path(&root, &staged))?;
            }
        }
        writer.log = Some(log);
        Ok(())
    }

    /// Rows of one or two partitions, in files of one or two directories.
    fn stage(&mut self, index: usize) -> Result<(), LogError> {
        if self.dice.usize(..6) == 0 {
            // As at an assignment: others' entries are read, and what they left is repaired.
            return match &mut self.writers[index].log {
                Some(log) => log.refresh().and_then(|()| log.recover()),
                None => Ok(()),
            };
        }
        let first = self.dice.i32(0..PARTITIONS);
        let partitions = if self.dice.bool() { vec![first] } else { vec![first, (first + 1) % PARTITIONS] };
        let mut moves = Vec::new();
        let mut rows: [Vec<Row>; 2] = [Vec::new(), Vec::new()];
        let directory_count = self.dice.usize(1..=2);
        for partition in partitions {
            let log = self.writers[index].log.as_ref().unwrap();
            let start = log.positions().get(&key(partition)).unwrap().next.get();
            let end = start + self.dice.i64(1..6);
            moves.push(step(partition, Some(start), end));
            for offset in start..end {
                rows[offset as usize % directory_count].push((partition, offset));
            }
        }
        let mut files = Vec::new();
        for (directory, rows) in rows.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let name = data_file_name(&moves[0].key, moves[0].start.unwrap(), None, "txt");
            let staged = staged_name(&name);
            fs::write(staged_path(&self.root(), &staged), text(&rows)).unwrap();
            let path = format!("day={directory}/{name}");
            let count = rows.len() as u64;
            files.push(DataFile { path, staged: staged.clone(), rows: count, bytes: 0, upload: None });
            self.rows.insert(staged, rows);
        }
        let entry = Entry { moves, files, ..entry_of(VERSION) };
        self.writers[index].state = State::Staged(entry);
        Ok(())
    }

    /// kill -9, in the middle of a step too.
    fn kill(&mut self, index: usize) {
        let root = self.root();
        let writer = std::mem::replace(&mut self.writers[index], Writer::new());
        let is_within = self.dice.bool();
        match writer.state {
            State::Proposed(entry, number) => {
                // The temporary entry stays; it may have been linked.
                let tmp = tmp_dir(&root).join(format!("{number:020}.{}", Uuid::new_v4().simple()));
                write_durably(&tmp, &serde_json::to_vec(&entry).unwrap()).unwrap();
                if is_within {
                    let linked = fs::hard_link(&tmp, entry_path(&root, number));
                    let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
                    assert!(linked.is_ok() || linked.as_ref().is_err_and(is_taken), "{linked:?}");
                }
            }
            State::Won(entry) if is_within => {
                if let Some(file) = entry.files.first() {
                    // Others may have shown it.
                    drop(link(&staged_path(&root, &file.staged), &root.join(&file.path)));
                }
            }
            _ => {}
        }
    }

    /// An error of which nobody knows what came before it: the log is read anew, then files nobody lists go.
    fn give_up(&mut self, index: usize, staged: Vec<String>) {
        let writer = &mut self.writers[index];
        writer.unsettled.extend(staged);
        writer.state = State::Idle;
        writer.log = None;
    }

    fn failed(&mut self, index: usize, staged: Vec<String>, error: &LogError) {
        self.notes.push(error.to_string());
        match error {
            LogError::Conflict(_) => self.give_up(index, staged),
            // The route stops; a person starts it again.
            LogError::Damaged { .. } if self.was_put_back => self.writers[index] = Writer::new(),
            _ => panic!("{error}"),
        }
    }

    fn acknowledged(&mut self, entry: &Entry) {
        self.look();
        assert!(self.reader.commits.contains(&entry.commit), "acknowledged, and not in the log");
        for file in &entry.files {
            assert!(self.reader.seen.contains(&file.path), "acknowledged, and not in sight");
        }
    }

    // A copy of the directory.

    fn put_away(&mut self) {
        self.look();
        let dir = scratch();
        copy(&self.root(), &dir.path().join("root"));
        self.copy = Some((dir, self.reader.clone()));
    }

    /// Whoever is within a commit is stopped first; the others do not know.
    fn put_back(&mut self) {
        let Some((dir, reader)) = self.copy.take() else {
            return;
        };
        for writer in &mut self.writers {
            if !matches!(writer.state, State::Idle) {
                *writer = Writer::new();
            }
        }
        self.notes.push("put back from the copy".to_owned());
        self.dir = dir;
        self.reader = reader;
        self.was_put_back = true;
        let root = self.root();
        for log in self.writers.iter_mut().filter_map(|writer| writer.log.as_mut()) {
            log.home = Home::from(&root);
        }
    }

    // What a reader sees.

    fn look(&mut self) {
        let root = self.root();
        while let Some((entry, hash)) = read_entry(&root, self.reader.next).unwrap() {
            self.read(&entry, hash);
        }
        self.look_at_checkpoints(&root);
        let mut visible = BTreeSet::new();
        for directory in ["day=0", "day=1"] {
            let Ok(names) = list(&root.join(directory)) else {
                continue;
            };
            visible.extend(names.into_iter().map(|name| format!("{directory}/{name}")));
        }
        for path in visible.difference(&self.reader.seen) {
            let staged = self.reader.listed.get(path);
            let staged = staged.unwrap_or_else(|| panic!("`{path}` is in sight, and no entry lists it"));
            assert_eq!(fs::read_to_string(root.join(path)).unwrap(), text(&self.rows[staged]), "{path}");
        }
        let gone: Vec<&String> = self.reader.seen.difference(&visible).collect();
        assert!(gone.is_empty(), "{gone:?} went out of sight");
        self.reader.seen = visible;
    }

    fn read(&mut self, entry: &Entry, hash: String) {
        let reader = &mut self.reader;
        assert_eq!(entry.previous, reader.last_hash, "entry {} does not follow", reader.next);
        reader.next += 1;
        reader.last_hash = hash;
        reader.commits.insert(entry.commit);
        let mut expected: Vec<Row> = Vec::new();
        for step in &entry.moves {
            let start = step.start.map(Offset::get);
            let end = step.end.next.get();
            assert_eq!(reader.fold.insert(step.key, end), start, "moves form a chain: {step:?}");
            if step.reason == Reason::Data {
                expected.extend((start.unwrap()..end).map(|offset| (step.key.partition.0, offset)));
            }
        }
        let mut rows: Vec<Row> = Vec::new();
        for file in &entry.files {
            let before = reader.listed.insert(file.path.clone(), file.staged.clone());
            assert!(before.is_none() && reader.staged.insert(file.staged.clone()), "listed twice: {file:?}");
            rows.extend(&self.rows[&file.staged]);
        }
        rows.sort_unstable();
        expected.sort_unstable();
        assert_eq!(rows, expected, "rows of entry {}", reader.next - 1);
    }

    /// A file is in the list of one checkpoint.
    fn look_at_checkpoints(&mut self, root: &Path) {
        let names = list(&log_dir(root)).unwrap();
        for name in names.into_iter().filter(|name| name.ends_with(".checkpoint")) {
            if self.reader.checkpoints.contains_key(&name) {
                continue;
            }
            let path = log_dir(root).join(&name);
            let checkpoint: Checkpoint = parse(&path, &fs::read(&path).unwrap()).unwrap();
            let files: BTreeSet<String> = checkpoint.files.into_iter().map(|file| file.path).collect();
            let mut others = self.reader.checkpoints.values();
            assert!(
                others.all(|other| other.is_disjoint(&files)),
                "a file is in two checkpoints, the second is {name}"
            );
            self.reader.checkpoints.insert(name, files);
        }
    }

    fn end(&mut self) {
        self.writers.clear();
        let root = self.root();
        let mut log = Log::open(&root, &owner(), OFTEN).unwrap();
        log.recover().unwrap();
        self.look();
        for (key, next) in &self.reader.fold {
            assert_eq!(log.positions().get(key).map(|position| position.next.get()), Some(*next));
        }
        let listed: BTreeSet<String> = self.reader.listed.keys().cloned().collect();
        assert_eq!(self.reader.seen, listed, "a listed file never comes into sight");
        for (path, staged) in &self.reader.listed {
            assert_eq!(fs::read_to_string(root.join(path)).unwrap(), text(&self.rows[staged]));
        }
        // Past all witnesses, nothing that is not listed is kept.
        for offset in [1000, 2000] {
            let past = self.reader.fold.iter().map(|(key, next)| {
                let start = log.positions().get(key).map(|position| position.next.get());
                Move { reason: Reason::Idle, ..step(key.partition.0, start, next + offset) }
            });
            let past: Vec<Move> = past.collect();
            log.commit(past, Vec::new()).unwrap();
        }
        log.recover().unwrap();
        assert_eq!(list(&staged_dir(&root)).unwrap(), Vec::<String>::new(), "orphans");
        assert_eq!(list(&tmp_dir(&root)).unwrap(), Vec::<String>::new(), "temporary entries");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    let run = std::panic::AssertUnwindSafe(|| world.run(seed));
    if std::panic::catch_unwind(run).is_err() {
        let shown = world.notes.len().saturating_sub(30);
        panic!("seed {seed} fails; its last steps were:\n{}", world.notes[shown..].join("\n"));
    }
}

#[test]
fn writers_that_die_sleep_and_race_lose_nothing() {
    let seeds: u64 =
        std::env::var("LOG_SIMULATION_SEEDS").map_or(SEEDS_DEFAULT, |text| text.parse().expect("a number"));
    (0..seeds).chain(REGRESSIONS.iter().copied()).for_each(run);
}

/// A writer that knows entries of a history that was put away stops before it writes behind the hole.
#[test]
fn a_copy_put_back_under_a_living_writer_stops_it() {
    let dir = scratch();
    let (root, away) = (dir.path().join("root"), dir.path().join("away"));
    let mut living = Log::open(&root, &owner(), OFTEN).unwrap();
    living.commit(vec![step(0, None, 0)], Vec::new()).unwrap();
    copy(&root, &away);
    living.commit(vec![step(0, Some(0), 5)], Vec::new()).unwrap();
    fs::remove_dir_all(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    let error = living.commit(vec![step(0, Some(5), 9)], Vec::new()).unwrap_err();
    assert!(error.to_string().contains("a backup was restored"), "{error}");
    assert!(read_entry(&root, 3).unwrap().is_none());
    let fresh = Log::open(&root, &owner(), OFTEN).unwrap();
    assert_eq!(fresh.positions().get(&key(0)).map(|position| position.next.get()), Some(0));
}

/// A checkpoint of another writer counts: the next one does not list its files again, and does not come at once.
#[test]
fn writers_share_their_checkpoints() {
    let dir = scratch();
    let root = dir.path();
    let mut one = Log::open(root, &owner(), OFTEN).unwrap();
    one.commit(vec![step(0, None, 0), step(1, None, 0)], Vec::new()).unwrap();
    let mut two = Log::open(root, &owner(), OFTEN).unwrap();
    for end in 1..=2 {
        one.commit(vec![step(0, Some(end - 1), end)], Vec::new()).unwrap();
    }
    let mut entry = Entry { moves: vec![step(0, Some(2), 3)], ..entry_of(VERSION) };
    let number = one.propose(&mut entry, 2).unwrap();
    create_entry(root, number, &entry).unwrap();
    assert!(one.has_won(number, &entry).unwrap());
    // The other has read all entries up to the checkpoint before that is there.
    two.refresh().unwrap();
    one.maybe_checkpoint().unwrap();
    assert_eq!((latest_checkpoint(root).unwrap(), two.last(), two.checkpoint), (Some(4), 4, None));
    two.commit(vec![step(1, Some(0), 1)], Vec::new()).unwrap();
    assert_eq!((latest_checkpoint(root).unwrap(), two.checkpoint), (Some(4), Some(4)));
}
