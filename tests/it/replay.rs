//! Dead letters that are read again, after what was wrong is mended.

use rdkafka::message::{Headers, Message, OwnedMessage};
use serde_json::json;

use crate::support::data::{self, Record};
use crate::support::program::{Workplace, eventually};
use crate::support::{self, Services};

const AMOUNT: &str = r#"{"type": "record", "name": "Order", "fields": [
    {"name": "id", "type": "long"}, {"name": "amount", "type": "AMOUNT"}]}"#;

fn file(services: &Services, orders: &str, clicks: &str, letters: &str) -> String {
    format!(
        r#"
version: 1
kafka: {{bootstrap.servers: "{}", group.id: {orders}-group}}
dead_letters: {{bad: {{kafka: {{topic: {letters}}}}}}}
defaults:
  start: earliest
  batch: {{max_age: 50ms}}
  value: {{json: {{schema: {{file: order.avsc}}}}}}
  bad_records: {{dead_letter: bad}}
routes:
  orders:
    topics: [{orders}]
    views: {{placed: 'SELECT id, amount, _topic, _partition, _offset, _timestamp FROM batch'}}
    sinks: {{files: {{from: placed, jsonl: {{path: out/orders, roll: {{max_age: 100ms}}}}}}}}
  clicks:
    topics: [{clicks}]
    sinks: {{files: {{jsonl: {{path: out/clicks}}}}}}
"#,
        services.bootstrap
    )
}

/// Beside the service, which goes on: letters become rows with their own coordinates, once, whatever else is in their
/// topic; what is still wrong is set aside again.
#[test]
fn letters_become_rows_once_they_are_mended() {
    let Some(services) = support::services("letters_become_rows_once_they_are_mended") else {
        return;
    };
    let _turn = support::turn();
    let topics @ [orders, clicks, letters] =
        &[support::unique("orders"), support::unique("clicks"), support::unique("letters")];
    data::create_topics(&services, topics);
    let texts = [r#"{"id": 0, "amount": 1}"#, r#"{"id": 1, "amount": 1.5}"#, r#"{"id": "x"}"#];
    for topic in [orders, clicks] {
        data::produce(&services, topic, texts.map(|text| Record::new(0, text.as_bytes().to_vec())));
    }
    let place = Workplace::new(&file(&services, orders, clicks, letters));
    std::fs::write(place.path("order.avsc"), AMOUNT.replace("AMOUNT", "long")).unwrap();
    let mut service = place.start(&["run"]);
    eventually("letters of both routes are there", || data::consume(&services, letters).len() == 4);
    eventually("the good record is there", || data::json_rows(&place.path("out/orders")).len() == 1);

    std::fs::write(place.path("order.avsc"), AMOUNT.replace("AMOUNT", "double")).unwrap();
    let replay = || place.run(&["replay", "--route", "orders"]).expect_code(0);
    replay();
    let mut rows = data::json_rows(&place.path("out/orders"));
    rows.sort_by_key(|row| row["_offset"].as_i64());
    let known: Vec<_> = rows.iter().map(|row| (row["id"].clone(), row["amount"].clone())).collect();
    assert_eq!(known, [(json!(0), json!(1)), (json!(1), json!(1.5))]);
    let second = &rows[1];
    assert_eq!((&second["_topic"], &second["_offset"]), (&json!(orders), &json!(1)));
    // What is still wrong is a letter again, and says where it was first.
    let said = letters_of(&services, letters, "orders");
    let offsets: Vec<_> = said.iter().map(|headers| header(headers, "offset")).collect();
    assert_eq!(offsets, ["1", "2", "2"]);
    assert_eq!(said[1], said[2]);

    // Only what is new is read by the next one, which is the letter of the one before.
    replay();
    assert_eq!(data::json_rows(&place.path("out/orders")).len(), 2);
    assert_eq!(data::consume(&services, letters).len(), 6);
    assert_eq!(service.terminate(), Some(0), "{}", service.log());
    // The service does not take what was replayed for an edit or for its own.
    place.run(&["run", "--until", "latest"]).expect_code(0);
    assert_eq!(data::json_rows(&place.path("out/orders")).len(), 2);
}

/// The headers of the letters of a route, in their order.
fn letters_of(services: &Services, topic: &str, route: &str) -> Vec<Vec<(String, String)>> {
    let headers = |letter: &OwnedMessage| -> Vec<(String, String)> {
        let headers = letter.headers().unwrap().iter();
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        headers.map(|header| (header.key.to_owned(), text(header.value))).collect()
    };
    let all = data::consume(services, topic);
    all.iter().map(headers).filter(|headers| header(headers, "connector.name") == route).collect()
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
    let name = format!("__connect.errors.{name}");
    &headers.iter().find(|(known, _)| *known == name).unwrap().1
}
