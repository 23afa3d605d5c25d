use crate::pipeline::{Orders, routes};
use crate::support::program::{Workplace, eventually, files};
use crate::support::{self, Services, data};

const SINKS: &str = "
    batch: {max_age: 100ms}
    sinks:
      archive: {parquet: {path: out/archive, roll: {max_age: 200ms}}}
";

fn count(place: &Workplace) -> usize {
    data::numbers(&data::parquet_rows(&place.path("out/archive")).0, "id").len()
}

fn assert_once(place: &Workplace, ids: std::ops::Range<i64>) {
    let mut found = data::numbers(&data::parquet_rows(&place.path("out/archive")).0, "id");
    found.sort_unstable();
    assert_eq!(found, ids.collect::<Vec<_>>());
}

fn set_up(services: &Services) -> (String, Orders, Workplace) {
    let (topic, group) = (support::unique("outage"), support::unique("group"));
    data::create_topic(services, &topic, 2);
    let orders = Orders::register(services, &topic);
    let place = Workplace::new(&routes(services, &group, &topic, SINKS));
    (topic, orders, place)
}

/// An outage of the registry is not bad data: known ids go on, new ones wait, nothing is set aside.
#[test]
fn a_registry_stopped_in_the_middle_pauses_and_loses_nothing() {
    let name = "a_registry_stopped_in_the_middle_pauses_and_loses_nothing";
    let _turn = support::turn();
    let Some((_kafka, mut registry, services)) = support::own_services(name) else {
        return;
    };
    let (topic, orders, place) = set_up(&services);
    // Even ids are of the first version: the second one's id is not looked up yet.
    let even = |ids: std::ops::Range<i64>| ids.filter(|id| id % 2 == 0).map(|id| orders.record(id, 1));
    let mut service = place.start(&["run"]);
    data::produce(&services, &topic, even(0..100));
    eventually("the first rows", || count(&place) == 50);
    registry.stop();
    data::produce(&services, &topic, even(100..200));
    eventually("rows of a known id", || count(&place) == 100);
    let odd = (0..200).filter(|id| id % 2 == 1).map(|id| orders.record(id, 1));
    data::produce(&services, &topic, odd);
    eventually("the route waits", || service.log().contains("waiting for a schema"));
    assert_eq!(count(&place), 100);
    registry.restart().unwrap();
    eventually("all rows", || count(&place) == 200);
    assert_once(&place, 0..200);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
}

/// Brokers away at the start and killed in the middle: the program waits and goes on.
#[test]
fn brokers_may_be_away_at_the_start_and_die_in_the_middle() {
    let name = "brokers_may_be_away_at_the_start_and_die_in_the_middle";
    let _turn = support::turn();
    let Some((mut kafka, _registry, services)) = support::own_services(name) else {
        return;
    };
    let (topic, orders, place) = set_up(&services);
    data::produce(&services, &topic, (0..100).map(|id| orders.record(id, 2)));
    kafka.stop();
    let mut service = place.start(&["run"]);
    eventually("it waits", || service.log().contains("waiting for the brokers"));
    kafka.restart().unwrap();
    eventually("the first rows", || count(&place) == 100);
    kafka.kill();
    kafka.restart().unwrap();
    data::produce(&services, &topic, (100..200).map(|id| orders.record(id, 2)));
    eventually("all rows", || count(&place) == 200);
    assert_once(&place, 0..200);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
}

/// With a cache on disk, a start needs no registry: the reader schema and the ids are those of the run before.
#[test]
fn a_start_with_a_cache_on_disk_needs_no_registry() {
    let name = "a_start_with_a_cache_on_disk_needs_no_registry";
    let _turn = support::turn();
    let Some((_kafka, mut registry, services)) = support::own_services(name) else {
        return;
    };
    let (topic, group) = (support::unique("outage"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    let orders = Orders::register(&services, &topic);
    let routes = routes(&services, &group, &topic, SINKS);
    let (from, to) = ("schema_registry: {url:", "schema_registry: {cache_dir: cache, url:");
    assert!(routes.contains(from));
    let place = Workplace::new(&routes.replace(from, to));
    data::produce(&services, &topic, (0..100).map(|id| orders.record(id, 2)));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_once(&place, 0..100);
    // Both writer versions; one of them is the reader schema too.
    assert_eq!(files(&place.path("cache"), ".json").len(), 3);

    registry.stop();
    data::produce(&services, &topic, (100..200).map(|id| orders.record(id, 2)));
    let finished = place.run(&["run", "--until", "latest"]).expect_code(0);
    assert!(finished.stderr.contains("its last answer is used"), "{}", finished.stderr);
    assert!(finished.stderr.contains(&format!("{topic}-value")), "{}", finished.stderr);
    assert_once(&place, 0..200);

    // It was the cache, and it may be deleted: then the start waits for the registry.
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    data::produce(&services, &topic, (200..300).map(|id| orders.record(id, 2)));
    let mut service = place.start(&["run"]);
    eventually("it waits", || service.log().contains("waiting for the schema registry"));
    registry.restart().unwrap();
    eventually("all rows", || count(&place) == 300);
    assert_once(&place, 0..300);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
}
