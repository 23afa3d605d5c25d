//! What happens to the data itself on the brokers: records that are gone, that cannot be read, that are not there yet.

#![expect(clippy::single_range_in_vec_init, reason = "a list of ranges of record numbers, often of one")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::lab::{Lab, REFRESH, Route, expect_stopped};
use super::tools::{
    LIMIT, Row, Writer, await_said, compare, ensure, failed, held_for, lost_moves, numbered, rows, until_ok,
};
use super::{Context, Outcome, Scenario};
use crate::probe::Stoppable;
use crate::stand::{Instance, eventually, pause};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "retention",
        about: "records are deleted before they were read, while the program is down and while it runs",
        row: "15 retention passes our offset",
        in_ci: true,
        run: retention,
    },
    Scenario {
        name: "topic-recreated",
        about: "a topic is deleted and created again under its name, while the program is down and while it runs",
        row: "17 topic deleted and created again",
        in_ci: false,
        run: topic_recreated,
    },
    Scenario {
        name: "partitions-added",
        about: "a topic gets more partitions under load; all of them are read from their beginning",
        row: "18 partitions added",
        in_ci: false,
        run: partitions_added,
    },
    Scenario {
        name: "unclean-election",
        about: "a replica that lags becomes leader (three nodes, min ISR 1): records that were read are gone",
        row: "16 unclean election",
        in_ci: false,
        run: unclean_election,
    },
    Scenario {
        name: "corrupt-batch",
        about: "a byte of a batch, and the magic of another, are flipped on the broker's disk, and flipped back",
        row: "38b corrupt batch on the broker's disk",
        in_ci: true,
        run: corrupt_batch,
    },
    Scenario {
        name: "hanging-transaction",
        about: "a producer dies in the middle of a transaction, with records behind it",
        row: "13 hanging input transaction",
        in_ci: true,
        run: hanging_transaction,
    },
    Scenario {
        name: "aborted-and-compacted",
        about: "holes of compaction, and aborted records with a marker at the end: a bounded run ends, lag is 0",
        row: "14 aborted transactions, control records, holes",
        in_ci: false,
        run: aborted_and_compacted,
    },
];

/// Three routes, each on a topic of its own: one that stops at a loss, one that goes on behind it, and one that nothing
/// happens to.
const THREE: [&str; 3] = ["stops", "continues", "beside"];

/// `policy` is that of the first.
fn write_three(lab: &Lab, policy: &str) -> Result<(), String> {
    let [stops, continues, beside] = THREE.map(Route::new);
    let routes =
        [stops.with(&format!("on_data_loss: {policy}")), continues.with("on_data_loss: continue"), beside];
    lab.write_routes("", &routes)
}

fn write_all(lab: &Lab, numbers: Range<i64>) -> Result<(), String> {
    THREE.iter().try_for_each(|name| lab.write(name, numbers.clone()))
}

fn expect_lost(lab: &Lab, route: &str, expected: &[(i64, i64, i64)]) -> Result<(), String> {
    let found = lost_moves(&lab.out(route))?;
    ensure(found == expected, || format!("route {route} has the lost moves {found:?}, not {expected:?}"))
}

/// The program still runs, and a route takes what is written now.
fn expect_flow(
    lab: &Lab,
    instance: &mut Instance,
    before: &[Range<i64>],
    more: Range<i64>,
) -> Result<(), String> {
    lab.write("beside", more.clone())?;
    lab.await_rows("beside", &numbered(&[before, &[more]].concat()))?;
    instance.expect_running()
}

fn retention(context: &Context) -> Result<Outcome, String> {
    let mut lab = Lab::new(context, 0)?;
    THREE.iter().try_for_each(|name| lab.create(name, &[]))?;
    write_three(&lab, "stop")?;
    write_all(&lab, 0..100)?;
    lab.run_to_the_end(0)?;

    // While the program is down.
    write_all(&lab, 100..200)?;
    lab.delete_records("stops", 150)?;
    lab.delete_records("continues", 150)?;
    let ended = lab.run_to_the_end(1)?;
    expect_stopped(&ended, "stops", "offsets 100 to 150 are lost")?;
    lab.expect_rows("stops", &numbered(&[0..100]))?;
    lab.expect_committed_up_to("stops", 100)?;
    expect_lost(&lab, "stops", &[])?;
    lab.expect_rows("continues", &numbered(&[0..100, 150..200]))?;
    expect_lost(&lab, "continues", &[(0, 100, 150)])?;
    lab.expect_rows("beside", &numbered(&[0..200]))?;

    // Somebody has looked, and lets it go on.
    write_three(&lab, "continue")?;
    lab.run_to_the_end(0)?;
    lab.expect_rows("stops", &numbered(&[0..100, 150..200]))?;
    expect_lost(&lab, "stops", &[(0, 100, 150)])?;
    lab.expect_no_lag("stops")?;

    let recovery = deleted_while_it_runs(&mut lab)?;
    Ok(held_for(2, Some(recovery), "lost ranges are named, and in the log where the route goes on"))
}

fn deleted_while_it_runs(lab: &mut Lab) -> Result<Duration, String> {
    write_three(lab, "stop")?;
    let mut instance = lab.run()?;
    write_all(lab, 200..210)?;
    for route in ["stops", "continues"] {
        lab.await_rows(route, &numbered(&[0..100, 150..210]))?;
    }
    lab.await_rows("beside", &numbered(&[0..210]))?;
    instance.freeze();
    // A request that waits at the broker comes back empty, within half a second, before anything is written: so the
    // next one asks for what is deleted.
    pause(Duration::from_secs(1));
    write_all(lab, 210..310)?;
    lab.delete_records("stops", 260)?;
    lab.delete_records("continues", 260)?;
    instance.thaw();
    let thawed = Instant::now();
    lab.await_rows("beside", &numbered(&[0..310]))?;
    let recovery = thawed.elapsed();
    await_said(&mut instance, &["route stopped", "\"stops\"", "offsets 210 to 260 are lost"])?;
    lab.await_rows("continues", &numbered(&[0..100, 150..210, 260..310]))?;
    expect_lost(lab, "continues", &[(0, 100, 150), (0, 210, 260)])?;
    lab.expect_rows("stops", &numbered(&[0..100, 150..210]))?;
    expect_flow(lab, &mut instance, &[0..310], 310..320)?;
    // A service with a stopped route stays up, and ends well.
    instance.drain()?;
    let ended = lab.run_to_the_end(1)?;
    expect_stopped(&ended, "stops", "offsets 210 to 260 are lost")?;
    lab.expect_committed_up_to("stops", 210)?;
    Ok(recovery)
}

/// The numbers of a topic that was created again: its offsets begin at 0.
fn renumbered(numbers: Range<i64>) -> impl Iterator<Item = Row> {
    numbers.zip(0..).map(|(number, offset)| Row { partition: 0, offset, value: number.to_string() })
}

fn topic_recreated(context: &Context) -> Result<Outcome, String> {
    let mut lab = Lab::new(context, 0)?;
    THREE.iter().try_for_each(|name| lab.create(name, &[]))?;
    write_three(&lab, "stop")?;
    write_all(&lab, 0..100)?;
    lab.run_to_the_end(0)?;

    // While the program is down. The new topic has more records than the position says: its offsets all exist.
    for name in ["stops", "continues"] {
        recreate(&lab, name)?;
        lab.write(name, 1000..1150)?;
    }
    let ended = lab.run_to_the_end(1)?;
    expect_stopped(&ended, "stops", "was deleted and created again")?;
    lab.expect_rows("stops", &numbered(&[0..100]))?;
    let mut both = numbered(&[0..100]);
    both.extend(renumbered(1000..1150));
    lab.expect_rows("continues", &both)?;
    lab.expect_rows("beside", &numbered(&[0..100]))?;

    let note = recreated_while_it_runs(context)?;
    Ok(held_for(2, None, note))
}

fn recreate(lab: &Lab, name: &str) -> Result<(), String> {
    lab.delete(name)?;
    until_ok("the topic can be created again", LIMIT, || lab.create(name, &[]))
}

/// While it runs. If nobody looks between the two, only a position beyond the end shows that the topic is another one
/// (PROTOCOL §1); if the program has seen that it was gone, it need not be so.
fn recreated_while_it_runs(context: &Context) -> Result<String, String> {
    let mut lab = Lab::new(context, 0)?;
    THREE.iter().try_for_each(|name| lab.create(name, &[]))?;
    write_three(&lab, "stop")?;
    write_all(&lab, 0..100)?;
    let mut instance = lab.run()?;
    for route in THREE {
        lab.await_rows(route, &numbered(&[0..100]))?;
    }
    lab.delete("stops")?;
    let gone = lab.topic("stops");
    let noticed = eventually("it is noticed", REFRESH * 30, || instance.said(&["revoked", &gone]) > 0);
    until_ok("the topic can be created again", LIMIT, || lab.create("stops", &[]))?;
    let (numbers, note) = match noticed {
        Ok(()) => (1000..1150, "the new topic had more records than the old one"),
        Err(_) => (1000..1050, "the deletion alone was not noticed: the new topic had fewer records"),
    };
    lab.write("stops", numbers)?;
    await_said(&mut instance, &["route stopped", "\"stops\""])?;
    lab.expect_rows("stops", &numbered(&[0..100]))?;
    expect_flow(&lab, &mut instance, &[0..100], 100..110)?;
    instance.drain()?;
    Ok(note.to_owned())
}

/// Writes numbers to a topic until it is stopped, to all its partitions in turn.
struct Load {
    is_stopped: Arc<AtomicBool>,
    partitions: Arc<AtomicI32>,
    thread: JoinHandle<Result<usize, String>>,
}

impl Load {
    fn start(bootstrap: &str, topic: &str) -> Result<Self, String> {
        let (is_stopped, partitions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI32::new(1)));
        let mut writer = Writer::new(bootstrap)?;
        let (stop, spread, topic) = (is_stopped.clone(), partitions.clone(), topic.to_owned());
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                // About five hundred a second: enough that a partition that is skipped shows, and little to read back.
                for _ in 0..10 {
                    writer.send(
                        &topic,
                        number % spread.load(Ordering::Relaxed),
                        None,
                        &number.to_string(),
                    )?;
                    number += 1;
                }
                pause(Duration::from_millis(20));
            }
            writer.flush()
        });
        Ok(Self { is_stopped, partitions, thread })
    }

    fn stop(self) -> Result<usize, String> {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the load panicked".to_owned())?
    }
}

fn partitions_added(context: &Context) -> Result<Outcome, String> {
    // Joining again takes some of it; the rest is for a busy machine.
    const NOTICED_MAX: Duration = Duration::from_secs(20);
    let mut lab = Lab::new(context, 0)?;
    lab.create("wider", &[])?;
    lab.write("wider", 0..1)?;
    lab.write_routes("", &[Route::new("wider").starting("latest")])?;
    let mut instance = lab.run()?;
    until_ok("the topic is taken up", LIMIT, || lab.expect_no_lag("wider"))?;
    let load = Load::start(lab.bootstrap(), &lab.topic("wider"))?;
    let rounds = context.rounds_of(1, 4);
    let (mut count, mut slowest) = (1, Duration::ZERO);
    for _ in 0..rounds {
        count += 2;
        lab.widen("wider", usize::try_from(count).map_err(failed("partitions"))?)?;
        load.partitions.store(count, Ordering::Relaxed);
        let added = Instant::now();
        until_ok("rows of the newest partition", NOTICED_MAX, || {
            let rows = rows(&lab.out("wider"))?;
            ensure(rows.iter().any(|row| row.partition == count - 1), || format!("{} rows", rows.len()))
        })?;
        slowest = slowest.max(added.elapsed());
    }
    let written = load.stop()?;
    // What was there before the start at the end is not for this route.
    let mut expected = lab.held("wider")?;
    expected.remove(&Row { partition: 0, offset: 0, value: "0".to_owned() });
    ensure(expected.len() == written, || format!("{written} were written, {} are there", expected.len()))?;
    lab.await_rows("wider", &expected)?;
    until_ok("lag is 0", LIMIT, || lab.expect_no_lag("wider"))?;
    instance.drain()?;
    let note = format!(
        "{written} records; first row of a new partition, looked for every {} ms",
        REFRESH.as_millis()
    );
    Ok(held_for(rounds, Some(slowest), note))
}

/// Node 2 dies and misses records that node 1 takes and the program reads; node 1 dies; node 2 comes back and leads.
/// Node 3 has a topic of its own, and makes a majority of controllers with whoever lives.
fn unclean_election(context: &Context) -> Result<Outcome, String> {
    let settings = [("unclean.leader.election.enable", "true"), ("min.insync.replicas", "1")];
    let mut lab = Lab::new(context, 3)?;
    for name in ["stops", "continues"] {
        lab.create_on(name, &[1, 2], &settings)?;
    }
    lab.create_on("beside", &[3], &[("min.insync.replicas", "1")])?;
    write_three(&lab, "stop")?;
    write_all(&lab, 0..100)?;
    let mut instance = lab.run()?;
    for route in THREE {
        lab.await_rows(route, &numbered(&[0..100]))?;
    }
    lab.stand.nodes[1].kill();
    write_all(&lab, 100..200)?;
    for route in THREE {
        lab.await_rows(route, &numbered(&[0..200]))?;
    }
    lab.stand.nodes[0].kill();
    let killed = Instant::now();
    lab.stand.nodes[1].restart()?;
    // It leads, without what it missed.
    for name in ["stops", "continues"] {
        until_ok("the replica that lagged leads", LIMIT, || {
            let held = lab.held(name)?;
            ensure(held == numbered(&[0..100]), || format!("{name} has {} records", held.len()))
        })?;
    }
    // The route that goes on does so from the end as it is now: what comes after that is read.
    until_ok("the loss is in the log", LIMIT, || expect_lost(&lab, "continues", &[(0, 200, 100)]))?;
    await_said(&mut instance, &["route stopped", "\"stops\""])?;
    write_all(&lab, 1000..1030)?;
    let mut beside = numbered(&[0..200]);
    beside.extend(renumbered(1000..1030).map(|row| Row { offset: row.offset + 200, ..row }));
    lab.await_rows("beside", &beside)?;
    let recovery = killed.elapsed();
    // What the sink has beyond the topic is exactly what the brokers lost.
    let now = lab.held("continues")?;
    until_ok("everything that the topic holds is read", LIMIT, || {
        let difference = compare(&now, &rows(&lab.out("continues"))?);
        let beyond: BTreeSet<Row> = difference.phantom.iter().cloned().collect();
        let is_right =
            difference.lost.is_empty() && difference.doubled.is_empty() && beyond == numbered(&[100..200]);
        ensure(is_right, || difference.to_string())
    })?;
    lab.expect_rows("stops", &numbered(&[0..200]))?;
    instance.drain()?;
    let ended = lab.run_to_the_end(1)?;
    expect_stopped(&ended, "stops", "was truncated")?;
    let note = "100 records were lost by the brokers and are in the sinks; nothing else differs; a log that has grown \
                past the position again would not be noticed";
    Ok(held_for(1, Some(recovery), note))
}

/// Where a batch of a segment begins and ends: those of Kafka's format 2 begin with the offset of their first record
/// (8 bytes) and the length of what follows (4).
fn batch(segment: &Path, offset: i64) -> Result<Range<usize>, String> {
    let bytes = fs::read(segment).map_err(failed("no segment"))?;
    let mut start = 0;
    while let Some((base, length)) = bytes.get(start..start + 12).map(|header| header.split_at(8)) {
        let base: [u8; 8] = base.try_into().map_err(failed("an offset"))?;
        let length: [u8; 4] = length.try_into().map_err(failed("a length"))?;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(failed("a length"))?;
        let end = start + 12 + length;
        if i64::from_be_bytes(base) == offset {
            return Ok(start..end);
        }
        start = end;
    }
    Err(format!("{}: no batch begins at {offset}", segment.display()))
}

/// Flips bits of one byte; done twice, nothing has happened.
fn flip(segment: &Path, at: usize, bits: u8) -> Result<(), String> {
    let file = File::options().read(true).write(true).open(segment).map_err(failed("no segment"))?;
    let mut byte = [0];
    let at = at as u64;
    file.read_exact_at(&mut byte, at).map_err(failed("a segment"))?;
    file.write_all_at(&[byte[0] ^ bits], at).map_err(failed("a segment"))
}

fn corrupt_batch(context: &Context) -> Result<Outcome, String> {
    const TOPICS: [&str; 3] = ["bitten", "unknown", "beside"];
    /// Of a batch: behind offset, length and leader epoch. Its 2 becomes a 9.
    const MAGIC: (usize, u8) = (16, 0x0b);
    let mut lab = Lab::new(context, 1)?;
    TOPICS.iter().try_for_each(|name| lab.create(name, &[]))?;
    lab.write_routes("", &TOPICS.map(Route::new))?;
    for numbers in [0..50, 50..100, 100..150] {
        // Each in batches of its own.
        TOPICS.iter().try_for_each(|name| lab.write(name, numbers.clone()))?;
    }
    let segments: Vec<PathBuf> = ["bitten", "unknown"]
        .map(|name| format!("{}-0/00000000000000000000.log", lab.topic(name)))
        .map(|name| lab.stand.nodes[0].data().join(name))
        .to_vec();
    lab.stand.nodes[0].stop();
    let (bitten, unknown) = (batch(&segments[0], 50)?, batch(&segments[1], 50)?);
    // The last byte of a batch belongs to a record.
    let flips = [(&segments[0], bitten.end - 1, 0x20), (&segments[1], unknown.start + MAGIC.0, MAGIC.1)];
    let flip_both = || flips.iter().try_for_each(|(segment, at, bits)| flip(segment, *at, *bits));
    flip_both()?;
    lab.stand.nodes[0].restart()?;

    let ended = lab.run_to_the_end(1)?;
    let expect_frozen = |lab: &Lab| {
        for route in ["bitten", "unknown"] {
            // All of what came before it, and nothing else.
            lab.expect_rows(route, &numbered(&[0..50]))?;
            lab.expect_committed_up_to(route, 50)?;
        }
        Ok::<(), String>(())
    };
    for route in ["bitten", "unknown"] {
        expect_stopped(&ended, route, "offset 50")?;
    }
    expect_frozen(&lab)?;
    lab.expect_rows("beside", &numbered(&[0..150]))?;

    // As a service: stopped again at the same place, and the other route goes on.
    let mut instance = lab.run()?;
    for route in ["bitten", "unknown"] {
        await_said(&mut instance, &["route stopped", &format!("\"{route}\""), "offset 50"])?;
    }
    expect_flow(&lab, &mut instance, &[0..150], 150..200)?;
    expect_frozen(&lab)?;
    instance.drain()?;

    lab.stand.nodes[0].stop();
    flip_both()?;
    lab.stand.nodes[0].restart()?;
    lab.run_to_the_end(0)?;
    for route in ["bitten", "unknown"] {
        lab.expect_rows(route, &numbered(&[0..150]))?;
        lab.expect_no_lag(route)?;
    }
    Ok(held_for(2, None, "a wrong CRC and an unknown magic stop their routes; once mended, all is read once"))
}

fn hanging_transaction(context: &Context) -> Result<Outcome, String> {
    let mut lab = Lab::new(context, 0)?;
    ["open", "beside"].iter().try_for_each(|name| lab.create(name, &[]))?;
    lab.write_routes("", &["open", "beside"].map(Route::new))?;
    // Named like the topic: nobody else has it.
    let (topic, id) = (lab.topic("open"), lab.topic("transaction"));
    lab.write("open", 0..30)?;
    lab.write("beside", 0..100)?;
    let mut writer = Writer::transactional(lab.bootstrap(), &id)?;
    writer.begin()?;
    for _ in 30..40 {
        writer.send(&topic, 0, None, "never committed")?;
    }
    writer.flush()?;
    // Nobody ends it.
    drop(writer);
    let mut behind = Writer::new(lab.bootstrap())?;
    for number in 40..90 {
        behind.send(&topic, 0, None, &number.to_string())?;
    }
    behind.flush()?;

    // A bounded run ends where the last stable offset is.
    lab.run_to_the_end(0)?;
    lab.expect_rows("open", &numbered(&[0..30]))?;
    lab.expect_committed_up_to("open", 30)?;
    lab.expect_rows("beside", &numbered(&[0..100]))?;

    let mut instance = lab.run()?;
    expect_flow(&lab, &mut instance, &[0..100], 100..200)?;
    lab.expect_rows("open", &numbered(&[0..30]))?;
    // Another producer of the same name aborts what the first one left.
    let ended = Instant::now();
    drop(Writer::transactional(lab.bootstrap(), &id)?);
    let expected = numbered(&[0..30, 40..90]);
    lab.await_rows("open", &expected)?;
    let recovery = ended.elapsed();
    let held = lab.held("open")?;
    ensure(held == expected, || format!("the topic itself has {} records", held.len()))?;
    instance.drain()?;
    lab.run_to_the_end(0)?;
    lab.expect_rows("open", &expected)?;
    lab.expect_no_lag("open")?;
    Ok(held_for(1, Some(recovery), "bounded runs end at the last stable offset"))
}

fn aborted_and_compacted(context: &Context) -> Result<Outcome, String> {
    const ROUNDS: usize = 4;
    const KEYS: usize = 20;
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "500"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("min.compaction.lag.ms", "0"),
    ];
    let mut lab = Lab::new(context, 0)?;
    lab.create("compacted", &settings)?;
    lab.create("aborted", &[])?;
    lab.write_routes("", &["compacted", "aborted"].map(Route::new))?;
    let mut writer = Writer::new(lab.bootstrap())?;
    for round in 0..ROUNDS {
        for key in 0..KEYS {
            let (key, value) = (format!("key {key}"), format!("{key} of round {round}"));
            writer.send(&lab.topic("compacted"), 0, Some(key.as_str()), &value)?;
        }
        writer.flush()?;
        // Longer than a segment is written to: the next round begins another one, and this one can be compacted.
        pause(Duration::from_millis(700));
    }
    let mut writer = Writer::transactional(lab.bootstrap(), &lab.topic("transaction"))?;
    writer.begin()?;
    for number in 0..50 {
        writer.send(&lab.topic("aborted"), 0, None, &number.to_string())?;
    }
    writer.commit()?;
    // Both topics end with what nobody may see, and its marker.
    writer.begin()?;
    for name in ["compacted", "aborted"] {
        for _ in 0..20 {
            writer.send(&lab.topic(name), 0, Some("key 0"), "aborted")?;
        }
    }
    writer.abort()?;
    until_ok("the broker compacts", LIMIT, || {
        let left = lab.held("compacted")?.len();
        ensure(left < ROUNDS * KEYS, || format!("{left} records are left"))
    })?;

    // It may compact on while the program reads: what is in the sink was there before, and what is there after is in it.
    let before = lab.held("compacted")?;
    lab.run_to_the_end(0)?;
    let after = lab.held("compacted")?;
    let found = rows(&lab.out("compacted"))?;
    let (early, late) = (compare(&before, &found), compare(&after, &found));
    let is_right = early.phantom.is_empty() && early.doubled.is_empty() && late.lost.is_empty();
    ensure(is_right, || format!("before: {early}; after: {late}"))?;
    lab.expect_rows("aborted", &lab.held("aborted")?)?;
    for name in ["compacted", "aborted"] {
        lab.expect_no_lag(name)?;
    }
    // Nothing is left to be read, and that is noticed.
    lab.run_to_the_end(0)?;
    let again = rows(&lab.out("compacted"))?;
    ensure(again.len() == found.len(), || format!("{} rows became {}", found.len(), again.len()))?;
    Ok(held_for(1, None, format!("{} of {} records were left by compaction", before.len(), ROUNDS * KEYS)))
}
