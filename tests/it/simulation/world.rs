//! The world around the core: who does what next, what fails, and what has to hold.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use sidestream::config::plan::OnDataLoss;
use sidestream::kafka::Commit;
use sidestream::model::metadata::{GroupMetadata, IdentityHash};
use sidestream::model::{Move, Offset, Positions, Reason, Start, TopicPartition};

use super::cluster::{Cluster, Dice};
use super::instance::{Instance, LANES};
use super::lane::{GROUP_IDENTITY, Setback};
use super::targets::{Delivered, Feed, Row, Target, is_bad};
use super::{Flaw, Scope};

mod operators;

/// The target of the dead letters.
pub const LETTERS: usize = 2;

/// Steps of one seed.
pub const STEPS: usize = 400;

/// What is added to a partition at once, in place of one append: sinks are to be far behind.
const APPENDS_WHOLE: usize = 4;

/// Rounds until everything has to be read; partitions have some hundreds of offsets.
const ROUNDS_MAX: usize = 500;

/// Batches of a lane in one such round.
const BATCHES: usize = 5;

/// What an instance may do in a step, and what may be done to it.
const ACTIONS: u64 = 16;
const ACTIONS_WHOLE: u64 = 24;
const DISTURBANCES: u64 = 8;
const DISTURBANCES_WHOLE: u64 = 10;

/// Steps that are shown when a seed fails.
const SHOWN: usize = 30;

/// All that is not in a process of ours.
pub struct Outside {
    pub dice: Dice,
    pub cluster: Cluster,
    pub targets: Vec<Target>,
    pub delivered: Delivered,
    pub start: Start,
    pub now: Instant,
    pub scope: Scope,
    pub on_data_loss: OnDataLoss,
    /// The name under which the latest deployment writes.
    owner: u64,
    pub flaw: Option<Flaw>,
    /// Nothing fails any more.
    pub is_calm: bool,
}

impl Outside {
    pub fn fails(&mut self, sides: u64) -> bool {
        !self.is_calm && self.dice.one_in(sides)
    }

    /// Where `owner` stands in a target.
    pub fn read_own(&mut self, (place, owner): (usize, u64)) -> Result<Positions, Setback> {
        if self.fails(20) {
            return Err(Setback::Passes);
        }
        self.targets[place].open(owner, self.flaw)
    }

    /// Rows and moves of a sink whose target compares. An error says nothing of what was done.
    pub fn write_own(
        &mut self,
        (place, owner): (usize, u64),
        moves: &[Move],
        rows: &[Row],
    ) -> Result<Positions, Setback> {
        if self.fails(12) {
            return Err(Setback::Passes);
        }
        self.check_loss(moves);
        let target = &mut self.targets[place];
        target.apply(owner, (moves, rows), &self.cluster, self.flaw)?;
        if place < LETTERS {
            self.check_letters(place, moves);
        }
        if self.fails(12) {
            // Done, and the reply is lost.
            return Err(Setback::Passes);
        }
        self.targets[place].positions_of(owner)
    }

    /// Rows of a sink whose target keeps no positions: some of them may have arrived whatever the answer is.
    pub fn write_group(&mut self, moves: &[Move], rows: &[Row]) -> Result<(), Setback> {
        self.check_loss(moves);
        let is_failing = self.fails(8);
        let count = if is_failing { self.dice.pick(rows.len() + 1) } else { rows.len() };
        self.delivered.take(&rows[..count]);
        for step in moves {
            // A member that slept may still know of a former topic, which was longer.
            if step.reason == Reason::Lost && step.start.is_some_and(|at| at < step.end.next) {
                self.delivered.lose(step, &self.cluster);
            }
        }
        if is_failing { Err(Setback::Passes) } else { Ok(()) }
    }

    /// Nothing is passed over as lost before somebody has said so.
    fn check_loss(&self, moves: &[Move]) {
        let lost = moves.iter().find(|step| step.reason == Reason::Lost);
        assert!(self.on_data_loss == OnDataLoss::Continue || lost.is_none(), "{lost:?} is passed over");
    }

    /// No bad record that is nowhere lies behind a sibling of the dead letters, which it has moved past by itself: where it
    /// began later, was moved on by an operator, or has lost records, the dead letters come at their own pace.
    fn check_letters(&self, place: usize, moves: &[Move]) {
        let target = &self.targets[place];
        for step in moves {
            let (Some(settled), Some(next)) = (self.targets[LETTERS].next(&step.key), target.next(&step.key))
            else {
                continue;
            };
            let log = self.cluster.log(&step.key);
            let mut passed = log.records(settled.get().max(log.first), next.get());
            let nowhere =
                passed.find(|(offset, _)| is_bad(*offset) && !target.is_left_out(&step.key, *offset));
            assert_eq!(nowhere, None, "moved past a bad record of {:?} that is nowhere", step.key);
        }
    }

    /// Where the group has the sink that has no other place.
    fn stands_of_group(&self, source: &TopicPartition) -> Option<Offset> {
        let (next, text) = self.cluster.committed.get(source)?;
        let metadata = GroupMetadata::parse(text).unwrap();
        Some(metadata.position(&IdentityHash::of(GROUP_IDENTITY)).unwrap_or(*next))
    }

    /// Takes a commit of a member: never more than is durable where nothing catches up (`apart`), nothing of somebody
    /// else's.
    pub fn commit(&mut self, member: usize, commit: &Commit, apart: &BTreeSet<usize>) -> bool {
        if !self.cluster.commit(member, commit) {
            return false;
        }
        let key = self.cluster.key(&commit.source).unwrap();
        let front = self.targets.iter().enumerate().filter(|(place, _)| !apart.contains(place));
        for (place, target) in front {
            let durable = target.next(&key);
            assert!(
                durable.is_some_and(|durable| commit.next <= durable),
                "{commit:?} is committed, and target {place} stands at {durable:?}"
            );
        }
        let metadata = GroupMetadata::parse(&commit.metadata).unwrap();
        let next = metadata.position(&IdentityHash::of(GROUP_IDENTITY)).unwrap_or(commit.next);
        self.delivered.check(&key, next.get(), &self.cluster);
        true
    }
}

pub struct World {
    outside: Outside,
    instances: Vec<Instance>,
    /// The last steps, if somebody wants to see them.
    shown: Option<VecDeque<String>>,
    pub step_count: u64,
}

impl World {
    pub fn new(seed: u64, scope: Scope, flaw: Option<Flaw>, is_shown: bool) -> Self {
        let mut dice = Dice(seed);
        let mut cluster = Cluster::new(&mut dice);
        let start = if dice.one_in(3) { Start::Latest } else { Start::Earliest };
        let instance_count = 1 + dice.pick(3);
        let mut on_data_loss = OnDataLoss::Continue;
        if scope == Scope::Whole {
            for source in cluster.sources() {
                (0..APPENDS_WHOLE).for_each(|_| cluster.append(&source, &mut dice));
            }
            if dice.one_in(4) {
                on_data_loss = OnDataLoss::Stop;
            }
        }
        let feeds = [Feed::Good, Feed::Good, Feed::Letters, Feed::All];
        Self {
            outside: Outside {
                dice,
                cluster,
                targets: feeds.map(Target::new).into_iter().collect(),
                delivered: Delivered::default(),
                start,
                now: Instant::now(),
                scope,
                on_data_loss,
                owner: 0,
                flaw,
                is_calm: false,
            },
            instances: (0..instance_count).map(|member| Instance::new(member, scope, flaw, 0)).collect(),
            shown: is_shown.then(VecDeque::new),
            step_count: 0,
        }
    }

    pub fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
            self.instances.iter().for_each(Instance::check);
        }
        self.drain();
        self.audit();
    }

    /// The last steps, one a line.
    pub fn shown(&self) -> String {
        self.shown.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        self.step_count += 1;
        let number = self.step_count;
        if let Some(shown) = &mut self.shown {
            if shown.len() == SHOWN {
                shown.pop_front();
            }
            shown.push_back(format!("{number}: {}", text()));
        }
    }

    fn step(&mut self) {
        if self.outside.dice.one_in(12) {
            return self.disturb();
        }
        if self.outside.dice.one_in(10) {
            return self.brokers();
        }
        let index = self.outside.dice.pick(self.instances.len());
        let place = self.outside.dice.pick(LANES);
        let actions = if self.outside.scope == Scope::Whole { ACTIONS_WHOLE } else { ACTIONS };
        let action = self.outside.dice.roll(actions);
        self.note(|| format!("instance {index}, lane {place}, action {action}"));
        let Self { outside, instances, .. } = self;
        let instance = &mut instances[index];
        if instance.is_asleep {
            return;
        }
        outside.now += Duration::from_millis(outside.dice.roll(60));
        // A lane does what it was told before anything else.
        instance.lanes[place].obey_all(outside);
        match action {
            0 => instance.ask_committed(outside),
            1 => instance.hear(outside),
            2 | 3 => instance.lanes[place].resume(outside),
            4 | 5 => instance.fetch_any(outside),
            6 | 7 => instance.lanes[place].deliver(outside),
            8 | 9 => instance.lanes[place].batch(outside),
            10 => instance.lanes[place].recover(outside),
            11 | 12 => {
                let lane = &mut instance.lanes[place];
                let sink = outside.dice.pick(lane.sink_count());
                lane.flush_due(sink, outside);
            }
            13 => instance.send_commit(),
            14 => instance.finish_commit(outside),
            // What a lane does whenever something has happened.
            15 => (0..LANES).for_each(|place| {
                instance.lanes[place].obey_all(outside);
                instance.lanes[place].recover(outside);
                instance.lanes[place].resume(outside);
                instance.lanes[place].batch(outside);
            }),
            16..=18 => instance.look(outside),
            19 | 20 => instance.fetch_behind_any(outside),
            21 if outside.dice.one_in(3) => instance.on_held(place, outside),
            22 if outside.dice.one_in(5) => instance.lose_reader(place, outside),
            // Time passes.
            _ => {}
        }
        instance.collect();
        // The engine is faster than its lanes, mostly.
        if !outside.dice.one_in(4) {
            instance.hear_all(outside);
        }
    }

    /// What happens to topics, and the time that passes.
    fn brokers(&mut self) {
        let sources = self.outside.cluster.sources();
        let source = sources[self.outside.dice.pick(sources.len())].clone();
        let action = self.outside.dice.roll(24);
        self.note(|| format!("brokers, {source}, action {action}"));
        let is_cut_off = self.outside.scope == Scope::Whole && self.is_cut_off(&source);
        let Outside { dice, cluster, now, scope, .. } = &mut self.outside;
        match action {
            // What is written before anybody looks is passed over, or taken for what was there: documented limits.
            0..=11 if is_cut_off => {}
            0..=11 if *scope == Scope::Whole => {
                (0..APPENDS_WHOLE).for_each(|_| cluster.append(&source, dice));
            }
            0..=11 => cluster.append(&source, dice),
            12 | 13 => cluster.elect(&source),
            14 => cluster.expire(&source, dice),
            15 => cluster.grow(&source.topic),
            16 if dice.one_in(4) => {
                let gone: Vec<TopicPartition> =
                    sources.into_iter().filter(|other| other.topic == source.topic).collect();
                // Who is awake gives it up; others learn of it when they wake.
                for instance in self.instances.iter_mut().filter(|instance| !instance.is_asleep) {
                    instance.revoke(&gone, true, &mut self.outside);
                }
                self.outside.cluster.recreate(&source.topic);
            }
            _ => *now += Duration::from_millis(dice.roll(2000)),
        }
    }

    fn disturb(&mut self) {
        let index = self.outside.dice.pick(self.instances.len());
        let actions = if self.outside.scope == Scope::Whole { DISTURBANCES_WHOLE } else { DISTURBANCES };
        let action = self.outside.dice.roll(actions);
        self.note(|| format!("instance {index} is disturbed, action {action}"));
        match action {
            // kill -9: whatever is in memory is gone.
            0 => self.restart(index),
            // SIGSTOP, and its session may end before it goes on.
            1 => self.instances[index].is_asleep = true,
            2 if self.instances[index].is_asleep => {
                self.outside.cluster.owner.retain(|_, owner| *owner != index);
            }
            3 => self.instances[index].is_asleep = false,
            4 if !self.instances[index].is_asleep => self.instances[index].learn(&mut self.outside),
            DISTURBANCES => self.maintain(),
            9 => self.rename(index),
            _ => self.rebalance(index),
        }
    }

    /// An instance is gone, and another one of the latest deployment is there in its place.
    fn restart(&mut self, index: usize) {
        let Outside { cluster, scope, flaw, owner, .. } = &mut self.outside;
        cluster.owner.retain(|_, owner| *owner != index);
        self.instances[index] = Instance::new(index, *scope, *flaw, *owner);
    }

    /// A partition goes to another member.
    fn rebalance(&mut self, to: usize) {
        let sources = self.outside.cluster.sources();
        let source = sources[self.outside.dice.pick(sources.len())].clone();
        if !self.instances[to].is_asleep {
            self.hand_over(source, to);
        }
    }

    fn hand_over(&mut self, source: TopicPartition, to: usize) {
        let from = self.outside.cluster.owner.get(&source).copied();
        if from == Some(to) {
            return;
        }
        if let Some(from) = from.filter(|from| !self.instances[*from].is_asleep) {
            let is_lost = self.outside.fails(5);
            self.instances[from].revoke(std::slice::from_ref(&source), is_lost, &mut self.outside);
        }
        // It hears first of what it has lost while it was away.
        self.instances[to].learn(&mut self.outside);
        self.outside.cluster.owner.insert(source.clone(), to);
        self.instances[to].give(source);
    }

    /// Nothing fails any more: one instance reads everything to the end.
    fn drain(&mut self) {
        self.note(|| "the rest is read".to_owned());
        self.outside.is_calm = true;
        let to = self.outside.dice.pick(self.instances.len());
        for instance in &mut self.instances {
            instance.is_asleep = false;
            instance.learn(&mut self.outside);
        }
        if self.outside.scope == Scope::Whole {
            self.look_after_all();
        }
        for source in self.outside.cluster.sources() {
            self.hand_over(source, to);
        }
        for _ in 0..ROUNDS_MAX {
            self.step_count += 1;
            let Self { outside, instances, .. } = self;
            outside.now += Duration::from_secs(20);
            round(&mut instances[to], outside);
            instances.iter().for_each(Instance::check);
            if self.is_drained(to) {
                return;
            }
        }
        let ends = |source: &TopicPartition| {
            let key = self.outside.cluster.key(source).unwrap();
            let stand: Vec<_> = self.outside.targets.iter().map(|target| target.next(&key)).collect();
            let committed = self.outside.cluster.committed.get(source);
            (source.clone(), self.outside.cluster.log(&key).end(), stand, committed.cloned())
        };
        let sources = self.outside.cluster.sources();
        panic!("it does not come to an end: {:?}", sources.iter().map(ends).collect::<Vec<_>>());
    }

    fn is_drained(&self, to: usize) -> bool {
        let outside = &self.outside;
        let is_read = |source: &TopicPartition| {
            let key = outside.cluster.key(source).unwrap();
            let end = outside.cluster.log(&key).end();
            let committed = outside.cluster.committed.get(source).map(|(next, _)| *next);
            // What was committed of records that are gone stays: commits never go back. Nor do they wait for a sink that
            // catches up.
            let most = outside.cluster.log(&key).former_end.max(end);
            let is_end = |next: Offset| (end..=most).contains(&next.get());
            outside.targets.iter().all(|target| target.next(&key).is_some_and(|next| next.get() == end))
                && committed.is_some_and(is_end)
                && outside.stands_of_group(source).is_some_and(is_end)
        };
        outside.cluster.sources().iter().all(is_read)
            && self.instances[to].lanes.iter().all(|lane| lane.is_idle())
    }

    fn audit(&mut self) {
        let Outside { cluster, targets, delivered, .. } = &mut self.outside;
        for source in cluster.sources() {
            let key = cluster.key(&source).unwrap();
            targets.iter().for_each(|target| target.audit(&key, cluster));
            delivered.check(&key, cluster.log(&key).end(), cluster);
        }
        for lane in self.instances.iter_mut().flat_map(|instance| &mut instance.lanes) {
            lane.inbox.clear();
            lane.behind_inbox.clear();
            let held = lane.held() + lane.behind_held();
            assert_eq!(held, 0, "a lane without partitions or with nothing left to read holds bytes");
        }
    }
}

/// All that one instance can do, once.
fn round(instance: &mut Instance, outside: &mut Outside) {
    instance.ask_committed(outside);
    if outside.scope == Scope::Whole {
        instance.look(outside);
    }
    for lane in &mut instance.lanes {
        lane.obey_all(outside);
        lane.recover(outside);
        lane.resume(outside);
    }
    instance.hear_all(outside);
    instance.finish_commit(outside);
    instance.fetch_all(outside);
    for lane in &mut instance.lanes {
        lane.obey_all(outside);
        while lane.has_chunks() {
            lane.deliver(outside);
        }
        (0..BATCHES).for_each(|_| lane.batch(outside));
        lane.flush_all(outside);
    }
    instance.hear_all(outside);
    instance.send_commit();
    instance.finish_commit(outside);
}
