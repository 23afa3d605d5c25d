use super::errors::decide;
use super::*;
use crate::model::Partition;

#[test]
fn a_call_is_made_again_only_where_it_can_go_on() {
    for (is_fatal, requires_abort, may_retry, expected) in [
        (true, false, false, Next::Renew),
        (true, true, true, Next::Renew),
        (false, true, false, Next::Abort),
        (false, true, true, Next::Abort),
        (false, false, true, Next::Again),
        // Nobody knows what the coordinator did.
        (false, false, false, Next::Renew),
    ] {
        assert_eq!(decide(is_fatal, requires_abort, may_retry), expected);
    }
    let flush = KafkaError::Flush(rdkafka::types::RDKafkaErrorCode::OperationTimedOut);
    assert_eq!((next(&flush, false), next(&flush, true)), (Next::Again, Next::Renew));
}

/// A group whose partitions are held or not, without brokers.
#[derive(Default)]
struct Held(SyncMutex<BTreeMap<TopicPartition, u64>>);

#[async_trait]
impl GroupMember for Held {
    fn group(&self) -> &str {
        "g"
    }

    fn held(&self, source: &TopicPartition) -> Option<u64> {
        self.0.lock().unwrap().get(source).copied()
    }

    fn fence(&self, _: &[(TopicPartition, u64)]) -> Option<ConsumerGroupMetadata> {
        None
    }

    async fn committed(
        &self,
        _: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, (Offset, String)>, Box<dyn Error + Send + Sync>> {
        Err("away".into())
    }
}

fn source(partition: i32) -> TopicPartition {
    TopicPartition::new(&TopicName::new("t"), Partition(partition))
}

fn transaction(held: &Arc<Held>) -> Transaction {
    let options = TransactionOptions {
        config: ClientConfig::new(),
        route: "r".to_owned(),
        start: None,
        sinks: vec![("r/a".to_owned(), None), ("r/b".to_owned(), None)],
    };
    Transaction::new(options, held.clone())
}

fn key(partition: i32) -> PositionKey {
    PositionKey { topic_id: crate::model::TopicId(uuid::Uuid::from_u128(1)), partition: Partition(partition) }
}

fn step(start: i64, end: i64) -> Move {
    Move {
        key: key(1),
        topic: TopicName::new("t"),
        start: Offset::new(start),
        end: Position { next: Offset::new(end).unwrap(), epoch: None },
        reason: crate::model::Reason::Data,
        records: 1,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn the_id_is_of_group_route_and_partition() {
    assert_eq!(transactional_id("g", "r/t", &source(0)), "g.r/t.t.0");
}

#[test]
fn a_sink_has_its_seat_by_its_identity() {
    let transaction = transaction(&Arc::default());
    assert!(transaction.seat("r/a").is_some());
    assert!(transaction.seat("r/c").is_none());
}

#[test]
fn what_is_given_away_is_not_written() {
    let held = Arc::<Held>::default();
    let mut seat = transaction(&held).seat("r/a").unwrap();
    let refused = runtime().block_on(async {
        let Err(error) = seat.begin(&[step(0, 5)], true).await else { panic!("it began") };
        error
    });
    assert!(matches!(refused, SinkError::Transient { .. }), "{refused:?}");
}

#[test]
fn positions_count_from_when_they_were_told() {
    let held = Arc::<Held>::default();
    held.0.lock().unwrap().insert(source(1), 1);
    let transaction = transaction(&held);
    let mut seat = transaction.seat("r/a").unwrap();
    seat.restore(key(1), &TopicName::new("t"), step(0, 5).end);
    let runtime = runtime();
    let stands = runtime.block_on(seat.positions()).unwrap();
    assert_eq!(stands.get(&key(1)), Some(step(0, 5).end));
    // What was read from the group since it was given is newer than what is told later.
    runtime.block_on(async {
        let mut state = transaction.0.state.lock().await;
        let found = (Offset::new(9).unwrap(), "ss1".to_owned());
        let known = Place::read(&source(1), 1, Some(&found));
        assert!(state.sinks[0].correct(key(1), &known).is_some());
        state.places.insert(key(1), known);
    });
    seat.restore(key(1), &TopicName::new("t"), step(0, 5).end);
    let stands = runtime.block_on(seat.positions()).unwrap();
    assert_eq!(stands.get(&key(1)), Some(step(0, 9).end));
    // It was away, and came again.
    held.0.lock().unwrap().insert(source(1), 2);
    seat.restore(key(1), &TopicName::new("t"), step(0, 12).end);
    let stands = runtime.block_on(seat.positions()).unwrap();
    assert_eq!(stands.get(&key(1)), Some(step(0, 12).end));
}

#[test]
fn an_abort_takes_the_rows_of_siblings_along_and_they_learn_of_it() {
    let transaction = transaction(&Arc::default());
    let (mut first, mut second) = (transaction.seat("r/a").unwrap(), transaction.seat("r/b").unwrap());
    let runtime = runtime();
    for (seat, place) in [(&mut first, 0), (&mut second, 1)] {
        seat.restore(key(1), &TopicName::new("t"), step(0, 5).end);
        runtime.block_on(seat.positions()).unwrap();
        let mut state = runtime.block_on(transaction.0.state.lock());
        state.sinks[place].positions.accept(&[step(5, 9)]);
        drop(state);
        seat.since = Some(Instant::now());
    }
    assert!(!runtime.block_on(first.abandon()));
    assert_eq!(first.since(), None);
    let error = runtime.block_on(second.flush()).unwrap_err();
    assert!(matches!(error, SinkError::Transient { .. }), "{error:?}");
    assert!(runtime.block_on(second.begin(&[step(5, 9)], true)).is_err());
    assert!(!runtime.block_on(second.abandon()));
    // It stands where it stood, and nothing is left that was taken.
    let stands = runtime.block_on(second.positions()).unwrap();
    assert_eq!(stands.get(&key(1)), Some(step(0, 5).end));
    assert_eq!(runtime.block_on(second.flush()).unwrap(), stands);
}

#[test]
fn what_a_sibling_has_committed_is_not_counted_as_dropped() {
    let transaction = transaction(&Arc::default());
    let mut seat = transaction.seat("r/a").unwrap();
    seat.since = Some(Instant::now());
    assert!(runtime().block_on(seat.abandon()));
}

#[test]
fn a_part_of_a_batch_is_never_committed() {
    let transaction = transaction(&Arc::default());
    let mut seat = transaction.seat("r/a").unwrap();
    let runtime = runtime();
    let shared = seat.shared.clone();
    runtime.block_on(async {
        let mut state = shared.state.lock().await;
        state.is_spoiled = true;
        state.sinks[0].positions.accept(&[step(0, 5)]);
    });
    runtime.block_on(seat.flush()).unwrap_err();
    let state = runtime.block_on(shared.state.lock());
    assert!(state.is_unsure && !state.is_spoiled && state.sinks[0].positions.accepted().is_empty());
}
