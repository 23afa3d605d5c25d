//! What a lane's sinks that catch up are given, as in `engine::lane::behind`.

use std::time::Instant;

use sidestream::engine::batching::Taken;
use sidestream::engine::catching::Reader;
use sidestream::engine::message::{Assigned, Report};
use sidestream::engine::retry;
use sidestream::model::{SinkSet, TopicPartition};

use super::super::world::Outside;
use super::{HELD_MAX, Lane, Recovering};

impl Lane {
    /// Expects chunks of these assignments. A sink may have been thrown back since the lane said where it stands: then
    /// the partition is asked for again.
    pub(super) fn assigned(&mut self, assigned: Vec<Assigned>, outside: &Outside) {
        let (mut rewound, mut behind) = (Vec::new(), Vec::new());
        let mut is_news = false;
        for Assigned { source, apart, front, catch_up } in assigned {
            let Some(key) = self.keys.get(&source).copied() else {
                continue;
            };
            is_news |= self.ledger.set_apart(key, apart);
            for (reader, reading) in [(Reader::Front, front), (Reader::CatchUp, catch_up)] {
                let lowest = self.ledger.lowest(&key, reader);
                let (buffer, stale) = match reader {
                    Reader::Front => (&mut self.buffer, &mut rewound),
                    Reader::CatchUp => (&mut self.behind, &mut behind),
                };
                match (lowest, reading) {
                    (Some(lowest), Some(reading)) if lowest < reading.from => {
                        buffer.remove(&key);
                        stale.push(source.clone());
                    }
                    (Some(_), Some(reading)) => {
                        buffer.restart(key, reading.number, reading.from, reading.end);
                    }
                    // It goes on as it does.
                    (Some(_), None) => {}
                    // Nobody reads there any more.
                    (None, _) => buffer.remove(&key),
                }
            }
        }
        if let Some(Recovering { sinks, attempt, .. }) = self.apart
            && !self.are_apart(sinks)
        {
            // One of them is at the front now: what it failed with holds that up.
            self.apart = None;
            self.recover_at(sinks, attempt, outside.now);
        }
        if is_news {
            self.report_progress(outside);
        }
        if !rewound.is_empty() {
            self.say(Report::Rewind(rewound));
        }
        let behind = self.stands(behind.iter());
        if !behind.is_empty() {
            self.say(Report::CatchUp(behind));
        }
    }

    /// Asks for these partitions again, for each reader from where its sinks stand.
    pub(super) fn read_again(&mut self, sources: &[TopicPartition]) {
        let front: Vec<TopicPartition> =
            sources.iter().filter(|source| self.is_served(source, Reader::Front)).cloned().collect();
        let behind = self.stands(sources.iter().filter(|source| self.is_served(source, Reader::CatchUp)));
        if !front.is_empty() {
            self.say(Report::Rewind(front));
        }
        if !behind.is_empty() {
            self.say(Report::CatchUp(behind));
        }
    }

    fn is_served(&self, source: &TopicPartition, reader: Reader) -> bool {
        self.keys.get(source).is_some_and(|key| !self.ledger.served(key, reader).is_empty())
    }

    /// The next batch that is due. The readers take turns.
    pub(super) fn next_batch(&mut self, now: Instant) -> Option<Taken> {
        let turns = match self.was_behind {
            true => [Reader::Front, Reader::CatchUp],
            false => [Reader::CatchUp, Reader::Front],
        };
        for reader in turns {
            let (front_held, behind_held) = (self.held(), self.behind_held());
            let (buffer, held) = match reader {
                Reader::Front => (&mut self.buffer, front_held),
                Reader::CatchUp if self.apart.is_some() => continue,
                Reader::CatchUp => (&mut self.behind, behind_held),
            };
            if (buffer.is_ready(now) || held >= HELD_MAX)
                && let Some(taken) = buffer.take(&self.ledger)
            {
                self.was_behind = reader == Reader::CatchUp;
                return Some(taken);
            }
        }
        None
    }

    /// Do these sinks catch up in all partitions, while others are at the front of some?
    fn are_apart(&self, sinks: SinkSet) -> bool {
        let is_shared = self.keys.values().any(|key| !self.ledger.served(key, Reader::Front).is_empty());
        let is_behind = |key| sinks.minus(self.ledger.served(key, Reader::CatchUp)).is_empty();
        is_shared && self.keys.values().all(is_behind)
    }

    /// Pauses what catches up, if nobody at the front needs these sinks; `false` if somebody does.
    pub(super) fn recover_apart_at(&mut self, failed: SinkSet, now: Instant) -> bool {
        if self.recovering.is_some() || self.is_stopped || !self.are_apart(failed) {
            return false;
        }
        let (sinks, attempt) = self.apart.as_ref().map_or((failed, 0), |recovery| {
            (failed.iter().fold(recovery.sinks, SinkSet::with), recovery.attempt)
        });
        for key in self.keys.values() {
            self.behind.remove(key);
        }
        let at = now + retry::pause(attempt + 1);
        self.apart = Some(Recovering { sinks, attempt: attempt + 1, at });
        true
    }

    /// Tries to read the positions of sinks that failed while they caught up, and goes on where they are.
    pub(super) fn recover_apart(&mut self, outside: &mut Outside) {
        let Some(Recovering { sinks, at, .. }) = self.apart else {
            return;
        };
        if at > outside.now || !self.reset_positions(sinks, 0, outside) {
            return;
        }
        self.apart = None;
        self.report_progress(outside);
        for key in self.keys.values() {
            self.behind.remove(key);
        }
        let sources = self.keys.iter().filter(|(_, key)| !self.ledger.apart(key).is_empty());
        let stands = self.stands(sources.map(|(source, _)| source));
        if !stands.is_empty() {
            self.say(Report::CatchUp(stands));
        }
    }
}
