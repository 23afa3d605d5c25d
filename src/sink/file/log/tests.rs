use std::fs;

use super::*;
use crate::model::{ClusterId, Offset, Partition, Position, PositionKey, Reason, TopicId, TopicName};
use crate::sink::file::durable::{create_dir_durably, list};
use crate::sink::file::names::{data_file_name, log_dir, staged_name, staged_path, tmp_dir};

fn owner() -> Claim {
    of("g", "r/s")
}

fn of(group: &str, identity: &str) -> Claim {
    Owner { cluster: ClusterId("c".into()), group: group.into(), identity: identity.into() }.into()
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
        reason: Reason::Data,
        records: 1,
    }
}

fn next(log: &Log, partition: i32) -> Option<i64> {
    log.positions().get(&key(partition)).map(|position| position.next.get())
}

/// Stages a file as a sink would.
fn stage(root: &Path, partition: i32, start: i64) -> DataFile {
    let name = data_file_name(&key(partition), Offset::new(start).unwrap(), None, "txt");
    let staged = staged_name(&name);
    fs::write(staged_path(root, &staged), b"rows").unwrap();
    DataFile { path: format!("day=1/{name}"), staged, rows: 1, bytes: 4, upload: None }
}

fn visible(root: &Path) -> usize {
    fs::read_dir(root.join("day=1")).map_or(0, Iterator::count)
}

#[test]
fn values_of_partitions_stay_out_of_errors() {
    let path = Path::new("/out/orders/country=hunter2/day=hunter3/file.parquet").to_owned();
    let source = io::Error::other("no");
    let error = LogError::Io { action: "sync directory", path, source };
    let expected = "failed to sync directory `/out/orders/country=…/day=…/file.parquet`";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn writers_of_different_partitions_share_a_log_and_a_late_one_loses() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let mut two = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    assert_eq!(one.id(), two.id());
    one.commit(vec![step(0, None, 5)], vec![stage(dir.path(), 0, 0)]).unwrap();
    two.commit(vec![step(1, None, 7)], vec![stage(dir.path(), 1, 0)]).unwrap();
    assert_eq!((next(&two, 0), next(&two, 1)), (Some(5), Some(7)));
    // A zombie still believes that partition 1 stands where it left it.
    let error = one.commit(vec![step(1, None, 9)], vec![]).unwrap_err();
    assert!(matches!(error, LogError::Conflict(_)), "{error}");
    assert_eq!(visible(dir.path()), 2);
}

#[test]
fn another_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let error = Log::open(dir.path(), &of("g", "other/s"), INTERVALS).unwrap_err();
    assert!(error.to_string().contains("belongs to sink `r/s` of group `g`"), "{error}");
    Log::open(dir.path(), &of("h", "r/s"), INTERVALS).unwrap_err();
    let mistaken = Claim { adopt: Some("r/x".into()), ..of("g", "other/s") };
    let error = Log::open(dir.path(), &mistaken, INTERVALS).unwrap_err();
    assert!(error.to_string().contains("`r/x`, which is to be adopted, does not write there"), "{error}");
    let log = Log::look(dir.path()).unwrap().unwrap();
    assert_eq!((log.last(), log.accounts().iter().count()), (0, 1));
}

#[test]
fn a_crash_between_entry_and_sight_is_repaired_and_orphans_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let committed = stage(dir.path(), 0, 0);
    let orphan = stage(dir.path(), 0, 0);
    let open_elsewhere = stage(dir.path(), 0, 5);
    let entry = Entry {
        version: VERSION,
        commit: Uuid::new_v4(),
        previous: log.last_hash.clone(),
        created: None,
        owner: None,
        adopts: None,
        moves: vec![step(0, None, 5)],
        files: vec![committed.clone()],
    };
    create_dir_durably(&dir.path().join("day=1")).unwrap();
    create_entry(dir.path(), 1, &entry).unwrap();
    assert_eq!(visible(dir.path()), 0);
    log.refresh().unwrap();
    log.recover().unwrap();
    assert_eq!(visible(dir.path()), 1);
    let is_staged = |file: &DataFile| staged_path(dir.path(), &file.staged).try_exists().unwrap();
    assert_eq!([&committed, &orphan, &open_elsewhere].map(is_staged), [false, false, true]);
}

/// A log as a writer remembers it that slept since entry 1.
fn sleepy(root: &Path) -> Log {
    let mut log = Log::open(root, &owner(), INTERVALS).unwrap();
    log.last = 1;
    log.last_hash = "of entry 1".to_owned();
    log.checkpoint = None;
    log.accounts = Accounts::new(owner().owner);
    let first = Entry { moves: vec![step(1, None, 1)], ..log.entry() };
    log.accounts.apply(1, &first).unwrap();
    log.files.clear();
    log
}

#[test]
fn checkpoints_bound_the_log_and_fence_a_writer_that_slept() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    log.commit(vec![step(1, None, 1)], vec![]).unwrap();
    let mut sleeper = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let mut at = None;
    for end in 1..=(2 * INTERVALS.entries + 10) as i64 {
        log.commit(vec![step(0, at, end)], vec![]).unwrap();
        at = Some(end);
    }
    assert_eq!(latest_checkpoint(dir.path()).unwrap(), Some(2 * INTERVALS.entries));
    assert!(list(&log_dir(dir.path())).unwrap().len() < 1100);
    // Its next number is free, because the entry is gone: the entry it makes there is void.
    assert!(read_entry(dir.path(), 2).unwrap().is_none());
    // Reading first, it sees what happened; committing first, it loses its entry and reads then.
    let mut reader = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    std::mem::swap(&mut reader, &mut sleeper);
    reader.refresh().unwrap();
    assert_eq!(next(&reader, 0), at);
    let mut sleeper = sleepy(dir.path());
    sleeper.commit(vec![step(1, Some(1), 4)], vec![]).unwrap();
    let fresh = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    assert_eq!((next(&fresh, 0), next(&fresh, 1)), (at, Some(4)));
    let conflict = sleeper.commit(vec![step(0, None, 4)], vec![]).unwrap_err();
    assert!(matches!(conflict, LogError::Conflict(_)));
}

#[test]
fn an_entry_that_does_not_follow_is_reported_not_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let stray = Entry {
        version: VERSION,
        commit: Uuid::new_v4(),
        previous: "another history".into(),
        created: None,
        owner: None,
        adopts: None,
        moves: vec![step(0, None, 5)],
        files: vec![],
    };
    create_entry(dir.path(), 1, &stray).unwrap();
    let error = log.commit(vec![step(0, None, 2)], vec![]).unwrap_err();
    assert!(error.to_string().contains("does not follow"), "{error}");
    let error = Log::open(dir.path(), &owner(), INTERVALS).unwrap_err();
    assert!(error.to_string().contains("backup was restored"), "{error}");
}

#[test]
fn many_files_bring_a_checkpoint_before_many_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    // Files that somebody removed: what counts is their number.
    let file = |number: usize| DataFile {
        path: format!("{number}.txt"),
        staged: format!("{number}.txt.staged"),
        rows: 1,
        bytes: 4,
        upload: None,
    };
    log.commit(vec![step(0, None, 1)], (1..CHECKPOINT_FILES).map(file).collect()).unwrap();
    assert_eq!(latest_checkpoint(dir.path()).unwrap(), None);
    log.commit(vec![step(0, Some(1), 2)], vec![stage(dir.path(), 0, 1)]).unwrap();
    assert_eq!(latest_checkpoint(dir.path()).unwrap(), Some(2));
    assert_eq!(visible(dir.path()), 1);
    let fresh = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    assert_eq!((next(&fresh, 0), fresh.files.len()), (Some(2), 0));
}

#[test]
fn an_entry_that_names_a_file_elsewhere_is_not_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut log = Log::open(&root, &owner(), INTERVALS).unwrap();
    let file = DataFile { path: "../elsewhere.txt".into(), ..stage(&root, 0, 0) };
    let entry = Entry {
        version: VERSION,
        commit: Uuid::new_v4(),
        previous: log.last_hash.clone(),
        created: None,
        owner: None,
        adopts: None,
        moves: vec![step(0, None, 5)],
        files: vec![file],
    };
    create_entry(&root, 1, &entry).unwrap();
    let error = log.refresh().unwrap_err();
    assert!(
        error.to_string().contains("1.entry` names a file that is not below the sink's directory"),
        "{error}"
    );
    assert!(!dir.path().join("elsewhere.txt").try_exists().unwrap());
}

/// A crash between writing a temporary entry and removing it leaves it behind; what may still be linked stays.
#[test]
fn temporary_entries_go_once_the_log_has_passed_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    log.commit(vec![step(0, None, 5)], vec![]).unwrap();
    log.commit(vec![step(0, Some(5), 6)], vec![]).unwrap();
    let leave = |number: u64| {
        let name = format!("{number:020}.{}", Uuid::new_v4().simple());
        fs::write(tmp_dir(dir.path()).join(&name), b"{}").unwrap();
        name
    };
    let (_passed, under_way) = (leave(1), leave(3));
    let foreign = "what-is-this".to_owned();
    fs::write(tmp_dir(dir.path()).join(&foreign), b"").unwrap();
    Log::open(dir.path(), &owner(), INTERVALS).unwrap().recover().unwrap();
    let left: BTreeSet<String> = list(&tmp_dir(dir.path())).unwrap().into_iter().collect();
    assert_eq!(left, BTreeSet::from([under_way, foreign]));
}

/// The start hash survives a checkpoint: a topic that appears after it is known to be new.
#[test]
fn what_a_sink_was_started_with_outlives_its_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let hash = crate::model::StartHash("00ff".to_owned());
    let first = Move { reason: Reason::Start { hash: hash.clone() }, ..step(0, None, 0) };
    log.commit(vec![first], vec![]).unwrap();
    let end = i64::try_from(INTERVALS.entries).unwrap();
    for at in 0..end {
        log.commit(vec![step(0, Some(at), at + 1)], vec![]).unwrap();
    }
    assert!(latest_checkpoint(dir.path()).unwrap().is_some());
    let again = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    assert_eq!(again.positions().start_hash(), Some(&hash));
}

/// Stages a file as a sink of this log would.
fn stage_for(log: &Log, start: i64) -> DataFile {
    let name = data_file_name(&key(0), Offset::new(start).unwrap(), log.mark().as_deref(), "txt");
    let staged = staged_name(&name);
    fs::write(staged_path(log.home.root(), &staged), b"rows").unwrap();
    DataFile { path: format!("day=1/{name}"), staged, rows: 1, bytes: 4, upload: None }
}

#[test]
fn several_owners_share_a_directory_and_each_has_its_own_positions() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let joining = Claim { is_shared: true, ..of("g", "other/s") };
    let mut two = Log::open(dir.path(), &joining, INTERVALS).unwrap();
    assert_eq!(next(&two, 0), None);
    one.commit(vec![step(0, None, 5)], vec![stage_for(&one, 0)]).unwrap();
    two.commit(vec![step(0, None, 2)], vec![stage_for(&two, 0)]).unwrap();
    one.commit(vec![step(0, Some(5), 6)], vec![]).unwrap();
    two.refresh().unwrap();
    assert_eq!((next(&one, 0), next(&two, 0)), (Some(6), Some(2)));
    assert_eq!(visible(dir.path()), 2);
    // Once it is known there it needs no leave.
    let again = Log::open(dir.path(), &of("g", "other/s"), INTERVALS).unwrap();
    assert_eq!((again.id(), next(&again, 0)), (one.id(), Some(2)));
    // An orphan is one by the position of its owner.
    let (late, open) = (stage_for(&one, 5), stage_for(&two, 5));
    one.recover().unwrap();
    let is_staged = |file: &DataFile| staged_path(dir.path(), &file.staged).try_exists().unwrap();
    assert_eq!([&late, &open].map(is_staged), [false, true]);
    // What only the first owner has written stays readable for programs of before; what names another does not.
    let version = |number| read_entry(dir.path(), number).unwrap().unwrap().0.version;
    assert_eq!([0, 1, 2, 3].map(version), [1, 1, 2, 1]);
}

#[test]
fn owners_outlive_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let joining = Claim { is_shared: true, ..of("g", "other/s") };
    let mut one = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let mut two = Log::open(dir.path(), &joining, INTERVALS).unwrap();
    two.commit(vec![step(0, None, 2)], vec![]).unwrap();
    let end = i64::try_from(INTERVALS.entries).unwrap();
    let mut at = None;
    for next in 1..=end {
        one.commit(vec![step(0, at, next)], vec![]).unwrap();
        at = Some(next);
    }
    assert!(latest_checkpoint(dir.path()).unwrap().is_some());
    // One that slept through it is still who it was.
    two.commit(vec![step(0, Some(2), 4)], vec![]).unwrap();
    let one = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let two = Log::open(dir.path(), &of("g", "other/s"), INTERVALS).unwrap();
    assert_eq!((next(&one, 0), next(&two, 0)), (at, Some(4)));
}

#[test]
fn positions_are_adopted_once_and_the_former_owner_commits_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    let hash = crate::model::StartHash("00ff".to_owned());
    let first = Move { reason: Reason::Start { hash: hash.clone() }, ..step(0, None, 0) };
    old.commit(vec![first], vec![]).unwrap();
    old.commit(vec![step(0, Some(0), 5)], vec![]).unwrap();
    let orphan = stage_for(&old, 5);
    let renamed = Claim { adopt: Some("r/s".into()), ..of("g", "new/s") };
    // Two instances start at the same time.
    let mut new = Log::open(dir.path(), &renamed, INTERVALS).unwrap();
    let twin = Log::open(dir.path(), &renamed, INTERVALS).unwrap();
    assert_eq!((next(&new, 0), next(&twin, 0), twin.last()), (Some(5), Some(5), new.last()));
    assert_eq!(new.positions().start_hash(), Some(&hash));
    // One of the former still runs.
    let error = old.commit(vec![step(0, Some(5), 7)], vec![orphan.clone()]).unwrap_err();
    assert!(error.to_string().contains("was taken over by sink `new/s`"), "{error}");
    let error = Log::open(dir.path(), &owner(), INTERVALS).unwrap_err();
    assert!(error.to_string().contains("was taken over by sink `new/s`"), "{error}");
    new.commit(vec![step(0, Some(5), 6)], vec![]).unwrap();
    new.recover().unwrap();
    assert!(!staged_path(dir.path(), &orphan.staged).try_exists().unwrap());
    // Back again; what the first one had begun before stays lost, as its file may be gone.
    let base = old.last();
    let back = Claim { adopt: Some("new/s".into()), ..owner() };
    let mut again = Log::open(dir.path(), &back, INTERVALS).unwrap();
    assert_eq!(next(&again, 0), Some(6));
    let error = again.commit_since(base, vec![step(0, Some(6), 7)], vec![]).unwrap_err();
    assert!(matches!(error, LogError::Conflict(_)), "{error}");
    again.commit(vec![step(0, Some(6), 7)], vec![]).unwrap();
    assert_eq!(next(&Log::open(dir.path(), &owner(), INTERVALS).unwrap(), 0), Some(7));
}

#[test]
fn a_group_may_be_renamed_a_cluster_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    old.commit(vec![step(0, None, 5)], vec![]).unwrap();
    let same = Claim { adopt: Some("r/s".into()), ..of("h", "r/s") };
    let mut elsewhere = same.clone();
    elsewhere.owner.cluster = ClusterId("d".into());
    let error = Log::open(dir.path(), &elsewhere, INTERVALS).unwrap_err();
    assert!(error.to_string().contains("belongs to sink `r/s` of group `g` on cluster `c`"), "{error}");
    assert_eq!(next(&Log::open(dir.path(), &same, INTERVALS).unwrap(), 0), Some(5));
}

/// After a reset a position may be where it was before, while files that were begun there then are gone as orphans.
#[test]
fn what_was_begun_before_a_reset_is_not_committed_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut zombie = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    zombie.commit(vec![step(0, None, 5)], vec![]).unwrap();
    let base = zombie.last();
    let file = stage_for(&zombie, 5);
    let mut other = Log::open(dir.path(), &owner(), INTERVALS).unwrap();
    other.commit(vec![step(0, Some(5), 9)], vec![]).unwrap();
    other.recover().unwrap();
    let reset = Move { reason: Reason::Reset, ..step(0, Some(9), 5) };
    other.commit(vec![reset], vec![]).unwrap();
    // It looks before it commits, as a sink does at an assignment.
    zombie.refresh().unwrap();
    assert_eq!(next(&zombie, 0), Some(5));
    let error = zombie.commit_since(base, vec![step(0, Some(5), 7)], vec![file]).unwrap_err();
    assert!(matches!(error, LogError::Conflict(_)), "{error}");
    zombie.commit(vec![step(0, Some(5), 7)], vec![]).unwrap();
}

#[test]
fn looking_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Log::look(dir.path().join("none")).unwrap().is_none());
    assert!(Log::look(dir.path()).unwrap().is_none());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
