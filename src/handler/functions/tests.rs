use std::collections::BTreeSet;

use arrow::array::StringArray;
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;

use super::*;
use crate::config::plan::View;
use crate::handler::{Handler, Input, Views};

/// A batch of raw values.
fn batch(values: &[Option<&str>]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("value", DataType::Utf8, true)]);
    let column: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
    RecordBatch::try_new(Arc::new(schema), vec![column]).unwrap()
}

fn views(queries: &[&str]) -> Vec<View> {
    let view = |(index, sql): (usize, &&str)| View {
        name: format!("v{index}"),
        sql: (*sql).to_owned(),
        content: Default::default(),
    };
    queries.iter().enumerate().map(view).collect()
}

/// The rows of the last of `queries`, whose names are `v0`, `v1`, ….
async fn run(batch: RecordBatch, queries: &[&str]) -> RecordBatch {
    let views = Views::bind(&batch.schema(), &[], &views(queries)).await.unwrap();
    let last = queries.len() - 1;
    let mut answer = views.run(Input::of(batch), &BTreeSet::from([last])).await.unwrap();
    answer.swap_remove(last).unwrap().rows
}

/// The texts of the first column of `query`.
async fn texts(values: &[Option<&str>], query: &str) -> Vec<Option<String>> {
    let rows = run(batch(values), &[query]).await;
    let texts = rows.column(0).as_string::<i32>();
    texts.iter().map(|text| text.map(str::to_owned)).collect()
}

#[tokio::test]
async fn raw_topics_are_taken_apart() {
    let values = [
        Some(r#"{"id": 1, "items": [{"sku": "a", "n": 1}, {"sku": "b"}], "more": {}}"#),
        None,
        Some("not JSON"),
        Some(r#"{"id": "2", "items": []}"#),
        Some(r#"{"id": 3}"#),
        Some(r#"{"items": [{}]}"#),
    ];
    let parsed = "SELECT from_json(value, 'id BIGINT, items ARRAY<STRUCT<sku: STRING>>') AS v FROM batch";
    let ids = run(batch(&values), &[parsed, "SELECT v['id'] AS id, v IS NULL AS bad FROM v0"]).await;
    let expected = "\
+----+-------+
| id | bad   |
+----+-------+
| 1  | false |
|    | true  |
|    | true  |
|    | true  |
| 3  | false |
|    | false |
+----+-------+";
    assert_eq!(pretty_format_batches(&[ids]).unwrap().to_string(), expected);
    let items = [
        parsed,
        "SELECT v['id'] AS id, unnest(v['items']) AS item FROM v0",
        "SELECT id, item['sku'] AS sku FROM v1",
    ];
    let items = run(batch(&values), &items).await;
    let expected = "\
+----+-----+
| id | sku |
+----+-----+
| 1  | a   |
| 1  | b   |
|    |     |
+----+-----+";
    assert_eq!(pretty_format_batches(&[items]).unwrap().to_string(), expected);
}

#[tokio::test]
async fn every_type_makes_the_round_trip() {
    let value = r#"{"b":true,"t":-128,"s":32767,"i":1,"l":9007199254740993,"f":1.5,"d":0.1,"n":12.30,
        "x":"ü\"","y":"AP8=","day":"2026-01-02","at":"2026-01-02T04:04:05.000001+01:00",
        "wall":"2026-01-02T03:04:05","xs":[1,null],"m":{"k":{"z":1}}}"#;
    let schema = "b BOOLEAN, t TINYINT, s SMALLINT, i INT, l BIGINT, f FLOAT, d DOUBLE, n DECIMAL(9, 2), \
                  x STRING, y BINARY, day DATE, at TIMESTAMP, wall TIMESTAMP_NTZ, xs ARRAY<INT>, \
                  m MAP<STRING, STRUCT<z: INT>>";
    let expected = [
        r#"{"b":true,"t":-128,"s":32767,"i":1,"l":9007199254740993,"f":1.5,"d":0.1,"n":12.30,"#,
        r#""x":"ü\"","y":"AP8=","day":"2026-01-02","at":"2026-01-02T03:04:05.000001Z","#,
        r#""wall":"2026-01-02T03:04:05.000000","xs":[1,null],"m":{"k":{"z":1}}}"#,
    ]
    .concat();
    let query = format!("SELECT to_json(from_json(value, '{schema}')) AS t FROM batch");
    let found = texts(&[Some(value), None, Some(expected.as_str())], &query).await;
    assert_eq!(found, [Some(expected.clone()), None, Some(expected)]);
}

#[tokio::test]
async fn what_does_not_fit_is_null_as_a_whole() {
    let deep = "[".repeat(100_000);
    let nested = format!(r#"{{"a": {deep}"#);
    let values = [
        Some(r#"{"a": 1, "xs": [1]}"#),
        Some(r#"{"z": 1}"#),
        Some(r#"{"a": null, "xs": [null]}"#),
        // Null from here.
        Some(r#"{"a": 128}"#),
        Some(r#"{"a": 1.5}"#),
        Some(r#"{"a": "1"}"#),
        Some(r#"{"a": 1, "xs": [1, "2"]}"#),
        Some(r#"{"a": 1} x"#),
        Some(r#"{"a": 1"#),
        Some("[1]"),
        Some("1"),
        Some("null"),
        Some(""),
        Some(deep.as_str()),
        Some(nested.as_str()),
    ];
    let query = "SELECT to_json(from_json(value, 'a TINYINT, xs ARRAY<INT>')) AS t FROM batch";
    let mut found = texts(&values, query).await;
    assert!(found.split_off(3).iter().all(Option::is_none));
    let expected = [r#"{"a":1,"xs":[1]}"#, r#"{"a":null,"xs":null}"#, r#"{"a":null,"xs":[null]}"#];
    assert_eq!(found, expected.map(|text| Some(text.to_owned())));
    let lists = "SELECT to_json(from_json(value, 'ARRAY<ARRAY<INT>>')) AS t FROM batch";
    assert_eq!(
        texts(&[Some(deep.as_str()), Some("[[1], []]")], lists).await,
        [None, Some("[[1],[]]".to_owned())]
    );
}

#[tokio::test]
async fn literals_and_bytes_are_texts_too() {
    let cases = [
        ("to_json(from_json('{\"a\": [1]}', 'a ARRAY<INT>'))", Some(r#"{"a":[1]}"#)),
        ("to_json(from_json('5', 'INT'))", Some("5")),
        ("to_json(from_json(NULL, 'a INT'))", None),
        ("to_json(from_json(CAST(value AS BYTEA), 'a INT'))", Some(r#"{"a":7}"#)),
        ("to_json(named_struct('a', 1, 'b', 'x'))", Some(r#"{"a":1,"b":"x"}"#)),
        ("to_json(CAST(NULL AS TEXT))", None),
        ("to_json(value)", Some(r#""{\"a\": 7}""#)),
        ("get_json_object(value, '$.a')", Some("7")),
        ("get_json_object(CAST(value AS BYTEA), '$.a')", Some("7")),
        ("get_json_object(value, '$.b')", None),
        ("get_json_object('[true]', '$[0]')", Some("true")),
    ];
    for (sql, expected) in cases {
        let found = texts(&[Some(r#"{"a": 7}"#)], &format!("SELECT {sql} AS t FROM batch")).await;
        assert_eq!(found, [expected.map(str::to_owned)], "{sql}");
    }
}

#[tokio::test]
async fn rows_can_be_chosen_by_what_is_in_a_text() {
    let values = [Some(r#"{"type": "order"}"#), Some(r#"{"type": "click"}"#), None];
    let query = "SELECT value FROM batch WHERE get_json_object(value, '$.type') = 'order'";
    assert_eq!(texts(&values, query).await, [values[0].map(str::to_owned)]);
}

#[tokio::test]
async fn mistakes_are_found_when_a_view_is_planned() {
    let cases = [
        ("from_json(value, 'a FOO')", "from_json: the schema at character 3: `FOO` is not a type; types are"),
        ("from_json(value, value)", "from_json needs a text literal as its second argument, such as 'id"),
        ("from_json(value, NULL)", "from_json needs a text literal"),
        ("from_json(1, 'a INT')", "from_json reads text or bytes, not Int64"),
        ("get_json_object(value, 'a')", "get_json_object: there is no `$` at the start in `a`"),
        ("get_json_object(value, value)", "get_json_object needs a text literal"),
        ("from_json(value)", "from_json"),
    ];
    for (sql, expected) in cases {
        let query = format!("SELECT {sql} AS v FROM batch");
        let queries = views(&[query.as_str()]);
        let errors = Views::bind(&batch(&[]).schema(), &[], &queries).await.err().unwrap();
        assert_eq!(errors.len(), 1, "{sql}: {errors:?}");
        assert!(errors[0].message.contains(expected), "{sql}: {errors:?}");
    }
}
