//! Which topics are read: the lanes of what is named, and of what patterns match now and later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::info;

use super::{Answer, Engine, EngineError};
use crate::config::plan::{Delta, Route, Target};
use crate::config::topics::matched;
use crate::engine::lane::{self, LaneParts, Seen};
use crate::engine::message::{Committed, Control, LaneId, Stop};
use crate::kafka::{Command, Gauge, Outlet};
use crate::model::{TopicName, TopicPartition};
use crate::sink::Store;
use crate::status::About;

/// Looks in a row that do not find a topic, until the lane that it has for itself ends: brokers that start, or whose
/// rights are being changed, may not name all of them at once.
const GONE_LOOKS: u32 = 3;

/// Topics of `per_topic` routes, by the route's place, that are not there; and for how many looks.
pub type Gone = BTreeMap<(usize, TopicName), u32>;

impl Engine {
    /// Starts the lanes of all routes, and subscribes to their topics.
    pub(super) async fn start(
        &mut self,
        names: &BTreeSet<TopicName>,
        missing: BTreeMap<TopicName, Stop>,
    ) -> Result<(), EngineError> {
        for index in 0..self.routes.len() {
            if !self.routes[index].is_per_topic {
                let route = self.routes[index].clone();
                let factory = self.factory.clone();
                let name = route.name.clone();
                let store = store(&route);
                let lane = self.start_lane(&name, index, store, async move { factory.parts(&route).await });
                self.route_lanes.insert(index, lane);
            }
        }
        self.follow(names, false).await?;
        for (topic, stop) in missing {
            for lane in self.lanes_of(&topic) {
                self.tell(lane, Control::Fail(stop.clone())).await;
            }
        }
        Ok(())
    }

    fn start_lane(
        &mut self,
        name: &str,
        index: usize,
        store: Store,
        parts: impl Future<Output = Result<LaneParts, Stop>> + Send + 'static,
    ) -> LaneId {
        let id = LaneId(self.lanes.len());
        let gauge = Gauge::new(name, &self.budget);
        let (life, handle) = lane::lane(id, name, gauge, self.report_tx.clone(), parts);
        let route = &self.routes[index];
        handle.board.describe(About {
            entry: route.name.clone(),
            patience: patience(route),
            held: handle.held(),
        });
        self.board.add_lane(handle.board.clone());
        let task = self.tasks.spawn(async move { (id, life.await) });
        self.by_task.insert(task.id(), id);
        self.lanes.push(handle);
        self.names.push(name.to_owned());
        self.stores.push(store);
        id
    }

    /// Asks which topics there are; the loop goes on meanwhile.
    pub(super) fn ask_names(&mut self) {
        if std::mem::replace(&mut self.is_asking_names, true) {
            return;
        }
        let cluster = self.cluster.clone();
        self.questions.spawn(async move { Answer::Names(cluster.names().await) });
    }

    /// Takes up the topics that are new, and gives up those that patterns matched and that are gone.
    pub(super) async fn follow(
        &mut self,
        names: &BTreeSet<TopicName>,
        is_later: bool,
    ) -> Result<(), EngineError> {
        let matched = matched(&self.routes, &self.others, names);
        if is_later {
            self.end_gone(&matched).await;
        }
        let mut found: BTreeMap<LaneId, BTreeMap<TopicName, Seen>> = BTreeMap::new();
        let mut shared: BTreeMap<TopicPartition, Committed> = BTreeMap::new();
        for (index, topics) in matched.iter().enumerate() {
            let is_new = is_later || self.ran_before.contains(&index);
            for topic in topics {
                if !self.followed.insert((index, topic.clone())) {
                    continue;
                }
                let lane = self.lane_of(index, topic);
                let seen = Seen { is_new, partition_count: None };
                found.entry(lane).or_default().insert(topic.clone(), seen);
                self.by_topic.entry(topic.clone()).or_default().push(lane);
                // Another route may read it already; then it is read again from where the slower one stands.
                let owned: Vec<TopicPartition> =
                    self.group.owned().filter(|source| source.topic == *topic).cloned().collect();
                for source in owned {
                    self.group.add_lane(&source, lane);
                    if let Some(standing) =
                        self.group.standing(&source).filter(|_| !self.is_releasing(&source))
                    {
                        shared.insert(source, standing);
                    }
                }
            }
        }
        for (lane, topics) in found {
            if is_later {
                let topics: Vec<&str> = topics.keys().map(TopicName::as_str).collect();
                info!(route = self.names[lane.0], ?topics, "topics that are new");
            }
            self.tell(lane, Control::Topics(topics)).await;
        }
        let outlets = self.unconnected();
        if !outlets.is_empty() {
            self.source.send(Command::Connect(outlets))?;
        }
        let wanted: BTreeSet<TopicName> = matched.into_iter().flatten().collect();
        if wanted != self.subscribed {
            self.source.send(Command::Subscribe(wanted.iter().cloned().collect()))?;
            self.board.engine(self.place, |told| told.is_subscribed = !wanted.is_empty());
            self.subscribed = wanted;
        }
        self.ask(shared).await
    }

    /// Ends the lanes of topics that are gone for good. If one comes back, it gets another lane, which finds in the logs of
    /// its sinks whether it is the same topic. Sinks without a store of their own have no log that says so: their lanes
    /// stay, and know it.
    async fn end_gone(&mut self, matched: &[BTreeSet<TopicName>]) {
        for (index, topic) in count_looks(&mut self.gone, self.topic_lanes.keys(), matched) {
            let Some(lane) = self.topic_lanes.get(&(index, topic.clone())).copied() else {
                continue;
            };
            // One that has stopped tells why until a person has seen it.
            let is_kept = self.stopped.contains(&lane) || self.stores[lane.0] != Store::Own;
            if is_kept || self.has_any_of(&topic) {
                continue;
            }
            self.topic_lanes.remove(&(index, topic.clone()));
            self.gone.remove(&(index, topic.clone()));
            self.followed.remove(&(index, topic.clone()));
            if let Some(lanes) = self.by_topic.get_mut(&topic) {
                lanes.retain(|other| *other != lane);
                if lanes.is_empty() {
                    self.by_topic.remove(&topic);
                }
            }
            self.end_catch_up(lane);
            self.looking.remove(&lane);
            self.expected.retain(|(other, _, _), _| *other != lane);
            self.leaving.insert(lane);
            info!(route = self.names[lane.0], topic = topic.as_str(), "the topic is gone, and its lane ends");
            self.tell(lane, Control::Drain).await;
        }
    }

    /// Is a partition of this topic ours, or on its way?
    fn has_any_of(&self, topic: &TopicName) -> bool {
        let is_of = |source: &TopicPartition| source.topic == *topic;
        self.group.owned().any(is_of)
            || self.asking.iter().any(is_of)
            || self.pending.keys().any(is_of)
            || self.releasing.iter().any(|releasing| releasing.partitions.iter().any(is_of))
    }

    /// The inboxes of lanes that the source does not know yet, by the lane's place.
    fn unconnected(&mut self) -> Vec<(usize, Box<dyn Outlet>)> {
        let known = std::mem::replace(&mut self.connected, self.lanes.len());
        let lanes = self.lanes.iter().enumerate().skip(known);
        lanes.map(|(place, lane)| (place, lane.outlet())).collect()
    }

    fn lane_of(&mut self, index: usize, topic: &TopicName) -> LaneId {
        if let Some(lane) = self.route_lanes.get(&index) {
            return *lane;
        }
        let route = &self.routes[index];
        let factory = self.factory.clone();
        match route.instance(topic) {
            Ok(instance) => {
                let name = instance.name.clone();
                let store = store(&instance);
                let lane =
                    self.start_lane(&name, index, store, async move { factory.parts(&instance).await });
                self.topic_lanes.insert((index, topic.clone()), lane);
                lane
            }
            Err(error) => {
                let stop = Stop {
                    message: error.to_string(),
                    hint: Some("leave the topic out with `exclude`, or change the template".to_owned()),
                    place: None,
                };
                let name = format!("{}/{topic}", route.name);
                let store = store(route);
                self.start_lane(&name, index, store, std::future::ready(Err(stop)))
            }
        }
    }
}

/// Takes in one more look at the topics that are there. Returns those that were missing for so many looks in a row that
/// they are gone; they come again at the next look, unless they are removed from `gone`.
fn count_looks<'a>(
    gone: &mut Gone,
    known: impl Iterator<Item = &'a (usize, TopicName)>,
    matched: &[BTreeSet<TopicName>],
) -> Vec<(usize, TopicName)> {
    let is_there = |(index, topic): &(usize, TopicName)| {
        matched.get(*index).is_some_and(|topics| topics.contains(topic))
    };
    gone.retain(|key, _| !is_there(key));
    let mut ready = Vec::new();
    for key in known.filter(|key| !is_there(key)) {
        let looks = gone.entry(key.clone()).or_insert(0);
        *looks = looks.saturating_add(1);
        if *looks >= GONE_LOOKS {
            ready.push(key.clone());
        }
    }
    ready
}

/// Where the positions of a route's sinks are: `Group` if one of them has no store of its own. Transactions are of all of
/// them or of none.
fn store(route: &Route) -> Store {
    let mut sinks = route.sinks.iter().chain(&route.dead_letters);
    if route.has_transactions() {
        Store::Transaction
    } else if sinks.all(|sink| sink.target.has_own_store()) {
        Store::Own
    } else {
        Store::Group
    }
}

/// Beside the times that a route is given: for an attempt that fails, the pause after it, and the next one.
const PATIENCE: Duration = Duration::from_secs(60);

/// So long nothing of a route may become durable while something waits before the program is not ready: four times what
/// its batches and files may take.
fn patience(route: &Route) -> Duration {
    let rolls = route.sinks.iter().chain(&route.dead_letters).filter_map(|sink| match &sink.target {
        Target::Files { roll, .. } | Target::Delta(Delta { roll, .. }) => Some(roll.age_max),
        Target::Console { .. } | Target::Kafka { .. } | Target::Http(_) | Target::Postgres(_) => None,
    });
    let age_max = rolls.fold(route.batch.age_max, Duration::max);
    age_max.saturating_mul(4).saturating_add(PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_gone_after_some_looks_in_a_row() {
        let topics = |names: &[&str]| names.iter().map(|name| TopicName::new(name)).collect::<BTreeSet<_>>();
        let lanes: Vec<(usize, TopicName)> =
            [(1, "a"), (1, "b"), (2, "a")].map(|(index, name)| (index, TopicName::new(name))).to_vec();
        let mut gone = Gone::new();
        let mut look = |of_1: &[&str], of_2: &[&str]| {
            count_looks(&mut gone, lanes.iter(), &[topics(&["c"]), topics(of_1), topics(of_2)])
        };
        assert!(look(&["a", "b"], &["a"]).is_empty());
        assert!(look(&["a"], &["a"]).is_empty());
        assert!(look(&["a"], &["a"]).is_empty());
        // It was there in between.
        assert!(look(&["a", "b"], &[]).is_empty());
        for _ in 1..GONE_LOOKS - 1 {
            assert!(look(&["a"], &[]).is_empty());
        }
        assert_eq!(look(&["a"], &[]), [lanes[2].clone()]);
        assert_eq!(look(&["a"], &[]), [lanes[1].clone(), lanes[2].clone()]);
    }
}
