//! What went wrong with an expression, without the values it went wrong on: errors go into logs, and values are the
//! users' records.
//!
//! Arrow and DataFusion put values into their texts with quotes and without. So only the words that such texts are made
//! of are shown, and `…` stands for everything else.

use datafusion::error::DataFusionError;

/// Words of a text that are looked at. The longest that says something is much shorter.
const WORDS_MAX: usize = 60;

const QUOTES: [char; 3] = ['\'', '"', '`'];

/// What may stand around and between words.
const MARKS: &str = ".,:;()<>=!+-*/";

/// In small letters. None that could be all there is to a value, such as `true` or `negative`.
const WORDS: &str = "\
    a an and are argument arguments arithmetic array arrays arrow as at base64 batch be between binary by can cannot \
    cast casting column columns compile compute convert could data datafusion datatype date date32 date64 dates \
    datetime decimal decimal128 decimal256 decimal32 decimal64 decode dictionary did different divide does duration \
    error exceeds execution exhausted expected expression external failed field fields fixedsizebinary float16 float32 \
    float64 for format from function got greater happened have hex in index input int16 int32 int64 int8 internal \
    interval invalid is it largebinary largelist largeutf8 length less list map match memory microsecond millisecond \
    must nanosecond not null number of offset on only operation operator or out overflow overflowing overflows parse \
    parser parsing pattern precision range record regex regular represent resources row rows same scalar scale schema \
    second store string struct subquery supported syntax t than that the time time32 time64 timestamp to too type types \
    uint16 uint32 uint64 uint8 unable unexpected unknown unsupported using utf utf8 utf8view value values with zero";

pub fn masked(error: &DataFusionError) -> String {
    mask(&error.to_string())
}

fn mask(text: &str) -> String {
    let text = text.split("\n\nbacktrace:").next().unwrap_or_default();
    let mut shown: Vec<&str> = Vec::new();
    let mut quote: Option<char> = None;
    for word in text.split_whitespace().take(WORDS_MAX) {
        let inner = word.trim_matches(|char| MARKS.contains(char));
        let opens = quote.is_none() && inner.starts_with(QUOTES);
        if opens {
            quote = inner.chars().next();
        }
        let is_shown = quote.is_none() && is_plain(word);
        // A quote alone opens and does not close.
        if let Some(mark) = quote
            && inner.ends_with(mark)
            && !(opens && inner.len() == 1)
        {
            quote = None;
        }
        if is_shown {
            shown.push(word);
        } else if shown.last() != Some(&"…") {
            shown.push("…");
        }
    }
    shown.join(" ")
}

/// Is this a word of the texts, or an operator between two?
fn is_plain(word: &str) -> bool {
    let is_known = |part: &str| WORDS.split(' ').any(|known| known.eq_ignore_ascii_case(part));
    let are_marks = |char: char| char.is_ascii_alphanumeric() || char == '\'' || MARKS.contains(char);
    let mut parts = word.split(|char: char| !char.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    let has_parts = word.chars().any(|char| char.is_ascii_alphanumeric());
    word.chars().all(are_marks) && parts.all(is_known) && (has_parts || word.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told_and_on_what_is_not() {
        for (text, expected) in [
            (
                "Arrow error: Cast error: Cannot cast string 'hunter2' to value of Int32 type",
                "Arrow error: Cast error: Cannot cast string … to value of Int32 type",
            ),
            (
                "Arrow error: Parser error: Error parsing timestamp from 'my secret': error parsing date",
                "Arrow error: Parser error: Error parsing timestamp from … error parsing date",
            ),
            (
                "Arrow error: Arithmetic overflow: Overflow happened on: 9223372036854775807 + 1",
                "Arrow error: Arithmetic overflow: Overflow happened on: … + …",
            ),
            ("Arrow error: Divide by zero error", "Arrow error: Divide by zero error"),
            (
                "Cast error: can't parse the string value hunter2 to decimal",
                "Cast error: can't parse the string value … to decimal",
            ),
            ("Unsupported type Timestamp(Nanosecond, None)", "Unsupported type Timestamp(Nanosecond, …"),
            ("Execution error: regex parse error:\n    (hunter2\n    ^\nerror: unclosed group", ""),
        ] {
            let shown = mask(text);
            assert!(!shown.contains("hunter") && !shown.contains("secret"), "{shown}");
            assert!(expected.is_empty() || shown == expected, "{shown}");
        }
    }

    #[test]
    fn values_in_any_dress_are_left_out() {
        for value in [
            "hunter2",
            "'a type of value'",
            "\"the value\"",
            "' '",
            "'it's a secret'",
            "@#!",
            "0.5",
            "ключ",
            "k_ey",
            "true",
        ] {
            let shown = mask(&format!("Cannot cast {value} to Int32"));
            let left = shown.strip_prefix("Cannot cast …").and_then(|rest| rest.strip_suffix("to Int32"));
            assert!(left.is_some_and(|left| !left.contains(['\'', '"', '@', '5'])), "{value}: {shown}");
            assert!(!shown.contains("secret") && !shown.contains("hunter"), "{shown}");
        }
        assert!(mask(&"value ".repeat(1000)).len() < 1000);
        assert_eq!(mask("Cast error: text '\n\nbacktrace: hunter2"), "Cast error: …");
    }
}
