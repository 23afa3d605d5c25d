//! Transactions of lanes, each with the group that its route is in.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;

use crate::config::plan::{Kafka, Plan, Route};
use crate::kafka::{self, Cluster, KafkaCluster, Membership};
use crate::model::{Offset, TopicPartition};
use crate::sink::kafka::{GroupMember, Transaction, TransactionOptions};

/// What routes write in transactions with: the groups they are in, by the routes' names.
#[derive(Default)]
pub struct Groups(BTreeMap<String, Arc<Group>>);

/// A group, and this instance as its member.
struct Group {
    name: String,
    membership: Membership,
    /// Answers only what is over.
    cluster: KafkaCluster,
}

impl Groups {
    /// Takes in the routes of one group, and returns what its consumer is to keep.
    pub fn add(&mut self, kafka: &Kafka, routes: &[Route]) -> Membership {
        let membership = Membership::default();
        let group = Arc::new(Group {
            name: kafka.group.clone(),
            membership: membership.clone(),
            cluster: KafkaCluster::settled(kafka::client_config(kafka)),
        });
        self.0.extend(routes.iter().map(|route| (route.name.clone(), group.clone())));
        membership
    }

    /// The transactions of a lane; `None` if its sinks have none.
    pub fn transaction(&self, route: &Route, plan: &Plan) -> Option<Transaction> {
        if !route.has_transactions() {
            return None;
        }
        // An instance is called `route/topic`.
        let base = route.name.split('/').next().unwrap_or_default();
        let group = self.0.get(base).or_else(|| self.0.get(&route.name))?;
        let known = plan.routes.iter().find(|known| known.name == base).unwrap_or(route);
        let sinks = route.sinks.iter().chain(&route.dead_letters);
        let sinks = sinks.map(|sink| {
            let start = sink.start.as_ref().map(|(_, hash)| hash.clone());
            (sink.identity.clone(), start)
        });
        let options = TransactionOptions {
            config: kafka::producer_config(&plan.kafka),
            route: route.name.clone(),
            start: Some((known.name.clone(), known.start_hash.clone())),
            sinks: sinks.collect(),
        };
        Some(Transaction::new(options, group.clone()))
    }
}

#[async_trait]
impl GroupMember for Group {
    fn group(&self) -> &str {
        &self.name
    }

    fn held(&self, source: &TopicPartition) -> Option<u64> {
        self.membership.held(source)
    }

    fn fence(&self, held: &[(TopicPartition, u64)]) -> Option<kafka::Fence> {
        self.membership.fence(held)
    }

    async fn committed(
        &self,
        sources: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, Box<dyn Error + Send + Sync>> {
        Ok(self.cluster.committed(sources).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Environment, read};
    use crate::model::TopicName;

    const TEXT: &str = "\
version: 1
kafka: {bootstrap.servers: b, group.id: g}
defaults: {value: string}
routes:
  each: {topics: [a, b], per_topic: true, sinks: {s: {kafka: {topic: '{topic}.x', transactional: true}}}}
  plain: {topics: [c], sinks: {s: {kafka: {topic: y}}}}
";

    #[test]
    fn lanes_of_a_route_with_transactions_have_their_own() {
        let plan = read(TEXT, &Environment::new([], Path::new("."))).unwrap();
        let mut groups = Groups::default();
        groups.add(&plan.kafka, &plan.routes);
        let instance = plan.routes[0].instance(&TopicName::new("a")).unwrap();
        let transaction = groups.transaction(&instance, &plan).unwrap();
        assert!(transaction.seat("each/a/s").is_some());
        assert!(transaction.seat("each/b/s").is_none());
        assert!(groups.transaction(&plan.routes[1], &plan).is_none());
        assert!(Groups::default().transaction(&instance, &plan).is_none());
    }
}
