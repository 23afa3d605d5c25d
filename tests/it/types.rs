use serde_json::{Value, json};

use crate::pipeline::routes;
use crate::support::data::Record;
use crate::support::program::Workplace;
use crate::support::{self, data};

fn framed(id: u32, payload: &[u8]) -> Vec<u8> {
    [&[0][..], &id.to_be_bytes(), payload].concat()
}

fn zigzag(number: u8) -> Vec<u8> {
    let number = u16::from(number) * 2;
    if number < 128 { vec![number as u8] } else { vec![number as u8 | 0x80, (number >> 7) as u8] }
}

/// A union of several types is a struct, a record that contains itself is text, and hostile depth is a bad record.
#[test]
fn avro_without_an_arrow_form_becomes_columns() {
    let Some(services) = support::services("avro_without_an_arrow_form_becomes_columns") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("types"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    let schema = json!({"type": "record", "name": "Entry", "fields": [
        {"name": "id", "type": "long"},
        {"name": "what", "type": ["null", "long", "string"]},
        {"name": "below", "type": ["null", "Entry"]}]});
    let id = data::register(&services, &format!("{topic}-value"), &schema);
    let entry = |number: u8, below: &[u8]| {
        let what = match number % 3 {
            0 => vec![0],
            1 => [vec![2], zigzag(number)].concat(),
            _ => vec![4, 2, b'x'],
        };
        [&zigzag(number)[..], &what, below].concat()
    };
    let good = (0..100).map(|number: u8| {
        let below = if number.is_multiple_of(2) { vec![0] } else { [vec![2], entry(number, &[0])].concat() };
        Record::new(0, framed(id, &entry(number, &below)))
    });
    let endless: Vec<u8> = [2, 0, 2].repeat(300);
    let bad = [Record::new(0, framed(id, &endless))];
    data::produce(&services, &topic, good.chain(bad));
    let extra = |form: &str| {
        let extra = format!(
            "    value: {form}\n    bad_records: {{dead_letter: bad}}\n    views:\n      flat: |\n        \
             SELECT id, what['long'] AS number, what['string'] AS text, get_json_object(below, '$.id') AS below FROM batch\n    \
             sinks:\n      all: {{parquet: {{path: out/all}}}}\n      flat: {{from: flat, jsonl: {{path: out/flat}}}}\n"
        );
        let text = routes(&services, &group, &topic, &extra);
        text.replace("routes:\n", "dead_letters:\n  bad: {jsonl: {path: out/bad}}\nroutes:\n")
    };
    let refused = Workplace::new(&extra("avro")).run(&["check"]).expect_code(1);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("`below`: the type `Entry` contains itself"), "{said}");
    let place = Workplace::new(&extra("{avro: {recursive: json}}"));
    place.run(&["check"]).expect_code(0);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let (rows, _) = data::parquet_rows(&place.path("out/all"));
    assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 100);
    let flat = data::json_rows(&place.path("out/flat"));
    assert_eq!(flat.len(), 100);
    for row in flat {
        let number = row["id"].as_i64().unwrap();
        let expected = json!({
            "id": number,
            "number": (number % 3 == 1).then_some(number),
            "text": (number % 3 == 2).then_some("x"),
            "below": (number % 2 == 1).then_some(number.to_string())
        });
        assert_eq!(row, expected);
    }
    let letters = data::json_rows(&place.path("out/bad"));
    let codes: Vec<&str> = letters.iter().map(|row| row["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["depth"]);
}

/// Records are held against all of the schema they name, with what it references; those that do not keep to it are
/// dead letters, and none of their values is in a message.
#[test]
fn json_is_validated_on_request() {
    let Some(services) = support::services("json_is_validated_on_request") else {
        return;
    };
    let _turn = support::turn();
    let (topic, group) = (support::unique("validated"), support::unique("group"));
    data::create_topic(&services, &topic, 1);
    let money = json!({"$id": "http://acme.example/money.json", "type": "object",
        "properties": {"cents": {"type": "integer", "minimum": 0}}});
    let subject = format!("{topic}-money");
    data::register_body(&services, &subject, &json!({"schemaType": "JSON", "schema": money.to_string()}));
    let schema = json!({"type": "object", "properties": {
        "id": {"type": "string", "pattern": "^[a-z]{3}$"},
        "by": {"oneOf": [{"type": "integer"}, {"$ref": "http://acme.example/money.json"}]}}});
    let references = json!([{"name": "http://acme.example/money.json", "subject": subject, "version": 1}]);
    let body = json!({"schemaType": "JSON", "schema": schema.to_string(), "references": references});
    let id = data::register_body(&services, &format!("{topic}-value"), &body);
    let texts = [
        r#"{"id": "abc", "by": 1}"#,
        r#"{"id": "abd", "by": {"cents": 5}}"#,
        r#"{"id": "SECRET", "by": 1}"#,
        r#"{"id": "abe", "by": {"cents": -77}}"#,
    ];
    data::produce(&services, &topic, texts.map(|text| Record::new(0, framed(id, text.as_bytes()))));
    let extra = "
    value: {json_schema: {validate: true}}
    bad_records: {dead_letter: bad}
    sinks:
      all: {jsonl: {path: out/all}}
";
    let text = routes(&services, &group, &topic, extra);
    let text = text.replace("routes:\n", "dead_letters:\n  bad: {jsonl: {path: out/bad}}\nroutes:\n");
    let place = Workplace::new(&text);
    place.run(&["run", "--until", "latest"]).expect_code(0);
    let mut rows = data::json_rows(&place.path("out/all"));
    rows.sort_by_key(|row| row["id"].to_string());
    let by = |integer: Value, money: Value| json!({"integer": integer, "money": money});
    assert_eq!(
        rows,
        [
            json!({"id": "abc", "by": by(json!(1), json!(null))}),
            json!({"id": "abd", "by": by(json!(null), json!({"cents": 5}))}),
        ]
    );
    let letters = data::json_rows(&place.path("out/bad"));
    assert_eq!(letters.len(), 2);
    for letter in letters {
        assert_eq!(letter["code"], "invalid");
        let message = letter["message"].as_str().unwrap();
        assert!(
            message.starts_with("field `") && !message.contains("SECRET") && !message.contains("77"),
            "{message}"
        );
    }
}
