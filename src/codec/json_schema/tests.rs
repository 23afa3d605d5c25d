use serde_json::{Map, json};

use super::*;
use crate::codec::avro::arrow_type;

/// A schema's type as Arrow shows it, one line for each column.
fn columns(schema: &Value, references: &[(&str, Value)]) -> Vec<String> {
    let node = compile(schema, references).unwrap();
    let schema = arrow_type::schema(&node, false).unwrap();
    let lines = schema.fields().iter().map(|field| {
        let null = if field.is_nullable() { "?" } else { "" };
        format!("{}{null}: {}", field.name(), field.data_type())
    });
    lines.collect()
}

fn compile(schema: &Value, references: &[(&str, Value)]) -> Result<Node, SchemaError> {
    let references =
        references.iter().map(|(name, text)| Reference { name: (*name).to_owned(), text: text.to_string() });
    parse(&schema.to_string(), &references.collect::<Vec<_>>())
}

/// What one property becomes, by the type of its node.
fn property(schema: Value) -> String {
    let node =
        compile(&json!({"type": "object", "properties": {"p": schema}, "required": ["p"]}), &[]).unwrap();
    let Kind::Record(record) = node.kind else { panic!("no record") };
    record.fields[0].node.describe()
}

fn refused(schema: &Value) -> String {
    compile(schema, &[]).unwrap_err().to_string()
}

#[test]
fn properties_become_columns() {
    let schema = json!({"type": "object", "required": ["id", "tags", "by"], "properties": {
        "id": {"type": "integer"},
        "price": {"type": "number"},
        "is_paid": {"type": "boolean"},
        "note": {"type": "string", "format": "email"},
        "day": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "key": {"type": ["string", "null"], "format": "uuid"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "by": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "any": {},
        "some": true,
        "never": false,
        "free": {"type": "object"}
    }});
    let columns = columns(&schema, &[]);
    let names: Vec<&str> = columns.iter().map(|column| column.split(": ").next().unwrap()).collect();
    assert_eq!(
        names,
        [
            "id", "price?", "is_paid?", "note?", "day?", "at?", "key?", "tags", "by", "counts?", "any?",
            "some?", "free?"
        ]
    );
    let is_of = |name: &str, data_type: &str| {
        let column = columns.iter().find(|column| column.starts_with(&format!("{name}: "))).unwrap();
        assert!(column.contains(data_type), "{column}");
    };
    for (name, data_type) in [
        ("id", "Int64"),
        ("price?", "Float64"),
        ("is_paid?", "Boolean"),
        ("note?", "Utf8"),
        ("day?", "Date32"),
        ("at?", "Timestamp"),
        ("key?", "Utf8"),
        ("tags", "List"),
        ("by", "Struct"),
        ("counts?", "Map"),
        ("any?", "Utf8"),
        ("free?", "Utf8"),
    ] {
        is_of(name, data_type);
    }
}

#[test]
fn types_are_found_wherever_they_are_said() {
    for (schema, expected) in [
        (json!({"type": "integer"}), "long"),
        (json!({"type": ["null", "integer"]}), "union of null, long"),
        (json!({"type": ["integer", "number"]}), "double"),
        (json!({"type": ["integer", "string"]}), "string (Json)"),
        (json!({"type": "null"}), "null"),
        (json!({}), "union of null, string (Json)"),
        (json!(true), "union of null, string (Json)"),
        (json!({"enum": ["a", "b"]}), "string"),
        (json!({"enum": ["a", null]}), "union of null, string"),
        (json!({"enum": ["a", 1]}), "string (Json)"),
        (json!({"enum": [1, 2]}), "long"),
        (json!({"const": 1.5}), "double"),
        (json!({"const": "x"}), "string"),
        (json!({"type": "string", "format": "uuid"}), "string (Uuid)"),
        (json!({"type": "string", "format": "date-time"}), "string (TimestampMicros)"),
        (json!({"type": "string", "connect.type": "bytes"}), "bytes"),
        (json!({"type": "integer", "connect.type": "int16"}), "int"),
        (json!({"type": "integer", "connect.type": "int64"}), "long"),
        (json!({"type": "number", "connect.type": "float32"}), "float"),
        (
            json!({"type": "integer", "title": "org.apache.kafka.connect.data.Timestamp"}),
            "long (TimestampMillis)",
        ),
        (json!({"type": "array"}), "array of union of null, string (Json)"),
        (json!({"items": {"type": "integer"}}), "array of long"),
        (json!({"type": "array", "items": [{"type": "integer"}]}), "array of union of null, string (Json)"),
        (
            json!({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}}),
            "array of union of null, string (Json)",
        ),
        (json!({"additionalProperties": {"type": ["integer", "null"]}}), "map of union of null, long"),
        (json!({"type": "object", "additionalProperties": true}), "string (Json)"),
        (json!({"type": "object", "patternProperties": {"^x": {"type": "integer"}}}), "string (Json)"),
        (json!({"title": "T", "properties": {"a": {}}}), "record `T`"),
    ] {
        assert_eq!(property(schema.clone()), expected, "{schema}");
    }
}

#[test]
fn choices_with_null_are_nullable_and_others_are_text() {
    let object = json!({"title": "T", "type": "object", "properties": {"a": {"type": "integer"}}});
    for (schema, expected) in [
        (json!({"oneOf": [{"type": "null"}, {"type": "integer"}]}), "union of null, long"),
        (
            json!({"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}),
            "union of null, string (Date)",
        ),
        (json!({"oneOf": [{"type": "null"}, object]}), "union of null, record `T`"),
        (json!({"type": "string", "oneOf": [{"type": "null"}, {"format": "date"}]}), "string (Date)"),
        (json!({"oneOf": [{"type": "null"}]}), "null"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "double"),
        (json!({"oneOf": [{"const": "a"}, {"const": "b"}]}), "string"),
        (json!({"anyOf": [{"type": "string", "format": "date"}, {"type": "string"}]}), "string"),
        (json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), "string (Json)"),
        (
            json!({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
            "union of null, string (Json)",
        ),
        (json!({"oneOf": [object, {"properties": {"b": {}}}]}), "string (Json)"),
        // Arms that only narrow what stands beside them.
        (
            json!({"title": "T", "type": "object", "properties": {"a": {}, "b": {}},
                "anyOf": [{"required": ["a"]}, {"properties": {"b": {"const": 1}}}]}),
            "record `T`",
        ),
    ] {
        assert_eq!(property(schema.clone()), expected, "{schema}");
    }
}

#[test]
fn objects_of_all_of_are_one() {
    let schema = json!({
        "allOf": [
            {"$ref": "#/$defs/base"},
            {"properties": {"b": {"type": "string"}, "a": {"type": "integer"}}, "required": ["b"]},
            {"required": ["c"]},
            {"$ref": "#/$defs/base"}
        ],
        "properties": {"c": {"type": "boolean"}},
        "$defs": {"base": {"type": "object", "properties": {"a": {"type": ["integer", "null"]}}, "required": ["a"]}}
    });
    let mut found = columns(&schema, &[]);
    found.sort();
    assert_eq!(found, ["a: Int64", "b: Utf8", "c: Boolean"]);
    assert!(
        refused(&json!({"properties": {"a": {"allOf": [{"type": "string"}, {"type": "integer"}]}}}))
            .contains("`a`: no value can be of all the types")
    );
}

#[test]
fn refs_lead_into_the_document_and_to_references() {
    let money = json!({"$id": "http://shop.example/money.json", "type": "object",
        "properties": {"cents": {"$ref": "#/definitions/cents"}, "of": {"$ref": "unit.json"}},
        "definitions": {"cents": {"type": "integer"}}});
    let unit = json!({"definitions": {"name": {"type": "string"}}, "$ref": "#/definitions/name"});
    let references = [("money.json", money), ("http://shop.example/unit.json", unit)];
    for target in ["money.json", "./money.json", "http://shop.example/money.json", "money.json#"] {
        let schema = json!({"$id": "http://shop.example/order.json", "type": "object", "properties": {
            "total": {"$ref": target},
            "cents": {"$ref": "money.json#/definitions/cents"},
            "own": {"$ref": "http://shop.example/order.json#/$defs/a~1b%20c"},
            "named": {"$ref": "#named"},
            "part": {"$ref": "/part"}},
            "$defs": {
                "a/b c": {"type": "boolean"},
                "n": {"$anchor": "named", "type": "number"},
                "p": {"$id": "http://shop.example/part", "$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}}}});
        let found = columns(&schema, &references);
        assert!(found[0].starts_with("total?: Struct") && found[0].contains("Int64"), "{target}: {found:?}");
        assert_eq!(found[1..], ["cents?: Int64", "own?: Boolean", "named?: Float64", "part?: Utf8"]);
    }
}

#[test]
fn a_ref_to_elsewhere_is_refused_with_its_place() {
    for target in [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/a.json#/definitions/x",
        "file:///etc/passwd",
        "/etc/passwd",
        "../other.json",
        "#/definitions/none",
        "#none",
        "#/%zz",
        "#%",
    ] {
        let nested = json!({"properties": {"a": {"type": "array", "items": {"$ref": target}}}});
        let message = refused(&nested);
        assert!(message.starts_with("`a.items`: `$ref` to `") && message.contains(target), "{message}");
    }
    assert!(refused(&json!({"properties": {"a": {"$dynamicRef": "#x"}}})).contains("`$dynamicRef`"));
}

#[test]
fn recursion_is_refused_with_its_path_unless_it_is_text_anyway() {
    let tree = json!({"type": "object", "properties": {
        "left": {"oneOf": [{"type": "null"}, {"$ref": "#"}]}}});
    assert!(refused(&tree).starts_with("`left`: the type `#` contains itself"), "{}", refused(&tree));
    let list = json!({"properties": {"all": {"$ref": "#/$defs/l"}}, "$defs": {
        "l": {"type": "array", "items": {"$ref": "#/$defs/m"}}, "m": {"properties": {"n": {"$ref": "#/$defs/l"}}}}});
    assert!(refused(&list).starts_with("`all.items.n`: the type `#/$defs/l`"), "{}", refused(&list));
    for circle in [
        json!({"$ref": "#"}),
        json!({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        json!({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}),
    ] {
        assert!(refused(&circle).contains("contains itself"), "{circle}");
    }
    let any = json!({"properties": {"a": {"$ref": "#/$defs/any"}}, "$defs": {"any": {"anyOf": [
        {"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/any"}}, {"$ref": "#"}]}}});
    assert_eq!(columns(&any, &[]), ["a?: Utf8"]);
}

#[test]
fn a_short_text_cannot_become_an_endless_schema() {
    let refused_with = |part: &dyn Fn(usize) -> Value, count: usize| {
        let parts: Map<String, Value> = (0..count).map(|at| (format!("l{at}"), part(at))).collect();
        refused(&json!({"$ref": "#/$defs/l0", "$defs": parts}))
    };
    let to = |at: usize| json!({"$ref": format!("#/$defs/l{at}")});
    // Each level has the one below it several times.
    let fields = |at: usize| {
        let properties: Map<String, Value> = (0..8).map(|name| (format!("p{name}"), to(at + 1))).collect();
        if at < 19 { json!({"properties": properties}) } else { json!({"type": "string"}) }
    };
    assert!(refused_with(&fields, 20).contains("more than 10000 fields"));
    let parts = vec![json!({"title": "t"}); 200];
    let all_of = |at: usize| {
        let properties: Map<String, Value> = (0..1000).map(|name| (format!("p{name}"), to(1))).collect();
        if at == 0 { json!({"properties": properties}) } else { json!({"allOf": parts}) }
    };
    assert!(refused_with(&all_of, 2).contains("make it too large"));
    assert!(refused_with(&|at| to(at + 1), 20_000).contains("deeper than"));
    assert!(refused_with(&|at| to((at + 1) % 100), 100).contains("contains itself"));
    let deep = format!("{}{{}}{}", "{\"items\":".repeat(120), "}".repeat(120));
    assert!(parse(&deep, &[]).unwrap_err().to_string().contains("deeper than"));
    let deeper = "{\"items\":".repeat(100_000);
    assert!(parse(&deeper, &[]).unwrap_err().to_string().starts_with("not a valid JSON Schema"));
    let wide: Map<String, Value> = (0..10_001).map(|at| (format!("p{at}"), json!({}))).collect();
    assert!(refused(&json!({"properties": wide})).contains("more than 10000 fields"));
    let default = json!({"properties": {"a": {"type": "string", "default": "x".repeat(17 << 10)}}});
    assert!(refused(&default).contains("defaults of more than"));
}

#[test]
fn what_is_no_schema_is_said() {
    for (schema, expected) in [
        (json!(5), "a schema is an object"),
        (json!({"properties": {"a": "string"}}), "`a`: a schema is an object"),
        (json!({"properties": {"a": {"type": "int"}}}), "`a`: `type` is one of"),
        (json!({"properties": {"a": {"type": ["string", 5]}}}), "`a`: `type` is one of"),
        (json!({"properties": {"a": {"$ref": 5}}}), "`a`: `$ref` is no text"),
    ] {
        let message = refused(&schema);
        assert!(message.starts_with("not a valid JSON Schema") && message.contains(expected), "{message}");
    }
    assert!(parse("{", &[]).unwrap_err().to_string().starts_with("not a valid JSON Schema"));
    let top = |schema: Value| {
        let node = compile(&schema, &[]).unwrap();
        arrow_type::schema(&node, false).unwrap_err().to_string()
    };
    assert!(top(json!({"type": "object"})).contains("not any JSON"), "{}", top(json!({"type": "object"})));
    assert!(top(json!({"type": "string"})).contains("not a single value"));
}
