//! A registry that is away, refuses, or answers nonsense: schema ids that are known go on, those that are not wait, and no
//! record is taken for a bad one.
//!
//! Beside the workload there are two topics of the scenario's own, with a route each: one goes on with the id it began
//! with, the other gets a new one in every outage. Their routes stop at a bad record, so nothing can go unnoticed.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use super::{Context, Outcome, Scenario, conclude};
use crate::stand::{FLOW_LIMIT, Instance, Mode, RETRY_AFTER, Stand, StandOptions, all_alive, files, pause};
use crate::workload::{Features, Workload};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "registry-outages",
        about: "refused, 500, 429, 401, slow, garbage, 50 MB: known ids go on, new ones wait",
        row: "20 registry",
        in_ci: true,
        run: outages,
    },
    Scenario {
        name: "registry-restart",
        about: "killed and started again during an outage, with `cache_dir`",
        row: "22 restart during registry outage",
        in_ci: true,
        run: restart,
    },
    Scenario {
        name: "registry-late-id",
        about: "404 for an id that appears within its grace",
        row: "21 registry 404, then there",
        in_ci: false,
        run: late_id,
    },
];

const OUTAGES: [Mode; 7] =
    [Mode::Down, Mode::Failing, Mode::Crowded, Mode::Unauthorised, Mode::Slow, Mode::Garbage, Mode::Huge];

/// Records of each topic in every outage.
const RECORDS: i64 = 20;

/// For one call to brokers or registry, both of them well.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Without a third version in the middle: the workload's own ids are to be those that are known.
fn options() -> StandOptions {
    let features = Features { transactions: true, compacted: true, bad: true, schema_changes: false };
    StandOptions { has_proxy: true, features, ..StandOptions::default() }
}

/// A stand with the two topics, a workload, and an instance that has seen an id of each of them.
struct Scene {
    instance: [Instance; 1],
    workload: Workload,
    known: Topic,
    changing: Topic,
    stand: Stand,
}

impl Scene {
    /// `edit` changes the routes file before anything starts.
    fn set(context: &Context, edit: impl FnOnce(&str) -> Result<String, String>) -> Result<Scene, String> {
        let mut stand = Stand::new(context, options())?;
        let mut known = Topic::create(&stand, "known")?;
        let mut changing = Topic::create(&stand, "changing")?;
        let text = edit(&stand.routes())?;
        let (head, routes) = text.split_once("\nroutes:\n").ok_or("the routes file has no `routes:`")?;
        let own = [known.route(), changing.route()].concat();
        stand.write_routes(&format!("{head}\nroutes:\n{own}{routes}"))?;
        let workload = Workload::start(&stand.options, 0);
        let mut instance = [stand.start(&[])?];
        known.write(RECORDS)?;
        changing.write(RECORDS)?;
        all_alive("the first rows", FLOW_LIMIT, &mut instance, || {
            known.is_complete(&stand) && changing.is_complete(&stand)
        })?;
        let before = stand.counts();
        stand.await_growth_everywhere(&before, &mut instance)?;
        Ok(Scene { instance, workload, known, changing, stand })
    }

    /// A new id comes while the proxy answers in this way. Waits until the program has asked for it, and shows that
    /// everything else goes on.
    fn new_id(&mut self, mode: Mode) -> Result<u32, String> {
        let id = self.changing.next_version()?;
        self.stand.proxy()?.set(mode)?;
        self.changing.write(RECORDS)?;
        self.known.write(RECORDS)?;
        let before = self.stand.counts();
        let Scene { stand, known, instance, .. } = self;
        all_alive("rows of an id that is known", FLOW_LIMIT, instance, || known.is_complete(stand))?;
        stand.await_growth_everywhere(&before, instance)?;
        // Nobody can count connections that were refused.
        if mode != Mode::Down {
            let (proxy, path) = (stand.proxy()?, format!("/schemas/ids/{id}"));
            all_alive("the new id is asked for", FLOW_LIMIT, instance, || proxy.asked(&path) > 0)
                .map_err(|error| format!("{mode:?}: {error}"))?;
        }
        Ok(id)
    }

    /// Nothing has stopped, and no row came whose schema nobody could know.
    fn expect_waiting(&mut self, mode: Mode) -> Result<(), String> {
        self.instance[0].expect_running()?;
        let log = self.instance[0].log();
        if let Some(line) = log.lines().find(|line| line.contains(STOPPED)) {
            return Err(format!("{mode:?}: an outage was taken for bad data: {line}"));
        }
        if self.changing.is_complete(&self.stand) {
            return Err(format!("{mode:?}: rows came although their schema could not be had"));
        }
        Ok(())
    }

    /// The registry answers again; how long until the new id's rows are there.
    fn recover(&mut self, mode: Mode) -> Result<Duration, String> {
        self.stand.proxy()?.set(Mode::Pass)?;
        let since = Instant::now();
        let Scene { stand, changing, instance, .. } = self;
        all_alive("rows of the new id", FLOW_LIMIT, instance, || changing.is_complete(stand))
            .map_err(|error| format!("after {mode:?}: {error}"))?;
        Ok(since.elapsed())
    }

    fn conclude(self, rounds: u32, recovery: Duration) -> Result<Outcome, String> {
        let Scene { mut instance, workload, known, changing, mut stand } = self;
        let manifest = workload.stop()?;
        instance[0].drain()?;
        let outcome = conclude(&mut stand, &manifest, rounds, Some(recovery))?;
        known.expect_once(&stand)?;
        changing.expect_once(&stand)?;
        Ok(outcome)
    }
}

/// How the end of a route begins in its log.
const STOPPED: &str = "route stopped";

/// How long the program waits for an answer here, so that a slow one need not take longer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// One more key of `schema_registry:`.
fn with_key(text: &str, key: &str) -> Result<String, String> {
    let from = "schema_registry: {";
    if !text.contains(from) {
        return Err(format!("the routes file has no `{from}`"));
    }
    Ok(text.replacen(from, &format!("{from}{key}, "), 1))
}

fn outages(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 3);
    let time = context.lasting(Duration::from_secs(1), Duration::from_secs(10));
    let mut scene = Scene::set(context, |text| with_key(text, &format!("timeout: {}s", TIMEOUT.as_secs())))?;
    let mut recovery = Duration::ZERO;
    for mode in (0..rounds).flat_map(|_| OUTAGES) {
        let since = Instant::now();
        let id = scene.new_id(mode)?;
        // What is slow has to be too slow.
        pause(if mode == Mode::Slow { time.max(TIMEOUT * 2) } else { time });
        scene.expect_waiting(mode)?;
        if mode == Mode::Crowded {
            // One call before the first answer, and one for each time that it asked us to wait.
            let asked = scene.stand.proxy()?.asked(&format!("/schemas/ids/{id}"));
            let seconds = since.elapsed().as_secs();
            let allowed = usize::try_from(1 + seconds / RETRY_AFTER.as_secs()).unwrap_or(usize::MAX);
            if asked > allowed {
                return Err(format!("429 with Retry-After: asked {asked} times in {seconds} s"));
            }
        }
        recovery = recovery.max(scene.recover(mode)?);
    }
    let count = u32::try_from(OUTAGES.len()).unwrap_or(u32::MAX);
    scene.conclude(rounds.saturating_mul(count), recovery)
}

fn restart(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 5);
    let mut scene = Scene::set(context, |text| with_key(text, "cache_dir: cache"))?;
    let mut recovery = Duration::ZERO;
    for _ in 0..rounds {
        scene.stand.proxy()?.set(Mode::Down)?;
        scene.instance[0].kill();
        let since = Instant::now();
        scene.instance = [scene.stand.start(&[])?];
        let before = scene.stand.counts();
        scene.stand.await_growth_everywhere(&before, &mut scene.instance)?;
        recovery = recovery.max(since.elapsed());
        scene.new_id(Mode::Down)?;
        scene.expect_waiting(Mode::Down)?;
        scene.recover(Mode::Down)?;
    }
    scene.conclude(rounds, recovery)
}

fn late_id(context: &Context) -> Result<Outcome, String> {
    let rounds = context.rounds_of(1, 3);
    // The grace is 30 s.
    let time = context.lasting(Duration::from_secs(5), Duration::from_secs(15));
    let mut scene = Scene::set(context, |text| Ok(text.to_owned()))?;
    let mut recovery = Duration::ZERO;
    for _ in 0..rounds {
        scene.new_id(Mode::Missing)?;
        pause(time);
        scene.expect_waiting(Mode::Missing)?;
        recovery = recovery.max(scene.recover(Mode::Missing)?);
    }
    scene.conclude(rounds, recovery)
}

/// A topic of the scenario's own, with a route that stops at a bad record.
struct Topic {
    /// Of the route.
    name: &'static str,
    topic: String,
    bootstrap: String,
    /// The real one, not the proxy.
    registry: String,
    /// Fields that versions of the schema have added.
    added: usize,
    schema_id: u32,
    /// Records written.
    count: i64,
}

impl Topic {
    /// With one partition and the first version of its schema.
    fn create(stand: &Stand, name: &'static str) -> Result<Topic, String> {
        let mut topic = Topic {
            name,
            topic: format!("{}.{name}", stand.options.prefix),
            bootstrap: stand.options.bootstrap.clone(),
            registry: stand.options.registry.clone(),
            added: 0,
            schema_id: 0,
            count: 0,
        };
        let cannot = |what: String| format!("cannot create topic {name}: {what}");
        let admin: AdminClient<DefaultClientContext> =
            topic.client().create().map_err(|e| cannot(e.to_string()))?;
        let new = NewTopic::new(&topic.topic, 1, TopicReplication::Fixed(stand.options.replication));
        let wishes = AdminOptions::new().operation_timeout(Some(CALL_LIMIT));
        let created = runtime()?.block_on(admin.create_topics([&new], &wishes));
        for result in created.map_err(|e| cannot(e.to_string()))? {
            result.map_err(|(_, code)| cannot(code.to_string()))?;
        }
        topic.schema_id = topic.register()?;
        Ok(topic)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    /// As it stands below `routes:`. Not below `out`, where the auditor looks.
    fn route(&self) -> String {
        let Topic { name, topic, .. } = self;
        format!(
            "  {name}:
    topics: [\"{topic}\"]
    value: registry
    start: earliest
    batch: {{max_rows: 200, max_age: 50ms}}
    bad_records: stop
    sinks:
      lines: {{jsonl: {{path: own/{name}, roll: {{max_age: 100ms}}}}}}
"
        )
    }

    /// Records from now on have a schema that nobody has seen.
    fn next_version(&mut self) -> Result<u32, String> {
        self.added += 1;
        self.schema_id = self.register()?;
        Ok(self.schema_id)
    }

    fn schema(&self) -> Value {
        let mut fields = vec![json!({"name": "seq", "type": "long"})];
        for number in 1..=self.added {
            fields.push(json!({"name": format!("added_{number}"), "type": "long", "default": 0}));
        }
        json!({"type": "record", "name": "Numbered", "namespace": "faults", "fields": fields})
    }

    fn register(&self) -> Result<u32, String> {
        let cannot = |what: String| format!("cannot register a schema of {}: {what}", self.topic);
        let url = format!("{}/subjects/{}-value/versions", self.registry, self.topic);
        let body = json!({"schema": self.schema().to_string()}).to_string();
        let call = async {
            let request = reqwest::Client::new().post(url);
            let request = request.header("content-type", "application/vnd.schemaregistry.v1+json");
            request.timeout(CALL_LIMIT).body(body).send().await?.text().await
        };
        let answer = runtime()?.block_on(call).map_err(|e| cannot(e.to_string()))?;
        let parsed: Value = serde_json::from_str(&answer).map_err(|_| cannot(answer.clone()))?;
        let id = parsed["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| cannot(answer))
    }

    /// Confluent's frame, the number, and zeros for the fields that were added.
    fn value(&self, seq: i64) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(self.schema_id.to_be_bytes());
        // Zigzag of a number that is not negative.
        let mut left = seq.unsigned_abs() << 1;
        while left >= 0x80 {
            bytes.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
        bytes.resize(bytes.len() + self.added, 0);
        bytes
    }

    /// Numbers on from where it was, and returns when the broker has them.
    fn write(&mut self, count: i64) -> Result<(), String> {
        let cannot = |what: String| format!("cannot write: {what}");
        let mut config = self.client();
        config.set("enable.idempotence", "true");
        let producer: BaseProducer = config.create().map_err(|e| cannot(e.to_string()))?;
        for seq in self.count..self.count + count {
            let value = self.value(seq);
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.topic).partition(0);
            record.payload = Some(value.as_slice());
            producer.send(record).map_err(|(error, _)| cannot(error.to_string()))?;
        }
        producer.flush(CALL_LIMIT).map_err(|e| cannot(e.to_string()))?;
        self.count += count;
        Ok(())
    }

    /// The numbers in its files, in order.
    fn found(&self, stand: &Stand) -> Vec<i64> {
        let mut found = Vec::new();
        for path in files(&stand.place().join("own").join(self.name)) {
            // A file that cannot be read is missed below.
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let rows = text.lines().map(|line| serde_json::from_str(line).unwrap_or(Value::Null));
            found.extend(rows.map(|row| row["seq"].as_i64().unwrap_or(-1)));
        }
        found.sort_unstable();
        found
    }

    fn is_complete(&self, stand: &Stand) -> bool {
        i64::try_from(self.found(stand).len()).is_ok_and(|found| found >= self.count)
    }

    fn expect_once(&self, stand: &Stand) -> Result<(), String> {
        let found = self.found(stand);
        if found.iter().copied().eq(0..self.count) {
            return Ok(());
        }
        Err(format!("{}: not each of 0..{} once, but {found:?}", self.topic, self.count))
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("cannot make a runtime: {e}"))
}
