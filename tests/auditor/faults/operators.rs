//! What operators do while things die: `offsets reset` and `adopt:`, killed at every step that they pass, and a member that
//! slept meanwhile and goes on.
//!
//! A route writes one partition of plain text into two directories. After each round their logs have to be chains, and
//! every record is there once, and once more for each reset that led back over it: no more than that, and no less.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use fastrand::Rng;
use serde_json::Value;

use super::failpoints::{VARIABLE, state};
use super::lab::{Lab, Route};
use super::tools::{LIMIT, Row, await_said, ensure, failed, files, held_for, rows, until_ok};
use super::{Context, Outcome, Scenario, not_possible};
use crate::stand::{Ended, Instance, eventually, tail};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "reset-killed",
        about: "`offsets reset` is killed at every step, and repeated, or not",
        row: "2 kill at each fail point of `offsets reset`",
        in_ci: true,
        run: reset_killed,
    },
    Scenario {
        name: "reset-zombie",
        about: "a member is frozen in a commit; sinks are moved once its session is over; then it goes on",
        row: "3 zombie around `offsets reset`",
        in_ci: true,
        run: reset_zombie,
    },
    Scenario {
        name: "adopt",
        about: "a route is renamed: its start is killed while it adopts, or the former one was frozen and goes on",
        row: "2, 3 kill and zombie around `adopt:`",
        in_ci: true,
        run: adopt,
    },
];

const TOPIC: &str = "moved";

/// The sinks, and their directories.
const SINKS: [&str; 2] = ["first", "second"];

/// Records that come between two rounds.
const MORE: i64 = 150;

/// Steps of `offsets reset`: a directory after the other, then the group.
const RESET_EACH: [&str; 8] = [
    "file.recovery.synced",
    "file.recovery.shown",
    "file.entry.written",
    "file.entry.synced",
    "file.entry.linked",
    "file.log.synced",
    "file.entry.owned",
    "reset.log.moved",
];
const RESET_ONCE: [&str; 2] = ["reset.moving", "reset.group.moved"];

/// Steps of an adoption, of which there is one for each directory.
const ADOPT: [&str; 6] = [
    "file.entry.written",
    "file.entry.synced",
    "file.entry.linked",
    "file.entry.released",
    "file.log.synced",
    "file.entry.adopted",
];

/// Where a commit is begun that has not counted yet.
const FROZEN: [&str; 3] = ["lane.sink.flushing", "file.data.synced", "file.entry.synced"];

/// A topic, and the route that reads it.
struct Bench {
    lab: Lab,
    random: Rng,
    /// The name of the route now.
    route: String,
    /// Where the topic ends.
    end: i64,
}

impl Bench {
    fn new(context: &Context) -> Result<Self, String> {
        let lab = Lab::new(context, 0)?;
        lab.create(TOPIC, &[])?;
        let mut bench = Self { lab, random: context.random(), route: String::new(), end: 0 };
        bench.name_route("route0", None)?;
        bench.grow()?;
        bench.lab.run_to_the_end(0)?;
        bench.check()?;
        Ok(bench)
    }

    /// Gives the route a name; its sinks adopt what those of the `former` one have.
    fn name_route(&mut self, name: &str, former: Option<&str>) -> Result<(), String> {
        let sink = |sink: &&str| {
            let adopt = former.map(|former| format!("adopt: {former}/{sink}, ")).unwrap_or_default();
            format!("{sink}: {{{adopt}jsonl: {{path: out/{sink}, roll: {{max_rows: 100, max_age: 100ms}}}}}}")
        };
        let sinks: Vec<String> = SINKS.iter().map(sink).collect();
        let route = Route::new(name).of_topic(TOPIC).writing(&format!("{{{}}}", sinks.join(", ")));
        self.lab.write_routes("", &[route])?;
        name.clone_into(&mut self.route);
        Ok(())
    }

    fn grow(&mut self) -> Result<(), String> {
        self.lab.write(TOPIC, self.end..self.end + MORE)?;
        self.end += MORE;
        Ok(())
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.random.usize(..all.len())]
    }

    /// `offsets reset` of all sinks, to whatever end.
    fn reset(&mut self, to: i64, env: &[(&str, &str)]) -> Result<Ended, String> {
        let to = format!("{{{}: {{0: {to}}}}}", self.lab.topic(TOPIC));
        let arguments =
            ["offsets", "reset", "--route", self.route.as_str(), "--to", to.as_str(), "--execute"];
        let mut command = self.lab.stand.launch(&arguments, env)?;
        let code = command.wait("`offsets reset` ends", LIMIT)?;
        Ok(Ended { code, output: command.output(), log: command.log() })
    }

    /// The same, once no member is left; how often it was refused before.
    fn reset_when_alone(&mut self, to: i64) -> Result<u32, String> {
        let deadline = Instant::now() + LIMIT;
        let mut refused = 0;
        loop {
            let ended = self.reset(to, &[])?;
            match ended.code {
                Some(0) => return Ok(refused),
                Some(1) if ended.log.contains("live members") && Instant::now() < deadline => refused += 1,
                code => return Err(format!("`offsets reset` ended with {code:?}:\n{}", tail(&ended.log))),
            }
        }
    }

    /// An instance of the route that is frozen in a commit, with records that came since.
    fn freeze_one(&mut self) -> Result<Instance, String> {
        let point = self.one_of(&FROZEN);
        let mut instance = self.lab.stand.start(&[(VARIABLE, format!("{point}:2=stop").as_str())])?;
        self.grow()?;
        let id = instance.pid();
        eventually(&format!("it is frozen at `{point}`"), LIMIT, || {
            !instance.is_running() || state(id) == Some('T')
        })?;
        instance.expect_running()?;
        Ok(instance)
    }

    fn stand_at(&self, offset: i64) -> Result<(), String> {
        for sink in SINKS {
            let stands: Vec<i64> = follow(&self.lab.out(sink))?.stands.into_values().collect();
            ensure(stands == [offset], || format!("sink {sink} stands at {stands:?}, not at {offset}"))?;
        }
        Ok(())
    }

    /// Everything is read to the end, as often as it should be.
    fn check(&self) -> Result<(), String> {
        self.stand_at(self.end)?;
        let held = self.lab.held(TOPIC)?;
        for sink in SINKS {
            let dir = self.lab.out(sink);
            let resets = follow(&dir)?.resets;
            let mut times: BTreeMap<Row, usize> = BTreeMap::new();
            for row in rows(&dir)? {
                *times.entry(row).or_default() += 1;
            }
            for row in &held {
                let again = resets.iter().filter(|(from, to)| (*to..*from).contains(&row.offset)).count();
                let found = times.remove(row).unwrap_or_default();
                ensure(found == again + 1, || {
                    format!("sink {sink} has {row:?} {found} times, and {again} resets led back over it")
                })?;
            }
            ensure(times.is_empty(), || format!("sink {sink} has rows that nobody wrote: {times:?}"))?;
        }
        self.lab.expect_no_lag(TOPIC)?;
        self.lab.stand.expect_no_panic()
    }
}

/// What the log of a directory says of the one partition.
#[derive(Default)]
struct History {
    /// Where each owner stands, by its identity.
    stands: BTreeMap<String, i64>,
    /// From where to where sinks were moved.
    resets: Vec<(i64, i64)>,
}

/// Follows a log from its first entry; there are too few for a checkpoint.
fn follow(dir: &Path) -> Result<History, String> {
    let mut history = History::default();
    let mut creator = String::new();
    for (number, file) in files(&dir.join("_sidestream/log"), ".entry").iter().enumerate() {
        let text = fs::read_to_string(file).map_err(failed("an entry cannot be read"))?;
        let entry: Value = serde_json::from_str(&text).map_err(failed("an entry"))?;
        let name = file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        ensure(name.parse::<usize>().ok() == Some(number), || {
            format!("{}: entry {number} is missing", file.display())
        })?;
        if let Some(identity) = entry["created"]["identity"].as_str() {
            identity.clone_into(&mut creator);
        }
        let owner = entry["owner"]["identity"].as_str().unwrap_or(&creator).to_owned();
        let taken = entry["adopts"]["identity"].as_str().and_then(|former| history.stands.remove(former));
        for step in entry["moves"].as_array().into_iter().flatten() {
            history
                .take(&owner, taken, step)
                .map_err(|problem| format!("{}: {problem}: {step}", file.display()))?;
        }
    }
    Ok(history)
}

impl History {
    /// `taken`: where the owner stood whose positions are adopted by this move.
    fn take(&mut self, owner: &str, taken: Option<i64>, step: &Value) -> Result<(), &'static str> {
        let start = step["start"].as_i64();
        let end = step["end"]["next"].as_i64().ok_or("not a move")?;
        let reason = &step["reason"];
        if reason == "adopt" {
            let is_whole = start.is_none() && taken == Some(end);
            is_whole.then_some(()).ok_or("adopts another position than the former owner's")?;
        } else if start != self.stands.get(owner).copied() {
            return Err("does not begin where its owner stands");
        }
        if let Some(start) = start {
            if reason == "reset" {
                self.resets.push((start, end));
            } else if end < start {
                return Err("leads back");
            }
        }
        self.stands.insert(owner.to_owned(), end);
        Ok(())
    }
}

fn reset_killed(context: &Context) -> Result<Outcome, String> {
    if !cfg!(debug_assertions) {
        return Ok(not_possible("releases have no fail points"));
    }
    let each = RESET_EACH.iter().flat_map(|point| [1, 2].map(|nth| format!("{point}:{nth}=kill")));
    let once = RESET_ONCE.iter().map(|point| format!("{point}=kill"));
    let mut armed: Vec<String> = each.chain(once).collect();
    let mut bench = Bench::new(context)?;
    bench.random.shuffle(&mut armed);
    let rounds = context.rounds_of(3, u32::try_from(2 * armed.len()).unwrap_or(u32::MAX));
    for (armed, _) in armed.iter().cycle().zip(0..rounds) {
        let to = bench.random.i64(0..bench.end);
        let ended = bench.reset(to, &[(VARIABLE, armed.as_str())])?;
        ensure(ended.code.is_none(), || {
            format!("`offsets reset` ended with {:?}, not at {armed}:\n{}", ended.code, tail(&ended.log))
        })?;
        // The command says that it is to be repeated; a start without that finds each sink moved or not.
        if bench.random.bool() {
            bench.reset_when_alone(to)?;
            bench.stand_at(to)?;
        }
        bench.grow()?;
        bench.lab.run_to_the_end(0)?;
        bench.check().map_err(|error| format!("{armed}, to {to}: {error}"))?;
    }
    Ok(held_for(rounds, None, format!("{} records, some of them many times", bench.end)))
}

fn reset_zombie(context: &Context) -> Result<Outcome, String> {
    if !cfg!(debug_assertions) || state(std::process::id()).is_none() {
        return Ok(not_possible("it takes fail points and /proc"));
    }
    let rounds = context.rounds_of(1, 10);
    let mut bench = Bench::new(context)?;
    let mut refused = 0;
    for round in 0..rounds {
        // Not behind what all have by now: a reset that leads forward passes over records, as it says.
        let to = bench.random.i64(0..bench.end);
        let mut zombie = bench.freeze_one()?;
        refused += bench.reset_when_alone(to)?;
        let mut successor = bench.lab.run()?;
        if bench.random.bool() {
            let end = bench.end;
            until_ok("the successor has read everything", LIMIT, || bench.stand_at(end))?;
        }
        zombie.thaw();
        bench.grow()?;
        let end = bench.end;
        until_ok("both have read everything", LIMIT, || bench.stand_at(end))?;
        zombie.drain()?;
        successor.drain()?;
        bench.lab.run_to_the_end(0)?;
        bench.check().map_err(|error| format!("round {round}, to {to}: {error}"))?;
    }
    Ok(held_for(rounds, None, format!("{} records; {refused} times refused while it lived", bench.end)))
}

fn adopt(context: &Context) -> Result<Outcome, String> {
    if !cfg!(debug_assertions) || state(std::process::id()).is_none() {
        return Ok(not_possible("it takes fail points and /proc"));
    }
    let rounds = context.rounds_of(2, 24);
    let mut bench = Bench::new(context)?;
    for round in 0..rounds {
        let (former, name) = (bench.route.clone(), format!("route{}", round + 1));
        if round % 2 == 0 {
            bench.name_route(&name, Some(&former))?;
            let (point, nth) = (bench.one_of(&ADOPT), bench.random.u32(1..=2));
            let armed = format!("{point}:{nth}=kill");
            let mut killed = bench.lab.stand.start(&[(VARIABLE, armed.as_str())])?;
            let code = killed.wait(&format!("it is killed at {armed}"), LIMIT)?;
            ensure(code.is_none(), || {
                format!("it ended with {code:?}, not at {armed}:\n{}", tail(&killed.log()))
            })?;
        } else {
            let mut zombie = bench.freeze_one()?;
            bench.name_route(&name, Some(&former))?;
            // It waits until the session of the frozen one is over.
            bench.lab.run_to_the_end(0)?;
            zombie.thaw();
            await_said(&mut zombie, &["route stopped", "was taken over"])?;
            zombie.kill();
        }
        bench.grow()?;
        bench.lab.run_to_the_end(0)?;
        bench.check().map_err(|error| format!("round {round}: {error}"))?;
    }
    Ok(held_for(rounds, None, format!("{} records under {} names", bench.end, rounds + 1)))
}
