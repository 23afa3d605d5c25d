//! What is made from the code is what the repository has. To renew: see each message.

use crate::support::program::Workplace;

fn assert_fresh(file: &str, arguments: &[&str]) {
    let place = Workplace::new("");
    let made = place.run(arguments).expect_code(0).stdout;
    let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(made == kept, "{file} is stale: cargo run -- {} > {file}", arguments.join(" "));
}

#[test]
fn the_json_schema_is_fresh() {
    assert_fresh("routes.schema.json", &["config-schema"]);
}

#[test]
fn the_table_of_keys_is_fresh() {
    assert_fresh("docs/routes.md", &["config-schema", "--markdown"]);
}

#[test]
fn the_table_of_metrics_is_fresh() {
    assert_fresh("docs/metrics.md", &["config-schema", "--metrics"]);
}

#[test]
fn the_table_of_types_is_fresh() {
    let place = Workplace::new("");
    let made = place.run(&["config-schema", "--types"]).expect_code(0).stdout;
    let kept = std::fs::read_to_string(format!("{}/docs/types.md", env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert!(
        kept.contains(&made),
        "docs/types.md is stale: put what `cargo run -- config-schema --types` prints between its lines `<!-- types: … -->`"
    );
}
