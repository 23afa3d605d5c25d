//! Fail points: named places between two steps, at which a test kills, freezes or deceives the program
//! (`docs/decisions/0007-fail-points.md`).
//!
//! Builds with debug assertions have them; in releases a call is nothing. `SIDESTREAM_FAILPOINT=<name>=<action>` acts
//! when the process comes to the point for the first time, `<name>:<n>=<action>` the nth time:
//!
//! | action | what happens |
//! |---|---|
//! | `kill` | the process ends at once: nothing is flushed, nothing is dropped |
//! | `stop` | it is frozen as by SIGSTOP, until somebody sends SIGCONT |
//! | `error` | the step before, which was done, is told as failed: a lost reply |

/// A place between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub name: &'static str,
    /// What has happened when it is come to, and what has not.
    pub about: &'static str,
    /// The step before it can be told as failed.
    pub can_fail: bool,
}

/// A point that the program only passes.
const fn step(name: &'static str, about: &'static str) -> Point {
    Point { name, about, can_fail: false }
}

/// A point behind a step whose reply can be lost.
const fn reply(name: &'static str, about: &'static str) -> Point {
    Point { name, about, can_fail: true }
}

/// All points, in the order in which records come to them. `tests/auditor` reads these lines as text: one each.
#[rustfmt::skip]
pub const ALL: &[Point] = &[
    step("engine.assigned", "the group gave partitions; nobody was asked where they go on"),
    step("lane.start.storing", "where unseen partitions start is known and not stored"),
    step("lane.start.stored", "a sink has stored where unseen partitions start"),
    step("lane.ready.reported", "a lane has said where its partitions go on"),
    step("engine.assign.sent", "the source was told to fetch"),
    step("lane.batch.taken", "a batch was taken off the buffer"),
    step("lane.batch.decoded", "a batch is decoded; no sink has seen it"),
    step("lane.sink.writing", "the next sink is given the batch"),
    reply("lane.sink.written", "a sink has taken the batch, perhaps in memory"),
    step("letters.flushing", "dead letters are made durable next"),
    reply("letters.flushed", "dead letters are durable; their siblings are not flushed"),
    step("lane.sink.flushing", "a sink's rows are made durable next; dead letters before them are"),
    reply("lane.sink.flushed", "a sink's rows and positions are durable; the lane does not know"),
    step("lane.progress.reported", "the engine was told what is durable"),
    reply("file.directory.created", "a directory has its name, which is not durable"),
    reply("file.staged.created", "a staged file is there, and empty"),
    reply("file.rows.written", "rows are in a staged file, as far as its format writes them"),
    reply("file.data.written", "a staged file is whole and not synced"),
    reply("file.data.synced", "a staged file is synced; its name may not be"),
    reply("file.staged.synced", "all staged files of a commit are durable"),
    reply("file.targets.made", "the directories that files will be seen in are there"),
    reply("file.entry.written", "a temporary entry or checkpoint is whole and not synced"),
    reply("file.entry.synced", "a temporary entry or checkpoint is synced and has no number"),
    reply("file.entry.linked", "an entry or checkpoint has its number: the commit counts"),
    reply("file.entry.released", "its temporary name is gone; its number may not be durable"),
    reply("file.log.synced", "an entry or checkpoint is durable under its number"),
    reply("file.entry.owned", "the entry was read back and is ours; none of its files is in sight"),
    reply("file.data.linked", "one more file is in sight; its name is not durable"),
    reply("file.targets.synced", "all files of an entry are in sight for good; staged names are still there"),
    reply("file.staged.removed", "one more staged name is gone"),
    reply("file.checkpoint.created", "a checkpoint counts; no entry below it is gone"),
    reply("file.entry.removed", "one more entry below a checkpoint is gone"),
    reply("file.recovery.synced", "recovery has made the log durable as it was found"),
    reply("file.recovery.shown", "recovery has brought committed files into sight"),
    reply("file.orphan.removed", "recovery has deleted a staged file that no entry can list"),
    reply("file.temporary.removed", "recovery has deleted a temporary entry that was passed"),
    step("kafka.send.begun", "no record of a batch is sent"),
    step("kafka.send.half", "half of a batch is handed to the client"),
    reply("kafka.send.done", "all of a batch is handed to the client"),
    step("kafka.flush.begun", "the client is asked to deliver what it holds"),
    reply("kafka.flush.done", "the brokers have all records; the position has not moved"),
    reply("kafka.transaction.ready", "the producer's former namesakes are fenced; where the group stands is not read again"),
    reply("kafka.transaction.begun", "a transaction has begun, and has no record"),
    reply("kafka.transaction.delivered", "the brokers have all records of an open transaction; they have no offset of it"),
    reply("kafka.transaction.offsets", "the brokers have records and offsets of an open transaction"),
    reply("kafka.transaction.committed", "a transaction is committed; its sinks do not know"),
    reply("postgres.opened", "a session is open, its table found or created; no position is read"),
    reply("postgres.copied", "a batch is in the session's own table; the target knows nothing of it"),
    reply("postgres.merged", "a batch is in the target, in an open transaction"),
    reply("postgres.moved", "positions are compared and set, in an open transaction"),
    reply("postgres.committed", "a transaction is committed; the sink does not know"),
    reply("delta.table.opened", "a Delta table was found or created; no position is read"),
    reply("delta.file.synced", "a data file is durable; no entry of the log names it"),
    reply("delta.entry.written", "an entry of a Delta table's log is synced and has no number"),
    reply("delta.entry.linked", "an entry with rows and positions has its number: the commit counts"),
    reply("delta.entry.durable", "an entry is durable under its number"),
    reply("delta.committed", "an entry is durable; the sink does not know"),
    step("console.printed", "rows are on the screen; the position has not moved"),
    step("engine.commit.sending", "offsets are committed next"),
    step("engine.commit.sent", "a commit is handed over; its reply is not there"),
    reply("engine.commit.answered", "the brokers have answered a commit"),
    step("engine.revoked", "the group takes partitions away; their lanes were told"),
    step("lane.revoke.flushed", "a lane has flushed what it must give up, and still counts it as its own"),
    step("engine.release.sending", "lanes have given partitions up; the group is not answered"),
    step("engine.release.sent", "the group is answered"),
    step("lane.drained", "a lane has flushed all; the engine does not know"),
    step("engine.drained", "all lanes are drained; the last commit is not sent"),
    step("engine.leaving", "the last commit is answered; the group is not left"),
    reply("file.entry.adopted", "the positions of another owner were taken over; that one commits no more"),
    step("reset.moving", "`offsets reset` has found nobody in the group, and has moved nothing"),
    reply("reset.log.moved", "`offsets reset` has moved what stands in one more target; the group follows later"),
    reply("reset.group.moved", "`offsets reset` has moved the group's offsets, and does not know"),
];

#[cfg(debug_assertions)]
pub use armed::{check, hit};

/// Passes the fail point `name`.
#[cfg(not(debug_assertions))]
#[inline]
pub fn hit(_: &'static str) {}

/// Passes the fail point `name`.
///
/// # Errors
/// None in this build.
#[cfg(not(debug_assertions))]
#[inline]
pub fn check(_: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::{env, io, process};

    use tracing::error;

    use super::ALL;

    const VARIABLE: &str = "SIDESTREAM_FAILPOINT";

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Action {
        Kill,
        Stop,
        Error,
    }

    /// The one point that acts.
    #[derive(Debug)]
    pub struct Armed {
        name: String,
        nth: u64,
        action: Action,
        seen: AtomicU64,
    }

    impl Armed {
        /// Reads `name=action` or `name:nth=action`.
        ///
        /// # Errors
        /// What is wrong with it: a switch that does nothing would make a test of nothing pass.
        pub fn parse(text: &str) -> Result<Self, &'static str> {
            let (place, action) = text.split_once('=').ok_or("expected name[:nth]=kill|stop|error")?;
            let (name, nth) = place.split_once(':').unwrap_or((place, "1"));
            let nth = nth.parse().ok().filter(|nth| *nth > 0).ok_or("nth is a number from 1")?;
            let action = match action {
                "kill" => Action::Kill,
                "stop" => Action::Stop,
                "error" => Action::Error,
                _ => return Err("the action is kill, stop or error"),
            };
            let point = ALL.iter().find(|point| point.name == name).ok_or("there is no such fail point")?;
            if action == Action::Error && !point.can_fail {
                return Err("what is before this fail point cannot be told as failed");
            }
            Ok(Self { name: name.to_owned(), nth, action, seen: AtomicU64::new(0) })
        }

        /// What is to happen, now that `name` is come to once more.
        pub fn at(&self, name: &str) -> Option<Action> {
            if self.name != name {
                return None;
            }
            let seen = self.seen.fetch_add(1, Ordering::SeqCst) + 1;
            (seen == self.nth).then_some(self.action)
        }
    }

    fn armed() -> Option<&'static Armed> {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let read = || {
            let text = env::var(VARIABLE).ok()?;
            Some(Armed::parse(&text).unwrap_or_else(|problem| panic!("{VARIABLE}={text}: {problem}")))
        };
        ARMED.get_or_init(read).as_ref()
    }

    /// Passes the fail point `name`.
    ///
    /// # Panics
    /// If it is not in the table.
    #[track_caller]
    pub fn hit(name: &'static str) {
        if check(name).is_err() {
            unreachable!("`{name}` is a step, and `error` is refused for those");
        }
    }

    /// Passes the fail point `name`.
    ///
    /// # Errors
    /// If the step before is to be told as failed.
    ///
    /// # Panics
    /// If it is not in the table.
    #[track_caller]
    pub fn check(name: &'static str) -> io::Result<()> {
        assert!(ALL.iter().any(|point| point.name == name), "fail point `{name}` is not in the table");
        let Some(action) = armed().and_then(|armed| armed.at(name)) else {
            return Ok(());
        };
        error!(point = name, ?action, "fail point");
        match action {
            Action::Kill => process::abort(),
            Action::Stop => {
                freeze();
                Ok(())
            }
            Action::Error => Err(io::Error::other(format!("fail point `{name}`"))),
        }
    }

    /// Comes back after SIGCONT: the signal is sent before `kill` ends, and this thread waits for that.
    fn freeze() {
        let stopped = process::Command::new("kill").args(["-STOP", &process::id().to_string()]).status();
        if !stopped.is_ok_and(|status| status.success()) {
            error!("a process cannot be frozen here: there is no `kill`");
            process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Every call in the sources: the name, and whether its place can tell the step as failed. What a directory does an
    /// object store does in its way, at the same point.
    fn calls() -> Vec<(String, bool)> {
        let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        let (mut calls, mut stores) = (Vec::new(), Vec::new());
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if !path.ends_with("failpoint.rs") {
                    let is_store = path.components().any(|part| part.as_os_str() == "objects");
                    let text = std::fs::read_to_string(path).unwrap();
                    // `point` is how modules with errors of their own call `check`.
                    for (call, can_fail) in
                        [("failpoint::hit(\"", false), ("failpoint::check(\"", true), ("point(\"", true)]
                    {
                        let names = text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
                        let found = names.map(|name| (name.to_owned(), can_fail));
                        if is_store { stores.extend(found) } else { calls.extend(found) }
                    }
                }
            }
        }
        calls.sort_unstable();
        assert!(stores.iter().all(|call| calls.contains(call)), "{stores:?}");
        calls
    }

    #[test]
    fn every_point_of_the_table_is_one_place_in_the_sources_and_the_other_way_round() {
        let mut table: Vec<(String, bool)> =
            ALL.iter().map(|point| (point.name.to_owned(), point.can_fail)).collect();
        table.sort_unstable();
        assert_eq!(calls(), table);
    }

    #[cfg(debug_assertions)]
    #[test]
    fn a_point_acts_once_at_the_time_that_was_asked_for() {
        use super::armed::{Action, Armed};
        let armed = Armed::parse("lane.drained:2=kill").unwrap();
        let seen: Vec<Option<Action>> = ["lane.drained", "engine.drained", "lane.drained", "lane.drained"]
            .map(|name| armed.at(name))
            .into();
        assert_eq!(seen, [None, None, Some(Action::Kill), None]);
        assert_eq!(Armed::parse("lane.drained=stop").unwrap().at("lane.drained"), Some(Action::Stop));
        assert_eq!(
            Armed::parse("lane.sink.written=error").unwrap().at("lane.sink.written"),
            Some(Action::Error)
        );
    }

    #[cfg(debug_assertions)]
    #[test]
    fn a_switch_that_would_do_nothing_is_refused() {
        use super::armed::Armed;
        for text in ["", "lane.drained", "lane.drained=", "lane.drained:0=kill", "lane.drained:x=kill"] {
            assert!(Armed::parse(text).is_err(), "{text}");
        }
        assert_eq!(Armed::parse("nowhere=kill").unwrap_err(), "there is no such fail point");
        let step = Armed::parse("lane.drained=error").unwrap_err();
        assert!(step.contains("cannot be told as failed"));
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "is not in the table")]
    fn a_name_that_is_not_in_the_table_is_a_defect() {
        let name: &'static str = "nowhere";
        hit(name);
    }
}
