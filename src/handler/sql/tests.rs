use arrow::array::{Array, Int64Array, Int64Builder, MapBuilder, MapFieldNames, StringArray, StringBuilder};
use arrow::util::pretty::pretty_format_batches;

use super::*;
use crate::config::plan::View;

fn view(name: &str, sql: &str) -> View {
    View { name: name.to_owned(), sql: sql.to_owned(), content: Default::default() }
}

fn value_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
    ]))
}

fn meta() -> Vec<Field> {
    vec![Field::new("_partition", DataType::Int64, false), Field::new("_offset", DataType::Int64, false)]
}

fn batch(views: &Views, ids: &[i64]) -> RecordBatch {
    let mut fields: Vec<Field> = value_schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    let names = ids.iter().map(|id| (id % 2 == 0).then(|| format!("n{id}")));
    let mut columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(ids.to_vec())), Arc::new(names.collect::<StringArray>())];
    for field in views.meta() {
        fields.push(field.clone());
        columns.push(Arc::new(Int64Array::from(vec![7; ids.len()])));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

async fn bind(views: &[View]) -> Result<Views, Vec<BindError>> {
    Views::bind(&value_schema(), &meta(), views).await
}

async fn rows(views: &Views, view: usize, ids: &[i64]) -> String {
    let answer = views.run(batch(views, ids), &BTreeSet::from([view])).await.unwrap();
    let rows = answer[view].clone().unwrap();
    assert_eq!(&rows.schema(), views.schema(view));
    pretty_format_batches(&[rows]).unwrap().to_string()
}

#[tokio::test]
async fn views_read_batch_and_one_another() {
    let views = bind(&[
        view("even", "SELECT *, _offset AS o FROM batch WHERE id % 2 = 0"),
        view("names", "SELECT upper(name) AS n, o FROM even"),
    ])
    .await
    .unwrap();
    // Only what is named is built, and `*` does not give it.
    assert_eq!(views.meta().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["_offset"]);
    let fields = views.schema(0).fields().iter().map(|field| field.name().clone());
    assert_eq!(fields.collect::<Vec<_>>(), ["id", "name", "o"]);
    assert_eq!(
        rows(&views, 1, &[1, 2, 4]).await,
        "+----+---+\n| n  | o |\n+----+---+\n| N2 | 7 |\n| N4 | 7 |\n+----+---+"
    );
    // Again, with other rows: nothing of the first batch is left.
    assert!(rows(&views, 1, &[6]).await.contains("N6"));
    assert!(!rows(&views, 1, &[6]).await.contains("N4"));
    assert_eq!(rows(&views, 1, &[1]).await, "+---+---+\n| n | o |\n+---+---+\n+---+---+");
}

#[tokio::test]
async fn only_what_is_wanted_is_computed() {
    let views =
        bind(&[view("a", "SELECT id FROM batch"), view("b", "SELECT 1 / (id - id) AS boom FROM batch")])
            .await
            .unwrap();
    let answer = views.run(batch(&views, &[1]), &BTreeSet::from([0])).await.unwrap();
    assert!(answer[0].is_some() && answer[1].is_none());
    let error = views.run(batch(&views, &[1]), &BTreeSet::from([1])).await.unwrap_err();
    assert_eq!(error.view, "b");
}

#[tokio::test]
async fn time_is_that_of_the_batch() {
    let views = bind(&[view("t", "SELECT now() AS t FROM batch")]).await.unwrap();
    let first = rows(&views, 0, &[1]).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    assert_ne!(first, rows(&views, 0, &[1]).await);
}

#[tokio::test]
async fn errors_have_a_place_and_name_what_there_is() {
    let cases = [
        ("SELECT idd FROM batch", Some((1, 8)), "idd"),
        ("SELECT id\nFROM  batchh", Some((2, 7)), "batchh"),
        ("SELECT id\nFRM batch", Some((2, 5)), "Expected"),
        ("DELETE FROM batch", Some((1, 1)), "a view is a query, not DELETE"),
        ("SELECT *, _offset FROM batch b JOIN batch c ON b.id = c.id", None, "name the columns"),
        ("EXPLAIN SELECT 1", Some((1, 1)), "a view is a query"),
    ];
    for (sql, place, expected) in cases {
        let errors = bind(&[view("ok", "SELECT 1 AS one"), view("bad", sql)]).await.err().unwrap();
        assert_eq!(errors.len(), 1, "{sql}: {errors:?}");
        assert_eq!((errors[0].view, errors[0].place), (1, place), "{sql}: {errors:?}");
        assert!(errors[0].message.contains(expected), "{sql}: {errors:?}");
    }
}

#[tokio::test]
async fn nested_values_are_taken_apart() {
    let items = Field::new("item", DataType::Int64, true);
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("xs", DataType::List(Arc::new(items)), true),
    ]));
    let views = [view("flat", "SELECT id, unnest(xs) AS x FROM batch")];
    let views = Views::bind(&schema, &[], &views).await.unwrap();
    let xs = arrow::array::ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([
        Some(vec![Some(1), Some(2)]),
        None,
    ]);
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2])), Arc::new(xs)];
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let answer = views.run(batch, &BTreeSet::from([0])).await.unwrap();
    assert_eq!(answer[0].as_ref().unwrap().num_rows(), 2);
}

#[tokio::test]
async fn maps_are_taken_apart_by_their_entries() {
    // As the codec names them.
    let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
    let mut map = MapBuilder::new(Some(names), StringBuilder::new(), Int64Builder::new());
    for (key, value) in [("a", 1), ("b", 2)] {
        map.keys().append_value(key);
        map.values().append_value(value);
    }
    map.append(true).unwrap();
    map.append(false).unwrap();
    let map = map.finish();
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("m", map.data_type().clone(), true),
    ]));
    let sql = "SELECT id, e['key'] AS k, e['value'] AS v
        FROM (SELECT id, unnest(map_entries(m)) AS e FROM batch)";
    let views = Views::bind(&schema, &[], &[view("flat", sql)]).await.unwrap();
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![7, 8])), Arc::new(map)];
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let answer = views.run(batch, &BTreeSet::from([0])).await.unwrap();
    let shown = pretty_format_batches(&[answer[0].clone().unwrap()]).unwrap().to_string();
    assert!(shown.contains("| 7  | a | 1 |") && shown.contains("| 7  | b | 2 |"), "{shown}");
    assert_eq!(answer[0].as_ref().unwrap().num_rows(), 2, "{shown}");
}

#[tokio::test]
async fn a_text_is_parsed_once_for_all_its_fields() {
    let sql = "SELECT v['a'] AS a, v['b'] AS b, v['c'] AS c
        FROM (SELECT from_json(name, 'a INT, b INT, c INT') AS v FROM batch)";
    let views = bind(&[view("parsed", sql)]).await.unwrap();
    let plan = views.views[0].plan.display_indent().to_string();
    assert_eq!(plan.matches("from_json(").count(), 1, "{plan}");
}
