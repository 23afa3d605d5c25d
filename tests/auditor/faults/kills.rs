//! kill -9, zombies, and ends in good order: whatever ends an instance, what it left is neither lost nor doubled.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::{Context, Outcome, Scenario, conclude};
use crate::stand::{FLOW_LIMIT, Instance, Stand, StandOptions, eventually, pause};
use crate::workload::Workload;

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "kill-9",
        about: "killed at random moments, also while it starts, and started again",
        row: "1 kill -9 at random",
        in_ci: true,
        run: kill,
    },
    Scenario {
        name: "zombie",
        about: "one of two is stopped until the other has written its partitions, then goes on",
        row: "3 zombie",
        in_ci: true,
        run: zombie,
    },
    Scenario {
        name: "term-under-load",
        about: "SIGTERM drains and ends with 0; a second one ends at once",
        row: "34 SIGTERM under load",
        in_ci: true,
        run: term,
    },
];

/// Of these rounds one is killed without waiting for rows: before the group, before positions, before the first file.
const EARLY_EVERY: u32 = 5;

/// A start after a kill writes within this time: the session of the killed member is 3 s of it. Machines with two cores
/// run the brokers and the workload at the same time.
const RESTART_MAX: Duration = Duration::from_secs(30);

/// As the matrix has it: the default of 45 s would make every round a minute.
const ZOMBIE_SESSION: [(&str, &str); 2] = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "500")];

/// For an end at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Anywhere in the work of batches, files and commits.
fn moment(random: &mut Rng) -> Duration {
    Duration::from_millis(random.u64(200..3000))
}

fn kill(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(5, 50);
    let mut random = context.random();
    let mut stand = Stand::new(context, StandOptions::default())?;
    let workload = Workload::start(&stand.options, 0);
    let mut recovery = Duration::ZERO;
    for round in 1..=rounds {
        let seen = stand.file_count();
        let since = Instant::now();
        let mut instance = stand.start(&[])?;
        if round % EARLY_EVERY != 0 {
            stand.await_growth(seen, std::slice::from_mut(&mut instance))?;
            recovery = recovery.max(since.elapsed());
        }
        pause(moment(&mut random));
        instance.expect_running()?;
        instance.kill();
    }
    let manifest = workload.stop()?;
    let outcome = conclude(&mut stand, &manifest, rounds, Some(recovery))?;
    let (slowest, limit) = (recovery.as_secs(), RESTART_MAX.as_secs());
    if slowest > limit && outcome.lost + outcome.doubled == 0 {
        return Err(format!("a restart took {slowest} s, more than {limit} s; {}", outcome.note));
    }
    Ok(outcome)
}

/// How often the group has given it partitions.
fn assigned(instance: &Instance) -> usize {
    instance.said(&["\"assigned\""])
}

fn zombie(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 10);
    let mut random = context.random();
    let options = StandOptions { kafka: ZOMBIE_SESSION.to_vec(), ..StandOptions::default() };
    let mut stand = Stand::new(context, options)?;
    let workload = Workload::start(&stand.options, 0);
    let mut pair = [stand.start(&[])?, stand.start(&[])?];
    let both = || pair.iter().all(|instance| assigned(instance) > 0);
    eventually("both have partitions", FLOW_LIMIT, both)?;
    let mut recovery = Duration::ZERO;
    for round in 0..rounds {
        let before = stand.counts();
        stand.await_growth_everywhere(&before, &mut pair)?;
        pause(moment(&mut random));
        // Each of them has its turn.
        let (first, second) = pair.split_at_mut(1);
        let (asleep, awake) = if round % 2 == 0 { (first, second) } else { (second, first) };
        let (asleep, awake) = (&mut asleep[0], &mut awake[0]);
        let had = assigned(awake);
        asleep.freeze();
        eventually("the other one gets its partitions", FLOW_LIMIT, || assigned(awake) > had)?;
        // Partitions share batches and files: what flows three times over has moved all of them.
        for _ in 0..3 {
            let before = stand.counts();
            stand.await_growth_everywhere(&before, std::slice::from_mut(awake))?;
        }
        let had = assigned(asleep);
        asleep.thaw();
        let since = Instant::now();
        eventually("the zombie is a member again", FLOW_LIMIT, || assigned(asleep) > had)?;
        let before = stand.counts();
        stand.await_growth_everywhere(&before, &mut pair)?;
        recovery = recovery.max(since.elapsed());
    }
    let manifest = workload.stop()?;
    for instance in &mut pair {
        instance.drain()?;
    }
    conclude(&mut stand, &manifest, rounds, Some(recovery))
}

fn term(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 5);
    let mut random = context.random();
    // It is frozen here, so it has to be its own.
    let mut stand = Stand::new(context, StandOptions { brokers: 1, ..StandOptions::default() })?;
    let workload = Workload::start(&stand.options, 0);
    let mut longest = Duration::ZERO;
    let mut recovery = Duration::ZERO;
    for _ in 0..rounds {
        let mut instance = flowing(&mut stand, &mut recovery)?;
        pause(moment(&mut random));
        let since = Instant::now();
        instance.drain()?;
        longest = longest.max(since.elapsed());
        if instance.said(&["draining"]) == 0 {
            return Err("an instance ended after SIGTERM without draining".to_owned());
        }
        let mut instance = flowing(&mut stand, &mut recovery)?;
        pause(moment(&mut random));
        twice(&stand, &mut instance)?;
    }
    let manifest = workload.stop()?;
    let mut outcome = conclude(&mut stand, &manifest, rounds, Some(recovery))?;
    outcome.note = format!("drained within {:.1} s; {}", longest.as_secs_f64(), outcome.note);
    Ok(outcome)
}

/// An instance that writes, and how long it took to.
fn flowing(stand: &mut Stand, recovery: &mut Duration) -> Result<Instance, String> {
    let seen = stand.file_count();
    let since = Instant::now();
    let mut instance = stand.start(&[])?;
    stand.await_growth(seen, std::slice::from_mut(&mut instance))?;
    *recovery = since.elapsed().max(*recovery);
    Ok(instance)
}

/// SIGTERM twice. The broker does not answer meanwhile, so the first one is not over when the second one comes.
fn twice(stand: &Stand, instance: &mut Instance) -> Result<(), String> {
    for node in &stand.nodes {
        node.freeze();
    }
    instance.signal("TERM");
    let drains = || instance.said(&["draining"]) > 0;
    let asked = eventually("the first SIGTERM is taken", AT_ONCE, drains);
    instance.signal("TERM");
    let ended = instance.wait("the second SIGTERM ends it at once", AT_ONCE);
    for node in &stand.nodes {
        node.thaw();
    }
    asked?;
    match ended? {
        Some(1) => Ok(()),
        code => Err(format!("after a second SIGTERM an instance ended with {code:?}")),
    }
}
