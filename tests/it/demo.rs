use crate::support::data;
use crate::support::program::{Workplace, files};

fn repository(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

fn demo(place: &Workplace, options: &[&str]) -> String {
    let (routes, schemas) = (repository("routes.yaml"), repository("avro"));
    let arguments: Vec<&str> =
        ["demo", &routes, "--schemas", &schemas].into_iter().chain(options.iter().copied()).collect();
    place.run(&arguments).expect_code(0).stdout
}

/// The lines of all files of a kind.
fn lines(dir: &std::path::Path, suffix: &str) -> Vec<String> {
    let texts = files(dir, suffix).into_iter().map(|path| std::fs::read_to_string(path).unwrap());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The README's first command, on the embedded parts, with the repository's own routes.
#[test]
fn the_demo_runs_the_repository_s_routes() {
    let place = Workplace::new("");
    let stdout = demo(&place, &["--records", "3000", "--tombstone-every", "100", "--bad-every", "150"]);
    assert!(stdout.contains("generated 3000 records in shop.orders"), "{stdout}");
    let out = std::fs::read_dir(place.path("demo-out")).unwrap().next().unwrap().unwrap().path();
    let rows = |dir: &str| -> usize {
        data::parquet_rows(&out.join("out").join(dir)).0.iter().map(|batch| batch.num_rows()).sum()
    };
    // Every 150th is bad; every 100th is a tombstone, a row of nulls here, unless it is bad.
    assert_eq!(rows("orders"), 2980);
    // Tombstones are skipped in this route; every line is an object of its own.
    let rows_of_clicks = lines(&out.join("out/clicks"), ".jsonl");
    assert_eq!(rows_of_clicks.len(), 2960);
    let clicks: Vec<serde_json::Value> =
        rows_of_clicks.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let referred = clicks.iter().filter(|click| !click["referrer"].is_null()).count();
    assert!(referred > 1000);
    assert_eq!(lines(&out.join("out/referred"), ".csv").len(), referred + 1);
    // Users are plain JSON of one schema: what is bad there lacks its fields.
    assert_eq!(rows("users"), 2960);
    for (route, code) in [("orders", "framing"), ("clicks", "framing"), ("users", "type_mismatch")] {
        let letters = lines(&out.join("out/dead-letters").join(route), ".jsonl");
        assert_eq!(letters.len(), 20, "{letters:?}");
        assert!(letters.iter().all(|letter| letter.contains(&format!("\"code\":\"{code}\""))));
    }
    // Two interleaved writer versions are one file.
    assert_eq!(data::parquet_rows(&out.join("out/orders")).1, 1);
}

#[test]
fn a_seed_makes_the_same_records_again() {
    let place = Workplace::new("");
    let mut seen = Vec::new();
    demo(&place, &["--records", "500", "--bad-every", "0", "--tombstone-every", "0", "--seed", "7"]);
    demo(&place, &["--records", "500", "--bad-every", "0", "--tombstone-every", "0", "--seed", "7"]);
    for out in std::fs::read_dir(place.path("demo-out")).unwrap() {
        let (rows, _) = data::parquet_rows(&out.unwrap().path().join("out/orders"));
        let ids = data::numbers(&rows, "id").into_iter();
        let mut pairs: Vec<(i64, i64)> = ids.zip(data::numbers(&rows, "customer_id")).collect();
        pairs.sort_unstable();
        seen.push(pairs);
    }
    assert_eq!((seen.len(), seen[0].len()), (2, 500));
    assert_eq!(seen[0], seen[1]);
}
