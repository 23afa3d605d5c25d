use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use crate::pipeline::assert_no_lag;
use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually, files, pause};
use crate::support::{self, Services};

/// Routes over one topic; every sink holds the place of each record: partition times a million, and offset.
fn file(services: &Services, group: &str, head: &str, routes: &str) -> String {
    format!(
        r#"
version: 1
kafka:
  bootstrap.servers: "{}"
  group.id: {group}
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
{head}
defaults:
  start: earliest
  value: string
  batch: {{max_rows: 500, max_age: 50ms}}
routes:
{routes}
"#,
        services.bootstrap
    )
}

/// One route with these sinks, which read view `places`.
fn route(name: &str, topic: &str, sinks: &str) -> String {
    format!(
        "  {name}:
    topics: [{topic}]
    views: {{places: 'SELECT CAST(_partition AS BIGINT) * 1000000 + _offset AS place FROM batch'}}
    sinks:
{sinks}
"
    )
}

fn sink(name: &str, more: &str, roll: &str) -> String {
    format!("      {name}: {{from: places, {more}parquet: {{path: out/{name}, roll: {{{roll}}}}}}}\n")
}

fn records(count: i64, partitions: i32, size: usize) -> impl Iterator<Item = Record> {
    (0..count).map(move |id| {
        let partition = i32::try_from(id % i64::from(partitions)).unwrap();
        Record::new(partition, vec![b'x'; size])
    })
}

fn places(dir: &Path) -> Vec<i64> {
    let mut places = data::numbers(&data::parquet_rows(dir).0, "place");
    places.sort_unstable();
    places
}

/// Each of so many records per partition once.
fn all(partitions: i64, each: i64) -> Vec<i64> {
    (0..partitions)
        .flat_map(|partition| (0..each).map(move |offset| partition * 1_000_000 + offset))
        .collect()
}

const ADDED: &str = "catching up beside what is near the end";

/// A sink that is added with `start: earliest` gets what there is, while its sibling goes on with what comes; then both
/// go on together.
#[test]
fn an_added_sink_catches_up_beside_its_sibling() {
    let Some(services) = support::services("an_added_sink_catches_up_beside_its_sibling") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("backfill"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    data::produce(&services, &topic, records(200_000, 2, 20));
    let live = sink("live", "", "max_age: 100ms");
    let place = Workplace::new(&file(&services, &group, "", &route("r", &topic, &live)));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(places(&place.path("out/live")).len(), 200_000);

    // Small files: the backfill takes its time.
    let sinks = live + &sink("late", "start: earliest, ", "max_rows: 500, max_age: 100ms");
    std::fs::write(place.path("routes.yaml"), file(&services, &group, "", &route("r", &topic, &sinks)))
        .unwrap();
    let planned = place.run(&["plan"]).expect_code(0).stdout;
    assert!(planned.contains(&format!("{topic}/0: begins at 0 (`start:`), 100000 to read")), "{planned}");
    let mut service = place.start(&["run"]);
    eventually("it catches up", || service.log().matches(ADDED).count() >= 2);
    let known = files(&place.path("out/live"), ".parquet").len();
    data::produce(&services, &topic, records(200, 2, 20));
    eventually("new records are with the sibling", || {
        files(&place.path("out/live"), ".parquet").len() > known
            && places(&place.path("out/live")).len() == 200_200
    });
    // They are there before the backfill is.
    let late = places(&place.path("out/late")).len();
    assert!(late < 200_000, "{late}");
    eventually("it has caught up", || service.log().matches("caught up").count() >= 2);
    data::produce(&services, &topic, records(200, 2, 20));
    assert_eq!(service.terminate(), Some(0), "{}", service.log());

    // What was not durable when it ended comes now.
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let expected = all(2, 100_200);
    assert!(places(&place.path("out/live")) == expected, "{}", service.log());
    assert!(places(&place.path("out/late")) == expected, "{}", service.log());
    assert_no_lag(&services, &group, &topic);
}

/// Killed while a sink catches up, again and again: nothing is missed, nothing comes twice, and a bounded run ends when
/// all sinks have everything.
#[test]
fn kills_while_catching_up_lose_and_double_nothing() {
    let Some(services) = support::services("kills_while_catching_up_lose_and_double_nothing") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("backfill"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    data::produce(&services, &topic, records(60_000, 2, 20));
    let live = sink("live", "", "max_age: 50ms");
    let place = Workplace::new(&file(&services, &group, "", &route("r", &topic, &live)));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let sinks = live + &sink("late", "start: earliest, ", "max_rows: 500, max_age: 50ms");
    std::fs::write(place.path("routes.yaml"), file(&services, &group, "", &route("r", &topic, &sinks)))
        .unwrap();
    for round in 1..=4 {
        let mut service = place.start(&["run"]);
        let seen = files(&place.path("out/late"), ".parquet").len();
        data::produce(&services, &topic, records(1000, 2, 20));
        eventually("it catches up", || files(&place.path("out/late"), ".parquet").len() > seen);
        pause(Duration::from_millis(60 * round));
        service.kill();
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let expected = all(2, 32_000);
    assert!(places(&place.path("out/live")) == expected);
    assert!(places(&place.path("out/late")) == expected);
}

/// Makes a link lead elsewhere, at once.
fn lead(link: &Path, target: &Path) {
    let fresh = link.with_extension("fresh");
    symlink(target, &fresh).unwrap();
    std::fs::rename(&fresh, link).unwrap();
}

/// Two routes of one topic. One cannot write for a while: the other goes on, with more than what is held in memory;
/// later both have everything once.
#[test]
fn a_route_that_fails_does_not_hold_up_another_of_its_topic() {
    let Some(services) = support::services("a_route_that_fails_does_not_hold_up_another_of_its_topic") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("shared"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let roll = "max_age: 50ms";
    let routes = route("a", &topic, &sink("a", "", roll)) + &route("b", &topic, &sink("b", "", roll));
    // What is produced below does not fit.
    let place = Workplace::new(&file(&services, &group, "memory: 4MiB", &routes));
    let (link, real, wall) = (place.path("out/b"), place.path("real"), place.path("wall"));
    std::fs::create_dir_all(place.path("out")).unwrap();
    std::fs::create_dir_all(&real).unwrap();
    std::fs::write(&wall, "no directory").unwrap();
    lead(&link, &real);
    data::produce(&services, &topic, records(1000, 2, 1000));
    let mut service = place.start(&["run"]);
    for name in ["out/a", "real"] {
        eventually("the first rows", || places(&place.path(name)).len() == 1000);
    }

    lead(&link, &wall);
    data::produce(&services, &topic, records(20_000, 2, 1000));
    eventually("the other route has all", || places(&place.path("out/a")).len() == 21_000);
    assert!(service.log().contains("the route holds up others of the topic"), "{}", service.log());
    assert!(places(&real).len() < 21_000);
    // The group's offsets are the front's: what catches up knows by itself where it is.
    eventually("no lag", || {
        let standing = data::committed_and_ends(&services, &group, &topic);
        standing.values().all(|(committed, end)| *committed == Some(*end))
    });

    lead(&link, &real);
    eventually("the route that failed has all", || places(&real).len() == 21_000);
    eventually("they go on together", || service.log().matches("caught up").count() >= 1);
    data::produce(&services, &topic, records(1000, 2, 1000));
    for name in ["out/a", "real"] {
        eventually("the last rows", || places(&place.path(name)).len() == 22_000);
    }
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    let expected = all(2, 11_000);
    assert!(places(&place.path("out/a")) == expected);
    assert!(places(&real) == expected);
}

/// An isolated route is in a group of its own: it goes to the end though the other route of its topic has stopped.
#[test]
fn an_isolated_route_has_a_group_of_its_own() {
    let Some(services) = support::services("an_isolated_route_has_a_group_of_its_own") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("isolated"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    // The fourth record is no JSON.
    let values = ["1", "2", "3", "{", "5"].map(|value| Record::new(0, value.as_bytes().to_vec()));
    data::produce(&services, &topic, values);
    let shared =
        route("a", &topic, &sink("a", "", "max_age: 50ms")).replace("views:", "value: json\n    views:");
    let isolated =
        route("b", &topic, &sink("b", "", "max_age: 50ms")).replace("views:", "isolated: true\n    views:");
    let place = Workplace::new(&file(&services, &group, "", &(shared + &isolated)));
    let checked = place.run(&["check", "--offline"]).expect_code(0);
    assert!(checked.stdout.contains(&format!("in group `{group}.b`")), "{}", checked.stdout);
    let finished = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(finished.stdout.contains("offset 3"), "{}", finished.stdout);
    assert_eq!(places(&place.path("out/a")), [0, 1, 2]);
    assert_eq!(places(&place.path("out/b")), [0, 1, 2, 3, 4]);
    let of = |group: &str| data::committed_and_ends(&services, group, &topic)[&0].0;
    assert_eq!(of(&group), Some(3));
    assert_eq!(of(&format!("{group}.b")), Some(5));
    // What explains and moves looks into its own group.
    let planned = place.run(&["plan", "--route", "b"]).expect_code(0).stdout;
    assert!(planned.contains(&format!("isolated, in group `{group}.b`")), "{planned}");
    assert!(planned.contains(&format!("{topic}/0: goes on at 5, 0 to read")), "{planned}");
    assert!(!planned.contains("something else has moved"), "{planned}");
    let listed = place.run(&["offsets", "list", "--route", "b", "--format", "json"]).expect_code(0).stdout;
    let rows: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&rows[0]["next"], &rows[0]["committed"]), (&5.into(), &5.into()), "{listed}");
    let forgotten = place.run(&["offsets", "forget"]).expect_code(0).stdout;
    assert!(forgotten.contains("keeps nothing"), "{forgotten}");
    // Nothing comes twice.
    let again = place.run(&["run", "--until", "latest", "--route", "b"]).expect_code(0);
    assert_eq!(places(&place.path("out/b")), [0, 1, 2, 3, 4], "{}", again.stderr);
}
