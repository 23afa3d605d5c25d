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
        (json!({"type": ["integer", "string"]}), "one of long, string"),
        (
            json!({"type": ["object", "array", "number", "null"], "properties": {"a": {"type": "string"}}}),
            "union of null, one of double, array of union of null, string (Json), record `p`",
        ),
        (json!({"type": "null"}), "null"),
        (json!({}), "union of null, string (Json)"),
        (json!(true), "union of null, string (Json)"),
        (json!({"enum": ["a", "b"]}), "string"),
        (json!({"enum": ["a", null]}), "union of null, string"),
        (json!({"enum": ["a", 1]}), "one of long, string"),
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
fn choices_with_null_are_nullable_and_others_are_one_of_several() {
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
        (json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), "one of string, long"),
        (
            json!({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
            "union of null, one of string, long",
        ),
        (json!({"oneOf": [object, {"properties": {"b": {}}}]}), "one of record `T`, record `object`"),
        // All arms of a simple type are one member.
        (
            json!({"oneOf": [{"type": "integer"}, object, {"type": "number"}, {"type": "string", "format": "date"}]}),
            "one of double, record `T`, string (Date)",
        ),
        // No types: anything, choices in choices, parts beside the choice, two choices.
        (json!({"oneOf": [{"type": "string"}, {}]}), "union of null, string (Json)"),
        (
            json!({"oneOf": [{"type": "string"}, {"oneOf": [object, {"type": "integer"}]}]}),
            "union of null, string (Json)",
        ),
        (
            json!({"properties": {"a": {}}, "oneOf": [{"properties": {"b": {}}}, {"properties": {"c": {}}}]}),
            "string (Json)",
        ),
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

#[test]
fn members_have_names_of_their_own() {
    let schema = json!({"properties": {"p": {"oneOf": [
            {"type": "string"}, {"$ref": "#/$defs/Card"}, {"$ref": "cash.json"}, {"title": "Card", "type": "object"},
            {"type": "array", "items": {"type": "integer"}}, {"type": "object"}, {"type": "boolean"}]}},
        "$defs": {"Card": {"properties": {"number": {"type": "string"}}}}});
    let cash = json!({"properties": {"cents": {"type": "integer"}}});
    let node = compile(&schema, &[("cash.json", cash)]).unwrap();
    let Kind::Record(record) = &node.kind else { panic!("no record") };
    let (choice, is_nullable) = arrow_type::nullable(&record.fields[0].node).unwrap();
    let Kind::Choice(arms) = &choice.kind else { panic!("no choice") };
    let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(names, ["string", "Card", "cash", "Card_2", "array", "object", "boolean"]);
    assert!(is_nullable);
    let schema = arrow_type::schema(&node, false).unwrap();
    let arrow::datatypes::DataType::Struct(members) = schema.field(0).data_type() else {
        panic!("no struct")
    };
    assert!(members.iter().all(|member| member.is_nullable()));
}

#[test]
fn recursion_is_json_text_on_request() {
    let columns = |schema: &Value| {
        let node = parse_with(&schema.to_string(), &[], Recursion::Json).unwrap();
        let schema = arrow_type::schema(&node, false).unwrap();
        let lines = schema.fields().iter().map(|field| format!("{}: {}", field.name(), field.data_type()));
        lines.collect::<Vec<_>>()
    };
    let tree = json!({"type": "object", "properties": {
        "left": {"oneOf": [{"type": "null"}, {"$ref": "#"}]}, "n": {"type": "integer"}}});
    assert_eq!(columns(&tree), ["left: Utf8", "n: Int64"]);
    let list = json!({"properties": {"all": {"$ref": "#/$defs/l"}}, "$defs": {
        "l": {"type": "array", "items": {"$ref": "#/$defs/m"}}, "m": {"properties": {"n": {"$ref": "#/$defs/l"}}}}});
    let found = columns(&list);
    assert!(found[0].starts_with("all: List") && found[0].contains("Utf8"), "{found:?}");
    // What has no end at all is still refused.
    let circle = json!({"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}});
    assert!(parse_with(&circle.to_string(), &[], Recursion::Json).is_err());
}

fn validation(schema: &Value, references: &[(&str, Value)]) -> Result<Validation, SchemaError> {
    let references =
        references.iter().map(|(name, text)| Reference { name: (*name).to_owned(), text: text.to_string() });
    Validation::new(&schema.to_string(), &references.collect::<Vec<_>>())
}

#[test]
fn a_record_is_held_against_all_of_its_schema() {
    let money = json!({"$id": "http://shop.example/money.json", "type": "object", "required": ["cents"],
        "properties": {"cents": {"type": "integer", "minimum": 0}}});
    let schema = json!({"type": "object", "required": ["id"], "additionalProperties": false, "properties": {
        "id": {"type": "string", "pattern": "^[a-z]+[0-9]{2}$"},
        "total": {"$ref": "http://shop.example/money.json"},
        "also": {"$ref": "money.json"},
        "counts": {"type": "object", "additionalProperties": {"maximum": 9}},
        "lines": {"type": "array", "maxItems": 2, "items": {"oneOf": [{"type": "integer"}, {"minLength": 3, "type": "string"}]}}}});
    let validation = validation(&schema, &[("money.json", money)]).unwrap();
    let good = json!({"id": "ab12", "total": {"cents": 5}, "also": {"cents": 1}, "counts": {"k": 1}, "lines": [1, "abc"]});
    assert_eq!(validation.check(&good), Ok(()));
    for (place, value, expected) in [
        ("id", json!("SECRET"), "field `id`: it does not keep to `pattern` of its schema"),
        ("total", json!({"cents": -1}), "field `total.cents`: it does not keep to `minimum` of its schema"),
        ("also", json!({}), "field `also`: it does not keep to `required` of its schema"),
        ("lines", json!([1, 2, 3]), "field `lines`: it does not keep to `maxItems` of its schema"),
        ("lines", json!([1, "x"]), "field `lines.1`: it does not keep to `oneOf` of its schema"),
        // A key of a map is a value.
        ("counts", json!({"SECRET": 10}), "field `counts.*`: it does not keep to `maximum` of its schema"),
        ("SECRET", json!(1), "it does not keep to `additionalProperties` of its schema"),
    ] {
        let mut bad = good.clone();
        bad[place] = value;
        let unfit = validation.check(&bad).unwrap_err();
        assert_eq!((unfit.code, unfit.message.as_str()), ("invalid", expected));
    }
}

#[test]
fn records_of_schemas_that_contain_themselves_are_validated_at_any_depth() {
    let schema = json!({"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "required": ["n"], "properties": {
        "n": {"type": "integer"},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/t"}, {"allOf": [{"$ref": "#/$defs/t"}, {"required": ["x"]}]}]}}}}});
    let validation = validation(&schema, &[]).unwrap();
    let chain = |levels: usize, end: Value| (0..levels).fold(end, |next, n| json!({"n": n, "next": next}));
    for levels in [1, 20, 120] {
        assert_eq!(validation.check(&chain(levels, json!(null))), Ok(()));
        let unfit = validation.check(&chain(levels, json!({"n": "x"}))).unwrap_err();
        assert_eq!(unfit.message, "it does not keep to its schema");
    }
}

#[test]
fn schemas_that_are_too_much_for_a_validator_are_refused() {
    let refused = |schema: &Value| validation(schema, &[]).unwrap_err().to_string();
    for target in ["http://169.254.169.254/latest", "file:///etc/passwd", "other.json"] {
        let schema = json!({"properties": {"a": {"$ref": target}}});
        assert!(refused(&schema).contains("nothing else is fetched"), "{}", refused(&schema));
    }
    let parts = |count: usize, part: &dyn Fn(usize) -> Value| {
        let parts: Map<String, Value> = (0..count).map(|at| (format!("l{at}"), part(at))).collect();
        json!({"$ref": "#/$defs/l0", "$defs": parts})
    };
    let to = |at: usize| json!({"$ref": format!("#/$defs/l{at}")});
    // A way of thousands of steps; and one of few that doubles with each.
    let last = |at: usize, count: usize, schema: Value| if at + 1 < count { schema } else { json!({}) };
    assert!(
        refused(&parts(5000, &|at| last(at, 5000, json!({"items": to(at + 1)}))))
            .contains("too many schemas")
    );
    let doubling = |at: usize| last(at, 40, json!({"allOf": [to(at + 1), to(at + 1)]}));
    assert!(refused(&parts(40, &doubling)).contains("too many schemas, with all"));
    let patterns: Map<String, Value> =
        (0..300).map(|at| (format!("p{at}"), json!({"pattern": format!("^x{at}")}))).collect();
    assert!(refused(&json!({"properties": patterns})).contains("too many patterns"));
    // Patterns whose time does not grow with the text alone, or whose size has no measure.
    for pattern in ["(?<=a)b", r"(a)\1", "(((a{1,100}){1,100}){1,100})"] {
        let schema = json!({"properties": {"a": {"pattern": pattern}}});
        assert!(validation(&schema, &[]).is_err(), "{pattern}");
    }
    assert!(
        refused(&json!({"properties": {"a": {"type": "no such"}}})).starts_with("not a valid JSON Schema")
    );
}

#[test]
fn records_that_would_take_too_long_to_validate_are_too_large() {
    let numbers = |count: usize, number: i64| Value::Array(vec![json!(number); count]);
    let arms: Vec<Value> = (0..5000).map(|arm| json!({"const": arm})).collect();
    let names: Map<String, Value> = (0..5000).map(|name| (format!("p{name}"), json!(true))).collect();
    let texts = "x".repeat(200 << 10);
    let patterns: Vec<Value> = (0..250).map(|at| json!({"not": {"pattern": format!("{at}$")}})).collect();
    for (schema, record) in [
        // All of them are good, and each is held against all arms.
        (json!({"items": {"anyOf": arms}}), numbers(20_000, 4999)),
        (json!({"items": {"enum": (0..20_000).collect::<Vec<i64>>()}}), numbers(20_000, 19_999)),
        (json!({"items": {"properties": names}}), Value::Array(vec![json!({}); 20_000])),
        (json!({"items": {"allOf": patterns}}), json!([&texts, &texts, &texts, &texts])),
    ] {
        let unfit = validation(&schema, &[]).unwrap().check(&record).unwrap_err();
        assert_eq!(unfit.code, "size", "{}", unfit.message);
        assert!(unfit.message.starts_with("it is too large to be validated: "), "{}", unfit.message);
    }
}

#[test]
fn large_records_of_ordinary_schemas_are_validated() {
    let number = json!({"type": "integer", "minimum": 0, "description": "a number"});
    let fields: Map<String, Value> = (0..100).map(|at| (format!("f{at}"), number.clone())).collect();
    let schema = json!({"type": "object", "required": ["id", "lines"], "properties": {
        "id": {"type": "string", "maxLength": 40},
        "currency": {"enum": (0..200).map(|code| format!("C{code}")).collect::<Vec<_>>()},
        "lines": {"type": "array", "items": {"type": "object", "required": ["f0"], "properties": fields,
            "additionalProperties": false}}}});
    let line = json!({"f0": 1, "f1": 2, "f20": 3, "f50": 4, "f80": 5, "f99": 6});
    let mut record = json!({"id": "o-1", "currency": "C150", "lines": vec![line; 5000]});
    let validation = validation(&schema, &[]).unwrap();
    assert_eq!(validation.check(&record), Ok(()));
    record["lines"][4999]["f99"] = json!(-1);
    assert_eq!(validation.check(&record).unwrap_err().code, "invalid");
}
