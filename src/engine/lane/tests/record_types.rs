//! A lane of records of two types: each has a sink of its own, and all sinks pass all records.

use arrow::datatypes::Schema;
use serde_json::json;

use super::*;
use crate::codec::avro::node::Node;
use crate::codec::{Learnt, Registered, Sorter};
use crate::config::plan::{Framing, Recursion};
use crate::model::SchemaId;

/// The fifth byte is the schema: 1 and 2 are of the types `Left` and `Right`, 3 is of another. Then comes a text of one
/// letter.
const MIXED: [&str; 9] = [
    "\0\0\0\0\u{1}\u{2}a",
    "\0\0\0\0\u{2}\u{2}b",
    "\0\0\0\0\u{1}\u{2}c",
    "\0\0\0\0\u{3}\u{2}d",
    "\0\0\0\0\u{2}\u{2}e",
    "\0\0\0\0\u{1}\u{2}f",
    "\0\0\0\0\u{3}\u{2}g",
    "\0\0\0\0\u{1}\u{2}h",
    "\0\0\0\0\u{2}\u{2}i",
];
const LEFT: [&str; 4] = ["a", "c", "f", "h"];
const RIGHT: [&str; 3] = ["b", "e", "i"];

fn decoders() -> Decoders {
    let names = ["Left", "Right"];
    let text = |name: &str| {
        let fields = json!([{"name": "value", "type": "string"}]);
        json!({"type": "record", "name": name, "fields": fields}).to_string()
    };
    let each = names.map(|name| {
        let (node, _) = Node::parse_record(&text(name), &[], Recursion::Refuse, name).unwrap();
        let codec = Registered::avro(node, Tombstones::Skip).unwrap().of_type(Some(name.to_owned()));
        Decoder::typed(Box::new(codec), Box::new(Raw::for_keys(RawForm::Bytes)))
    });
    let sorter = Sorter::new(names.map(str::to_owned).to_vec(), Framing::Confluent);
    let mut decoders = Decoders::new(each.into(), Some(sorter));
    for (id, name) in (1..).zip(["Left", "Right", "Other"]) {
        let (kind, text) = ("AVRO".to_owned(), text(name));
        decoders.learn(SchemaId(id).into(), Learnt::Schema { kind, text, references: Vec::new() });
    }
    decoders
}

/// The lane, whose second sink is `right`.
fn parts(world: &World, right: &Arc<Mutex<Target>>, other_types: Option<BadRecords>) -> LaneParts {
    let mut parts = world.parts();
    parts.decoders = decoders();
    parts.handlers = vec![Box::new(NoViews), Box::new(NoViews)];
    parts.other_types = other_types;
    let letters = match other_types {
        Some(BadRecords::Skip) => Vec::new(),
        _ => vec![3, 6],
    };
    let sink = |name: &str, record_type, target: &Arc<Mutex<Target>>| LaneSink {
        name: name.to_owned(),
        identity: format!("r/{name}"),
        feed: Feed::Fields,
        record_type,
        start: None,
        rows: Arc::new(Schema::empty()),
        is_required: true,
        former: Settled::default(),
        sink: Box::new(Scripted {
            target: target.clone(),
            before: Some((world.letters.clone(), letters.clone())),
            column: "value",
            moves: Vec::new(),
            rows: Vec::new(),
            since: None,
        }),
    };
    parts.sinks[0] = sink("Left/main", 0, &world.main);
    parts.sinks.insert(1, sink("Right/main", 1, right));
    parts
}

fn rows(target: &Mutex<Target>) -> Vec<String> {
    target.lock().unwrap().rows.clone()
}

/// Whatever fails, each type's rows are there once, in their order, and what is of neither is where the route says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_type_has_its_rows_once_whatever_fails() {
    let mut runs = tokio::task::JoinSet::new();
    for seed in 0..60 {
        runs.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let (world, right) = (World::new(&MIXED), Arc::<Mutex<Target>>::default());
            for target in [&world.main, &world.letters, &right] {
                let mut target = target.lock().unwrap();
                target.writes = (0..5).map(|_| random.u8(..4) == 0).collect();
                let outcomes = [Outcome::Done, Outcome::Done, Outcome::Failed, Outcome::Lost];
                target.flushes = (0..5).map(|_| outcomes[random.usize(..4)]).collect();
            }
            let other_types = [None, Some(BadRecords::Skip)][random.usize(..2)];
            let apart = [SinkSet::EMPTY, SinkSet::EMPTY.with(1), SinkSet::ALL];
            let mut turns = 0;
            let parts = parts(&world, &right, other_types);
            let chance = || {
                turns += 1;
                (apart[random.usize(..3)], turns < 10 && random.u8(..3) == 0)
            };
            assert_eq!(world.run_parts(parts, chance).await, None, "seed {seed}");
            assert_eq!(
                (rows(&world.main), rows(&right)),
                (LEFT.map(str::to_owned).to_vec(), RIGHT.map(str::to_owned).to_vec()),
                "seed {seed}"
            );
            let counts = world.counts.lock().unwrap().clone();
            let found = (counts.settled, counts.bad_total(), counts.dropped);
            if other_types.is_some() {
                assert_eq!(found, (7, 0, 2), "seed {seed}");
                assert!(rows(&world.letters).is_empty(), "seed {seed}");
            } else {
                assert_eq!(found, (7, 2, 0), "seed {seed}");
                assert_eq!(counts.bad, BTreeMap::from([("record_type", 2)]), "seed {seed}");
                assert_eq!(rows(&world.letters), ["3", "6"], "seed {seed}");
            }
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

/// Everything before it is durable, for both types; the message names the type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_stops_before_a_type_that_it_does_not_name() {
    let (world, right) = (World::new(&MIXED), Arc::<Mutex<Target>>::default());
    let parts = parts(&world, &right, Some(BadRecords::Stop));
    let stop = world.run_parts(parts, || (SinkSet::EMPTY, false)).await.expect("it stops");
    let said =
        "bad record at t/0 offset 3, schema id 3: its type `Other` is none of the route's `record_types`";
    assert!(stop.message.starts_with(said), "{}", stop.message);
    assert!(stop.hint.is_some_and(|hint| hint.contains("name its type under `record_types`")));
    assert_eq!(
        (rows(&world.main), rows(&right)),
        (vec!["a".to_owned(), "c".to_owned()], vec!["b".to_owned()])
    );
    assert_eq!(world.counts.lock().unwrap().settled, 3);
}

/// Other types are dead letters, bad records stop the route: each goes by what is said of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_records_and_other_types_go_their_own_ways() {
    let mut values = MIXED;
    values[7] = "\0\0\0\0\u{1}\u{4}h";
    let (world, right) = (World::new(&values), Arc::<Mutex<Target>>::default());
    let parts =
        LaneParts { bad_records: BadRecords::Stop, ..parts(&world, &right, Some(BadRecords::DeadLetter)) };
    let stop = world.run_parts(parts, || (SinkSet::EMPTY, false)).await.expect("it stops");
    assert!(stop.message.starts_with("bad record at t/0 offset 7, schema id 1: "), "{}", stop.message);
    assert!(stop.message.ends_with("(truncated)"), "{}", stop.message);
    assert_eq!(rows(&world.main), ["a", "c", "f"]);
    assert_eq!(rows(&right), ["b", "e"]);
    assert_eq!(rows(&world.letters), ["3", "6"]);
}
