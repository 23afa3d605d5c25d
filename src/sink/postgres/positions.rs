//! Where sinks stand, in two tables beside that of the rows (`docs/formats.md`): who writes to a table, and the next offset
//! of each partition. They move in the transaction that has the rows, and only from where they stand.

use std::collections::BTreeMap;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tracing::info;
use uuid::Uuid;

use crate::model::{
    ClusterId, Conflict, LeaderEpoch, Move, Offset, Partition, Position, PositionKey, Positions, Reason,
    StartHash, TopicId, TopicName,
};
use crate::sink::owner::{Admission, Claim, Owner, Refusal, admit};
use crate::sink::survey::Account;

use super::connect::Session;
use super::error::PostgresError;
use super::table::Place;

pub const OWNERS: &str = "sidestream_owners";
pub const POSITIONS: &str = "sidestream_positions";

/// Who creates tables, or comes new to one, does so alone in a database: it is rare, and `IF NOT EXISTS` races with itself.
/// The two numbers are ours among all advisory locks.
pub const ALONE: &str = "SELECT pg_advisory_xact_lock(1936286821, 1)";

/// Why positions cannot be read or moved.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error("its table {0}")]
    Refused(Refusal),
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error.into())
    }
}

/// The tables of positions, as they are created.
pub fn create(place: &Place) -> String {
    let (owners, positions) = (place.beside(OWNERS), place.beside(POSITIONS));
    format!(
        "CREATE TABLE IF NOT EXISTS {owners} (target text NOT NULL, cluster_id text NOT NULL, group_id text NOT NULL, \
         identity text NOT NULL, start_hash text, taken_by_group text, taken_by_identity text, \
         created_at timestamptz NOT NULL DEFAULT clock_timestamp(), \
         PRIMARY KEY (target, cluster_id, group_id, identity)); \
         CREATE TABLE IF NOT EXISTS {positions} (target text NOT NULL, cluster_id text NOT NULL, group_id text NOT NULL, \
         identity text NOT NULL, topic_id uuid NOT NULL, partition integer NOT NULL, topic text NOT NULL, \
         next_offset bigint NOT NULL, leader_epoch integer, \
         updated_at timestamptz NOT NULL DEFAULT clock_timestamp(), \
         PRIMARY KEY (target, cluster_id, group_id, identity, topic_id, partition))"
    )
}

/// Are both tables there?
///
/// # Errors
/// [`PostgresError`]
pub async fn are_there(session: &Session, place: &Place) -> Result<bool, PostgresError> {
    let sql = "SELECT to_regclass($1::text) IS NOT NULL AND to_regclass($2::text) IS NOT NULL";
    let (owners, positions) = (place.beside(OWNERS), place.beside(POSITIONS));
    let row = session.answer(session.client().query_one(sql, &[&owners, &positions])).await?;
    Ok(row.try_get(0)?)
}

/// All who write to a table, the one who came first first.
async fn writers(session: &Session, place: &Place) -> Result<Vec<(Owner, Account)>, StoreError> {
    let sql = format!(
        "SELECT cluster_id, group_id, identity, start_hash, taken_by_group, taken_by_identity FROM {} \
         WHERE target = $1 ORDER BY created_at, cluster_id, group_id, identity",
        place.beside(OWNERS)
    );
    let rows = session.answer(session.client().query(&sql, &[&place.table])).await?;
    rows.iter().map(|row| writer(row).map_err(StoreError::from)).collect()
}

fn writer(row: &Row) -> Result<(Owner, Account), tokio_postgres::Error> {
    let cluster = ClusterId(row.try_get(0)?);
    let owner = Owner { cluster: cluster.clone(), group: row.try_get(1)?, identity: row.try_get(2)? };
    let by: (Option<String>, Option<String>) = (row.try_get(4)?, row.try_get(5)?);
    let taken_by = match by {
        (Some(group), Some(identity)) => Some(Owner { cluster, group, identity }),
        _ => None,
    };
    let hash: Option<String> = row.try_get(3)?;
    let mut account = Account { taken_by, ..Account::default() };
    account.positions.restore_start_hash(hash.map(StartHash));
    Ok((owner, account))
}

/// Everything the tables say of a target.
///
/// # Errors
/// [`StoreError`]
pub async fn read(session: &Session, place: &Place) -> Result<Vec<(Owner, Account)>, StoreError> {
    let mut writers = writers(session, place).await?;
    let sql = format!(
        "SELECT cluster_id, group_id, identity, topic_id, partition, topic, next_offset, leader_epoch FROM {} \
         WHERE target = $1",
        place.beside(POSITIONS)
    );
    for row in session.answer(session.client().query(&sql, &[&place.table])).await? {
        let owner =
            Owner { cluster: ClusterId(row.try_get(0)?), group: row.try_get(1)?, identity: row.try_get(2)? };
        let key = PositionKey { topic_id: TopicId(row.try_get(3)?), partition: Partition(row.try_get(4)?) };
        let topic: String = row.try_get(5)?;
        let (next, epoch): (i64, Option<i32>) = (row.try_get(6)?, row.try_get(7)?);
        let next = Offset::try_from(next).map_err(|problem| {
            PostgresError::stop(format!("table {POSITIONS} holds what we did not write: {problem}"), RESTORE)
        })?;
        let position = Position { next, epoch: epoch.map(LeaderEpoch) };
        if let Some((_, account)) = writers.iter_mut().find(|(known, _)| *known == owner) {
            account.positions.restore(key, TopicName::new(&topic), position);
        }
    }
    Ok(writers)
}

const RESTORE: &str = "restore both tables of positions together with the table of rows";

/// Reads where `claim` stands; who is new is let in first, or not. In a transaction of its own.
///
/// # Errors
/// [`StoreError::Refused`] if somebody else writes there and the claim does not say what to make of that.
pub async fn enter(session: &Session, place: &Place, claim: &Claim) -> Result<Positions, StoreError> {
    session.begin().await?;
    let mut writers = read(session, place).await?;
    if !matches!(admission(&writers, claim), Ok(Admission::Known)) {
        session.run(ALONE).await?;
        // Somebody may have come meanwhile.
        writers = read(session, place).await?;
        match admission(&writers, claim) {
            Ok(Admission::Known) => {}
            Ok(Admission::Joins) => join(session, place, claim).await?,
            Ok(Admission::Adopts(former)) => adopt(session, place, claim, &former).await?,
            Err(refusal) => {
                session.run("ROLLBACK").await?;
                return Err(StoreError::Refused(refusal));
            }
        }
        writers = read(session, place).await?;
    }
    session.run("COMMIT").await?;
    Ok(of_owner(writers, &claim.owner))
}

/// Reads where `owner` stands, who was let in before. Ends no transaction.
///
/// # Errors
/// [`StoreError`]
pub async fn standing(session: &Session, place: &Place, owner: &Owner) -> Result<Positions, StoreError> {
    Ok(of_owner(read(session, place).await?, owner))
}

fn of_owner(writers: Vec<(Owner, Account)>, owner: &Owner) -> Positions {
    let own = writers.into_iter().find(|(known, _)| known == owner);
    own.map(|(_, account)| account.positions).unwrap_or_default()
}

/// How `claim` gets in among these.
///
/// # Errors
/// Why it does not.
pub fn admission(writers: &[(Owner, Account)], claim: &Claim) -> Result<Admission, Refusal> {
    let all: Vec<_> = writers.iter().map(|(owner, account)| (owner, account.taken_by.as_ref())).collect();
    admit(claim, &all)
}

async fn join(session: &Session, place: &Place, claim: &Claim) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO {} (target, cluster_id, group_id, identity) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        place.beside(OWNERS)
    );
    let Owner { cluster, group, identity } = &claim.owner;
    session.answer(session.client().execute(&sql, &[&place.table, &cluster.0, group, identity])).await?;
    Ok(())
}

/// Makes the positions of `former` those of the claim's owner. A transaction of the former one that is under way ends
/// first, and each later one finds that it has been taken over.
async fn adopt(session: &Session, place: &Place, claim: &Claim, former: &Owner) -> Result<(), StoreError> {
    info!(table = place.shown(), from = %former, to = %claim.owner, "taking positions over");
    let (owners, positions) = (place.beside(OWNERS), place.beside(POSITIONS));
    let Owner { cluster, group, identity } = &claim.owner;
    let give = format!(
        "UPDATE {owners} SET taken_by_group = $5, taken_by_identity = $6 \
         WHERE target = $1 AND cluster_id = $2 AND group_id = $3 AND identity = $4"
    );
    let take = format!(
        "INSERT INTO {owners} (target, cluster_id, group_id, identity, start_hash) \
         SELECT target, cluster_id, $5::text, $6::text, start_hash FROM {owners} \
         WHERE target = $1 AND cluster_id = $2 AND group_id = $3 AND identity = $4 \
         ON CONFLICT (target, cluster_id, group_id, identity) DO UPDATE \
         SET start_hash = excluded.start_hash, taken_by_group = NULL, taken_by_identity = NULL"
    );
    let carry = format!(
        "UPDATE {positions} SET group_id = $5, identity = $6, updated_at = clock_timestamp() \
         WHERE target = $1 AND cluster_id = $2 AND group_id = $3 AND identity = $4"
    );
    for sql in [give, take, carry] {
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&place.table, &cluster.0, &former.group, &former.identity, group, identity];
        session.answer(session.client().execute(&sql, &parameters)).await?;
    }
    Ok(())
}

/// One position from where it stands to where it goes.
struct Step {
    topic: TopicName,
    start: Option<Offset>,
    end: Position,
    /// A move without an epoch keeps the one known.
    keeps_epoch: bool,
}

/// Moves of one commit as one step for each partition.
///
/// # Errors
/// A move that does not begin where the one before it ended.
fn steps(moves: &[Move]) -> Result<BTreeMap<PositionKey, Step>, Conflict> {
    let mut steps: BTreeMap<PositionKey, Step> = BTreeMap::new();
    for step in moves {
        let is_reset = step.reason == Reason::Reset;
        match steps.get_mut(&step.key) {
            None => {
                let first = Step {
                    topic: step.topic.clone(),
                    start: step.start,
                    end: step.end,
                    keeps_epoch: !is_reset,
                };
                steps.insert(step.key, first);
            }
            Some(known) if Some(known.end.next) == step.start => {
                let before = known.end.epoch.filter(|_| !is_reset);
                known.end = Position { next: step.end.next, epoch: step.end.epoch.or(before) };
                known.keeps_epoch &= !is_reset;
            }
            Some(known) => {
                let stored = Some(known.end.next);
                let (key, topic, start) = (step.key, step.topic.clone(), step.start);
                return Err(Conflict { key, topic, stored, start });
            }
        }
    }
    Ok(steps)
}

/// Moves the positions of `owner` within the open transaction, all of them or none.
///
/// # Errors
/// [`StoreError::Conflict`] if one of them does not stand where its move starts, or somebody has taken them over.
pub async fn advance(
    session: &Session,
    place: &Place,
    owner: &Owner,
    moves: &[Move],
) -> Result<(), StoreError> {
    let steps = steps(moves)?;
    let hash = moves.iter().rev().find_map(|step| match &step.reason {
        Reason::Start { hash } => Some(hash.0.as_str()),
        _ => None,
    });
    if !hold(session, place, owner, hash).await? || !compare_and_set(session, place, owner, &steps).await? {
        return Err(lost(session, place, owner, moves).await);
    }
    Ok(())
}

/// Keeps the owner's row as it is until the end of the transaction, but for the hash; `false` if it was taken over.
async fn hold(
    session: &Session,
    place: &Place,
    owner: &Owner,
    hash: Option<&str>,
) -> Result<bool, StoreError> {
    let owners = place.beside(OWNERS);
    let is_own =
        "target = $1 AND cluster_id = $2 AND group_id = $3 AND identity = $4 AND taken_by_identity IS NULL";
    let Owner { cluster, group, identity } = owner;
    let held = match hash {
        Some(hash) => {
            let sql = format!("UPDATE {owners} SET start_hash = $5 WHERE {is_own}");
            let parameters: [&(dyn ToSql + Sync); 5] = [&place.table, &cluster.0, group, identity, &hash];
            session.answer(session.client().execute(&sql, &parameters)).await? == 1
        }
        None => {
            let sql = format!("SELECT 1 FROM {owners} WHERE {is_own} FOR SHARE");
            let parameters: [&(dyn ToSql + Sync); 4] = [&place.table, &cluster.0, group, identity];
            session.answer(session.client().query(&sql, &parameters)).await?.len() == 1
        }
    };
    Ok(held)
}

async fn compare_and_set(
    session: &Session,
    place: &Place,
    owner: &Owner,
    steps: &BTreeMap<PositionKey, Step>,
) -> Result<bool, StoreError> {
    let positions = place.beside(POSITIONS);
    let Owner { cluster, group, identity } = owner;
    let update = format!(
        "UPDATE {positions} AS held SET next_offset = step.next_offset, topic = step.topic, \
         leader_epoch = CASE WHEN step.keeps THEN COALESCE(step.epoch, held.leader_epoch) ELSE step.epoch END, \
         updated_at = clock_timestamp() \
         FROM unnest($5::uuid[], $6::int4[], $7::text[], $8::int8[], $9::int4[], $10::bool[], $11::int8[]) \
         AS step(topic_id, partition, topic, next_offset, epoch, keeps, start) \
         WHERE held.target = $1 AND held.cluster_id = $2 AND held.group_id = $3 AND held.identity = $4 \
         AND held.topic_id = step.topic_id AND held.partition = step.partition AND held.next_offset = step.start"
    );
    let insert = format!(
        "INSERT INTO {positions} \
         (target, cluster_id, group_id, identity, topic_id, partition, topic, next_offset, leader_epoch) \
         SELECT $1::text, $2::text, $3::text, $4::text, step.* \
         FROM unnest($5::uuid[], $6::int4[], $7::text[], $8::int8[], $9::int4[]) AS step ON CONFLICT DO NOTHING"
    );
    let (begun, first): (Vec<_>, Vec<_>) = steps.iter().partition(|(_, step)| step.start.is_some());
    for (which, sql) in [(begun, update), (first, insert)] {
        if which.is_empty() {
            continue;
        }
        let ids: Vec<Uuid> = which.iter().map(|(key, _)| key.topic_id.0).collect();
        let partitions: Vec<i32> = which.iter().map(|(key, _)| key.partition.0).collect();
        let topics: Vec<&str> = which.iter().map(|(_, step)| step.topic.as_str()).collect();
        let next: Vec<i64> = which.iter().map(|(_, step)| step.end.next.get()).collect();
        let epochs: Vec<Option<i32>> =
            which.iter().map(|(_, step)| step.end.epoch.map(|epoch| epoch.0)).collect();
        let keeps: Vec<bool> = which.iter().map(|(_, step)| step.keeps_epoch).collect();
        let starts: Vec<i64> = which.iter().filter_map(|(_, step)| Some(step.start?.get())).collect();
        let all: [&(dyn ToSql + Sync); 11] = [
            &place.table,
            &cluster.0,
            group,
            identity,
            &ids,
            &partitions,
            &topics,
            &next,
            &epochs,
            &keeps,
            &starts,
        ];
        // Those that begin have no place to be compared with.
        let parameters = if starts.is_empty() { &all[..9] } else { &all[..] };
        let moved = session.answer(session.client().execute(&sql, parameters)).await?;
        if moved != which.len() as u64 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What stands in the way of moves that were lost.
async fn lost(session: &Session, place: &Place, owner: &Owner, moves: &[Move]) -> StoreError {
    let writers = match read(session, place).await {
        Ok(writers) => writers,
        Err(error) => return error,
    };
    let stored = of_owner(writers, owner);
    match (stored.check(moves), moves.first()) {
        (Err(conflict), _) => conflict.into(),
        // It was taken over, or moved back between the two looks.
        (Ok(()), Some(step)) => {
            let standing = stored.get(&step.key).map(|position| position.next);
            Conflict { key: step.key, topic: step.topic.clone(), stored: standing, start: step.start }.into()
        }
        (Ok(()), None) => PostgresError::transient("the owner of positions is not there").into(),
    }
}
