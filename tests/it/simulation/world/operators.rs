//! What people do between runs: ends and starts, `offsets reset`, adoptions; and a loss on the brokers that only a person
//! can make good.

use std::collections::BTreeMap;

use sidestream::config::plan::OnDataLoss;
use sidestream::model::TopicPartition;
use sidestream::model::metadata::{GroupMetadata, IdentityHash};

use super::super::Flaw;
use super::super::cluster::at;
use super::super::instance::{LANES, SEATS};
use super::super::lane::GROUP_IDENTITY;
use super::{Outside, World};

impl World {
    /// All that are awake end, some in good order, and others start. Between, sinks are moved, or records are lost.
    /// Members that sleep do so beyond that.
    pub(super) fn maintain(&mut self) {
        for index in 0..self.instances.len() {
            if self.instances[index].is_asleep {
                if self.outside.dice.one_in(2) {
                    self.outside.cluster.owner.retain(|_, owner| *owner != index);
                }
                continue;
            }
            if !self.outside.dice.one_in(3) {
                let owned = self.owned(index);
                self.instances[index].revoke(&owned, false, &mut self.outside);
            }
            self.restart(index);
        }
        match self.outside.dice.roll(4) {
            0 => self.truncate(),
            // Somebody has looked at what is lost, and lets it go.
            1 => self.outside.on_data_loss = OnDataLoss::Continue,
            _ => self.reset(),
        }
    }

    fn owned(&self, index: usize) -> Vec<TopicPartition> {
        let owner = self.outside.cluster.owner.iter().filter(|(_, owner)| **owner == index);
        owner.map(|(source, _)| source.clone()).collect()
    }

    /// `sidestream offsets reset`: one sink or all of a route, in one partition or all, to any offset that is there. Dead
    /// letters move with their route only.
    fn reset(&mut self) {
        // A member that sleeps, and whose session is not over, is one that lives.
        let is_alone = self.outside.cluster.owner.is_empty();
        if !is_alone && self.outside.flaw != Some(Flaw::ResetsIgnoreMembers) {
            return;
        }
        let lane = self.outside.dice.pick(LANES);
        let place = self.outside.dice.pick(2);
        let seats = if self.outside.dice.one_in(2) { SEATS[lane] } else { &SEATS[lane][place..=place] };
        let mut sources = self.outside.cluster.sources();
        if self.outside.dice.one_in(2) {
            let only = self.outside.dice.pick(sources.len());
            sources = vec![sources.swap_remove(only)];
        }
        for source in sources {
            self.reset_one(&source, SEATS[lane], seats);
        }
    }

    fn reset_one(&mut self, source: &TopicPartition, route: &[Option<usize>], seats: &[Option<usize>]) {
        let key = self.outside.cluster.key(source).unwrap();
        let (first, end) = {
            let log = self.outside.cluster.log(&key);
            (log.first, log.end())
        };
        let to = match self.outside.dice.roll(4) {
            0 => first,
            1 => end,
            _ => first + self.outside.dice.roll((end - first + 1) as u64) as i64,
        };
        let Outside { cluster, targets, delivered, .. } = &mut self.outside;
        let has_position = |seat: &Option<usize>| match seat {
            Some(target) => targets[*target].next(&key).is_some(),
            None => cluster.committed.contains_key(source),
        };
        if seats.iter().any(has_position) {
            route.iter().flatten().for_each(|target| targets[*target].follow(key));
        }
        for target in seats.iter().flatten() {
            targets[*target].reset(source, key, at(to), cluster);
        }
        let Some((before, text)) = cluster.committed.get(source).cloned() else {
            return;
        };
        // The group follows the lowest of all sinks, and keeps where the one stands that has no other place.
        let identity = IdentityHash::of(GROUP_IDENTITY);
        let mut metadata = GroupMetadata::parse(&text).unwrap();
        let stood = metadata.position(&identity).unwrap_or(before);
        let stands = if seats.contains(&None) { at(to) } else { stood };
        if stands < stood {
            delivered.begin_again(&key, stands.get());
        } else if stands > stood {
            delivered.skip(key, stood.get(), stands.get());
        }
        let lowest = targets.iter().filter_map(|target| target.next(&key)).chain([stands]).min();
        let next = lowest.unwrap_or(before);
        metadata.keep_positions(&BTreeMap::from([(identity, stands)]), next);
        cluster.committed.insert(source.clone(), (next, metadata.render().unwrap()));
    }

    /// An unclean election while everything is down: what the last records were is gone, and sinks may have them.
    fn truncate(&mut self) {
        (0..self.instances.len()).for_each(|index| self.restart(index));
        let sources = self.outside.cluster.sources();
        let source = &sources[self.outside.dice.pick(sources.len())];
        let Outside { cluster, dice, delivered, .. } = &mut self.outside;
        let end = cluster.truncate(source, dice);
        delivered.begin_again(&cluster.key(source).unwrap(), end);
    }

    /// Does a sink stand behind the end of a partition, which was cut off, and has not noticed it?
    pub(super) fn is_cut_off(&self, source: &TopicPartition) -> bool {
        let outside = &self.outside;
        let key = outside.cluster.key(source).unwrap();
        let end = outside.cluster.log(&key).end();
        let targets = outside.targets.iter().filter_map(|target| target.next(&key));
        let mut stands = targets.chain(outside.stands_of_group(source));
        stands.any(|next| next.get() > end)
    }

    /// The first route gets another name, and its sinks adopt what they had under the former one; other instances still
    /// have that.
    pub(super) fn rename(&mut self, index: usize) {
        self.outside.owner += 1;
        self.restart(index);
    }

    /// Before the end somebody looks after what has stopped, and all are of the latest deployment.
    pub(super) fn look_after_all(&mut self) {
        self.outside.on_data_loss = OnDataLoss::Continue;
        let owner = self.outside.owner;
        for index in 0..self.instances.len() {
            if self.instances[index].needs_a_person(owner) {
                self.restart(index);
            }
        }
    }
}
