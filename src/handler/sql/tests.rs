use arrow::array::{Array, Int64Array, Int64Builder, MapBuilder, MapFieldNames, StringArray, StringBuilder};
use arrow::util::pretty::pretty_format_batches;

use super::*;
use crate::config::plan::View;
use crate::handler::Made;

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
    let answer = views.run(Input::of(batch(views, ids)), &BTreeSet::from([view])).await.unwrap();
    let rows = answer[view].clone().unwrap().rows;
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
async fn it_is_known_what_columns_are_made_of() {
    let views = bind(&[
        view("every", "SELECT *, _offset AS place FROM batch"),
        view("part", "SELECT a.name, id + place AS total, 1 AS one FROM every AS a WHERE upper(name) <> 'X'"),
        view("rest", "SELECT total AS again, upper(name) AS name FROM part WHERE one = 1"),
        view("once", "SELECT DISTINCT id FROM batch"),
    ])
    .await
    .unwrap();
    let is = |name: &str| Made::Is(name.to_owned());
    let of = |names: &[&str]| Made::Of(names.iter().map(|name| (*name).to_owned()).collect());
    let every = views.lineage(0).unwrap();
    assert_eq!(every.columns, [is("id"), is("name"), is("_offset")]);
    assert!(every.chosen_by.is_empty());
    let part = views.lineage(1).unwrap();
    assert_eq!(part.columns, [is("name"), of(&["_offset", "id"]), of(&[])]);
    assert_eq!(part.chosen_by.iter().collect::<Vec<_>>(), ["name"]);
    let rest = views.lineage(2).unwrap();
    assert_eq!(rest.columns, [of(&["_offset", "id"]), of(&["name"])]);
    assert_eq!(rest.chosen_by.iter().collect::<Vec<_>>(), ["name"]);
    assert!(views.lineage(3).is_none());
}

#[tokio::test]
async fn only_what_is_wanted_is_computed() {
    let views =
        bind(&[view("a", "SELECT id FROM batch"), view("b", "SELECT 1 / (id - id) AS boom FROM batch")])
            .await
            .unwrap();
    let answer = views.run(Input::of(batch(&views, &[1])), &BTreeSet::from([0])).await.unwrap();
    assert!(answer[0].is_some() && answer[1].is_none());
    let error = views.run(Input::of(batch(&views, &[1])), &BTreeSet::from([1])).await.unwrap_err();
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
    let answer = views.run(Input::of(batch), &BTreeSet::from([0])).await.unwrap();
    assert_eq!(answer[0].as_ref().unwrap().rows.num_rows(), 2);
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
    let answer = views.run(Input::of(batch), &BTreeSet::from([0])).await.unwrap();
    let shown = pretty_format_batches(&[answer[0].clone().unwrap().rows]).unwrap().to_string();
    assert!(shown.contains("| 7  | a | 1 |") && shown.contains("| 7  | b | 2 |"), "{shown}");
    assert_eq!(answer[0].as_ref().unwrap().rows.num_rows(), 2, "{shown}");
}

#[tokio::test]
async fn a_text_is_parsed_once_for_all_its_fields() {
    let sql = "SELECT v['a'] AS a, v['b'] AS b, v['c'] AS c
        FROM (SELECT from_json(name, 'a INT, b INT, c INT') AS v FROM batch)";
    let views = bind(&[view("parsed", sql)]).await.unwrap();
    let plan = views.views[0].plan.display_indent().to_string();
    assert_eq!(plan.matches("from_json(").count(), 1, "{plan}");
}

/// The rows of a view as text, and which records they are made of.
async fn traced(views: &Views, view: usize, batch: Input) -> (String, Option<Vec<u32>>) {
    let answer = views.run(batch, &BTreeSet::from([view])).await.unwrap();
    let Traced { rows, origins } = answer[view].clone().unwrap();
    assert_eq!(&rows.schema(), views.schema(view));
    let columns = rows
        .columns()
        .iter()
        .map(|column| arrow::util::pretty::pretty_format_columns("", std::slice::from_ref(column)));
    let lines = columns.map(|column| column.unwrap().to_string().replace(['|', '+', '-', '\n'], " "));
    let shown: Vec<String> =
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    (shown.join("; "), origins.map(|origins| origins.to_vec()))
}

fn of(rows: RecordBatch, origins: &[u32]) -> Input {
    Input { all: Traced { rows, origins: Some(origins.into()) }, live: None }
}

#[tokio::test]
async fn rows_know_the_records_they_are_made_of() {
    let views = bind(&[
        view("even", "SELECT id * 10 AS x, _offset FROM batch AS b WHERE id % 2 = 0"),
        view("again", "WITH w AS (SELECT * FROM even) SELECT x + 1 AS y FROM w WHERE x > 20"),
        view("counted", "SELECT count(*) AS n FROM even"),
    ])
    .await
    .unwrap();
    assert_eq!([0, 1, 2].map(|view| views.is_of_records(view)), [true, true, false]);
    let rows = || batch(&views, &[1, 2, 3, 4, 6]);
    let origins = [3, 5, 7, 9, 11];
    assert_eq!(
        traced(&views, 0, of(rows(), &origins)).await,
        ("20 40 60; 7 7 7".to_owned(), Some(vec![5, 9, 11]))
    );
    assert_eq!(traced(&views, 1, of(rows(), &origins)).await, ("41 61".to_owned(), Some(vec![9, 11])));
    // Over the same rows, whether they carry origins or not.
    assert_eq!(traced(&views, 2, of(rows(), &origins)).await, ("3".to_owned(), None));
    assert_eq!(traced(&views, 1, Input::of(rows())).await, ("41 61".to_owned(), None));
}

#[tokio::test]
async fn rows_of_several_records_have_no_origin() {
    for sql in [
        "SELECT count(*) AS n FROM batch",
        "SELECT DISTINCT id FROM batch",
        "SELECT id FROM batch LIMIT 1",
        "SELECT id FROM batch ORDER BY id DESC",
        "SELECT b.id FROM batch b JOIN batch c ON b.id = c.id",
        "SELECT id FROM batch UNION ALL SELECT id FROM batch",
        "SELECT id FROM batch WHERE id IN (SELECT max(id) FROM batch)",
        "SELECT id, (SELECT max(id) FROM batch) AS top FROM batch",
        "SELECT row_number() OVER (ORDER BY id) AS n FROM batch",
        "SELECT 1 AS one",
    ] {
        let views = bind(&[view("v", sql), view("over", "SELECT * FROM v")]).await.unwrap();
        assert!(!views.is_of_records(0) && !views.is_of_records(1), "{sql}");
        assert_eq!(traced(&views, 1, of(batch(&views, &[1]), &[0])).await.1, None, "{sql}");
    }
}

/// A record whose row becomes several, or none, is the origin of each.
#[tokio::test]
async fn rows_taken_apart_have_one_origin() {
    let items = Field::new("item", DataType::Int64, true);
    let schema: SchemaRef =
        Arc::new(Schema::new(vec![Field::new("xs", DataType::List(Arc::new(items)), true)]));
    let sql = "SELECT x, x * 2 AS y FROM (SELECT unnest(xs) AS x FROM batch) WHERE x <> 3";
    let views = Views::bind(&schema, &[], &[view("flat", sql)]).await.unwrap();
    let xs = arrow::array::ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([
        Some(vec![Some(1), Some(2)]),
        None,
        Some(vec![Some(3), Some(4)]),
    ]);
    let batch = RecordBatch::try_new(schema, vec![Arc::new(xs)]).unwrap();
    let expected = ("1 2 4; 2 4 8".to_owned(), Some(vec![0, 0, 2]));
    assert_eq!(traced(&views, 0, of(batch, &[0, 1, 2])).await, expected);
}

/// Rows of deletes are there for who asks what happened, and for nobody else.
#[tokio::test]
async fn a_view_that_names_the_change_sees_all_of_them() {
    let meta = [Field::new("_op", DataType::Utf8, false)];
    let views = [
        view("log", "SELECT id, _op FROM batch"),
        view("rows", "SELECT id FROM batch"),
        view("gone", "SELECT id FROM log WHERE _op = 'd'"),
    ];
    let views = Views::bind(&value_schema(), &meta, &views).await.unwrap();
    let schema =
        value_schema().fields().iter().map(|field| field.as_ref().clone()).chain(meta).collect::<Vec<_>>();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2])),
        Arc::new(StringArray::from(vec![None::<&str>, None])),
        Arc::new(StringArray::from(vec!["c", "d"])),
    ];
    let rows = RecordBatch::try_new(Arc::new(Schema::new(schema)), columns).unwrap();
    let live = Some(Traced { rows: rows.slice(0, 1), origins: Some([4].into()) });
    let input = || Input { live: live.clone(), ..of(rows.clone(), &[4, 8]) };
    assert_eq!(traced(&views, 0, input()).await, ("1 2; c d".to_owned(), Some(vec![4, 8])));
    assert_eq!(traced(&views, 1, input()).await, ("1".to_owned(), Some(vec![4])));
    assert_eq!(traced(&views, 2, input()).await, ("2".to_owned(), Some(vec![8])));
}
