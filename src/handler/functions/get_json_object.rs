//! `get_json_object(text, path)`: one part of a JSON text, as text.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, StringBuilder};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::utils::take_function_args;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use serde_json::value::RawValue;

use super::{constant, literal, over, to_bytes};

#[derive(Debug, PartialEq, Eq, Hash)]
pub struct GetJsonObject {
    signature: Signature,
}

impl Default for GetJsonObject {
    fn default() -> Self {
        Self { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for GetJsonObject {
    fn name(&self) -> &str {
        "get_json_object"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        parse(literal(self.name(), &args, "'$.a.b[0]'")?)?;
        Ok(Arc::new(Field::new(self.name(), DataType::Utf8, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [texts, path] = take_function_args(self.name(), args.args)?;
        let path = parse(constant(self.name(), &path)?)?;
        over(texts, |texts| {
            let texts = to_bytes(texts)?;
            // Not longer than the texts, so it cannot pass 2 GiB either.
            let mut found = StringBuilder::with_capacity(texts.len(), 0);
            for text in &texts {
                found.append_option(text.and_then(|text| path.find(text)));
            }
            Ok(Arc::new(found.finish()))
        })
    }
}

/// A place in a JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Path {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(usize),
}

fn parse(path: &str) -> Result<Path> {
    let refused = |what: &str| {
        let message =
            format!("get_json_object: {what} in `{path}`; a path is `$`, then `.name`, `['name']` or `[0]`");
        DataFusionError::Plan(message)
    };
    let mut rest = path.strip_prefix('$').ok_or_else(|| refused("there is no `$` at the start"))?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (step, after) = if let Some(after) = rest.strip_prefix("['") {
            let (name, after) = after.split_once("']").ok_or_else(|| refused("`['` is not closed"))?;
            (Step::Field(name.to_owned()), after)
        } else if let Some(after) = rest.strip_prefix('[') {
            let (item, after) = after.split_once(']').ok_or_else(|| refused("`[` is not closed"))?;
            let item =
                item.parse().map_err(|_| refused("`[…]` is neither a whole number nor a quoted name"))?;
            (Step::Item(item), after)
        } else if let Some(after) = rest.strip_prefix('.') {
            let (name, after) = match after.find(['.', '[']) {
                Some(end) => after.split_at(end),
                None => (after, ""),
            };
            if name.is_empty() || name == "*" {
                return Err(refused("a name is missing after `.`"));
            }
            (Step::Field(name.to_owned()), after)
        } else {
            return Err(refused("a step begins with neither `.` nor `[`"));
        };
        steps.push(step);
        rest = after;
    }
    Ok(Path { steps })
}

impl Path {
    /// A string without its quotes, everything else as it is written; `None` for null, and if nothing is there
    /// or the text is not JSON. Skipping does not recurse, so depth is no danger.
    fn find(&self, text: &[u8]) -> Option<String> {
        let mut json: &RawValue = serde_json::from_slice(text).ok()?;
        for step in &self.steps {
            json = match step {
                Step::Field(name) => {
                    serde_json::from_str::<HashMap<String, &RawValue>>(json.get()).ok()?.remove(name)?
                }
                Step::Item(item) => {
                    serde_json::from_str::<Vec<&RawValue>>(json.get()).ok()?.into_iter().nth(*item)?
                }
            };
        }
        match json.get() {
            "null" => None,
            text if text.starts_with('"') => serde_json::from_str(text).ok(),
            text => Some(text.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, path: &str) -> Option<String> {
        parse(path).unwrap().find(text.as_bytes())
    }

    #[test]
    fn what_stands_at_a_path() {
        let text = r#" {"a": {"b": [1.10, "x\n", {"c d": null}], "b.c": true}, "n": 12345678901234567890.5,
            "e": ""} "#;
        let cases = [
            ("$.a.b[0]", Some("1.10")),
            ("$.a.b[1]", Some("x\n")),
            ("$['a'].b[2]", Some(r#"{"c d": null}"#)),
            ("$.a.b[2]['c d']", None),
            ("$.a['b.c']", Some("true")),
            ("$.n", Some("12345678901234567890.5")),
            ("$.e", Some("")),
            ("$.a.b[3]", None),
            ("$.a.b.c", None),
            ("$.a[0]", None),
            ("$.z", None),
            ("$.n.n", None),
        ];
        for (path, expected) in cases {
            assert_eq!(find(text, path).as_deref(), expected, "{path}");
        }
        assert_eq!(find(text, "$").as_deref(), Some(text.trim()));
        assert_eq!(find("[[1, 2]]", "$[0][1]").as_deref(), Some("2"));
        assert_eq!(find("null", "$"), None);
    }

    #[test]
    fn malformed_texts_have_nothing() {
        for text in ["", "{", r#"{"a": 1} x"#, r#"{"a": 1, "b": }"#, r#"{"a": "\ud800"}"#] {
            assert_eq!(find(text, "$.a"), None, "{text}");
        }
        let path = parse("$.a").unwrap();
        assert_eq!(path.find(b"{\"a\": \"\xff\"}"), None);
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(find(&deep, "$.b"), None);
        assert_eq!(find(&deep[..50_000], "$.a"), None);
    }

    #[test]
    fn paths_that_are_none_are_refused() {
        for path in ["", "a.b", "$a", "$.", "$.a..b", "$.*", "$.a[*]", "$.a[-1]", "$.a[1", "$['a", "$.a[]"] {
            let error = parse(path).unwrap_err().to_string();
            assert!(error.contains("a path is `$`"), "{path}: {error}");
        }
    }
}
