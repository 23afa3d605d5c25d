use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    Array, BooleanArray, Date32Array, Decimal128Array, Float32Array, Int32Array, Int64Array, ListBuilder,
    StringArray, StringBuilder, StructArray, TimestampMillisecondArray, TimestampNanosecondArray,
    UInt64Array,
};
use arrow::datatypes::{Field, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;

use super::copy::{Step, behind, order};
use super::error::judge;
use super::table::{Described, Found};
use super::types::{Form, PgType, declared, fits};
use super::*;
use crate::model::Deletes;

/// The fields of each row of a binary copy; `None` is null.
fn read(encoded: &Encoded) -> Vec<Vec<Option<Vec<u8>>>> {
    let bytes = encoded.pieces.concat();
    assert_eq!(bytes.len() as u64, encoded.bytes);
    assert_eq!(&bytes[..11], b"PGCOPY\n\xff\r\n\0");
    let mut at = 19;
    let mut rows = Vec::new();
    loop {
        let count = i16::from_be_bytes(bytes[at..at + 2].try_into().unwrap());
        at += 2;
        if count == -1 {
            assert_eq!(at, bytes.len());
            return rows;
        }
        let mut row = Vec::new();
        for _ in 0..count {
            let length = i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            at += 4;
            row.push(usize::try_from(length).ok().map(|length| bytes[at..at + length].to_vec()));
            at += usize::try_from(length).unwrap_or(0);
        }
        rows.push(row);
    }
}

/// One column of a copy, value by value, or why not.
fn column(values: ArrayRef, form: Form) -> Result<Vec<Option<Vec<u8>>>, String> {
    assert!(fits(values.data_type(), form), "{} into {form:?}", values.data_type());
    let rows = values.len();
    let column = Column::new("c", &values, form, false).unwrap();
    let encoded = copy::append(&[column], rows).map_err(|unfit| unfit.to_string())?;
    Ok(read(&encoded).into_iter().map(|mut row| row.remove(0)).collect())
}

fn numeric(value: i128, scale: i8) -> Vec<i16> {
    let values = Decimal128Array::from(vec![value]).with_precision_and_scale(38, scale).unwrap();
    let bytes = column(Arc::new(values), Form::Numeric { scale: None }).unwrap().remove(0).unwrap();
    bytes.chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect()
}

#[test]
fn numbers_have_groups_of_four_digits_aligned_to_the_point() {
    assert_eq!(numeric(0, 2), [0, 0, 0, 2]);
    assert_eq!(numeric(12_345, 2), [2, 0, 0, 2, 123, 4500]);
    assert_eq!(numeric(-1, 4), [1, -1, 0x4000, 4, 1]);
    assert_eq!(numeric(1, 5), [1, -2, 0, 5, 1000]);
    assert_eq!(numeric(10_000, 0), [1, 1, 0, 0, 1]);
    assert_eq!(numeric(5, -3), [1, 0, 0, 0, 5000]);
    assert_eq!(numeric(-1_2345_6789, 0), [3, 2, 0x4000, 0, 1, 2345, 6789]);
    assert_eq!(numeric(1_0000_0000_0001, 4), [4, 2, 0, 4, 1, 0, 0, 1]);
    let large = UInt64Array::from(vec![u64::MAX]);
    let bytes = column(Arc::new(large), Form::Numeric { scale: None }).unwrap().remove(0).unwrap();
    assert_eq!(bytes.len(), 8 + 5 * 2);
}

#[test]
fn values_are_written_as_their_column_has_them() {
    let some = |bytes: &[u8]| Some(bytes.to_vec());
    let numbers = || Arc::new(Int64Array::from(vec![Some(7), None, Some(-1)]));
    for (form, first) in [
        (Form::Int2, &7_i16.to_be_bytes()[..]),
        (Form::Int4, &7_i32.to_be_bytes()[..]),
        (Form::Int8, &7_i64.to_be_bytes()[..]),
    ] {
        assert_eq!(column(numbers(), form).unwrap()[..2], [some(first), None]);
    }
    let narrow = Arc::new(Int32Array::from(vec![3]));
    assert_eq!(column(narrow, Form::Float8).unwrap(), [some(&3_f64.to_be_bytes())]);
    let floats = Arc::new(Float32Array::from(vec![1.5]));
    assert_eq!(column(floats, Form::Float8).unwrap(), [some(&1.5_f64.to_be_bytes())]);
    let flags = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
    assert_eq!(column(flags, Form::Bool).unwrap(), [some(&[1]), some(&[0]), None]);
    let days = Arc::new(Date32Array::from(vec![10_958]));
    assert_eq!(column(days, Form::Date).unwrap(), [some(&1_i32.to_be_bytes())]);
    let times = Arc::new(TimestampMillisecondArray::from(vec![946_684_800_001]));
    assert_eq!(column(times, Form::Timestamp).unwrap(), [some(&1_000_i64.to_be_bytes())]);
    let zoned = TimestampNanosecondArray::from(vec![946_684_800_000_001_999]).with_timezone("UTC");
    assert_eq!(column(Arc::new(zoned), Form::TimestampTz).unwrap(), [some(&1_i64.to_be_bytes())]);
    let text = || Arc::new(StringArray::from(vec!["c0ffee00-0000-4000-8000-000000000001"]));
    assert_eq!(column(text(), Form::Uuid).unwrap()[0].as_ref().map(Vec::len), Some(16));
    assert_eq!(column(text(), Form::Text).unwrap(), [some(text().value(0).as_bytes())]);
    assert_eq!(column(text(), Form::Jsonb).unwrap()[0].as_ref().map(|json| json[0]), Some(1));
    let field = Arc::new(Field::new("a", DataType::Int64, true));
    let nested = Arc::new(StructArray::from(vec![(field, numbers() as ArrayRef)]));
    assert_eq!(column(nested, Form::Jsonb).unwrap()[0], some(b"\x01{\"a\":7}"));
}

#[test]
fn what_does_not_fit_is_refused_and_not_shown() {
    let large = |value| Arc::new(Int64Array::from(vec![value]));
    assert!(column(large(32_767), Form::Int2).is_ok());
    let unsigned = Arc::new(UInt64Array::from(vec![u64::MAX]));
    let early = Arc::new(TimestampMillisecondArray::from(vec![i64::MIN]));
    let text = Arc::new(StringArray::from(vec!["secret"]));
    for told in [
        column(large(32_768), Form::Int2),
        column(large(-2_147_483_649), Form::Int4),
        column(unsigned, Form::Int8),
        column(early, Form::Timestamp),
        column(text, Form::Uuid),
    ] {
        let told = told.unwrap_err();
        assert!(told.starts_with("column `c` has ") && !told.contains("secret"), "{told}");
    }
    for (data_type, form) in [
        (DataType::Int64, Form::Float8),
        (DataType::Int64, Form::Text),
        (DataType::Float64, Form::Float4),
        (DataType::Decimal128(10, 3), Form::Numeric { scale: Some(2) }),
        (DataType::Utf8, Form::Int4),
        (DataType::Timestamp(TimeUnit::Millisecond, None), Form::TimestampTz),
        (DataType::Binary, Form::Text),
    ] {
        assert!(!fits(&data_type, form), "{data_type} into {form:?}");
    }
}

#[test]
fn deletes_need_the_key_that_rows_are_known_by() {
    let schema = |columns: &[(&str, DataType)]| {
        let fields = columns.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    };
    let rows = schema(&[("id", DataType::Int64), ("at", DataType::Utf8), ("n", DataType::Float64)]);
    let record = |columns: &[(&str, DataType)]| DataType::Struct(schema(columns).fields().clone());
    let check = |key: &DataType, keys: &[&str]| {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        check_deletes(key, &rows, &keys).err().unwrap_or_default()
    };
    let both = record(&[("at", DataType::Utf8), ("id", DataType::Int32), ("more", DataType::Binary)]);
    assert_eq!(check(&both, &["id", "at"]), "");
    assert_eq!(check(&DataType::Int16, &["id"]), "");
    for (key, keys, expected) in [
        (&both, &["id", "n"][..], "has no field `n`"),
        (&DataType::Int64, &["id", "at"][..], "is one value"),
        (&DataType::Binary, &["id"][..], "has Binary for column `id`, which is Int64"),
        (&record(&[("id", DataType::Utf8)]), &["id"][..], "has Utf8 for column `id`"),
    ] {
        let told = check(key, keys);
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn what_we_create_takes_what_we_write() {
    let item = Arc::new(Field::new("item", DataType::Int64, true));
    for (data_type, sql, name, modifier) in [
        (DataType::Boolean, "boolean", "bool", -1),
        (DataType::UInt16, "integer", "int4", -1),
        (DataType::UInt32, "bigint", "int8", -1),
        (DataType::UInt64, "numeric(20,0)", "numeric", (20 << 16) + 4),
        (DataType::Decimal128(10, 2), "numeric(10,2)", "numeric", (10 << 16 | 2) + 4),
        (DataType::Decimal256(50, -3), "numeric(53,0)", "numeric", (53 << 16) + 4),
        (DataType::Utf8, "text", "text", -1),
        (DataType::FixedSizeBinary(12), "bytea", "bytea", -1),
        (DataType::Time32(TimeUnit::Millisecond), "time", "time", -1),
        (DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), "timestamptz", "timestamptz", -1),
        (DataType::List(item), "jsonb", "jsonb", -1),
    ] {
        assert_eq!(declared(&data_type).as_deref(), Ok(sql));
        let pg = PgType { name, is_built_in: true, is_enum: false, modifier };
        assert!(fits(&data_type, Form::of(pg).unwrap()), "{data_type}");
    }
    let own = |is_enum| PgType { name: "mood", is_built_in: false, is_enum, modifier: -1 };
    assert_eq!((Form::of(own(true)), Form::of(own(false))), (Some(Form::Text), None));
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("say \"hi\"; DROP TABLE x", DataType::Utf8, true),
    ]))
}

fn described() -> Described {
    let found = |name: &str, form, declared: &str| Found {
        name: name.to_owned(),
        form,
        declared: declared.to_owned(),
        is_required: false,
        is_generated: false,
    };
    Described {
        place: Place { schema: "s\"x".to_owned(), table: "Orders".to_owned() },
        columns: vec![
            found("id", Some(Form::Int8), "bigint"),
            found("say \"hi\"; DROP TABLE x", Some(Form::Text), "character varying(3)"),
            found("more", None, "point"),
        ],
        unique: vec![BTreeSet::from(["id".to_owned()])],
    }
}

#[test]
fn names_are_quoted_wherever_they_stand() {
    let target = described().target(&schema(), &[]).unwrap();
    assert_eq!(
        sql::merge(&target, false),
        "INSERT INTO \"s\"\"x\".\"Orders\" (\"id\", \"say \"\"hi\"\"; DROP TABLE x\") SELECT c0, c1 FROM \
         pg_temp.sidestream_rows; SET CONSTRAINTS ALL IMMEDIATE"
    );
    assert_eq!(
        sql::create_rows(&target),
        "CREATE TEMPORARY TABLE sidestream_rows (c0 bigint, c1 character varying(3)) ON COMMIT DELETE ROWS"
    );
    let create = sql::create_table(&target.place, &schema(), &["id".to_owned()]).unwrap();
    assert_eq!(
        create,
        "CREATE TABLE IF NOT EXISTS \"s\"\"x\".\"Orders\" (\"id\" bigint, \"say \"\"hi\"\"; DROP TABLE x\" text, \
         PRIMARY KEY (\"id\"))"
    );
    let add = sql::add_columns(&target.place, &schema(), &["id".to_owned()]).unwrap();
    assert_eq!(add, "ALTER TABLE \"s\"\"x\".\"Orders\" ADD COLUMN IF NOT EXISTS \"id\" bigint");
}

#[test]
fn the_last_row_or_delete_of_a_key_is_what_counts() {
    let target = described().target(&schema(), &["id".to_owned()]).unwrap();
    let newest =
        "(SELECT DISTINCT ON (c0) * FROM pg_temp.sidestream_rows ORDER BY c0, number DESC) AS newest";
    let insert = format!(
        "INSERT INTO \"s\"\"x\".\"Orders\" (\"id\", \"say \"\"hi\"\"; DROP TABLE x\") SELECT c0, c1 FROM {newest} WHERE NOT \
         is_delete ORDER BY c0 ON CONFLICT (\"id\") DO UPDATE SET \"say \"\"hi\"\"; DROP TABLE x\" = \
         excluded.\"say \"\"hi\"\"; DROP TABLE x\"; SET CONSTRAINTS ALL IMMEDIATE"
    );
    assert_eq!(sql::merge(&target, false), insert);
    let delete = format!(
        "DELETE FROM \"s\"\"x\".\"Orders\" AS held USING {newest} WHERE newest.is_delete AND held.\"id\" = newest.c0; "
    );
    assert_eq!(sql::merge(&target, true), delete + &insert);
}

#[test]
fn everything_that_does_not_fit_is_told_at_once() {
    let mut described = described();
    described.columns[0].form = Some(Form::Text);
    described.columns[2].is_required = true;
    let fields = vec![Field::new("id", DataType::Int64, false), Field::new("new", DataType::Utf8, true)];
    let told = described.target(&Schema::new(fields), &["id".to_owned(), "new".to_owned()]).unwrap_err();
    for expected in [
        "column `id` is bigint, and ours is Int64",
        "it has no column `new`",
        "column `more` takes no null, has no default, and is not one of ours",
        "it has no primary key or unique index over exactly `id`, `new`",
    ] {
        assert!(told.contains(expected), "no {expected:?} in {told}");
    }
}

#[test]
fn rows_and_deletes_come_in_the_order_of_their_records() {
    let rows = |count: usize| (0..count).map(Step::Row).collect::<Vec<_>>();
    assert_eq!(order(2, None, &[]), rows(2));
    assert_eq!(
        order(3, Some(&[1, 1, 4]), &[0, 3, 4, 9]),
        [
            Step::Delete(0),
            Step::Row(0),
            Step::Row(1),
            Step::Delete(1),
            Step::Row(2),
            Step::Delete(2),
            Step::Delete(3),
        ]
    );
    assert_eq!(order(0, None, &[2]), [Step::Delete(0)]);
    let steps = order(3, Some(&[1, 1, 4]), &[0, 3, 9]);
    assert_eq!(behind(3, &steps, &[1, 1, 4], &[0, 3, 9]), [Step::Row(2), Step::Delete(2)]);
}

fn batch(ids: Vec<Option<i64>>, deletes: Vec<i64>) -> Batch {
    let count = u32::try_from(ids.len()).unwrap();
    let names: StringArray = ids.iter().map(|_| Some("x")).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(ids)), Arc::new(names)];
    let nullable = Schema::new(
        schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>(),
    );
    let mut batch = Batch::of_rows(Vec::new(), RecordBatch::try_new(Arc::new(nullable), columns).unwrap());
    if !deletes.is_empty() {
        batch.origins = Some((0..count).collect());
        let origins = (0..deletes.len()).map(|place| count + u32::try_from(place).unwrap()).collect();
        let field = Arc::new(Field::new("id", DataType::Int64, false));
        let ids: ArrayRef = Arc::new(Int64Array::from(deletes));
        let keys: ArrayRef = Arc::new(StructArray::from(vec![(field, ids)]));
        batch.deletes = Deletes { origins, keys: Some(keys), truncations: Vec::new() };
    }
    batch
}

#[test]
fn deletes_have_their_key_and_a_number() {
    let target = described().target(&schema(), &["id".to_owned()]).unwrap();
    let rows = read(&encode(&target, &batch(vec![Some(1)], vec![2])).unwrap());
    let long = |value: i64| Some(value.to_be_bytes().to_vec());
    assert_eq!(rows[0], [long(1), Some(b"x".to_vec()), long(0), Some(vec![0])]);
    assert_eq!(rows[1], [long(2), None, long(1), Some(vec![1])]);
    let told = encode(&target, &batch(vec![None], vec![])).map(|_| ()).unwrap_err().to_string();
    assert_eq!(told, "column `id` has null, and it is part of the key");
    let mut unordered = batch(vec![Some(1)], vec![2]);
    unordered.origins = None;
    assert!(matches!(encode(&target, &unordered), Err(EncodeError::Shape(_))));
    // Rows that are appended have nothing to do with deletes.
    let appended = described().target(&schema(), &[]).unwrap();
    assert_eq!(read(&encode(&appended, &batch(vec![Some(1)], vec![2])).unwrap()).len(), 1);
}

/// Rows of which some leave their text out, and one names a column that a view has left out.
fn incomplete() -> Batch {
    let mut unavailable =
        ListBuilder::new(StringBuilder::new()).with_field(Field::new("item", DataType::Utf8, false));
    unavailable.append(false);
    unavailable.values().append_value("say \"hi\"; DROP TABLE x");
    unavailable.append(true);
    unavailable.values().append_value("elsewhere");
    unavailable.append(true);
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let names: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None, Some("z")]));
    let columns = [
        ("id", ids),
        ("say \"hi\"; DROP TABLE x", names),
        (UNAVAILABLE, Arc::new(unavailable.finish()) as ArrayRef),
    ];
    let mut batch = Batch::of_rows(Vec::new(), RecordBatch::try_from_iter(columns).unwrap());
    batch.origins = Some([0, 1, 2].into());
    batch
}

#[test]
fn rows_say_what_was_not_sent_of_them() {
    let batch = incomplete();
    check_schema(batch.rows.schema_ref(), &["id".to_owned()]).unwrap();
    let rows = partial::written(batch.rows.schema_ref());
    assert_eq!(rows.fields().len(), 2);
    let target = described().target(&rows, &["id".to_owned()]).unwrap();
    let target = Target { is_partial: true, ..target };
    assert!(sql::create_rows(&target).contains("is_delete boolean NOT NULL, missing bytea)"));
    let encoded = encode(&target, &batch).unwrap();
    assert_eq!(encoded.missing, [1]);
    let masks: Vec<_> = read(&encoded).into_iter().map(|mut row| row.remove(4)).collect();
    assert_eq!(masks, [None, Some(vec![0, 1]), None]);
    // A batch of deletes alone has no columns.
    let none = Batch { rows: RecordBatch::new_empty(Arc::new(Schema::empty())), ..batch };
    let encoded = encode(&target, &none).unwrap();
    assert!(encoded.missing.is_empty() && read(&encoded).is_empty());
}

#[test]
fn a_row_that_leaves_a_value_out_keeps_the_one_that_is_there() {
    let target = described().target(&schema(), &["id".to_owned()]).unwrap();
    let merge = partial::merge(&target, &[1]);
    for expected in [
        "OVER (PARTITION BY c0 ORDER BY number) AS life",
        "(array_agg(c1 ORDER BY number DESC) FILTER (WHERE missing IS NULL OR get_byte(missing, 1) = 0))[1] AS v1",
        "ON sent.c0 = newest.c0 AND sent.life = newest.life WHERE NOT newest.is_delete",
        "SET \"say \"\"hi\"\"; DROP TABLE x\" = CASE WHEN folded.is_sent1 THEN folded.c1 ELSE held.\"say \"\"hi\"\"; DROP \
         TABLE x\" END FROM folded WHERE folded.is_partial AND folded.life = 0 AND held.\"id\" = folded.c0",
        "SELECT c0, c1 FROM folded WHERE NOT is_partial ORDER BY c0 ON CONFLICT (\"id\") DO UPDATE SET",
    ] {
        assert!(merge.contains(expected), "no {expected:?} in {merge}");
    }
}

/// Only what comes behind it is copied, and only where the route says so.
#[test]
fn a_truncation_deletes_what_came_before() {
    let target = described().target(&schema(), &["id".to_owned()]).unwrap();
    let mut batch = batch(vec![Some(1), Some(2), Some(3)], vec![4]);
    batch.deletes.truncations = vec![0, 1];
    let ignored = encode(&target, &batch).unwrap();
    assert_eq!((ignored.is_truncated, read(&ignored).len()), (false, 4));
    let target = Target { is_truncated: true, ..target };
    let encoded = encode(&target, &batch).unwrap();
    assert_eq!((encoded.is_truncated, read(&encoded).len()), (true, 2));
    assert_eq!(sql::clear(&target), "DELETE FROM \"s\"\"x\".\"Orders\"");
}

#[test]
fn keys_of_records_are_fields_or_one_value() {
    let record = DataType::Struct(vec![Field::new("a", DataType::Int64, true)].into());
    assert_eq!(record_key(&record, "_key"), ["a"]);
    assert_eq!(record_key(&DataType::Utf8, "_key"), ["_key"]);
    let target = described().target(&schema(), &["id".to_owned()]).unwrap();
    let columns: Vec<&TargetColumn> = target.columns.iter().filter(|column| column.is_key).collect();
    let one: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    assert_eq!(key_parts(&one, &columns).unwrap().len(), 1);
    let text: ArrayRef = Arc::new(StringArray::from(vec!["7"]));
    assert!(key_parts(&text, &columns).unwrap_err().contains("is no value of column `id` (bigint)"));
    let field = Arc::new(Field::new("other", DataType::Int64, false));
    let other: ArrayRef = Arc::new(StructArray::from(vec![(field, one)]));
    assert!(key_parts(&other, &columns).unwrap_err().contains("no field `id`"));
}

#[test]
fn schemas_are_looked_at_before_anything_runs() {
    check_schema(&schema(), &["id".to_owned()]).unwrap();
    assert!(check_schema(&schema(), &["no".to_owned()]).unwrap_err().contains("no column `no`"));
    let of = |name: &str| Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, true)]));
    assert!(check_schema(&of(&"x".repeat(64)), &[]).unwrap_err().contains("1 to 63 bytes"));
    check_schema(&of(UNAVAILABLE), &[]).unwrap();
    let told = check_schema(&of(UNAVAILABLE), &["id".to_owned()]).unwrap_err();
    assert!(told.contains("column `_unavailable` is Int64"), "{told}");
}

#[test]
fn each_state_has_somebody_who_must_act() {
    for (state, fault) in [
        ("22001", Fault::Refused),
        ("22021", Fault::Refused),
        ("23505", Fault::Refused),
        ("P0001", Fault::Refused),
        ("22P04", Fault::Stop),
        ("40001", Fault::Transient),
        ("40P01", Fault::Transient),
        ("40003", Fault::Transient),
        ("55P03", Fault::Transient),
        ("55000", Fault::Transient),
        ("72000", Fault::Transient),
        ("57014", Fault::Transient),
        ("57P01", Fault::Transient),
        ("25P03", Fault::Transient),
        ("53100", Fault::Transient),
        ("08006", Fault::Transient),
        ("28P01", Fault::Stop),
        ("3D000", Fault::Stop),
        ("42501", Fault::Stop),
        ("42P01", Fault::Stop),
        ("0A000", Fault::Stop),
    ] {
        assert_eq!(judge(state).0, fault, "{state}");
    }
}

/// A session has our level, and our limits but for those that its options set.
#[test]
fn a_transaction_says_its_level_and_its_limits() {
    let all = ["lock_timeout", "idle_in_transaction_session_timeout", "statement_timeout"];
    for (options, replaced) in [
        ("", &all[..0]),
        ("-c%20deadlock_timeout%3D2s", &all[..0]),
        ("-c%20lock_timeout%3D2s", &all[..1]),
        ("-clock_timeout%3D2s%20--idle-in-transaction-session-timeout%3D3s", &all[..2]),
        ("-c%20default_transaction_isolation%3Dserializable%20-c%20Statement_Timeout%3D9min", &all[2..]),
    ] {
        let login = Login::new(&format!("postgresql://h/d?options={options}"), None).unwrap();
        let begin = login.begin();
        assert!(begin.starts_with("BEGIN ISOLATION LEVEL READ COMMITTED"), "{begin}");
        for limit in all {
            let is_ours = begin.contains(&format!("SET LOCAL {limit} = "));
            assert_eq!(is_ours, !replaced.contains(&limit), "{options}: {begin}");
        }
    }
}

#[test]
fn a_url_is_understood_or_told_without_what_is_in_it() {
    for good in [
        "postgresql://u:p%40ss@h:5433/d",
        "postgres://h/d?sslmode=verify-full&application_name=x",
        "postgresql://h/d?sslmode=disable&options=-c%20lock_timeout%3D1s",
    ] {
        assert!(Login::new(good, None).is_ok(), "{good}");
    }
    for bad in ["", "mysql://u:s3cr3t@h/d", "postgresql://u:s3cr3t@h:port/d", "postgresql://h/d?s3cr3t=1"] {
        let told = Login::new(bad, None).err().unwrap_or_default();
        assert!(!told.is_empty() && !told.contains("s3cr3t"), "{bad}: {told}");
    }
}
