//! Members of one group that come and go, that have different files, and a second deployment by mistake.

use std::time::{Duration, Instant};

use super::{Context, Outcome, Scenario, conclude};
use crate::stand::{FLOW_LIMIT, Instance, Stand, StandOptions, all_alive, eventually, pause, tail};
use crate::workload::{Workload, topics};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "members-come-and-go",
        about: "up to three instances, one joins or leaves every 3 s, some by kill -9",
        row: "6 rebalance storm (cooperative; the program knows no other)",
        in_ci: true,
        run: storm,
    },
    Scenario {
        name: "rolling-restart",
        about: "three instances are restarted one after the other",
        row: "6 rolling restart",
        in_ci: false,
        run: rolling,
    },
    Scenario {
        name: "two-files",
        about: "members whose files lack different routes; each keeps to its own",
        row: "6 members with different files",
        in_ci: false,
        run: two_files,
    },
    Scenario {
        name: "two-deployments",
        about: "another group on the same directories: it stops with an error and writes nothing",
        row: "4 two deployments by mistake",
        in_ci: true,
        run: two_deployments,
    },
];

/// Instances at the same time.
const MEMBERS_MAX: usize = 3;

/// As the matrix has it: no rebalance is over for long before the next one begins.
const CHANGE_EVERY: Duration = Duration::from_secs(3);

/// Of members that leave, every fourth is killed: the group misses it a session later.
const KILLED: u32 = 4;

fn storm(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(6, 40);
    let mut random = context.random();
    let mut stand = Stand::new(context, StandOptions::default())?;
    let workload = Workload::start(&stand.options, 0);
    let mut members = vec![stand.start(&[])?];
    stand.await_growth(0, &mut members)?;
    for _ in 0..rounds {
        let is_join = members.len() < 2 || (members.len() < MEMBERS_MAX && random.bool());
        if is_join {
            members.push(stand.start(&[])?);
        } else {
            let mut leaver = members.swap_remove(random.usize(..members.len()));
            if random.u32(..KILLED) == 0 {
                leaver.kill();
            } else {
                leaver.drain()?;
            }
        }
        pause(CHANGE_EVERY);
        members.iter_mut().try_for_each(Instance::expect_running)?;
    }
    let since = Instant::now();
    let before = stand.counts();
    stand.await_growth_everywhere(&before, &mut members)?;
    let recovery = since.elapsed();
    let manifest = workload.stop()?;
    members.iter_mut().try_for_each(Instance::drain)?;
    conclude(&mut stand, &manifest, rounds, Some(recovery))
}

fn rolling(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 5);
    let mut stand = Stand::new(context, StandOptions::default())?;
    let workload = Workload::start(&stand.options, 0);
    let mut members = Vec::new();
    for _ in 0..MEMBERS_MAX {
        members.push(stand.start(&[])?);
    }
    stand.await_growth(0, &mut members)?;
    let mut recovery = Duration::ZERO;
    for _ in 0..rounds {
        for index in 0..MEMBERS_MAX {
            members[index].drain()?;
            members[index] = stand.start(&[])?;
            let since = Instant::now();
            let assigned = || members[index].said(&["\"assigned\""]) > 0;
            eventually("the new one has partitions", FLOW_LIMIT, assigned)?;
            let before = stand.counts();
            stand.await_growth_everywhere(&before, &mut members)?;
            recovery = recovery.max(since.elapsed());
        }
    }
    let manifest = workload.stop()?;
    members.iter_mut().try_for_each(Instance::drain)?;
    conclude(&mut stand, &manifest, rounds, Some(recovery))
}

/// A group's partitions of a topic go only to members that subscribe to it, and what a member commits leaves words of
/// sinks that it does not know as they are (PROTOCOL §3).
fn two_files(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 5);
    let mut stand = Stand::new(context, StandOptions::default())?;
    let names = topics(&stand.options);
    let (Some(first), Some(last)) = (names.first(), names.last()) else {
        return Err("the workload has no topics".to_owned());
    };
    let text = stand.routes();
    stand.write_file(WITHOUT_LAST, &without_route(&text, last)?)?;
    stand.write_file(WITHOUT_FIRST, &without_route(&text, first)?)?;
    let workload = Workload::start(&stand.options, 0);
    let mut recovery = Duration::ZERO;
    for _ in 0..rounds {
        let mut members = vec![stand.start_file(WITHOUT_LAST)?, stand.start_file(WITHOUT_FIRST)?];
        let since = Instant::now();
        // What only one of them reads comes from that one, so both are at work.
        let is_given = |index: usize, topic: &str| members[index].said(&["\"assigned\"", topic]) > 0;
        eventually("each has the topic of its own", FLOW_LIMIT, || is_given(0, first) && is_given(1, last))?;
        if is_given(0, last) || is_given(1, first) {
            return Err("a member was given a topic that its file does not name".to_owned());
        }
        let before = stand.counts();
        stand.await_growth_everywhere(&before, &mut members)?;
        recovery = recovery.max(since.elapsed());
        // The topics both read go to the one that is left, and the others wait for their reader.
        members[0].kill();
        let seen = stand.file_count();
        stand.await_growth(seen, &mut members[1..])?;
        members[1].drain()?;
    }
    let manifest = workload.stop()?;
    conclude(&mut stand, &manifest, rounds, Some(recovery))
}

const WITHOUT_FIRST: &str = "without-first.yaml";
const WITHOUT_LAST: &str = "without-last.yaml";

fn two_deployments(context: &Context) -> Result<Outcome, String> {
    let mut stand = Stand::new(context, StandOptions::default())?;
    let route_count = topics(&stand.options).len();
    let other_group = format!("{}-other", stand.group);
    let text = stand.routes().replace(&stand.group, &other_group);
    stand.write_file(OTHER, &text)?;
    let workload = Workload::start(&stand.options, 0);
    let mut one = [stand.start(&[])?];
    stand.await_growth(0, &mut one)?;
    let before = stand.counts();
    stand.await_growth_everywhere(&before, &mut one)?;

    // Beside the first one, as a service.
    let mut other = stand.start_file(OTHER)?;
    all_alive("all routes of the second deployment stop", FLOW_LIMIT, &mut one, || {
        other.said(&["route stopped", FOREIGN]) >= route_count
    })?;
    if other.said(&["first sight"]) > 0 {
        return Err(format!("the second deployment stored positions:\n{}", tail(&other.log())));
    }
    let before = stand.counts();
    stand.await_growth_everywhere(&before, &mut one)?;
    // It may have ended by itself, which is as good.
    if other.is_running() {
        other.drain()?;
    }

    // Alone, up to an end: nothing but the second one could write now.
    let manifest = workload.stop()?;
    one[0].drain()?;
    let before = stand.everything();
    let ended = stand.bounded(OTHER)?;
    if ended.code != Some(1) || !ended.output.contains(FOREIGN) {
        let (code, output, log) = (ended.code, ended.output, tail(&ended.log));
        return Err(format!("the second deployment ended with {code:?}:\n{output}\n{log}"));
    }
    if stand.everything() != before {
        return Err("the second deployment has changed the directories".to_owned());
    }
    conclude(&mut stand, &manifest, 1, None)
}

const OTHER: &str = "other.yaml";

/// How the error begins that names whose directory it is.
const FOREIGN: &str = "belongs to sink";

/// The text of a routes file without the route that reads a topic. Routes are what stands below `routes:` with the
/// smallest indentation.
fn without_route(text: &str, topic: &str) -> Result<String, String> {
    let at = text.find("\nroutes:\n").ok_or("the routes file has no `routes:`")? + "\nroutes:\n".len();
    let (head, routes) = text.split_at(at);
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let smallest = routes.lines().next().map(indentation).unwrap_or_default();
    let mut blocks: Vec<String> = Vec::new();
    for line in routes.lines() {
        if indentation(line) <= smallest || blocks.is_empty() {
            blocks.push(String::new());
        }
        if let Some(block) = blocks.last_mut() {
            block.push_str(line);
            block.push('\n');
        }
    }
    let kept: Vec<String> = blocks.iter().filter(|block| !block.contains(topic)).cloned().collect();
    if kept.len() + 1 != blocks.len() {
        return Err(format!("no single route reads {topic}"));
    }
    Ok(format!("{head}{}", kept.concat()))
}
