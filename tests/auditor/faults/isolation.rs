//! A route alone: what is wrong with one of them is nothing to the others.
//!
//! The same topics are read again and again, each time in a group and into directories of their own: first with nothing
//! wrong, then with something wrong with the last route. What the others need is compared with the first time.
//!
//! One process does the work of all routes, so its processor time is that of the broken one too. Therefore the last route
//! is read by itself as well, in the same state and for the same time, and what that took is left out: of the others what
//! is left, in the run with nothing wrong as in that with something wrong. Where it got less far beside the others than
//! by itself, less is left out, in the same measure.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::lab::{Lab, Route};
use super::tools::{
    LIMIT, Writer, await_said, compare, ensure, expect_rows, failed, files, held_for, peak_memory, rows,
    ticks, until_ok,
};
use super::{Context, Outcome, Scenario};
use crate::stand::{Instance, pause};

pub const ALL: &[Scenario] = &[Scenario {
    name: "isolation",
    about: "one route's sink is dead, slow or flapping, or its topic is poisoned; three others read on",
    row: "25 dead, slow, flapping sink; 23 poison",
    in_ci: true,
    run: isolation,
}];

const HEALTHY: [&str; 3] = ["first", "second", "third"];
const VICTIM: &str = "victim";

/// Of all runs. The bound of a run is the peak with nothing wrong, and this much more.
const MEMORY: u64 = 64 << 20;

/// Of the records per second of processor time that the others have with nothing wrong, without what the last route
/// takes. Seconds of the clock depend on what else runs on the machine, those of the processor hardly do.
const PACE_MIN: f64 = 0.9;

/// Between two changes of a directory that flaps, while nobody looks at the others.
const FLAP_EVERY: Duration = Duration::from_millis(300);

/// What is wrong with the last route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// A file is where its directory should be, until the others have read everything.
    Dead,
    /// Every row is a commit of its own: the slowest that a sink of files can be.
    Slow,
    /// Its directory is there and not there, a few times a second.
    Flapping,
    /// No record can be decoded: it stops before the first one.
    Poisoned,
    /// The same, and every record is a dead letter.
    Quarantined,
}

const ALL_WRONGS: [Wrong; 5] =
    [Wrong::Dead, Wrong::Slow, Wrong::Flapping, Wrong::Poisoned, Wrong::Quarantined];
const CI_WRONGS: [Wrong; 3] = [Wrong::Dead, Wrong::Flapping, Wrong::Poisoned];

/// What it took until the healthy routes had everything.
struct Cost {
    ticks: u64,
    time: Duration,
    peak: u64,
    /// How far the last route was by then, in rows or dead letters.
    work: usize,
}

/// What the last route takes by itself.
struct Alone {
    ticks: u64,
    work: usize,
}

impl Cost {
    /// What the others took.
    fn without(&self, alone: &Alone) -> f64 {
        let share = if alone.work == 0 { 1.0 } else { (self.work as f64 / alone.work as f64).min(1.0) };
        (self.ticks as f64 - alone.ticks as f64 * share).max(1.0)
    }
}

fn isolation(context: &Context) -> Result<Outcome, String> {
    let records: i64 = if context.is_ci { 5_000 } else { 60_000 };
    let mut lab = Lab::new(context, 0)?;
    let group = lab.stand.group.clone();
    let mut writer = Writer::new(lab.bootstrap())?;
    for name in HEALTHY.iter().chain([&VICTIM]) {
        lab.create(name, &[])?;
        let topic = lab.topic(name);
        for number in 0..records {
            writer.send(&topic, 0, None, &format!("{name} {number} {}", "-".repeat(100)))?;
        }
    }
    writer.flush()?;
    let mut read = |wrong: Wrong| -> Result<(Cost, Option<f64>, Duration), String> {
        let in_state = |error: String| format!("{wrong:?}: {error}");
        lab.stand.group = format!("{group}-{wrong:?}");
        let (cost, recovered) = read_all(&mut lab, wrong).map_err(in_state)?;
        // Other tests run beside it in CI: there, only that they get there.
        if context.is_ci {
            return Ok((cost, None, recovered));
        }
        lab.stand.group = format!("{group}-{wrong:?}-alone");
        let alone = read_alone(&mut lab, wrong, cost.time).map_err(in_state)?;
        let others = cost.without(&alone);
        Ok((cost, Some(others), recovered))
    };
    let (control, control_others, _) = read(Wrong::Nothing)?;
    let mut notes = vec![format!("nothing wrong: {:.1} s", control.time.as_secs_f64())];
    let mut recovery = Duration::ZERO;
    let wrongs: &[Wrong] = if context.is_ci { &CI_WRONGS } else { &ALL_WRONGS };
    for wrong in wrongs {
        let (cost, others, recovered) = read(*wrong)?;
        recovery = recovery.max(recovered);
        let all = control.ticks as f64 / cost.ticks.max(1) as f64;
        let pace = control_others.zip(others).map(|(control, others)| control / others);
        let alone = pace.map(|pace| format!(", without the broken route's own work {:.0} %", pace * 100.0));
        let note = format!(
            "{wrong:?}: {:.1} s, pace {:.0} %{}, peak {} MiB",
            cost.time.as_secs_f64(),
            all * 100.0,
            alone.unwrap_or_default(),
            cost.peak >> 20
        );
        let is_kept = pace.is_none_or(|pace| pace >= PACE_MIN);
        ensure(is_kept, || format!("the healthy routes were held up: {note}"))?;
        let bound = control.peak + MEMORY;
        ensure(cost.peak <= bound, || format!("more memory than {} MiB: {note}", bound >> 20))?;
        notes.push(note);
    }
    let rounds = u32::try_from(wrongs.len()).unwrap_or_default();
    Ok(held_for(rounds, Some(recovery), notes.join("; ")))
}

/// Reads everything once, and undoes what is wrong where that can be: what the healthy routes took, and how long the
/// last one then needed.
fn read_all(lab: &mut Lab, wrong: Wrong) -> Result<(Cost, Duration), String> {
    let place = Place::new(lab, wrong)?;
    place.write_routes(lab)?;
    place.break_it()?;
    let mut instance = lab.run()?;
    let since = Instant::now();
    if wrong == Wrong::Flapping {
        // Not before: all it has might be written while it is well for the first time.
        await_said(&mut instance, &["route paused", "\"victim\""])?;
    }
    // With nothing wrong all of them: then what the last one took is known.
    let last = (wrong == Wrong::Nothing).then_some(VICTIM);
    until_ok("the healthy routes have read everything", LIMIT, || {
        place.flap()?;
        HEALTHY.into_iter().chain(last).try_for_each(|name| lab.expect_no_lag(name))
    })?;
    let (pid, time) = (instance.pid(), since.elapsed());
    let cost = Cost { ticks: ticks(pid)?, time, peak: peak_memory(pid)?, work: place.work()? };
    for name in HEALTHY {
        let difference = compare(&lab.held(name)?, &rows(&place.out(name))?);
        let is_same =
            difference.lost.is_empty() && difference.doubled.is_empty() && difference.phantom.is_empty();
        ensure(is_same, || format!("route {name}: {difference}"))?;
    }
    place.expect_trouble(lab, &mut instance)?;
    let recovered = place.mend(lab)?;
    instance.drain()?;
    lab.stand.expect_no_panic()?;
    // The next run begins with room on the disk.
    fs::remove_dir_all(&place.dir).map_err(failed("what was read stays"))?;
    Ok((cost, recovered))
}

/// Reads the last route by itself for so long, in the same state.
fn read_alone(lab: &mut Lab, wrong: Wrong, time: Duration) -> Result<Alone, String> {
    let place = Place { healthy: &[], ..Place::new(lab, wrong)? };
    place.write_routes(lab)?;
    place.break_it()?;
    let mut instance = lab.run()?;
    let since = Instant::now();
    while since.elapsed() < time {
        place.flap()?;
        pause(FLAP_EVERY.min(time.saturating_sub(since.elapsed())));
    }
    instance.expect_running()?;
    let alone = Alone { ticks: ticks(instance.pid())?, work: place.work()? };
    // What is wrong stays so; its group is read by nobody else.
    instance.kill();
    lab.stand.expect_no_panic()?;
    fs::remove_dir_all(&place.dir).map_err(failed("what was read stays"))?;
    Ok(alone)
}

/// Where the rows of one run go.
struct Place {
    wrong: Wrong,
    /// The routes beside the last one.
    healthy: &'static [&'static str],
    /// Relative to the working directory of the program.
    name: String,
    dir: PathBuf,
}

impl Place {
    fn new(lab: &Lab, wrong: Wrong) -> Result<Self, String> {
        let name = format!("out/{wrong:?}");
        let dir = lab.stand.place().join(&name);
        fs::create_dir_all(&dir).map_err(failed("no directory"))?;
        Ok(Self { wrong, healthy: &HEALTHY, name, dir })
    }

    fn out(&self, route: &str) -> PathBuf {
        self.dir.join(route)
    }

    fn sinks(&self, route: &str, rows_max: u32) -> String {
        let path = format!("{}/{route}", self.name);
        format!("{{all: {{jsonl: {{path: {path}, roll: {{max_rows: {rows_max}, max_age: 200ms}}}}}}}}")
    }

    fn write_routes(&self, lab: &Lab) -> Result<(), String> {
        let mut routes: Vec<Route> = self
            .healthy
            .iter()
            .map(|name| {
                Route::new(name).batching("{max_rows: 2000, max_age: 100ms}").writing(&self.sinks(name, 5000))
            })
            .collect();
        let victim = Route::new(VICTIM)
            .batching("{max_rows: 2000, max_age: 100ms}")
            .writing(&self.sinks(VICTIM, 5000));
        routes.push(match self.wrong {
            Wrong::Nothing | Wrong::Dead | Wrong::Flapping => victim,
            Wrong::Slow => victim.batching("{max_rows: 1}").writing(&self.sinks(VICTIM, 1)),
            Wrong::Poisoned => victim.reading("json"),
            Wrong::Quarantined => victim.reading("json").with("bad_records: {dead_letter: letters}"),
        });
        let letters = match self.wrong {
            Wrong::Quarantined => {
                format!("dead_letters:\n  letters: {{jsonl: {{path: {}/letters}}}}\n", self.name)
            }
            _ => String::new(),
        };
        lab.write_routes(&format!("memory: {MEMORY}\n{letters}"), &routes)
    }

    /// How far the last route is: rows, or dead letters, in sight.
    fn work(&self) -> Result<usize, String> {
        match self.wrong {
            Wrong::Nothing | Wrong::Slow => Ok(rows(&self.out(VICTIM))?.len()),
            Wrong::Flapping => Ok(rows(&self.real())?.len()),
            Wrong::Quarantined => self.letter_count(),
            // It does nothing but try.
            Wrong::Dead | Wrong::Poisoned => Ok(0),
        }
    }

    fn letter_count(&self) -> Result<usize, String> {
        let mut count = 0;
        for file in files(&self.dir.join("letters"), ".jsonl") {
            count += fs::read_to_string(file).map_err(failed("dead letters"))?.lines().count();
        }
        Ok(count)
    }

    fn real(&self) -> PathBuf {
        self.dir.join("real")
    }

    fn obstacle(&self) -> PathBuf {
        self.dir.join("obstacle")
    }

    fn break_it(&self) -> Result<(), String> {
        fs::create_dir_all(self.real()).map_err(failed("no directory"))?;
        File::create(self.obstacle()).map_err(failed("no file"))?;
        match self.wrong {
            Wrong::Dead | Wrong::Flapping => self.point_to(&self.obstacle()),
            Wrong::Nothing | Wrong::Slow | Wrong::Poisoned | Wrong::Quarantined => Ok(()),
        }
    }

    /// The victim's directory is a link, which is replaced in one step: at no moment is there nothing, where the program
    /// would make a new directory.
    fn point_to(&self, target: &Path) -> Result<(), String> {
        let new = self.dir.join("link.new");
        symlink(target, &new).map_err(failed("no link"))?;
        fs::rename(new, self.out(VICTIM)).map_err(failed("the link stays"))
    }

    fn flap(&self) -> Result<(), String> {
        if self.wrong == Wrong::Flapping {
            self.point_to(&self.real())?;
            pause(Duration::from_millis(150));
            self.point_to(&self.obstacle())?;
        }
        Ok(())
    }

    /// The victim was held up, and how.
    fn expect_trouble(&self, lab: &Lab, instance: &mut Instance) -> Result<(), String> {
        match self.wrong {
            Wrong::Nothing => Ok(()),
            Wrong::Dead | Wrong::Flapping => {
                await_said(instance, &["route paused", "\"victim\""])?;
                let log = instance.log();
                let mut paused = log.lines().filter(|line| line.contains("route paused"));
                let other = paused.find(|line| !line.contains("\"victim\""));
                ensure(other.is_none(), || format!("another route has paused too: {other:?}"))
            }
            Wrong::Slow => {
                let found = rows(&self.out(VICTIM))?;
                let held = lab.held(VICTIM)?;
                let difference = compare(&held, &found);
                let is_right = difference.doubled.is_empty() && difference.phantom.is_empty();
                ensure(is_right, || format!("route {VICTIM}: {difference}"))?;
                ensure(!found.is_empty() && found.len() < held.len(), || {
                    format!("{} of {} rows: it was not slow", found.len(), held.len())
                })
            }
            Wrong::Poisoned => {
                await_said(instance, &["route stopped", "\"victim\""])?;
                lab.expect_committed_up_to(VICTIM, 0)
            }
            Wrong::Quarantined => {
                until_ok("all are dead letters", LIMIT, || lab.expect_no_lag(VICTIM))?;
                let count = self.letter_count()?;
                let held = lab.held(VICTIM)?.len();
                ensure(count == held, || format!("{count} dead letters of {held} records"))
            }
        }
    }

    /// Undoes what is wrong: the victim goes on by itself.
    fn mend(&self, lab: &Lab) -> Result<Duration, String> {
        if !matches!(self.wrong, Wrong::Dead | Wrong::Flapping) {
            return Ok(Duration::ZERO);
        }
        self.point_to(&self.real())?;
        let since = Instant::now();
        until_ok("the route goes on by itself", LIMIT, || lab.expect_no_lag(VICTIM))?;
        let took = since.elapsed();
        expect_rows(&self.real(), &lab.held(VICTIM)?)?;
        Ok(took)
    }
}
