//! The targets of `fuzz/`, on files of `fuzz/corpus` that are changed at random: seconds here, hours in `.ci/nightly`.
//!
//! `FUZZ_ROUNDS=100000` tries more, `FUZZ_SECONDS=3600` goes on for an hour, each for every target. `FUZZ_SEED=42` runs
//! only that round. What a target was given last is in a file, for the case that it ends the process.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;
use sidestream::fuzz::{TARGETS, run};

/// Of each target, in a few seconds.
const ROUNDS: u64 = 2000;

/// No input grows beyond this.
const BYTES_MAX: usize = 64 << 10;

/// No input of that size takes nearly as long, not even in a build for tests on a machine that is busy.
const ROUND_MAX: Duration = Duration::from_secs(20);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(corpus().join(target)).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!seeds.is_empty(), "no corpus for {target}");
    seeds
}

/// Numbers at the edges of types, as single bytes, varints and text.
const EDGES: [&[u8]; 12] = [
    &[0],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    b"-1",
    b"9223372036854775808",
    b"1e999",
    b"null",
    b"\"\"",
];

/// Changes `bytes` in a few places.
fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Rng) {
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=bytes.len());
        let end = random.usize(at..=bytes.len().min(at + 16));
        match random.u32(..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u32(..8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.insert(at, random.u8(..)),
            3 => bytes.truncate(at),
            4 => {
                let edge = random.choice(EDGES).unwrap_or_default();
                drop(bytes.splice(at..at, edge.iter().copied()));
            }
            5 => {
                // Again and again: nested deeper, or longer.
                let part = bytes[at..end].to_vec();
                let times = 1 << random.u32(..10);
                drop(bytes.splice(at..at, part.repeat(times)));
            }
            _ => {
                let other = &others[random.usize(..others.len())];
                let (from, to) = (random.usize(..=other.len()), random.usize(..=other.len()));
                drop(bytes.splice(at..at, other[from.min(to)..from.max(to)].iter().copied()));
            }
        }
        bytes.truncate(BYTES_MAX);
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn fuzz(target: &str) {
    let seeds = seeds(target);
    let last = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"));
    for seed in &seeds {
        run(target, seed);
    }
    let (begun, only) = (Instant::now(), number("FUZZ_SEED"));
    let limit = number("FUZZ_SECONDS").map(Duration::from_secs);
    let rounds = number("FUZZ_ROUNDS").unwrap_or(ROUNDS);
    let mut round = only.unwrap_or_default();
    let is_over = |round: u64| match (only, limit) {
        (Some(only), _) => round > only,
        (None, Some(limit)) => begun.elapsed() >= limit,
        (None, None) => round >= rounds,
    };
    while !is_over(round) {
        // Neighbouring rounds shall have nothing in common.
        let mut random = Rng::with_seed(round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = seeds[random.usize(..seeds.len())].clone();
        mutate(&mut bytes, &seeds, &mut random);
        std::fs::write(&last, &bytes).unwrap();
        let started = Instant::now();
        let done = std::panic::catch_unwind(|| run(target, &bytes));
        assert!(done.is_ok(), "target {target}: FUZZ_SEED={round} runs this one alone");
        assert!(started.elapsed() < ROUND_MAX, "{:?} for {} bytes", started.elapsed(), bytes.len());
        round += 1;
    }
    std::fs::remove_file(last).unwrap();
}

/// One test each, so that they run side by side.
macro_rules! targets {
    ($($target:ident,)*) => {
        $(
            #[test]
            fn $target() {
                fuzz(stringify!($target));
            }
        )*

        const NAMES: &[&str] = &[$(stringify!($target)),*];
    };
}

targets! {
    framing,
    avro,
    protobuf,
    json,
    raw,
    avro_schema,
    protobuf_schema,
    json_schema,
    metadata,
    log_entry,
    routes,
}

/// Each target has a corpus, a test here and a file for cargo-fuzz.
#[test]
fn no_target_is_forgotten() {
    let all: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let names = |dir: PathBuf| -> BTreeSet<String> {
        let files = std::fs::read_dir(dir).unwrap();
        files.map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(NAMES.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>(), all);
    assert_eq!(names(corpus()), all);
    assert_eq!(names(corpus().with_file_name("fuzz_targets")), all);
    let manifest = std::fs::read_to_string(corpus().with_file_name("Cargo.toml")).unwrap();
    for name in &all {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name} is not in fuzz/Cargo.toml"
        );
    }
}
