use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::support::data::Record;
use crate::support::program::{Workplace, eventually};
use crate::support::{self, Services, data};

const TIMEOUT: Duration = Duration::from_secs(60);

const PARTITIONS: i32 = 3;

/// Two sinks and the dead letters of one route, all of them in one transaction.
struct Exact {
    services: Services,
    group: String,
    topic: String,
    /// All rows, some of them, and records that are no JSON.
    all: String,
    some: String,
    bad: String,
    total: i32,
}

impl Exact {
    fn new(services: Services, name: &str) -> Self {
        let [topic, all, some, bad] =
            ["", "-all", "-some", "-bad"].map(|what| support::unique(&format!("{name}{what}")));
        data::create_topic(&services, &topic, PARTITIONS);
        for out in [&all, &some, &bad] {
            data::create_topic(&services, out, 2);
        }
        Self { services, group: support::unique("group"), topic, all, some, bad, total: 0 }
    }

    fn place(&self) -> Workplace {
        let Self { services, group, topic, all, some, bad, .. } = self;
        Workplace::new(&format!(
            "version: 1
kafka:
  bootstrap.servers: \"{}\"
  group.id: {group}
  session.timeout.ms: 2000
  heartbeat.interval.ms: 300
dead_letters: {{bad: {{kafka: {{topic: {bad}}}}}}}
routes:
  exact:
    topics: [{topic}]
    start: earliest
    value: json
    bad_records: {{dead_letter: bad}}
    batch: {{max_rows: 100, max_age: 50ms}}
    views:
      rows: SELECT value FROM batch
      sevens: SELECT value FROM rows WHERE value LIKE '%7'
    sinks:
      all: {{from: rows, kafka: {{topic: {all}, transactional: true}}}}
      some: {{from: sevens, kafka: {{topic: {some}, transactional: true}}}}
",
            services.bootstrap
        ))
    }

    fn is_bad(number: i32) -> bool {
        number % 10 == 0
    }

    fn text(number: i32) -> String {
        if Self::is_bad(number) { format!("no JSON {number}") } else { number.to_string() }
    }

    fn write(&mut self, count: i32) {
        let next = self.total + count;
        let record = |number: i32| Record::new(number % PARTITIONS, Self::text(number).into_bytes());
        data::produce(&self.services, &self.topic, (self.total..next).map(record));
        self.total = next;
    }

    fn expected(&self, is_wanted: impl Fn(i32) -> bool) -> Vec<String> {
        let mut texts: Vec<String> =
            (0..self.total).filter(|number| is_wanted(*number)).map(Self::text).collect();
        texts.sort_unstable();
        texts
    }

    /// Readers of what is committed see each record once, and the group stands at the end.
    fn expect_once(&self) {
        let read = |topic: &str| {
            let mut texts = values(&self.services, topic, "read_committed");
            texts.sort_unstable();
            texts
        };
        assert_eq!(read(&self.all), self.expected(|number| !Self::is_bad(number)));
        assert_eq!(read(&self.some), self.expected(|number| number % 10 == 7));
        assert_eq!(read(&self.bad), self.expected(Self::is_bad));
        for (partition, (committed, end)) in
            data::committed_and_ends(&self.services, &self.group, &self.topic)
        {
            assert_eq!(committed, Some(end), "partition {partition}");
        }
    }

    fn uncommitted(&self) -> usize {
        values(&self.services, &self.all, "read_uncommitted").len()
    }
}

/// Everything in a topic, as a reader of this isolation sees it.
fn values(services: &Services, topic: &str, isolation: &str) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &services.bootstrap)
        .set("group.id", support::unique("reader"))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
    let (mut list, mut open) = (TopicPartitionList::new(), BTreeSet::new());
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
        open.insert(partition.id());
    }
    consumer.assign(&list).unwrap();
    let mut values = Vec::new();
    while !open.is_empty() {
        match consumer.poll(TIMEOUT).expect("a record or the end in time") {
            Ok(message) => values.push(String::from_utf8(message.payload().unwrap().to_vec()).unwrap()),
            Err(KafkaError::PartitionEOF(partition)) => {
                open.remove(&partition);
            }
            Err(error) => panic!("{topic}: {error}"),
        }
    }
    values
}

const FAILPOINT: &str = "SIDESTREAM_FAILPOINT";

const POINTS: [&str; 5] = [
    "kafka.transaction.ready",
    "kafka.transaction.begun",
    "kafka.transaction.delivered",
    "kafka.transaction.offsets",
    "kafka.transaction.committed",
];

/// Killed at each step of a transaction, and deceived about each: what was open is aborted, and comes again once.
#[test]
fn each_record_is_seen_once_whatever_step_a_transaction_ends_at() {
    let Some(services) = support::services("each_record_is_seen_once_whatever_step_a_transaction_ends_at")
    else {
        return;
    };
    let _turn = support::turn();
    let mut exact = Exact::new(services, "steps");
    for point in POINTS {
        exact.write(600);
        let killed = exact.place().with(FAILPOINT, &format!("{point}:3=kill"));
        let killed = killed.run(&["run", "--until", "latest"]);
        assert_eq!(killed.code, None, "it did not come to {point}: {}", killed.stderr);
        exact.write(600);
        let deceived = exact.place().with(FAILPOINT, &format!("{point}:3=error"));
        let deceived = deceived.run(&["run", "--until", "latest"]).expect_code(0);
        assert!(deceived.stderr.contains(point), "it did not come to {point}: {}", deceived.stderr);
        exact.expect_once();
    }
    // There was something to be hidden.
    assert!(exact.uncommitted() > exact.expected(|number| !Exact::is_bad(number)).len());
}

/// One member is frozen within a transaction while another one takes its partitions; then it goes on.
#[test]
fn a_zombie_s_transaction_is_never_committed() {
    let Some(services) = support::services("a_zombie_s_transaction_is_never_committed") else {
        return;
    };
    let _turn = support::turn();
    let mut exact = Exact::new(services, "zombie");
    for point in ["kafka.transaction.delivered", "kafka.transaction.offsets"] {
        let asleep = exact.place().with(FAILPOINT, &format!("{point}:5=stop"));
        let mut zombie = asleep.start(&["run"]);
        exact.write(900);
        eventually("the first member is frozen", || zombie.log().contains(point));
        let awake = exact.place();
        let mut successor = awake.start(&["run"]);
        let count = |exact: &Exact| values(&exact.services, &exact.all, "read_committed").len();
        let expected = exact.expected(|number| !Exact::is_bad(number)).len();
        eventually("the other one has written everything", || count(&exact) == expected);
        zombie.send("CONT");
        exact.write(900);
        let expected = exact.expected(|number| !Exact::is_bad(number)).len();
        eventually("both have written everything", || count(&exact) >= expected);
        assert_eq!(zombie.terminate(), Some(0), "{}", zombie.log());
        assert_eq!(successor.terminate(), Some(0), "{}", successor.log());
        exact.place().run(&["run", "--until", "latest"]).expect_code(0);
        exact.expect_once();
    }
    assert!(exact.uncommitted() > exact.expected(|number| !Exact::is_bad(number)).len());
}

/// Two members at work, of which each is ended once: partitions change hands, with what is open.
#[test]
fn partitions_that_change_hands_are_written_once() {
    let Some(services) = support::services("partitions_that_change_hands_are_written_once") else {
        return;
    };
    let _turn = support::turn();
    let mut exact = Exact::new(services, "hands");
    let places = [exact.place(), exact.place()];
    let mut members: Vec<_> = places.iter().map(|place| place.start(&["run"])).collect();
    let count = |exact: &Exact| values(&exact.services, &exact.all, "read_committed").len();
    for round in 0..4 {
        let before = count(&exact);
        exact.write(600);
        eventually("rows are written", || count(&exact) > before);
        let (place, member) = (&places[round % 2], &mut members[round % 2]);
        if round < 2 {
            member.kill();
        } else {
            assert_eq!(member.terminate(), Some(0), "{}", member.log());
        }
        *member = place.start(&["run"]);
    }
    let expected = exact.expected(|number| !Exact::is_bad(number)).len();
    eventually("everything is written", || count(&exact) >= expected);
    for member in &mut members {
        assert_eq!(member.terminate(), Some(0), "{}", member.log());
    }
    exact.place().run(&["run", "--until", "latest"]).expect_code(0);
    exact.expect_once();
}

#[test]
fn check_tells_the_guarantee_and_what_cannot_be_in_a_transaction() {
    let Some(services) = support::services("check_tells_the_guarantee_and_what_cannot_be_in_a_transaction")
    else {
        return;
    };
    let exact = Exact::new(services, "told");
    let checked = exact.place().run(&["check"]).expect_code(0).stdout;
    let expected = format!("sink all: exactly once into topic {} for read_committed consumers", exact.all);
    assert!(checked.contains(&expected), "{checked}");
    let place = exact.place();
    let text = std::fs::read_to_string(place.path("routes.yaml")).unwrap();
    std::fs::write(place.path("routes.yaml"), format!("{text}      copy: {{csv: {{path: out}}}}\n")).unwrap();
    let refused = place.run(&["check"]).expect_code(2).stderr;
    assert!(
        refused.contains("route `exact`: sink `copy` is not in the transactions of sink `all`"),
        "{refused}"
    );
    assert!(refused.contains("hint: give it a route of its own"), "{refused}");
}

/// Rows for another cluster, into a topic of the name that is read.
#[test]
fn a_sink_writes_to_another_cluster() {
    let Some(services) = support::services("a_sink_writes_to_another_cluster") else {
        return;
    };
    let _turn = support::turn();
    let Some((_kafka, _registry, far)) = support::own_services("a_sink_writes_to_another_cluster") else {
        return;
    };
    let topic = support::unique("far");
    data::create_topic(&services, &topic, 1);
    data::create_topic(&far, &topic, 1);
    data::produce(&services, &topic, (0..100).map(|number| Record::new(0, number.to_string().into_bytes())));
    let place = Workplace::new(&format!(
        "version: 1
kafka: {{bootstrap.servers: \"{}\", group.id: {}}}
clusters: {{far: {{kafka: {{bootstrap.servers: \"{}\"}}}}}}
routes:
  copies:
    topics: [{topic}]
    start: earliest
    value: string
    sinks: {{far: {{kafka: {{topic: {topic}, cluster: far}}}}}}
",
        services.bootstrap,
        support::unique("group"),
        far.bootstrap
    ));
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(values(&far, &topic, "read_committed"), expected);
    assert_eq!(values(&services, &topic, "read_committed"), expected);
}
