//! What the machine runs out of: room on the disk, descriptors, memory, an even clock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::lab::{Lab, Route};
use super::tools::{Writer, compare, descriptors, ensure, failed, held_for, peak_memory, rows};
use super::{Context, Outcome, Scenario, conclude, not_possible, tool_can};
use crate::stand::{FLOW_LIMIT, Instance, Stand, StandOptions, eventually, files, pause};
use crate::workload::Workload;

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "disk-full",
        about: "the sinks' disk is filled up while rows flow, and freed again, without a restart",
        row: "29 disk full",
        in_ci: true,
        run: disk_full,
    },
    Scenario {
        name: "descriptors",
        about: "fewer descriptors than open files are needed, while it runs; then more, with and without a restart",
        row: "33 descriptors exhausted",
        in_ci: false,
        run: few_descriptors,
    },
    Scenario {
        name: "memory-squeezed",
        about: "records of 5 MB through `memory: 16MiB`; the peak of the process is bounded, nothing is lost",
        row: "32 memory pressure",
        in_ci: false,
        run: memory_squeezed,
    },
    Scenario {
        name: "out-of-memory",
        about: "the kernel kills it for its memory, again and again (a control group with a limit)",
        row: "32 killed for its memory",
        in_ci: false,
        run: out_of_memory,
    },
    Scenario {
        name: "clock-jump",
        about: "the wall clock jumps an hour ahead and two back while rows flow",
        row: "31 clock jump",
        in_ci: false,
        run: clock_jump,
    },
    Scenario {
        name: "netem",
        about: "latency and loss of packets by the kernel's queueing",
        row: "11 network",
        in_ci: false,
        run: |_| Ok(not_possible(&netem())),
    },
    Scenario {
        name: "dm-flakey",
        about: "writes that the disk drops, or answers with errors",
        row: "30 failing disk, power cut",
        in_ci: false,
        run: |_| Ok(not_possible(&flakey())),
    },
];

/// Room for what flows in a scenario, many times over, and filled within a second.
const DISK: &str = "256M";

/// A small file system of its own at a directory, gone when dropped.
struct SmallDisk {
    at: PathBuf,
    /// Holds the image; to be removed after it is no longer mounted.
    _image: tempfile::TempDir,
}

impl SmallDisk {
    /// Ext4 in a file if this user may mount that, else a part of the memory.
    fn mount(at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(failed("no directory"))?;
        let place = tempfile::tempdir().map_err(failed("no directory for the image"))?;
        let (image, target) = (place.path().join("disk"), at.display().to_string());
        File::create(&image).map_err(failed("no image"))?;
        let image = image.display().to_string();
        // Many small files: more inodes than are usual.
        let ext4 = tool_can("mkfs.ext4", &["-q", "-F", "-m", "0", "-N", "120000", &image, DISK])
            .and_then(|()| tool_can("mount", &["-o", "loop", &image, &target]));
        let size = format!("size={DISK}");
        ext4.or_else(|no_ext4| {
            let tmpfs = tool_can("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &target]);
            tmpfs.map_err(|no_tmpfs| format!("{no_ext4}; {no_tmpfs}"))
        })?;
        Ok(Self { at: at.to_owned(), _image: place })
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Takes all the room that is left; to be repeated, as a program that gives up a file makes room.
    fn fill(&self) -> Result<(), String> {
        let opened = OpenOptions::new().create(true).append(true).open(self.ballast());
        let mut file = match opened {
            Ok(file) => file,
            // Not even room for a name.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(format!("no ballast: {error}")),
        };
        for size in [1 << 20, 4096, 1] {
            let block = vec![0; size];
            loop {
                match file.write(&block) {
                    Ok(count) if count > 0 => {}
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(format!("no ballast: {error}")),
                }
            }
        }
        Ok(())
    }

    fn free(&self) -> Result<(), String> {
        fs::remove_file(self.ballast()).map_err(failed("the ballast stays"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let target = self.at.display().to_string();
        // Something may still be open there after a failure: then it goes when that is closed.
        if tool_can("umount", &[&target]).is_err() {
            tool_can("umount", &["-l", &target]).ok();
        }
    }
}

/// Every data file in sight is whole: Parquet ends with its mark, JSON Lines with a line.
fn expect_whole_files(dir: &Path) -> Result<usize, String> {
    let mut count = 0;
    for path in files(dir) {
        let expected: &[u8] = match path.extension().and_then(|extension| extension.to_str()) {
            Some("parquet") => b"PAR1",
            Some("jsonl") => b"}\n",
            _ => continue,
        };
        let read_end = || {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::End(-(expected.len() as i64)))?;
            let mut end = Vec::new();
            file.read_to_end(&mut end)?;
            Ok::<_, io::Error>(end)
        };
        let end = read_end().map_err(|error| format!("{} is cut off: {error}", path.display()))?;
        ensure(end == expected, || format!("{} is cut off: it ends with {end:?}", path.display()))?;
        count += 1;
    }
    Ok(count)
}

fn disk_full(context: &Context) -> Result<Outcome, String> {
    let options = StandOptions { rate: 200, largest: 20_000, ..StandOptions::default() };
    let mut stand = Stand::new(context, options)?;
    let out = stand.place().join("out");
    let disk = match SmallDisk::mount(&out) {
        Ok(disk) => disk,
        Err(why) => return Ok(not_possible(&why)),
    };
    let workload = Workload::start(&stand.options, 0);
    let mut instances = [stand.start(&[])?];
    stand.await_growth(0, &mut instances)?;
    let (rounds, mut recovery, mut whole) = (context.rounds_of(1, 5), Duration::ZERO, 0);
    let lasting = context.lasting(Duration::from_secs(4), Duration::from_secs(20));
    for _ in 0..rounds {
        let paused = |instance: &Instance| instance.said(&["route paused", "No space left"]);
        let before = paused(&instances[0]);
        let since = Instant::now();
        let mut filled = Ok(());
        // What the program gives up is taken away again, until all of it has noticed.
        eventually("a route pauses for want of room", FLOW_LIMIT, || {
            filled = disk.fill();
            filled.is_err() || (paused(&instances[0]) > before && since.elapsed() >= lasting)
        })?;
        filled?;
        instances[0].expect_running()?;
        whole = expect_whole_files(&out)?;
        let counts = stand.counts();
        disk.free()?;
        let freed = Instant::now();
        stand.await_growth_everywhere(&counts, &mut instances)?;
        recovery = recovery.max(freed.elapsed());
    }
    let manifest = workload.stop()?;
    instances[0].drain()?;
    let outcome = conclude(&mut stand, &manifest, rounds, Some(recovery))?;
    let note = format!("{}; {whole} files in sight while it was full, all whole", outcome.note);
    Ok(Outcome { note, ..outcome })
}

/// Sets how many descriptors a process may have open. Only the soft limit: raising that again needs no rights.
fn limit_descriptors(pid: u32, count: usize) -> Result<(), String> {
    tool_can("prlimit", &["--pid", &pid.to_string(), &format!("--nofile={count}:")])
}

fn few_descriptors(context: &Context) -> Result<Outcome, String> {
    /// Fewer than a sink keeps open, which is 64.
    const DIRECTORIES: usize = 50;
    /// Enough for a commit and a connection, and less than a third of the directories.
    const SPARE: usize = 14;
    if let Err(why) = tool_can("prlimit", &["--nofile"]) {
        return Ok(not_possible(&why));
    }
    let mut lab = Lab::new(context, 0)?;
    lab.create("spread", &[])?;
    let sink = "{all: {jsonl: {path: out/spread, partition_by: {part: \"substr(value, 1, 2)\"}, roll: {max_age: \
                300ms}}}}";
    lab.write_routes("", &[Route::new("spread").batching("{max_rows: 2000, max_age: 200ms}").writing(sink)])?;
    let mut writer = Writer::new(lab.bootstrap())?;
    let mut number = 0;
    let mut write = |lab: &Lab, count: usize| {
        for _ in 0..count {
            writer.send(&lab.topic("spread"), 0, None, &format!("{:02} {number}", number % DIRECTORIES))?;
            number += 1;
        }
        writer.flush().map(drop)
    };
    // With enough of them, one row: everything that is open all the time is open then.
    write(&lab, 1)?;
    let mut instance = lab.run()?;
    lab.await_rows("spread", &lab.held("spread")?)?;
    let too_many = ["route paused", "Too many open files"];
    let rounds = context.rounds_of(1, 3);
    let mut recovery = Duration::ZERO;
    for round in 0..rounds {
        let idle = descriptors(instance.pid())?;
        let before = instance.said(&too_many);
        limit_descriptors(instance.pid(), idle + SPARE)?;
        write(&lab, 2000)?;
        let is_noticed = || instance.said(&too_many) > before;
        eventually("the route pauses for want of descriptors", FLOW_LIMIT, is_noticed)?;
        pause(context.lasting(Duration::from_secs(2), Duration::from_secs(10)));
        instance.expect_running()?;
        let difference = compare(&lab.held("spread")?, &rows(&lab.out("spread"))?);
        let is_right = difference.doubled.is_empty() && difference.phantom.is_empty();
        ensure(is_right, || format!("while there were too few: {difference}"))?;
        // Once it gets more and goes on by itself, the next time it is killed and starts with more.
        if round % 2 == 0 {
            limit_descriptors(instance.pid(), 1024)?;
        } else {
            instance.kill();
            instance = lab.run()?;
        }
        let since = Instant::now();
        lab.await_rows("spread", &lab.held("spread")?)?;
        recovery = recovery.max(since.elapsed());
    }
    instance.drain()?;
    lab.run_to_the_end(0)?;
    lab.expect_rows("spread", &lab.held("spread")?)?;
    lab.expect_no_lag("spread")?;
    lab.stand.expect_no_panic()?;
    Ok(held_for(rounds, Some(recovery), format!("{SPARE} descriptors for {DIRECTORIES} directories")))
}

/// The program as it is with small records of the same route, and this much more: `memory:` itself (16 MiB), librdkafka's
/// queue (16 MiB), and about twenty copies of a record of 5 MB, as fetched, as columns, as JSON and in buffers.
const LARGE_RECORDS_MAX: u64 = 140 << 20;

fn memory_squeezed(context: &Context) -> Result<Outcome, String> {
    const SIZE: usize = 5_000_000;
    let count = context.rounds.unwrap_or(if context.is_ci { 20 } else { 60 });
    let mut lab = Lab::new(context, 0)?;
    lab.create("large", &[])?;
    let sink = "{all: {jsonl: {path: out/large, roll: {max_bytes: 16MiB, max_age: 1s}}}}";
    lab.write_routes("memory: 16MiB\n", &[Route::new("large").writing(sink)])?;
    let mut writer = Writer::new(lab.bootstrap())?;
    for number in 0..1000 {
        writer.send(&lab.topic("large"), 0, None, &format!("small {number}"))?;
    }
    writer.flush()?;
    let mut instance = lab.run()?;
    lab.await_rows("large", &lab.held("large")?)?;
    let base = peak_memory(instance.pid())?;
    for number in 0..count {
        writer.send(&lab.topic("large"), 0, None, &format!("{number} {}", "x".repeat(SIZE)))?;
        // The writer holds few of them: it is not the one that is measured.
        if number % 10 == 9 {
            writer.flush()?;
        }
    }
    writer.flush()?;
    let expected = lab.held("large")?;
    lab.await_rows("large", &expected)?;
    let peak = peak_memory(instance.pid())?;
    instance.drain()?;
    lab.run_to_the_end(0)?;
    lab.expect_rows("large", &expected)?;
    let mebibytes = |bytes: u64| bytes >> 20;
    let limit = base + LARGE_RECORDS_MAX;
    let note = format!(
        "{count} records of 5 MB: peak {} MiB, {} MiB with small ones, bound {} MiB",
        mebibytes(peak),
        mebibytes(base),
        mebibytes(limit)
    );
    ensure(peak <= limit, || note.clone())?;
    Ok(held_for(1, None, note))
}

/// A control group whose processes the kernel kills beyond a limit. Removed when dropped, once they are gone.
struct MemoryGroup {
    dir: PathBuf,
}

impl MemoryGroup {
    fn new(bytes: u64) -> Result<Self, String> {
        // The one hierarchy of version 2, or the one for memory of version 1; and a file that it has.
        let roots = [
            ("/sys/fs/cgroup", "cgroup.controllers", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes"),
        ];
        let mut why = "no control groups for memory".to_owned();
        for (root, sign, file) in roots.map(|(root, sign, file)| (Path::new(root), sign, file)) {
            if !root.join(sign).is_file() {
                continue;
            }
            let dir = root.join(format!("sidestream-faults-{}", std::process::id()));
            if let Err(error) = fs::create_dir(&dir) {
                why = format!("{}: {error}", dir.display());
                continue;
            }
            let group = Self { dir };
            match fs::write(group.dir.join(file), bytes.to_string()) {
                Ok(()) => return Ok(group),
                Err(error) => why = format!("{}: {error}", group.dir.join(file).display()),
            }
        }
        Err(why)
    }

    fn take(&self, pid: u32) -> Result<(), String> {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).map_err(failed("the group takes nobody"))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // It fails while somebody is in it, which is nobody after the scenario.
        fs::remove_dir(&self.dir).ok();
    }
}

fn out_of_memory(context: &Context) -> Result<Outcome, String> {
    /// For what it asks for once rows flow: soon used up, in the middle of something.
    const LIMIT_BYTES: u64 = 8 << 20;
    let mut stand = Stand::new(context, StandOptions::default())?;
    let group = match MemoryGroup::new(LIMIT_BYTES) {
        Ok(group) => group,
        Err(why) => return Ok(not_possible(&why)),
    };
    let workload = Workload::start(&stand.options, 0);
    let (rounds, mut killed, mut recovery) = (context.rounds_of(1, 5), 0, Duration::ZERO);
    for _ in 0..rounds {
        let before = stand.file_count();
        let mut instances = [stand.start(&[])?];
        stand.await_growth(before, &mut instances)?;
        // What it holds by now stays; what it asks for from now on is counted.
        group.take(instances[0].pid())?;
        let ended = instances[0].wait("the kernel kills it", Duration::from_secs(30));
        killed += u32::from(ended == Ok(None));
        instances[0].kill();
        let before = stand.counts();
        let since = Instant::now();
        let mut next = [stand.start(&[])?];
        stand.await_growth_everywhere(&before, &mut next)?;
        recovery = recovery.max(since.elapsed());
        next[0].kill();
    }
    let manifest = workload.stop()?;
    if killed == 0 {
        return Ok(not_possible("the kernel killed nobody for what was counted"));
    }
    let outcome = conclude(&mut stand, &manifest, rounds, Some(recovery))?;
    Ok(Outcome { note: format!("{killed} times killed by the kernel; {}", outcome.note), ..outcome })
}

/// Where distributions put the library that answers questions for the time.
fn faketime_library() -> Option<PathBuf> {
    let roots = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let mut all = roots.iter().map(|root| Path::new(root).join("faketime/libfaketimeMT.so.1"));
    all.find(|path| path.is_file())
}

fn clock_jump(context: &Context) -> Result<Outcome, String> {
    let Some(library) = faketime_library() else {
        return Ok(not_possible(
            "a time namespace does not move the wall clock, and there is no libfaketime",
        ));
    };
    let mut stand = Stand::new(context, StandOptions::default())?;
    let clock = stand.place().join("clock");
    let set = |offset: &str| fs::write(&clock, offset).map_err(failed("the clock"));
    set("+0")?;
    let (library, file) = (library.display().to_string(), clock.display().to_string());
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        // As on a real machine: only the wall clock jumps.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let workload = Workload::start(&stand.options, 0);
    let mut instances = [stand.start(&env)?];
    stand.await_growth(0, &mut instances)?;
    let (rounds, mut recovery) = (context.rounds_of(1, 3), Duration::ZERO);
    for _ in 0..rounds {
        for offset in ["+3600", "-3600", "+0"] {
            let before = stand.counts();
            set(offset)?;
            let since = Instant::now();
            stand.await_growth_everywhere(&before, &mut instances)?;
            recovery = recovery.max(since.elapsed());
        }
    }
    let manifest = workload.stop()?;
    instances[0].drain()?;
    conclude(&mut stand, &manifest, rounds * 3, Some(recovery))
}

/// Why there is no scenario with it; looked at in a network of its own, which ends with the question.
fn netem() -> String {
    match tool_can("unshare", &["-n", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]) {
        Ok(()) => {
            "the kernel can do it, but brokers, program and all else here share one loopback".to_owned()
        }
        Err(why) => why,
    }
}

fn flakey() -> String {
    let targets = Command::new("dmsetup").arg("targets").output();
    match targets {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("flakey") => {
            "the kernel can do it, but no scenario uses it yet".to_owned()
        }
        Ok(_) => "the kernel has no device mapper with the target `flakey`".to_owned(),
        Err(error) => format!("dmsetup: {error}"),
    }
}
