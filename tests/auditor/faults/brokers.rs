//! Brokers that die, restart, are away for a while, or were never there. The program waits: it does not exit, what it
//! holds does not grow, and rows flow again by themselves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Context, Outcome, Scenario, conclude};
use crate::probe::Stoppable;
use crate::stand::{FLOW_LIMIT, Instance, Stand, StandOptions, all_alive, eventually, pause};
use crate::workload::{Workload, topics};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "broker-kill-9",
        about: "the only broker is killed and comes back",
        row: "8 broker kill -9",
        in_ci: true,
        run: kill,
    },
    Scenario {
        name: "brokers-away",
        about: "all brokers are down for a minute (10 s in CI)",
        row: "8 all brokers down",
        in_ci: true,
        run: away,
    },
    Scenario {
        name: "broker-down-at-start",
        about: "the broker comes after the program",
        row: "9 broker down at start",
        in_ci: false,
        run: down_at_start,
    },
    Scenario {
        name: "leader-kill-9",
        about: "of three brokers the one that leads a partition is killed",
        row: "8 kill -9 of the leader",
        in_ci: false,
        run: leader,
    },
    Scenario {
        name: "coordinator-kill-9",
        about: "of three brokers the one that coordinates the group is killed",
        row: "10 coordinator lost",
        in_ci: false,
        run: coordinator,
    },
    Scenario {
        name: "broker-restarts",
        about: "three brokers are restarted in turn, again and again, with two members in the group",
        row: "8 broker rolling restart",
        in_ci: false,
        run: restarts,
    },
];

/// While nothing can be fetched nothing new is held; what an allocator and the client's own retries take is far less.
const GROWTH_MAX: u64 = 128 << 20;

/// How often an instance is looked at while brokers are away.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// One broker that nobody else uses.
const ALONE: usize = 1;
/// The smallest number of which one may be lost.
const CLUSTER: usize = 3;

fn options(brokers: usize) -> StandOptions {
    StandOptions { brokers, ..StandOptions::default() }
}

/// Lets the fault last. No instance may end meanwhile, and none may take much more memory.
fn last(time: Duration, instances: &mut [Instance]) -> Result<(), String> {
    let before: Vec<Option<u64>> = instances.iter().map(Instance::memory).collect();
    let since = Instant::now();
    while since.elapsed() < time {
        pause(LOOK_INTERVAL.min(time));
        for (instance, before) in instances.iter_mut().zip(&before) {
            instance.expect_running()?;
            if let (Some(before), Some(now)) = (*before, instance.memory())
                && now > before + GROWTH_MAX
            {
                return Err(format!("memory grew from {} to {} MiB", before >> 20, now >> 20));
            }
        }
    }
    Ok(())
}

/// One instance that writes everywhere.
fn flowing(stand: &mut Stand) -> Result<[Instance; 1], String> {
    let mut instance = [stand.start(&[])?];
    stand.await_growth_everywhere(&BTreeMap::new(), &mut instance)?;
    Ok(instance)
}

/// How long it takes until all routes flow.
fn recovered(stand: &Stand, instances: &mut [Instance]) -> Result<Duration, String> {
    let since = Instant::now();
    let before = stand.counts();
    stand.await_growth_everywhere(&before, instances)?;
    Ok(since.elapsed())
}

fn kill(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 10);
    let mut random = context.random();
    let mut stand = Stand::new(context, options(ALONE))?;
    let workload = Workload::start(&stand.options, 0);
    let mut instance = flowing(&mut stand)?;
    let mut recovery = Duration::ZERO;
    for _ in 0..rounds {
        pause(Duration::from_millis(random.u64(200..2000)));
        stand.kill_brokers();
        last(Duration::from_millis(random.u64(200..3000)), &mut instance)?;
        stand.restart_brokers()?;
        recovery = recovery.max(recovered(&stand, &mut instance)?);
    }
    let manifest = workload.stop()?;
    instance[0].drain()?;
    conclude(&mut stand, &manifest, rounds, Some(recovery))
}

fn away(context: &Context) -> Result<Outcome, String> {
    let time = context.lasting(Duration::from_secs(10), Duration::from_secs(60));
    let mut stand = Stand::new(context, options(ALONE))?;
    let workload = Workload::start(&stand.options, 0);
    let mut instance = flowing(&mut stand)?;
    stand.kill_brokers();
    last(time, &mut instance)?;
    stand.restart_brokers()?;
    let recovery = recovered(&stand, &mut instance)?;
    let manifest = workload.stop()?;
    instance[0].drain()?;
    conclude(&mut stand, &manifest, 1, Some(recovery))
}

fn down_at_start(context: &Context) -> Result<Outcome, String> {
    let time = context.lasting(Duration::from_secs(5), Duration::from_secs(60));
    let mut stand = Stand::new(context, options(ALONE))?;
    let mut manifest = Workload::write(&stand.options, 1000, 0)?;
    stand.kill_brokers();
    let mut instance = [stand.start(&[])?];
    let is_waiting = || instance[0].said(&["waiting for the brokers"]) > 0;
    eventually("it waits for the brokers", FLOW_LIMIT, is_waiting)?;
    last(time, &mut instance)?;
    stand.restart_brokers()?;
    let since = Instant::now();
    stand.await_growth(0, &mut instance)?;
    let recovery = since.elapsed();
    // And it goes on as if nothing had been.
    manifest.merge(Workload::write(&stand.options, 1000, 1000)?);
    instance[0].drain()?;
    conclude(&mut stand, &manifest, 1, Some(recovery))
}

/// The topic of the group's offsets has one partition here, and its leader coordinates all groups.
const OFFSETS: &str = "__consumer_offsets";

fn leader(context: &Context) -> Result<Outcome, String> {
    one_of_three(context, None)
}

fn coordinator(context: &Context) -> Result<Outcome, String> {
    one_of_three(context, Some(OFFSETS))
}

/// Kills the node that leads the first partition of a topic: the given one, else the workload's first. Rows have to flow
/// and be committed without that node, and everywhere when it is back.
fn one_of_three(context: &Context, given: Option<&str>) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 5);
    let mut random = context.random();
    let mut stand = Stand::new(context, options(CLUSTER))?;
    let read = topics(&stand.options).into_iter().next().ok_or("the workload has no topics")?;
    let led = given.unwrap_or(&read);
    let workload = Workload::start(&stand.options, 0);
    let mut instance = flowing(&mut stand)?;
    let mut recovery = Duration::ZERO;
    for _ in 0..rounds {
        pause(Duration::from_millis(random.u64(200..2000)));
        let node = stand.leader(led, 0)?;
        stand.nodes[node].kill();
        let since = Instant::now();
        all_alive("another node leads", FLOW_LIMIT, &mut instance, || {
            stand.leader(led, 0).is_ok_and(|leader| leader != node)
        })?;
        // What was fetched before may still be committed: two steps show that the new leader is read.
        for _ in 0..2 {
            commits(&stand, &read, &mut instance)?;
        }
        recovery = recovery.max(since.elapsed());
        recovered(&stand, &mut instance)?;
        stand.nodes[node].restart()?;
        recovered(&stand, &mut instance)?;
    }
    let manifest = workload.stop()?;
    instance[0].drain()?;
    conclude(&mut stand, &manifest, rounds, Some(recovery))
}

/// Waits until the group's offset of the topic's first partition grows.
fn commits(stand: &Stand, topic: &str, instances: &mut [Instance]) -> Result<(), String> {
    let mut before = None;
    all_alive("offsets are committed", FLOW_LIMIT, instances, || {
        let Ok(now) = stand.committed(topic, 0) else {
            return false;
        };
        now > *before.get_or_insert(now)
    })
}

fn restarts(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 5);
    let mut stand = Stand::new(context, options(CLUSTER))?;
    let workload = Workload::start(&stand.options, 0);
    let mut members = vec![stand.start(&[])?, stand.start(&[])?];
    stand.await_growth(0, &mut members)?;
    let mut recovery = Duration::ZERO;
    for _ in 0..rounds {
        for node in 0..CLUSTER {
            // In good order: its partitions and groups move first.
            stand.nodes[node].stop();
            stand.nodes[node].restart()?;
            recovery = recovery.max(recovered(&stand, &mut members)?);
        }
    }
    let manifest = workload.stop()?;
    members.iter_mut().try_for_each(Instance::drain)?;
    conclude(&mut stand, &manifest, rounds, Some(recovery))
}
