//! What may happen to a sink, one function each. It returns how many rows are there more than once, which the line may
//! allow.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rdkafka::Message;
use rdkafka::message::{Headers, OwnedMessage};

use super::Case;
use super::stage::{BOUNDED, Stage, produce};
use super::targets::{Forgotten, Loss, Target};
use crate::support::data;
use crate::support::program::{Workplace, eventually};

/// In the order of the table's columns.
pub const ALL: &[Case] = &[
    Case { name: "resume", run: resume },
    Case { name: "replay", run: replay },
    Case { name: "fail points", run: fail_points },
    Case { name: "forget", run: forget },
    Case { name: "refusal", run: refusal },
    Case { name: "close", run: close },
    Case { name: "outage", run: outage },
    Case { name: "lost reply", run: lost_reply },
];

const FAIL_POINT: &str = "SIDESTREAM_FAILPOINT";

/// The header of dead letters that has the code.
const CODE: &str = "__connect.errors.exception.class.name";

/// Records that come while a program is closed, at most: the load ends by itself if nobody ends it.
const LOAD_MAX: i64 = 8000;

/// Where one run ended in good order, the next one goes on.
fn resume(stage: &Stage<'_>) -> usize {
    let mut end = 0;
    for count in [1000, 1, 999] {
        stage.produce(end..end + count);
        end += count;
        stage.run();
    }
    let again = stage.expect_all(end);
    // A bounded run ends when everything is committed: nothing comes again without a fault.
    assert_eq!(again, 0, "rows came again without a fault");
    again
}

/// Killed when a flush is done and nobody knows.
fn replay(stage: &Stage<'_>) -> usize {
    stage.produce(0..2000);
    kill_at(stage, "lane.sink.flushed:2");
    stage.run();
    stage.expect_all(2000)
}

/// Killed at the steps of the sink.
fn fail_points(stage: &Stage<'_>) -> usize {
    let mut end = 0;
    for point in stage.line.points {
        stage.produce(end..end + 2000);
        end += 2000;
        kill_at(stage, point);
    }
    stage.run();
    stage.expect_all(end)
}

fn kill_at(stage: &Stage<'_>, point: &str) {
    let ended = stage.place().with(FAIL_POINT, &format!("{point}=kill")).run(&BOUNDED);
    expect_point(point, &ended.stderr);
    assert_eq!(ended.code, None, "it was not killed at {point}: {}", ended.stderr);
}

fn expect_point(point: &str, log: &str) {
    assert!(log.contains("fail point"), "it did not come to {point}: {log}");
}

/// The owner takes away what the sink knows its progress by, or another sink comes.
fn forget(stage: &Stage<'_>) -> usize {
    stage.produce(0..1000);
    stage.run();
    stage.expect_all(1000);
    let forgotten = stage.target.forget();
    if !matches!(forgotten, Forgotten::Group) {
        assert_eq!(stage.seen(), 0, "the target is not empty");
    }
    let owner = match forgotten {
        Forgotten::Anew => stage.place(),
        Forgotten::Told(words) => {
            let told = stage.place().run(&BOUNDED).expect_code(1);
            assert!(told.stderr.contains(words), "no {words:?} in {}", told.stderr);
            // The start that was refused has begun a state of its own there.
            stage.target.forget();
            stage.place_of_another_group()
        }
        Forgotten::Group => stage.place_of_another_group(),
    };
    owner.run(&BOUNDED).expect_code(0);
    if matches!(forgotten, Forgotten::Group) {
        let again = stage.expect_of_two_groups(1000);
        assert_eq!(again, 1000, "another group did not write everything");
        return again;
    }
    stage.expect_all(1000);
    // A target has an owner, and somebody else is told so.
    let told = stage.place_of_another_sink().run(&BOUNDED).expect_code(1);
    assert!(told.stderr.contains("belongs to sink `r/s`"), "{}", told.stderr);
    stage.expect_all(1000)
}

/// One row is refused among many: it becomes a dead letter, and its neighbours arrive.
fn refusal(stage: &Stage<'_>) -> usize {
    const REFUSED: i64 = 700;
    stage.produce(0..REFUSED);
    stage.produce_refused(REFUSED);
    stage.produce(REFUSED + 1..1500);
    let place = stage.place_with_letters();
    place.run(&BOUNDED).expect_code(0);
    assert_eq!(letters(stage, &place), ["sink_refusal"]);
    let expected: BTreeSet<i64> = (0..1500).filter(|seq| *seq != REFUSED).collect();
    let again = stage.expect(&expected);
    // It is passed for good.
    place.run(&BOUNDED).expect_code(0);
    assert_eq!(letters(stage, &place).len(), 1);
    assert_eq!(stage.expect(&expected), again);
    again
}

/// The code of each dead letter.
fn letters(stage: &Stage<'_>, place: &Workplace) -> Vec<String> {
    if let Some(topic) = stage.target.letters() {
        let letters = data::consume_committed(&stage.ground.services, topic);
        return letters.iter().map(code).collect();
    }
    let letters = data::json_rows(&place.path("out/bad"));
    letters.iter().map(|letter| letter["code"].as_str().unwrap().to_owned()).collect()
}

/// Of a dead letter in a topic.
fn code(letter: &OwnedMessage) -> String {
    let headers = letter.headers().unwrap();
    let code = headers.iter().find(|header| header.key == CODE).unwrap_or_else(|| panic!("no {CODE}"));
    String::from_utf8(code.value.unwrap().to_vec()).unwrap()
}

/// SIGTERM while rows flow; then somebody else reads what is left.
fn close(stage: &Stage<'_>) -> usize {
    const FIRST: i64 = 1000;
    let (services, topic) = (&stage.ground.services, stage.topic.as_str());
    let is_over = AtomicBool::new(false);
    let place = stage.place();
    let mut service = place.start(&["run"]);
    stage.produce(0..FIRST);
    eventually("the first rows arrive", || stage.seen() > 0);
    let end = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut end = FIRST;
            while end < FIRST + LOAD_MAX && !is_over.load(Ordering::SeqCst) {
                produce(services, topic, end..end + 250);
                end += 250;
            }
            end
        });
        eventually("rows of the load arrive", || stage.seen() > FIRST);
        let code = service.terminate();
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(code, Some(0), "{}", service.log());
        load.join().unwrap()
    });
    stage.run();
    stage.expect_all(end)
}

/// The target is away for a while: the route pauses, and goes on by itself.
fn outage(stage: &Stage<'_>) -> usize {
    let place = stage.place();
    let mut service = place.start(&["run"]);
    stage.produce(0..1000);
    eventually("the first rows arrive", || stage.seen() == 1000);
    if stage.target.is_broker() {
        // Nobody can write while it is away: it goes away under load.
        stage.produce(1000..3000);
    }
    let away = Outage::begin(stage);
    if !stage.target.is_broker() {
        stage.produce(1000..3000);
        eventually("the route pauses", || service.log().contains("route paused"));
    }
    drop(away);
    eventually("all rows arrive", || stage.seen() == 3000);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    stage.expect_all(3000)
}

/// Ends when dropped, also if a case fails: others need the component.
struct Outage<'a>(&'a dyn Target);

impl<'a> Outage<'a> {
    fn begin(stage: &'a Stage<'_>) -> Self {
        stage.target.stop();
        Self(&*stage.target)
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        if let Err(why) = self.0.start() {
            assert!(thread::panicking(), "it does not come back: {why}");
        }
    }
}

/// What was asked for is done, and the answer does not come.
fn lost_reply(stage: &Stage<'_>) -> usize {
    stage.produce(0..2000);
    match stage.target.lose_reply() {
        Loss::Told(point) => {
            let ended = stage.place().with(FAIL_POINT, &format!("{point}=error")).run(&BOUNDED);
            expect_point(point, &ended.expect_code(0).stderr);
        }
        Loss::Cut(proxy) => {
            stage.run();
            assert_eq!(proxy.lost(), 1, "no reply was lost");
        }
    }
    stage.expect_all(2000)
}
