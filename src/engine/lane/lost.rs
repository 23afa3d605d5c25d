//! What the brokers no longer have: told, and passed over where the route goes on without it.

use std::collections::BTreeMap;

use tracing::warn;

use crate::config::plan::OnDataLoss;
use crate::engine::message::{Place, Stop};
use crate::model::{Move, Offset, Position, PositionKey, Reason, SinkSet, TopicPartition};

use super::Lane;
use super::begin::Gap;
use super::resume::{Infos, Setback, key};

impl Lane {
    /// Leads these sinks past what the brokers no longer have, if the route goes on without it.
    pub(super) async fn pass_lost(
        &mut self,
        sources: &[TopicPartition],
        infos: &Infos,
        sinks: SinkSet,
    ) -> Result<(), Setback> {
        let bounds = self.parts.cluster.bounds(sources).await?;
        let mut lost: BTreeMap<usize, Vec<Move>> = BTreeMap::new();
        for source in sources {
            let (Some(info), Some(bounds)) = (infos.get(&source.topic), bounds.get(source)) else {
                continue;
            };
            let key = key(info, source.partition);
            for index in sinks.iter() {
                let position = self.stored[index].get(&key).map(|position| position.next);
                if let Some(step) = self.check_position(index, source, key, position, *bounds)? {
                    lost.entry(index).or_default().push(step);
                }
            }
        }
        for (index, moves) in lost {
            let skipped = moves.iter().filter(|step| step.reason == Reason::Skipped);
            let offsets = skipped.map(|step| step.end.next.get() - step.start.unwrap_or_default().get());
            let offsets = u64::try_from(offsets.sum::<i64>()).unwrap_or_default();
            let stored = self.store_moves(index, moves).await;
            if stored.is_ok() {
                self.account.skipped(index, offsets);
            }
            self.forgive(index, stored)?;
        }
        Ok(())
    }

    /// Which records the brokers no longer have for a sink: the consumer only says where it failed. `None` if the
    /// brokers cannot be asked, or have everything that is wanted.
    pub(super) async fn lost_range(&mut self, source: &TopicPartition) -> Option<Stop> {
        let key = *self.keys.get(source)?;
        let bounds = self.parts.cluster.bounds(std::slice::from_ref(source)).await.ok()?;
        let bounds = *bounds.get(source)?;
        self.stored.iter().enumerate().find_map(|(index, stored)| {
            let next = stored.get(&key).filter(|_| !self.is_optional(index))?.next;
            match self.check_position(index, source, key, Some(next), bounds) {
                Err(Setback::Stop { message, hint, place }) => {
                    Some(Stop { message, hint: Some(hint.to_owned()), place })
                }
                _ => None,
            }
        })
    }

    /// The move over what the brokers have lost, if the route goes on without it.
    fn check_position(
        &self,
        index: usize,
        source: &TopicPartition,
        key: PositionKey,
        position: Option<Offset>,
        bounds: (Offset, Offset),
    ) -> Result<Option<Move>, Setback> {
        let name = &self.parts.sinks[index].name;
        let Some(next) = position else {
            if self.optional.has_failed(index) {
                return Ok(None);
            }
            return Err(Setback::Stop {
                message: format!("sink `{name}` has no position for {source}"),
                hint: "this is a defect of sidestream; please report it",
                place: Some(Place::new(source, None)),
            });
        };
        let Some(gap) = Gap::of(next, bounds) else {
            return Ok(None);
        };
        let (message, hint, to) = (gap.told(source, name), gap.hint(), gap.to());
        let is_optional = self.is_optional(index);
        if self.parts.on_data_loss == OnDataLoss::Stop && !is_optional {
            return Err(Setback::Stop { message, hint, place: Some(Place::new(source, Some(next))) });
        }
        warn!(
            route = self.parts.route,
            topic = source.topic.as_str(),
            partition = source.partition.0,
            offset = next.get(),
            "{message}; going on at {to}"
        );
        Ok(Some(Move {
            key,
            topic: source.topic.clone(),
            start: Some(next),
            end: Position { next: to, epoch: None },
            reason: if is_optional { Reason::Skipped } else { Reason::Lost },
            records: 0,
        }))
    }
}
