//! A sink on real tables.

use super::*;

fn schema(names: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(names.iter().map(|name| field(name, DataType::Int64)).collect::<Vec<_>>()))
}

/// Rows `ids`; every column has the same values.
fn batch(ids: Range<i64>, names: &[&str]) -> Batch {
    let start = (ids.start > 0).then_some(ids.start);
    let moves = vec![step(start, ids.end, Reason::Data)];
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
    let columns = names.iter().map(|_| column.clone()).collect();
    Batch::of_rows(moves, RecordBatch::try_new(schema(names), columns).unwrap())
}

fn target(root: &Path, creates: bool) -> plan::Delta {
    let roll = plan::Roll { bytes_max: u64::MAX, rows_max: None, age_max: Duration::from_secs(3600) };
    plan::Delta { path: root.to_owned(), partition_by: Vec::new(), roll, creates }
}

fn sink(root: &Path, names: &[&str]) -> DeltaSink {
    let options = DeltaSinkOptions {
        target: target(root, true),
        claim: owner("r/s").into(),
        schema: schema(names),
        partitioning: None,
    };
    DeltaSink::new(options).unwrap()
}

/// What the library reads of a table.
fn read(root: &Path) -> RecordBatch {
    let engine: Arc<dyn Engine> = Arc::new(table::engine());
    let snapshot = table::snapshot(root, None, &table::engine()).unwrap();
    let scan = snapshot.scan_builder().build().unwrap();
    let batches: Vec<RecordBatch> =
        scan.execute(engine).unwrap().map(|data| data.try_into_record_batch().unwrap()).collect();
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn ids(root: &Path) -> Vec<i64> {
    let rows = read(root);
    let mut ids = rows.column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec();
    ids.sort_unstable();
    ids
}

fn all(range: Range<i64>) -> Vec<i64> {
    range.collect()
}

/// A commit of another writer, made by the library.
fn foreign_commit(root: &Path, number: i64) {
    let engine = table::engine();
    let snapshot: Arc<Snapshot> = table::snapshot(root, None, &engine).unwrap();
    let transaction = snapshot.transaction(Box::new(FileSystemCommitter::new()), &engine).unwrap();
    let committed = transaction.with_transaction_id("foreign".to_owned(), number).commit(&engine).unwrap();
    assert!(committed.is_committed());
}

fn entries(root: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(root.join("_delta_log")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

fn data_files(root: &Path) -> usize {
    let all = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|extension| extension == "parquet")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_there_once_and_positions_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lake/orders");
    let mut first = sink(&root, &["id"]);
    assert_eq!(first.positions().await.unwrap(), Positions::default());
    first.write(&batch(0..10, &["id"])).await.unwrap();
    first.write(&batch(10..20, &["id"])).await.unwrap();
    let stored = first.flush().await.unwrap();
    assert_eq!(stored.get(&key()).unwrap().next.get(), 20);
    assert_eq!((ids(&root), first.settled().rows, data_files(&root)), (all(0..20), 20, 1));
    // What was accepted and abandoned leaves nothing.
    first.write(&batch(20..30, &["id"])).await.unwrap();
    first.abandon().await;
    assert_eq!(data_files(&root), 1);
    let mut second = sink(&root, &["id"]);
    assert_eq!(second.positions().await.unwrap(), stored);
    second.write(&batch(20..25, &["id"])).await.unwrap();
    second.flush().await.unwrap();
    assert_eq!(ids(&root), all(0..25));
    // Creation, joining, two commits.
    assert_eq!(entries(&root).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_sinks_that_stand_at_one_place_the_second_loses() {
    let dir = tempfile::tempdir().unwrap();
    let (mut zombie, mut successor) = (sink(dir.path(), &["id"]), sink(dir.path(), &["id"]));
    zombie.positions().await.unwrap();
    zombie.write(&batch(0..10, &["id"])).await.unwrap();
    successor.positions().await.unwrap();
    successor.write(&batch(0..8, &["id"])).await.unwrap();
    successor.flush().await.unwrap();
    let lost = zombie.flush().await.unwrap_err();
    assert_eq!(lost.fault(), Fault::Conflict);
    // Its file is gone, as no entry can name it.
    assert_eq!((ids(dir.path()), data_files(dir.path())), (all(0..8), 1));
    zombie.abandon().await;
    assert_eq!(zombie.positions().await.unwrap().get(&key()).unwrap().next.get(), 8);
    zombie.write(&batch(8..10, &["id"])).await.unwrap();
    zombie.flush().await.unwrap();
    assert_eq!(ids(dir.path()), all(0..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_writers_are_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = sink(dir.path(), &["id"]);
    sink.positions().await.unwrap();
    for round in 0..5 {
        sink.write(&batch(round * 10..(round + 1) * 10, &["id"])).await.unwrap();
        block_in_place(|| foreign_commit(dir.path(), round + 1));
        sink.flush().await.unwrap();
    }
    assert_eq!(ids(dir.path()), all(0..50));
    assert_eq!(entries(dir.path()).len(), 2 + 10);
}

/// Another writer has the number between our look and our commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_taken_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = sink(dir.path(), &["id"]);
    sink.positions().await.unwrap();
    sink.write(&batch(0..10, &["id"])).await.unwrap();
    let files = sink.files.finish().unwrap();
    let moves = std::mem::take(&mut sink.pending);
    let mut open = sink.open.take().unwrap();
    let tried = std::cell::Cell::new(0);
    let shape = |table: &Table| {
        // Called once for each try, after the log was read.
        tried.set(tried.get() + 1);
        if tried.get() <= 3 {
            let line = json!({"txn": {"appId": "foreign", "version": tried.get()}});
            assert_eq!(log::create(&table.root, table.version + 1, &[line]).unwrap(), Created::Ours);
        }
        table.shape(&sink.columns, &[], true)
    };
    append(&mut open, &sink.claim, &files, &moves, shape).unwrap();
    assert_eq!((tried.get(), ids(dir.path())), (4, all(0..10)));
    assert_eq!(open.writers.positions(&sink.claim.owner).get(&key()).unwrap().next.get(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_come_with_the_rows_that_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut narrow = sink(dir.path(), &["id"]);
    narrow.positions().await.unwrap();
    narrow.write(&batch(0..10, &["id"])).await.unwrap();
    narrow.flush().await.unwrap();
    let before = entries(dir.path()).len();
    let mut wide = sink(dir.path(), &["note", "id"]);
    wide.positions().await.unwrap();
    assert_eq!(entries(dir.path()).len(), before);
    wide.write(&batch(10..20, &["note", "id"])).await.unwrap();
    wide.flush().await.unwrap();
    assert_eq!(entries(dir.path()).len(), before + 1);
    let rows = read(dir.path());
    assert_eq!((rows.num_rows(), rows.column_by_name("note").unwrap().null_count()), (20, 10));
    // Who had opened the table before goes on: its rows have null there.
    narrow.write(&batch(20..30, &["id"])).await.unwrap();
    let lost = narrow.flush().await;
    assert_eq!(lost.unwrap().get(&key()).unwrap().next.get(), 30);
    assert_eq!(ids(dir.path()), all(0..30));
    let strict = DeltaSinkOptions {
        target: target(dir.path(), false),
        claim: owner("r/s").into(),
        schema: schema(&["id", "more"]),
        partitioning: None,
    };
    let stopped = DeltaSink::new(strict).unwrap().positions().await.unwrap_err();
    assert_eq!(stopped.fault(), Fault::Stop);
    let cause = stopped.source().unwrap().to_string();
    assert_eq!(cause, "the table lacks columns of the rows: `more`");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_in_directories_and_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let rows_schema =
        Arc::new(Schema::new(vec![field("id", DataType::Int64), field("land", DataType::Utf8)]));
    let names = vec!["land".to_owned(), "even".to_owned()];
    let values = |rows: &RecordBatch| {
        let ids = rows.column(0).as_primitive::<Int64Type>();
        let even: BooleanArray = ids.values().iter().map(|id| Some(id % 2 == 0)).collect();
        Ok::<_, Box<dyn Error + Send + Sync>>(vec![rows.column(1).clone(), Arc::new(even) as ArrayRef])
    };
    let partitioning = Partitioning::new(names, &rows_schema, Box::new(values));
    let fields = vec![field("land", DataType::Utf8), field("even", DataType::Boolean)];
    let options = DeltaSinkOptions {
        target: target(dir.path(), true),
        claim: owner("r/s").into(),
        schema: rows_schema.clone(),
        partitioning: Some((partitioning, fields)),
    };
    let mut sink = DeltaSink::new(options).unwrap();
    sink.positions().await.unwrap();
    let lands: ArrayRef =
        Arc::new(StringArray::from(vec![Some("a/b=ü %"), None, Some("a/b=ü %"), Some(""), Some("x")]));
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..5));
    let rows = RecordBatch::try_new(rows_schema, vec![ids, lands]).unwrap();
    sink.write(&Batch::of_rows(vec![step(None, 5, Reason::Data)], rows)).await.unwrap();
    sink.flush().await.unwrap();
    let rows = read(dir.path());
    let (ids, lands) = (rows.column_by_name("id").unwrap(), rows.column_by_name("land").unwrap());
    let (ids, lands) = (ids.as_primitive::<Int64Type>(), lands.as_string::<i32>());
    let evens = rows.column_by_name("even").unwrap().as_boolean();
    let mut seen: Vec<(i64, Option<&str>, bool)> = (0..rows.num_rows())
        .map(|row| (ids.value(row), lands.is_valid(row).then(|| lands.value(row)), evens.value(row)))
        .collect();
    seen.sort_unstable();
    let expected = [
        (0, Some("a/b=ü %"), true),
        (1, None, false),
        (2, Some("a/b=ü %"), true),
        (3, None, false),
        (4, Some("x"), true),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_keeps_the_positions() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = sink(dir.path(), &["id"]);
    first.positions().await.unwrap();
    let rounds = 110;
    for round in 0..rounds {
        first.write(&batch(round..round + 1, &["id"])).await.unwrap();
        first.flush().await.unwrap();
    }
    assert_eq!(log::last_checkpoint(dir.path()), Some(100));
    // As a clean-up does it.
    for version in 0..100 {
        fs::remove_file(dir.path().join(format!("_delta_log/{version:020}.json"))).unwrap();
    }
    let mut second = sink(dir.path(), &["id"]);
    let standing = second.positions().await.unwrap();
    assert_eq!(standing.get(&key()).unwrap().next.get(), rounds);
    assert_eq!(ids(dir.path()), all(0..rounds));
    let told = survey(&target(dir.path(), true), &owner("other").into()).unwrap().unwrap();
    assert_eq!(told.admission, Err(Refusal::Foreign { owner: owner("r/s") }));
    assert_eq!(told.accounts[&owner("r/s")].positions, standing);
    reset(&target(dir.path(), true), &owner("r/s").into(), &[step(Some(rounds), 3, Reason::Reset)]).unwrap();
    let again = reset(&target(dir.path(), true), &owner("r/s").into(), &[step(Some(9), 3, Reason::Reset)]);
    assert_eq!(again.unwrap_err().fault(), Fault::Conflict);
    second.abandon().await;
    assert_eq!(second.positions().await.unwrap().get(&key()).unwrap().next.get(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_table_demands_and_we_do_not_do_is_told() {
    let protocol =
        |features: &[&str]| json!({"minReaderVersion": 3, "minWriterVersion": 7, "writerFeatures": features});
    let plain = json!({"schemaString": "{}", "partitionColumns": [], "configuration": {}});
    assert_eq!(table::demands(&protocol(&["appendOnly", "deletionVectors"]), &plain), None);
    assert_eq!(table::demands(&json!({"minWriterVersion": 2}), &plain), None);
    let told = table::demands(&protocol(&["appendOnly", "rowTracking"]), &plain);
    assert_eq!(told.as_deref(), Some("the feature `rowTracking`"));
    let told = table::demands(&json!({"minWriterVersion": 8}), &plain);
    assert_eq!(told.as_deref(), Some("writer version 8"));
    for (key, value, expected) in [
        ("delta.constraints.positive", "id > 0", Some("a check constraint")),
        ("delta.columnMapping.mode", "name", Some("a mapping of columns")),
        ("delta.columnMapping.mode", "none", None),
        ("delta.appendOnly", "true", None),
    ] {
        let metadata = json!({"schemaString": "{}", "configuration": {key: value}});
        assert_eq!(table::demands(&json!({"minWriterVersion": 3}), &metadata).as_deref(), expected, "{key}");
    }
    let columns = r#"{"fields": [{"metadata": {"delta.invariants": "x"}}]}"#;
    let told = table::demands(&json!({"minWriterVersion": 2}), &json!({"schemaString": columns}));
    assert_eq!(told.as_deref(), Some("a column with an invariant"));
    let dir = tempfile::tempdir().unwrap();
    let options = DeltaSinkOptions {
        target: target(dir.path(), false),
        claim: owner("r/s").into(),
        schema: schema(&["id"]),
        partitioning: None,
    };
    let stopped = DeltaSink::new(options).unwrap().positions().await.unwrap_err();
    assert_eq!(stopped.fault(), Fault::Stop);
    assert!(survey(&target(dir.path(), true), &owner("r/s").into()).unwrap().is_none());
}
