use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually, files};
use crate::support::{self, Services};

/// A file with these routes.
fn file(services: &Services, group: &str, routes: &str) -> String {
    format!(
        "
version: 1
kafka:
  bootstrap.servers: \"{}\"
  group.id: {group}
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
dead_letters: {{q: {{jsonl: {{path: out/bad}}}}}}
defaults: {{value: string, start: earliest, batch: {{max_age: 100ms}}}}
routes:
{routes}
",
        services.bootstrap
    )
}

fn rewrite(place: &Workplace, text: &str) {
    std::fs::write(place.path("routes.yaml"), text).unwrap();
}

/// `count` records in each of `partitions`.
fn fill(services: &Services, topic: &str, partitions: i32, count: usize) {
    let each = (0..partitions).flat_map(|partition| {
        (0..count).map(move |number| Record::new(partition, format!("{partition}-{number}").into_bytes()))
    });
    data::produce(services, topic, each);
}

/// How often each offset is in the Parquet files below a directory, over all partitions.
fn times(dir: &Path) -> BTreeMap<i64, usize> {
    let mut times = BTreeMap::new();
    for offset in data::numbers(&data::parquet_rows(dir).0, "_offset") {
        *times.entry(offset).or_default() += 1;
    }
    times
}

/// Each of the offsets `0..end` of two partitions is there once, those from `again` on `more` times more.
fn assert_times(dir: &Path, end: i64, again: i64, more: usize) {
    let expected: BTreeMap<i64, usize> =
        (0..end).map(|offset| (offset, if offset >= again { 2 + more } else { 2 })).collect();
    assert_eq!(times(dir), expected);
}

fn list(place: &Workplace) -> Vec<Value> {
    let listed = place.run(&["offsets", "list", "--format", "json"]).expect_code(0);
    serde_json::from_str(&listed.stdout).unwrap()
}

/// The next offsets of a sink, by partition.
fn next(rows: &[Value], sink: &str) -> Vec<i64> {
    let of_sink = rows.iter().filter(|row| row["sink"] == sink);
    of_sink.map(|row| row["next"].as_i64().unwrap_or(-1)).collect()
}

/// All files below a directory, with what is in them.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(dir, "").into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn sinks_are_listed_and_moved_one_by_one_or_all() {
    let Some(services) = support::services("sinks_are_listed_and_moved_one_by_one_or_all") else {
        return;
    };
    let _turn = support::turn();
    let (topic, copy, group) = (support::unique("moved"), support::unique("copy"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    data::create_topic(&services, &copy, 1);
    fill(&services, &topic, 2, 100);
    let route = format!(
        "  r:
    topics: [{topic}]
    bad_records: {{dead_letter: q}}
    sinks: {{files: {{parquet: {{path: out/files}}}}, copy: {{kafka: {{topic: {copy}, value: {{column: value}}}}}}}}"
    );
    let place = Workplace::new(&file(&services, &group, &route));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    fill(&services, &topic, 2, 5);

    let rows = list(&place);
    assert_eq!(rows.len(), 6, "{rows:#?}");
    for row in &rows {
        let partition = i32::try_from(row["partition"].as_i64().unwrap()).unwrap();
        let (committed, end) = data::committed_and_ends(&services, &group, &topic)[&partition];
        assert_eq!((row["next"].as_i64(), row["lag"].as_i64()), (Some(100), Some(5)), "{row}");
        assert_eq!((row["committed"].as_i64(), row["end"].as_i64()), (committed, Some(end)), "{row}");
        let has_log = row["sink"] != "copy";
        assert_eq!((row["log"].is_string(), row["entry"].is_u64()), (has_log, has_log), "{row}");
    }
    let table = place.run(&["offsets", "list", "--route", "r"]).expect_code(0).stdout;
    assert!(table.contains("r/dead_letter/q") && table.contains("committed"), "{table}");
    place.run(&["offsets", "list", "--route", "none"]).expect_code(2);

    // Saying is not doing.
    let arguments = ["offsets", "reset", "--route", "r", "--to", "earliest"];
    let before = (snapshot(&place.path("out")), data::committed(&services, &group, &topic));
    let said = place.run(&arguments).expect_code(0).stdout;
    for expected in [
        "100 offsets again",
        "r, sink files: 200 offsets are read again; files that are there stay, so their rows will be there twice",
        "r, sink copy: 200 offsets are read again; their rows are written to the topic again",
        "nothing was changed",
    ] {
        assert!(said.contains(expected), "no {expected:?} in\n{said}");
    }
    assert_eq!((snapshot(&place.path("out")), data::committed(&services, &group, &topic)), before);

    // One sink of several: the others stay, also those whose positions the group keeps.
    let to = format!("{{{topic}: {{0: 90, 1: 90}}}}");
    let one = ["offsets", "reset", "--route", "r", "--sink", "files", "--to", &to, "--execute"];
    place.run(&one).expect_code(0);
    let rows = list(&place);
    assert_eq!([next(&rows, "files"), next(&rows, "copy")], [vec![90, 90], vec![100, 100]]);
    let committed = data::committed(&services, &group, &topic);
    assert!(committed.values().all(|(offset, _)| *offset == 90), "{committed:?}");
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let expected: BTreeMap<i64, usize> =
        (0..105).map(|offset| (offset, if (90..100).contains(&offset) { 4 } else { 2 })).collect();
    assert_eq!(times(&place.path("out/files")), expected);
    assert_eq!(data::consume(&services, &copy).len(), 210);

    // All of them, a little back.
    let all = ["offsets", "reset", "--route", "r", "--to", "-10", "--execute"];
    place.run(&all).expect_code(0);
    let rows = list(&place);
    let stand = ["files", "copy", "dead_letter/q"].map(|sink| next(&rows, sink));
    assert_eq!(stand, [vec![95, 95], vec![95, 95], vec![95, 95]]);
    assert!(rows.iter().all(|row| row["committed"] == 95), "{rows:#?}");
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(times(&place.path("out/files"))[&104], 4);
    assert_eq!(data::consume(&services, &copy).len(), 230);

    // What lies behind the end is no place to go on.
    let beyond = format!("{{{topic}: {{0: 5000}}}}");
    let refused = place.run(&["offsets", "reset", "--route", "r", "--to", &beyond]).expect_code(1);
    assert!(refused.stderr.contains("no sink can go on at 5000"), "{}", refused.stderr);
    place.run(&["offsets", "reset", "--route", "r", "--sink", "none", "--to", "latest"]).expect_code(2);
}

#[test]
fn nothing_is_moved_under_a_living_instance() {
    let Some(services) = support::services("nothing_is_moved_under_a_living_instance") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("alive"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    fill(&services, &topic, 2, 20);
    let route = format!(
        "  r: {{topics: [{topic}], sinks: {{files: {{parquet: {{path: out/files, roll: {{max_age: 200ms}}}}}}}}}}"
    );
    let place = Workplace::new(&file(&services, &group, &route));
    let mut service = place.start(&["run"]);
    eventually("all is read", || {
        data::committed(&services, &group, &topic).values().filter(|(offset, _)| *offset == 20).count() == 2
    });
    let arguments = ["offsets", "reset", "--route", "r", "--to", "earliest", "--execute"];
    let refused = place.run(&arguments).expect_code(1);
    assert!(refused.stderr.contains("has live members (1)"), "{}", refused.stderr);
    assert_eq!(next(&list(&place), "files"), [20, 20]);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    place.run(&arguments).expect_code(0);
    assert_eq!(next(&list(&place), "files"), [0, 0]);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_times(&place.path("out/files"), 20, 0, 2);
}

#[test]
fn a_tool_that_moves_the_group_is_told_and_not_obeyed_by_files() {
    let Some(services) = support::services("a_tool_that_moves_the_group_is_told_and_not_obeyed_by_files")
    else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("tool"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    fill(&services, &topic, 2, 20);
    let route = format!("  r: {{topics: [{topic}], sinks: {{files: {{parquet: {{path: out/files}}}}}}}}");
    let place = Workplace::new(&file(&services, &group, &route));
    let told = "something else has moved the group's offset";
    let first = place.run(&["run", "--until", "latest"]).expect_code(0);
    assert!(!first.stderr.contains(told), "{}", first.stderr);
    data::reset_group(&services, &group, &topic, &[(0, 3)]);

    let planned = place.run(&["plan"]).expect_code(0).stdout;
    assert!(planned.contains(&format!("{topic}/0: goes on at 20, 0 to read")), "{planned}");
    assert!(planned.contains(&format!("{told} to 3, which is not obeyed")), "{planned}");
    let again = place.run(&["run", "--until", "latest"]).expect_code(0);
    assert!(again.stderr.contains(told), "{}", again.stderr);
    assert!(again.stderr.contains(&format!("{topic}/0 from 20 to 3")), "{}", again.stderr);
    assert!(again.stderr.contains("sidestream offsets reset"), "{}", again.stderr);
    assert_times(&place.path("out/files"), 20, 20, 0);
    // It is said once: then the group is ours again.
    assert_eq!(data::committed(&services, &group, &topic)[&0].0, 20);
    let third = place.run(&["run", "--until", "latest"]).expect_code(0);
    assert!(!third.stderr.contains(told), "{}", third.stderr);
}

#[test]
fn a_renamed_route_takes_its_positions_over_and_is_refused_without_leave() {
    let Some(services) =
        support::services("a_renamed_route_takes_its_positions_over_and_is_refused_without_leave")
    else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("renamed"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    fill(&services, &topic, 2, 20);
    let route = |name: &str, keys: &str| {
        let text =
            format!("  {name}: {{topics: [{topic}], sinks: {{s: {{{keys}parquet: {{path: out/files}}}}}}}}");
        file(&services, &group, &text)
    };
    let place = Workplace::new(&route("old", ""));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    fill(&services, &topic, 2, 20);

    rewrite(&place, &route("new", ""));
    let refused = place.run(&["run", "--until", "latest"]).expect_code(1);
    for expected in [
        format!("belongs to sink `old/s` of group `{group}`"),
        "`adopt: old/s`".to_owned(),
        "`shared: true`".to_owned(),
    ] {
        assert!(refused.stdout.contains(&expected), "no {expected:?} in\n{}", refused.stdout);
    }
    let planned = place.run(&["plan"]).expect_code(1).stdout;
    assert!(planned.contains("would stop: `out/files` belongs to sink `old/s`"), "{planned}");
    let listed = list(&place);
    assert!(
        listed.iter().any(|row| row["identity"] == "old/s" && row["note"] == "not in the file"),
        "{listed:#?}"
    );

    rewrite(&place, &route("new", "adopt: old/s, "));
    let planned = place.run(&["plan"]).expect_code(0).stdout;
    assert!(planned.contains("takes the positions of sink `old/s`"), "{planned}");
    assert!(planned.contains(&format!("{topic}/1: goes on at 20, 20 to read")), "{planned}");
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_times(&place.path("out/files"), 40, 40, 0);
    // The key may stay, and what was is no longer.
    fill(&services, &topic, 2, 10);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_times(&place.path("out/files"), 50, 50, 0);
    rewrite(&place, &route("old", ""));
    let refused = place.run(&["run", "--until", "latest"]).expect_code(1);
    assert!(refused.stdout.contains("was taken over by sink `new/s`"), "{}", refused.stdout);

    // What the group still keeps of the former sink.
    rewrite(&place, &route("new", "adopt: old/s, "));
    let logs = || {
        let words = data::committed(&services, &group, &topic).into_values();
        words.map(|(_, text)| text.matches(" l").count()).collect::<Vec<_>>()
    };
    assert_eq!(logs(), [2, 2]);
    let said = place.run(&["offsets", "forget"]).expect_code(0).stdout;
    assert!(said.contains("a sink wrote entry") && said.contains("nothing was changed"), "{said}");
    assert_eq!(logs(), [2, 2]);
    place.run(&["offsets", "forget", "--execute"]).expect_code(0);
    assert_eq!(logs(), [1, 1]);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_times(&place.path("out/files"), 50, 50, 0);
}

#[test]
fn routes_and_groups_share_a_directory_that_says_so() {
    let Some(services) = support::services("routes_and_groups_share_a_directory_that_says_so") else {
        return;
    };
    let _turn = support::turn();
    let topics = [support::unique("shared"), support::unique("shared")];
    let groups = [support::unique("group"), support::unique("group")];
    for topic in &topics {
        data::create_topic(&services, topic, 1);
        fill(&services, topic, 1, 50);
    }
    let routes = |keys: &str| {
        let route = |(name, topic): (&str, &String)| {
            format!("  {name}: {{topics: [{topic}], sinks: {{s: {{{keys}parquet: {{path: out/files}}}}}}}}")
        };
        ["a", "b"].into_iter().zip(&topics).map(route).collect::<Vec<_>>().join("\n")
    };
    let place = Workplace::new(&file(&services, &groups[0], &routes("")));
    let refused = place.run(&["check"]).expect_code(2);
    assert!(refused.stderr.contains("let both say `shared: true`"), "{}", refused.stderr);

    rewrite(&place, &file(&services, &groups[0], &routes("shared: true, ")));
    place.run(&["check"]).expect_code(0);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    for topic in &topics {
        fill(&services, topic, 1, 25);
    }
    place.run(&["run", "--until", "latest"]).expect_code(0);
    // Two topics of one partition: each offset twice.
    assert_times(&place.path("out/files"), 75, 75, 0);
    // Another group writes the same rows again, with positions of its own.
    rewrite(&place, &file(&services, &groups[1], &routes("shared: true, ")));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_times(&place.path("out/files"), 75, 0, 2);
    let identities: BTreeSet<String> =
        list(&place).iter().map(|row| format!("{}{}", row["identity"], row["note"])).collect();
    assert_eq!(identities.len(), 4, "{identities:?}");
    assert_eq!(files(&place.path("out"), ".staged"), Vec::<PathBuf>::new());
}

#[test]
fn a_plan_tells_what_a_start_would_do_and_writes_nothing() {
    let Some(services) = support::services("a_plan_tells_what_a_start_would_do_and_writes_nothing") else {
        return;
    };
    let _turn = support::turn();
    let (topic, copy, group) = (support::unique("plan"), support::unique("copy"), support::unique("group"));
    data::create_topic(&services, &topic, 2);
    data::create_topic(&services, &copy, 1);
    fill(&services, &topic, 2, 30);
    let routes = |more: &str| {
        let text =
            format!("  r: {{topics: [{topic}], sinks: {{files: {{parquet: {{path: out/files}}}}{more}}}}}");
        file(&services, &group, &text)
    };
    let place = Workplace::new(&routes(""));
    let fresh = place.run(&["plan"]).expect_code(0).stdout;
    for expected in [
        format!("route r: {topic} (2 partitions)"),
        "sink files: exactly once".to_owned(),
        format!("{topic}/0: begins at 0 (`start:`), 30 to read"),
    ] {
        assert!(fresh.contains(&expected), "no {expected:?} in\n{fresh}");
    }
    assert!(!place.path("out").try_exists().unwrap());
    assert!(data::committed(&services, &group, &topic).is_empty());

    place.run(&["run", "--until", "latest"]).expect_code(0);
    fill(&services, &topic, 2, 5);
    let added = format!(
        ", copy: {{kafka: {{topic: {copy}, value: {{column: value}}}}}}, late: {{jsonl: {{path: out/late}}}}"
    );
    rewrite(&place, &routes(&added));
    let before = (snapshot(place.dir.path()), data::committed(&services, &group, &topic));
    let used = place.run(&["plan", "--route", "r"]).expect_code(0).stdout;
    for expected in [
        format!("{topic}/1: goes on at 30, 5 to read"),
        format!("{topic}/1: begins at 30 (where the other sinks stand), 5 to read"),
        "is new".to_owned(),
    ] {
        assert!(used.contains(&expected), "no {expected:?} in\n{used}");
    }
    assert_eq!((snapshot(place.dir.path()), data::committed(&services, &group, &topic)), before);
    // And so it comes.
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_times(&place.path("out/files"), 35, 35, 0);
    let late: usize = files(&place.path("out/late"), ".jsonl")
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap().lines().count())
        .sum();
    assert_eq!((late, data::consume(&services, &copy).len()), (10, 10));
    place.run(&["plan", "--route", "none"]).expect_code(2);
}
