//! Half an hour and more of random faults, under one instance that lives through all of them: nothing is lost or doubled,
//! and neither memory nor descriptors grow.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::tools::{descriptors, ensure, failed};
use super::{Context, Outcome, Scenario, conclude, say};
use crate::stand::{Instance, Mode, Stand, StandOptions, pause};
use crate::workload::Workload;

pub const ALL: &[Scenario] = &[Scenario {
    name: "soak",
    about: "random faults for SOAK_MINUTES (30): memory and descriptors of an instance that lives on stay flat",
    row: "40 soak",
    in_ci: false,
    run: soak,
}];

const MINUTES_DEFAULT: u64 = 30;

/// How often the instance is looked at, between faults.
const LOOK: Duration = Duration::from_secs(3);

/// From one fault to the next, rows flow for about this long.
const CALM: Duration = Duration::from_secs(12);

/// Memory may grow by this part of itself in an hour, or by this much: the allocator's pools fill up slowly, and half of
/// a short soak says little about an hour.
const GROWTH_PART_MAX: f64 = 0.05;
const GROWTH_BYTES_MAX: f64 = (32 << 20) as f64;

/// Connections that are being made again at the moment of a look.
const DESCRIPTORS_SPREAD: usize = 8;

/// What may happen, by name.
type Fault = (&'static str, fn(&mut Scene, &mut Rng) -> Result<(), String>);

const FAULTS: [Fault; 6] = [
    ("a member is killed", member_killed),
    ("a member joins and leaves", member_leaves),
    ("the instance is frozen", frozen),
    ("the broker is killed", broker_killed),
    ("the broker is frozen", broker_frozen),
    ("the registry is in trouble", registry_in_trouble),
];

/// What faults happen to.
struct Scene {
    /// The one that is watched; it ends before its brokers.
    instances: [Instance; 1],
    stand: Stand,
    samples: Vec<Sample>,
    since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    seconds: f64,
    bytes: f64,
    descriptors: usize,
}

fn minutes() -> u64 {
    std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(MINUTES_DEFAULT)
}

fn soak(context: &Context) -> Result<Outcome, String> {
    let mut random = context.random();
    let options = StandOptions { brokers: 1, has_proxy: true, rate: 100, ..StandOptions::default() };
    let mut stand = Stand::new(context, options)?;
    write_calmer_routes(&stand)?;
    let workload = Workload::start(&stand.options, 0);
    let instances = [stand.start(&[])?];
    let mut scene = Scene { stand, instances, samples: Vec::new(), since: Instant::now() };
    scene.stand.await_growth(0, &mut scene.instances)?;
    let limit = Duration::from_secs(minutes() * 60);
    let (mut rounds, mut recovery) = (0, Duration::ZERO);
    // The first of each kind in turn: what is set up once for each of them belongs to the first half.
    while scene.since.elapsed() < limit {
        let (name, fault) = FAULTS[if rounds < FAULTS.len() { rounds } else { random.usize(..FAULTS.len()) }];
        say(&format!("soak, {:.0} s: {name}", scene.since.elapsed().as_secs_f64()));
        let before = scene.stand.counts();
        fault(&mut scene, &mut random).map_err(failed(name))?;
        let gone = Instant::now();
        scene.stand.await_growth_everywhere(&before, &mut scene.instances).map_err(failed(name))?;
        recovery = recovery.max(gone.elapsed());
        scene.watch(CALM)?;
        rounds += 1;
    }
    let manifest = workload.stop()?;
    let Scene { mut stand, mut instances, samples, .. } = scene;
    instances[0].drain()?;
    let rounds = u32::try_from(rounds).map_err(failed("rounds"))?;
    let outcome = conclude(&mut stand, &manifest, rounds, Some(recovery))?;
    let note = judge(&samples)?;
    Ok(Outcome { note: format!("{note}; {}", outcome.note), ..outcome })
}

/// The workload's own limits make ten files a second for each sink; over half an hour those would be most of the work.
fn write_calmer_routes(stand: &Stand) -> Result<(), String> {
    let mut text = stand.routes();
    for age in ["100ms", "120ms", "150ms"] {
        text = text.replace(&format!("max_age: {age}"), "max_age: 3s");
    }
    stand.write_routes(&text)
}

impl Scene {
    /// Looks at the instance for a while.
    fn watch(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            pause(LOOK);
            self.instances[0].expect_running()?;
            let bytes = self.instances[0].memory().ok_or("this machine has no /proc")?;
            self.samples.push(Sample {
                seconds: self.since.elapsed().as_secs_f64(),
                bytes: bytes as f64,
                descriptors: descriptors(self.instances[0].pid())?,
            });
        }
        Ok(())
    }
}

fn seconds(random: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_secs(random.u64(range))
}

fn member_killed(scene: &mut Scene, random: &mut Rng) -> Result<(), String> {
    let mut member = scene.stand.start(&[])?;
    pause(seconds(random, 2..8));
    member.expect_running()?;
    member.kill();
    Ok(())
}

fn member_leaves(scene: &mut Scene, random: &mut Rng) -> Result<(), String> {
    let mut member = scene.stand.start(&[])?;
    pause(seconds(random, 2..8));
    member.drain()
}

/// For longer than a session, or not.
fn frozen(scene: &mut Scene, random: &mut Rng) -> Result<(), String> {
    scene.instances[0].freeze();
    pause(seconds(random, 1..8));
    scene.instances[0].thaw();
    Ok(())
}

fn broker_killed(scene: &mut Scene, random: &mut Rng) -> Result<(), String> {
    scene.stand.kill_brokers();
    pause(seconds(random, 1..10));
    scene.stand.restart_brokers()
}

fn broker_frozen(scene: &mut Scene, random: &mut Rng) -> Result<(), String> {
    let is_frozen = scene.stand.nodes.iter().all(|node| node.freeze());
    pause(seconds(random, 1..10));
    let is_thawed = scene.stand.nodes.iter().all(|node| node.thaw());
    ensure(is_frozen && is_thawed, || "the broker takes no signals".to_owned())
}

fn registry_in_trouble(scene: &mut Scene, random: &mut Rng) -> Result<(), String> {
    let modes = [Mode::Down, Mode::Failing, Mode::Crowded, Mode::Unauthorised, Mode::Slow];
    scene.stand.proxy()?.set(modes[random.usize(..modes.len())])?;
    // Somebody has to ask: a member that comes in the middle knows no schema yet.
    let mut member = scene.stand.start(&[])?;
    pause(seconds(random, 2..8));
    member.kill();
    scene.stand.proxy()?.set(Mode::Pass)
}

/// Memory: the slope of the line with the least squares through the second half of the samples, for an hour. Descriptors:
/// the middle one of the last quarter, and of the quarter after the first.
fn judge(samples: &[Sample]) -> Result<String, String> {
    // Less than this says nothing.
    const SAMPLES_MIN: usize = 12;
    ensure(samples.len() >= SAMPLES_MIN, || format!("{} looks are too few", samples.len()))?;
    let half = &samples[samples.len() / 2..];
    let (slope, mean) = line(half);
    let growth = slope * 3600.0;
    let quarter = samples.len() / 4;
    let early = middle(&samples[quarter..2 * quarter]);
    let late = middle(&samples[samples.len() - quarter..]);
    let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
    let note = format!(
        "{} looks: memory {:.0} MiB, {:+.1} MiB in an hour; descriptors {early}, then {late}",
        samples.len(),
        mebibytes(mean),
        mebibytes(growth)
    );
    let is_flat = growth <= (mean * GROWTH_PART_MAX).max(GROWTH_BYTES_MAX);
    ensure(is_flat, || format!("memory grows: {note}"))?;
    ensure(late <= early + DESCRIPTORS_SPREAD, || format!("descriptors grow: {note}"))?;
    Ok(note)
}

/// Bytes for each second, and the mean of the bytes.
fn line(samples: &[Sample]) -> (f64, f64) {
    let count = samples.len().max(1) as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (seconds, bytes) = (mean(|sample| sample.seconds), mean(|sample| sample.bytes));
    let (mut both, mut square) = (0.0, 0.0);
    for sample in samples {
        both += (sample.seconds - seconds) * (sample.bytes - bytes);
        square += (sample.seconds - seconds).powi(2);
    }
    (if square > 0.0 { both / square } else { 0.0 }, bytes)
}

fn middle(samples: &[Sample]) -> usize {
    let mut all: Vec<usize> = samples.iter().map(|sample| sample.descriptors).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}
