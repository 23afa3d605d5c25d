use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray,
    TimestampMicrosecondArray, TimestampMillisecondArray, UInt64Array,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Fields, Int64Type, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use delta_kernel::committer::FileSystemCommitter;
use delta_kernel::engine::arrow_data::EngineDataArrowExt;
use delta_kernel::{Engine, Snapshot};
use serde_json::Value;

use super::positions::{Objection, Txn};
use super::types::Unfit;
use super::*;
use crate::model::{Classify, ClusterId, Fault, LeaderEpoch, Offset, Partition, Reason, StartHash, TopicId};
use crate::sink::owner::{Owner, Refusal};

mod commits;

fn owner(identity: &str) -> Owner {
    Owner { cluster: ClusterId("c/1".into()), group: "ä %g".into(), identity: identity.into() }
}

fn key() -> PositionKey {
    PositionKey { topic_id: TopicId(uuid::Uuid::from_u128(5)), partition: Partition(3) }
}

fn step(start: Option<i64>, end: i64, reason: Reason) -> Move {
    Move {
        key: key(),
        topic: TopicName::new("shop.orders"),
        start: start.and_then(Offset::new),
        end: Position { next: Offset::new(end).unwrap(), epoch: None },
        reason,
        records: 1,
    }
}

// Positions.

/// What a log would say of these, in any order.
fn noted(writers: &mut Writers, txns: Vec<Txn>) {
    let lines: Vec<Value> = txns.iter().rev().map(Txn::line).collect();
    writers.note_entry(&lines);
}

fn next(writers: &Writers, identity: &str) -> Option<i64> {
    writers.positions(&owner(identity)).get(&key()).map(|position| position.next.get())
}

#[test]
fn names_of_actions_are_read_as_they_are_written() {
    let (mut writers, claim) = (Writers::default(), Claim::from(owner("r/s")));
    let joining = writers.entering(&claim, &Admission::Joins, 7);
    assert_eq!(joining[0].app_id(), "sidestream/c%2F1/%C3%A4%20%25g/r%2Fs/joined");
    noted(&mut writers, joining);
    assert_eq!(writers.admission(&claim), Ok(Admission::Known));
    let mut first = step(None, 40, Reason::Start { hash: StartHash("abc".into()) });
    first.end.epoch = Some(LeaderEpoch(9));
    let txns = writers.advancing(&claim.owner, std::slice::from_ref(&first), 8).unwrap();
    for txn in &txns {
        let line = txn.line();
        let (app_id, number) = (txn.app_id(), line["txn"]["version"].as_i64().unwrap());
        assert_eq!(Txn::parse(&app_id, number).as_ref(), Some(txn));
        assert!(line["txn"].get("lastUpdated").is_none(), "a retention would end it: {line}");
    }
    noted(&mut writers, txns);
    let positions = writers.positions(&claim.owner);
    assert_eq!(positions.get(&first.key), Some(first.end));
    assert_eq!(positions.start_hash(), Some(&StartHash("abc".into())));
    assert_eq!(positions.iter().next().unwrap().1.as_str(), "shop.orders");
    for foreign in ["app", "sidestream/a/b", "sidestream/a/b/c/other", "sidestream/%zz/b/c/joined", "", "%"] {
        assert_eq!(Txn::parse(foreign, 1), None, "{foreign}");
    }
}

#[test]
fn moves_that_do_not_start_where_a_sink_stands_are_conflicts() {
    let mut writers = Writers::default();
    let owner = owner("s");
    let moved = |writers: &mut Writers, step: Move| {
        let txns = writers.advancing(&owner, &[step], 1)?;
        noted(writers, txns);
        Ok::<_, Objection>(())
    };
    moved(&mut writers, step(None, 10, Reason::Data)).unwrap();
    for wrong in [step(None, 20, Reason::Data), step(Some(9), 20, Reason::Data)] {
        assert!(matches!(moved(&mut writers, wrong), Err(Objection::Conflict(_))));
    }
    let mut read = step(Some(10), 20, Reason::Data);
    read.end.epoch = Some(LeaderEpoch(2));
    moved(&mut writers, read).unwrap();
    // An operator leads it back: what was read up to there is forgotten.
    moved(&mut writers, step(Some(20), 5, Reason::Reset)).unwrap();
    let standing = writers.positions(&owner).get(&key()).unwrap();
    assert_eq!((standing.next.get(), standing.epoch), (5, None));
    // Nothing moves, nothing is written.
    assert!(writers.advancing(&owner, &[step(Some(5), 5, Reason::Idle)], 2).unwrap().is_empty());
}

#[test]
fn the_last_start_counts_though_it_was_there_before() {
    let mut writers = Writers::default();
    let owner = owner("s");
    for (version, hash) in [(1, "a"), (2, "b"), (3, "a")] {
        let start = (version > 1).then_some(10);
        let edited = step(start, 10, Reason::Start { hash: StartHash(hash.into()) });
        let txns = writers.advancing(&owner, &[edited], version).unwrap();
        noted(&mut writers, txns);
        assert_eq!(writers.positions(&owner).start_hash(), Some(&StartHash(hash.into())));
    }
}

#[test]
fn positions_are_taken_over_and_back() {
    let mut writers = Writers::default();
    let claim = |identity: &str, adopt: Option<&str>| Claim {
        adopt: adopt.map(str::to_owned),
        ..Claim::from(owner(identity))
    };
    let enter = |writers: &mut Writers, claim: &Claim, version: i64| {
        let admission = writers.admission(claim)?;
        let txns = writers.entering(claim, &admission, version);
        noted(writers, txns);
        Ok::<_, Refusal>(())
    };
    enter(&mut writers, &claim("old", None), 1).unwrap();
    let txns = writers.advancing(&owner("old"), &[step(None, 30, Reason::Data)], 2).unwrap();
    noted(&mut writers, txns);
    let refused = enter(&mut writers, &claim("new", None), 3).unwrap_err();
    assert_eq!(refused, Refusal::Foreign { owner: owner("old") });
    enter(&mut writers, &claim("new", Some("old")), 4).unwrap();
    assert_eq!(next(&writers, "new"), Some(30));
    // A zombie of the former one commits no more.
    let taken = writers.advancing(&owner("old"), &[step(Some(30), 31, Reason::Data)], 5).unwrap_err();
    assert_eq!(taken, Objection::Refused(Refusal::Taken { by: owner("new") }));
    let txns = writers.advancing(&owner("new"), &[step(Some(30), 50, Reason::Data)], 5).unwrap();
    noted(&mut writers, txns);
    enter(&mut writers, &claim("old", Some("new")), 6).unwrap();
    assert_eq!(
        (next(&writers, "old"), writers.admission(&claim("old", None))),
        (Some(50), Ok(Admission::Known))
    );
    assert!(writers.accounts()[&owner("new")].taken_by == Some(owner("old")));
}

// Types.

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn columns(fields: Vec<Field>) -> StructType {
    types::columns(&Schema::new(fields), &[]).unwrap()
}

#[test]
fn each_type_has_its_column_or_is_refused() {
    let item = |data_type| Arc::new(Field::new_list_field(data_type, false));
    let of = Fields::from(vec![field("n", DataType::Int8)]);
    for (data_type, expected) in [
        (DataType::UInt8, "short"),
        (DataType::UInt32, "long"),
        (DataType::UInt64, "decimal(20,0)"),
        (DataType::Float16, "float"),
        (DataType::Decimal128(9, 2), "decimal(9,2)"),
        (DataType::Decimal256(38, 2), "decimal(38,2)"),
        (DataType::Decimal128(9, -2), "decimal(11,0)"),
        (DataType::Null, "string"),
        (DataType::FixedSizeBinary(16), "binary"),
        (DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())), "timestamp"),
        (DataType::Timestamp(TimeUnit::Second, None), "timestamp_ntz"),
        (DataType::LargeList(item(DataType::Int32)), "array<integer>"),
        (DataType::Struct(of), "struct<n: byte>"),
        (DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)), "string"),
    ] {
        assert_eq!(declared(&data_type).as_deref(), Ok(expected), "{data_type}");
    }
    for data_type in [
        DataType::Time64(TimeUnit::Microsecond),
        DataType::Duration(TimeUnit::Second),
        DataType::Decimal256(50, 2),
        DataType::Struct(Fields::empty()),
    ] {
        declared(&data_type).unwrap_err();
        let wrong = types::columns(&Schema::new(vec![field("x", data_type)]), &[]).unwrap_err();
        assert!(wrong.starts_with("column `x` is "), "{wrong}");
    }
    let inner = DataType::Struct(Fields::from(vec![field("a b", DataType::Int8)]));
    for (field, expected) in [
        (field("", DataType::Int8), "column `` has a name"),
        (field("a;b", DataType::Int8), "column `a;b` has a name"),
        (field("s", inner), "column `s.a b` has a name"),
    ] {
        let wrong = types::columns(&Schema::new(vec![field]), &[]).unwrap_err();
        assert!(wrong.starts_with(expected), "{wrong}");
    }
    types::columns(&Schema::new(vec![field("id", DataType::Int8), field("ID", DataType::Int8)]), &[])
        .unwrap_err();
}

#[test]
fn partitions_are_columns_of_plain_types() {
    let rows = Schema::new(vec![field("id", DataType::Int64), field("day", DataType::Utf8)]);
    let by = [field("day", DataType::Date32), field("land", DataType::Utf8View)];
    let columns = types::columns(&rows, &by).unwrap();
    assert_eq!(shown(&columns), "id: long, day: date, land: string");
    let wrong = types::columns(&rows, &[field("x", DataType::Float64)]).unwrap_err();
    assert!(wrong.starts_with("partition `x` is double"), "{wrong}");
}

fn shown(columns: &StructType) -> String {
    let each = columns.fields().map(|column| format!("{}: {}", column.name, column.data_type));
    each.collect::<Vec<_>>().join(", ")
}

#[test]
fn a_table_gets_the_columns_that_it_lacks_at_any_depth() {
    let inner = |fields: Vec<Field>| DataType::Struct(Fields::from(fields));
    let table = columns(vec![
        field("id", DataType::Int64),
        field("at", inner(vec![field("x", DataType::Float64)])),
        field("gone", DataType::Utf8),
    ]);
    let own = columns(vec![
        field("id", DataType::Int32),
        field("new", DataType::Utf8),
        field("at", inner(vec![field("y", DataType::Int8), field("x", DataType::Float32)])),
    ]);
    let merged = types::merged(&table, &own).unwrap();
    let expected = "id: long, at: struct<x: double, y: byte>, gone: string, new: string";
    assert_eq!(shown(&merged), expected);
    assert_eq!(types::merged(&merged, &own).unwrap(), merged);
    // Files have what the rows have, as the table has it.
    let files = types::in_files(&merged, &own, &["new".to_owned()]).unwrap();
    let names: Vec<&str> = files.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["id", "at"]);
    assert_eq!(files.field(0).data_type(), &DataType::Int64);
    for (own, expected) in [
        (field("id", DataType::Utf8), "column `id` is long in the table, and string in the rows"),
        (field("ID", DataType::Int64), "column `ID` is `id` in the table"),
        (field("at", inner(vec![field("x", DataType::Utf8)])), "column `at.x` is double in the table"),
        (field("gone", DataType::Int64), "column `gone` is string in the table"),
    ] {
        let wrong = types::merged(&table, &columns(vec![own])).unwrap_err();
        assert!(wrong.contains(expected), "no {expected:?} in {wrong:?}");
    }
    let decimal = |precision, scale| columns(vec![field("d", DataType::Decimal128(precision, scale))]);
    types::merged(&decimal(12, 3), &decimal(10, 2)).unwrap();
    types::merged(&decimal(12, 3), &decimal(11, 2)).unwrap();
    types::merged(&decimal(12, 3), &decimal(12, 2)).unwrap_err();
    types::merged(&decimal(12, 2), &decimal(10, 3)).unwrap_err();
}

#[test]
fn a_value_beyond_its_column_is_told_without_it() {
    let ids: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
    let far: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![i64::MAX - 7]).with_timezone("UTC"));
    let rows = RecordBatch::try_from_iter([("id", ids), ("at", far)]).unwrap();
    let own = types::columns(&rows.schema(), &[]).unwrap();
    let files = types::in_files(&own, &own, &[]).unwrap();
    let ids = RecordBatch::try_from_iter([("id", rows.column(0).clone())]).unwrap();
    let one = Arc::new(files.project(&[0]).unwrap());
    let cast = types::cast(&ids, &one).unwrap();
    assert_eq!(cast.column(0).data_type(), &DataType::Decimal128(20, 0));
    let unfit = types::cast(&rows, &files).unwrap_err();
    assert!(matches!(&unfit, Unfit::Beyond { column, .. } if column == "at"), "{unfit}");
    assert!(!unfit.to_string().contains("9223372"), "{unfit}");
    let strict = Arc::new(Schema::new(vec![Field::new("name", DataType::Utf8, false)]));
    let nulls: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
    let unfit = types::cast(&RecordBatch::try_from_iter([("name", nulls)]).unwrap(), &strict).unwrap_err();
    assert_eq!(unfit, Unfit::Null { column: "name".to_owned() });
}

#[test]
fn statistics_are_never_narrower_than_the_values() {
    let times = TimestampMicrosecondArray::from(vec![Some(5_000), None, Some(1_000_000)]);
    let far = Date32Array::from(vec![0, i32::MAX, i32::MIN]);
    let near = Date32Array::from(vec![0, -1, 20_000]);
    let texts = StringArray::from(vec!["b".to_owned(), "a".to_owned(), "ü".repeat(40)]);
    let floats = Float64Array::from(vec![f64::NAN, 1.0, 2.0]);
    let micros = TimestampMicrosecondArray::from(vec![-1, 1, 1_500_001]);
    let columns: [(&str, ArrayRef); 7] = [
        ("id", Arc::new(Int64Array::from(vec![i64::MIN, 0, i64::MAX]))),
        ("at", Arc::new(times.with_timezone("UTC"))),
        ("far", Arc::new(far)),
        ("near", Arc::new(near)),
        ("text", Arc::new(texts)),
        ("float", Arc::new(floats)),
        ("local", Arc::new(micros)),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    );
    let rows = rows.unwrap();
    let mut stats = stats::Stats::new(&rows.schema());
    stats.add(&rows.slice(0, 1));
    stats.add(&rows.slice(1, 2));
    let told: Value = serde_json::from_str(&stats.text()).unwrap();
    assert_eq!((&told["numRecords"], &told["nullCount"]["at"]), (&json!(3), &json!(1)));
    let bounds = |name: &str| (told["minValues"][name].clone(), told["maxValues"][name].clone());
    assert_eq!(bounds("id"), (json!(i64::MIN), json!(i64::MAX)));
    assert_eq!(bounds("at"), (json!("1970-01-01T00:00:00.005Z"), json!("1970-01-01T00:00:01.000Z")));
    assert_eq!(bounds("near"), (json!("1969-12-31"), json!("2024-10-04")));
    assert_eq!(bounds("local"), (json!("1969-12-31T23:59:59.999"), json!("1970-01-01T00:00:01.501")));
    for name in ["far", "text", "float"] {
        assert_eq!(bounds(name), (Value::Null, Value::Null), "{name}");
    }
}

// The table.
