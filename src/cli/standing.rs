//! Where all sinks of a file stand, each in its own group, looked at without moving anything: for `offsets` and `plan`.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::plan::{Delta, Plan, Route, Sink, Target};
use crate::config::topics::matched;
use crate::engine::chain;
use crate::engine::message::Committed;
use crate::kafka::{self, Cluster, ClusterError, KafkaCluster, TopicInfo};
use crate::model::metadata::IdentityHash;
use crate::model::{
    Classify, ClusterId, Offset, Partition, Position, PositionKey, Positions, StartHash, TopicName,
    TopicPartition,
};
use crate::sink::owner::Claim;
use crate::sink::survey::Survey;
use crate::sink::{SinkError, delta, file, postgres};

use super::build;

/// A consumer group of the file, and what it has.
pub struct Group {
    pub name: String,
    pub cluster: KafkaCluster,
    pub committed: BTreeMap<TopicPartition, Committed>,
}

/// What brokers, groups and the targets of sinks say.
pub struct Ground {
    /// That of `group.id`, then those of isolated routes.
    pub groups: Vec<Group>,
    /// The names of all routes of the file, and the places of their groups.
    pub families: BTreeMap<String, usize>,
    /// All routes of the file; one for each topic where a route says so.
    pub instances: Vec<Instance>,
    pub infos: BTreeMap<TopicName, TopicInfo>,
    /// Topics of routes that nothing is known of, and why.
    pub missing: BTreeMap<TopicName, ClusterError>,
    /// The first offset kept and the next one written.
    pub bounds: BTreeMap<TopicPartition, (Offset, Offset)>,
    /// Topics that a template of a route cannot take: the route, its instance, and what is wrong.
    pub unfit: Vec<(String, String, String)>,
}

/// A route, and its sinks.
pub struct Instance {
    /// Its name in the file; `route.name` has the topic behind it if there is one for each.
    pub family: String,
    /// The place of its group.
    pub group: usize,
    pub route: Route,
    pub topics: BTreeSet<TopicName>,
    /// The group has run it with the same topics and start.
    pub has_run: bool,
    /// Sinks, then those of dead letters.
    pub seats: Vec<Seat>,
}

/// A sink, and where it stands.
pub struct Seat {
    pub sink: Sink,
    pub claim: Claim,
    pub place: Place,
    pub positions: Positions,
}

/// Where a sink's positions are kept.
pub enum Place {
    /// Beside the group's offsets.
    Group,
    /// In a target that nobody has written to yet.
    Fresh,
    /// With its data: in a directory's commit log, or beside a table.
    Own(Box<Survey>),
    /// In a target that cannot be read.
    Unreadable { problem: String, hint: Option<String> },
}

impl Seat {
    /// The digest of what decides where the sink starts.
    pub fn start_hash<'a>(&'a self, route: &'a Route) -> &'a StartHash {
        self.sink.start.as_ref().map_or(&route.start_hash, |(_, hash)| hash)
    }
}

impl Place {
    fn surveyed(survey: Result<Option<Survey>, SinkError>) -> Self {
        match survey {
            Ok(None) => Self::Fresh,
            Ok(Some(survey)) => Self::Own(Box::new(survey)),
            Err(error) => {
                Self::Unreadable { problem: chain(&error), hint: error.hint().map(|hint| hint.into_owned()) }
            }
        }
    }

    pub fn is_group(&self) -> bool {
        matches!(self, Self::Group)
    }

    pub fn survey(&self) -> Option<&Survey> {
        match self {
            Self::Own(survey) => Some(survey),
            Self::Group | Self::Fresh | Self::Unreadable { .. } => None,
        }
    }

    /// Why the sink cannot be opened, and what helps.
    pub fn refusal(&self, seat: &Seat) -> Option<(String, Option<String>)> {
        match self {
            Self::Own(survey) => {
                let refusal = survey.admission.as_ref().err()?;
                let target = &seat.sink.target;
                let place = match target {
                    Target::Files { path, .. } | Target::Delta(Delta { path, .. }) => {
                        path.display().to_string()
                    }
                    Target::Postgres(table) => table.shown(),
                    Target::Console { .. } | Target::Kafka { .. } | Target::Http(_) => String::new(),
                };
                let remedy = refusal.remedy(&seat.claim, target.place_key());
                Some((format!("`{place}` {refusal}"), Some(remedy)))
            }
            Self::Unreadable { problem, hint } => Some((problem.clone(), hint.clone())),
            Self::Group | Self::Fresh => None,
        }
    }
}

impl Instance {
    /// Is it meant by `--route`?
    pub fn is_named(&self, only: Option<&str>) -> bool {
        only.is_none_or(|only| only == self.family || only == self.route.name)
    }
}

impl Ground {
    /// Asks brokers and group, and looks at the targets of all sinks that keep their positions there.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub async fn look(plan: &Plan) -> Result<Self, ClusterError> {
        let cluster = KafkaCluster::new(kafka::client_config(&plan.kafka));
        let cluster_id = cluster.id().await?;
        let names = if plan.routes.iter().any(|route| route.topics.is_pattern()) {
            cluster.names().await?
        } else {
            BTreeSet::new()
        };
        let matched = matched(&plan.routes, &plan.others, &names);
        let (mut infos, mut missing) = (BTreeMap::new(), BTreeMap::new());
        for (topic, described) in cluster.describe(&matched.iter().flatten().cloned().collect()).await? {
            match described {
                Ok(info) => {
                    infos.insert(topic, info);
                }
                Err(error) => {
                    missing.insert(topic, error);
                }
            }
        }
        let all = sources(&infos);
        let bounds = cluster.bounds(&all).await?;
        let name = plan.kafka.group.clone();
        let mut groups = vec![Group { name, committed: committed(&cluster, &all).await?, cluster }];
        let mut families = BTreeMap::new();
        for (route, topics) in plan.routes.iter().zip(&matched) {
            if route.is_isolated {
                let kafka = plan.kafka.of_isolated(&route.name);
                let cluster = KafkaCluster::new(kafka::client_config(&kafka));
                let own = infos.iter().filter(|(topic, _)| topics.contains(*topic));
                let own = sources(&own.map(|(topic, info)| (topic.clone(), info.clone())).collect());
                families.insert(route.name.clone(), groups.len());
                let committed = committed(&cluster, &own).await?;
                groups.push(Group { name: kafka.group, committed, cluster });
            } else {
                families.insert(route.name.clone(), 0);
            }
        }
        let mut ground =
            Self { groups, families, instances: Vec::new(), infos, missing, bounds, unfit: Vec::new() };
        for (route, topics) in plan.routes.iter().zip(matched) {
            ground.add(plan, route, topics, &cluster_id).await;
        }
        Ok(ground)
    }

    /// Questions that are about no group.
    pub fn cluster(&self) -> &KafkaCluster {
        &self.groups[0].cluster
    }

    /// What the group of a route has.
    pub fn committed(&self, instance: &Instance) -> &BTreeMap<TopicPartition, Committed> {
        &self.groups[instance.group].committed
    }

    async fn add(&mut self, plan: &Plan, route: &Route, topics: BTreeSet<TopicName>, cluster_id: &ClusterId) {
        let name = IdentityHash::of(&route.name);
        let group = self.families.get(&route.name).copied().unwrap_or_default();
        let has_run = topics.iter().any(|topic| {
            let first = self.groups[group].committed.get(&TopicPartition::new(topic, Partition(0)));
            first.and_then(|first| first.metadata.start(&name)).is_some_and(|hash| hash == route.start_hash)
        });
        let around = build::Surroundings {
            kafka: &plan.kafka,
            cluster: cluster_id,
            registry: None,
            clusters: &plan.clusters,
            transaction: None,
        };
        let mut instances = Vec::new();
        if route.is_per_topic {
            for topic in topics {
                match route.instance(&topic) {
                    Ok(instance) => instances.push((instance, BTreeSet::from([topic]))),
                    Err(error) => {
                        let name = format!("{}/{topic}", route.name);
                        self.unfit.push((route.name.clone(), name, error.to_string()));
                    }
                }
            }
        } else {
            instances.push((route.clone(), topics));
        }
        for (instance, topics) in instances {
            let mut seats = Vec::new();
            for sink in instance.sinks.iter().chain(&instance.dead_letters) {
                seats.push(self.seat(sink, group, &topics, around).await);
            }
            let family = route.name.clone();
            self.instances.push(Instance { family, group, route: instance, topics, has_run, seats });
        }
    }

    async fn seat(
        &self,
        sink: &Sink,
        group: usize,
        topics: &BTreeSet<TopicName>,
        around: build::Surroundings<'_>,
    ) -> Seat {
        let claim = build::claim(sink, around);
        let place = match &sink.target {
            Target::Files { path, storage, .. } => match build::home(sink, path, storage.as_deref()) {
                Ok(home) => Place::surveyed(file::survey(&home, &claim)),
                Err(error) => Place::Unreadable { problem: format!("{error:#}"), hint: None },
            },
            Target::Postgres(table) => Place::surveyed(postgres::survey(table, &claim).await),
            Target::Delta(table) => Place::surveyed(delta::survey(table, &claim)),
            Target::Console { .. } | Target::Kafka { .. } | Target::Http(_) => Place::Group,
        };
        let positions = match &place {
            Place::Group => self.group_positions(sink, group, topics),
            Place::Own(survey) => {
                let standing = survey.standing(&claim);
                standing.map(|(_, account)| account.positions.clone()).unwrap_or_default()
            }
            Place::Fresh | Place::Unreadable { .. } => Positions::default(),
        };
        Seat { sink: sink.clone(), claim, place, positions }
    }

    /// Where a sink stands whose positions the group keeps.
    fn group_positions(&self, sink: &Sink, group: usize, topics: &BTreeSet<TopicName>) -> Positions {
        let identity = IdentityHash::of(&sink.identity);
        let mut positions = Positions::default();
        for (source, key) in self.partitions(topics) {
            let Some(committed) = self.groups[group].committed.get(&source) else {
                continue;
            };
            // One that says where it begins, and was never started, stands nowhere.
            if sink.start.is_some() && committed.metadata.start(&identity).is_none() {
                continue;
            }
            if let Some(next) = committed.metadata.position(&identity).or(committed.offset) {
                positions.restore(key, source.topic.clone(), Position { next, epoch: None });
            }
        }
        positions
    }

    /// The partitions of those of `topics` that are known.
    pub fn partitions(&self, topics: &BTreeSet<TopicName>) -> Vec<(TopicPartition, PositionKey)> {
        let known = topics.iter().filter_map(|topic| Some((topic, self.infos.get(topic)?)));
        known
            .flat_map(|(topic, info)| {
                numbers(info).map(move |partition| {
                    (TopicPartition::new(topic, partition), PositionKey { topic_id: info.id, partition })
                })
            })
            .collect()
    }

    /// Is there a route that `--route` means?
    pub fn has_route(&self, only: Option<&str>) -> bool {
        let is_instance = || self.instances.iter().any(|instance| instance.is_named(only));
        only.is_none_or(|only| self.families.contains_key(only)) || is_instance()
    }

    /// What a group knows words of: the identities of its sinks; and the names of its routes, with the identities of
    /// sinks that say where they begin.
    pub fn known(&self, group: usize) -> (BTreeSet<IdentityHash>, BTreeSet<IdentityHash>) {
        let instances = self.instances.iter().filter(|instance| instance.group == group);
        let (mut sinks, mut starts) = (BTreeSet::new(), BTreeSet::new());
        for sink in instances.flat_map(|instance| &instance.seats).map(|seat| &seat.sink) {
            sinks.insert(IdentityHash::of(&sink.identity));
            starts.extend(sink.start.is_some().then(|| IdentityHash::of(&sink.identity)));
        }
        let families = self.families.iter().filter(|(_, of)| **of == group);
        starts.extend(families.map(|(family, _)| IdentityHash::of(family)));
        (sinks, starts)
    }
}

fn numbers(info: &TopicInfo) -> impl Iterator<Item = Partition> + use<> {
    (0..i32::try_from(info.partition_count).unwrap_or(i32::MAX)).map(Partition)
}

/// All partitions of these topics.
pub fn sources(infos: &BTreeMap<TopicName, TopicInfo>) -> Vec<TopicPartition> {
    let each = infos.iter();
    each.flat_map(|(topic, info)| numbers(info).map(move |partition| TopicPartition::new(topic, partition)))
        .collect()
}

/// What the group has for these partitions.
///
/// # Errors
/// If the brokers do not answer.
pub async fn committed(
    cluster: &KafkaCluster,
    sources: &[TopicPartition],
) -> Result<BTreeMap<TopicPartition, Committed>, ClusterError> {
    if sources.is_empty() {
        return Ok(BTreeMap::new());
    }
    let found = cluster.committed(sources).await?;
    // A string that is not ours is told as such.
    Ok(found.into_iter().map(|(source, known)| (source, Committed::read(Some(&known)).0)).collect())
}
