//! Types as Spark writes them: `a INT, b ARRAY<STRING>`, parsed into what JSON is read as.
//!
//! Either a list of columns or one type. Keywords are known in any case; names keep theirs. `NOT NULL` and
//! comments are read and mean nothing, as in Spark's `from_json`.

use std::collections::HashSet;
use std::iter::Peekable;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

use crate::codec::avro::node::{self, Kind, Logical, Node, Record};

/// Deeper types are refused: reading recurses once per level, and deeper JSON than 127 levels is not read.
const DEPTH_MAX: usize = 64;

/// More fields (all levels together) are refused: every one costs a column buffer per batch.
const FIELDS_MAX: usize = 10_000;

/// Digits of Spark's widest decimal.
const DIGITS_MAX: i8 = 38;

const TYPES: &str = "types are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, DECIMAL(p, s), \
                     STRING, BINARY, DATE, TIMESTAMP, TIMESTAMP_NTZ, ARRAY<…>, MAP<STRING, …>, \
                     STRUCT<name: type, …>";

/// A type, as the codec reads it and as Arrow holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Typed {
    /// Nullable, and so is everything in it.
    pub node: Node,
    pub data_type: DataType,
}

/// A text that is no type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("character {at}: {what}")]
pub struct DdlError {
    /// From 1; one behind the last where something is missing.
    pub at: usize,
    pub what: String,
}

/// # Errors
/// Where the text is not what it should be, and what could stand there.
pub fn parse(text: &str) -> Result<Typed, DdlError> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, end: text.chars().count() + 1, field_count: 0 };
    if !parser.is_one_type() {
        return parser.columns(1, None);
    }
    let typed = parser.one_type(1)?;
    match parser.peek() {
        None => Ok(typed),
        Some(_) => Err(parser.error("the type is complete before this")),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// A name in backticks, never a keyword.
    Quoted(String),
    /// The text of a comment.
    Text,
    Sign(char),
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, DdlError> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().zip(1..).peekable();
    while let Some((char, at)) = chars.next() {
        let token = match char {
            '<' | '>' | '(' | ')' | ',' | ':' => Token::Sign(char),
            '`' | '\'' | '"' => match quoted(char, &mut chars) {
                Some(name) if char == '`' => Token::Quoted(name),
                Some(_) => Token::Text,
                None => return Err(DdlError { at, what: format!("this {char} is not closed") }),
            },
            _ if char.is_whitespace() => continue,
            _ if is_word(char) => {
                let mut word = String::from(char);
                while let Some((char, _)) = chars.next_if(|(char, _)| is_word(*char)) {
                    word.push(char);
                }
                Token::Word(word)
            }
            _ => {
                let what = format!("`{char}` has no meaning here; a name with it stands in backticks");
                return Err(DdlError { at, what });
            }
        };
        tokens.push((at, token));
    }
    Ok(tokens)
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// The text up to the closing `quote`, which stands for itself if it is doubled.
fn quoted(quote: char, chars: &mut Peekable<impl Iterator<Item = (char, usize)>>) -> Option<String> {
    let mut text = String::new();
    loop {
        let (char, _) = chars.next()?;
        if char == quote && chars.next_if(|(char, _)| *char == quote).is_none() {
            return Some(text);
        }
        text.push(char);
    }
}

struct Parser {
    /// Each with its place.
    tokens: Vec<(usize, Token)>,
    next: usize,
    /// The place behind the last character.
    end: usize,
    field_count: usize,
}

impl Parser {
    /// `INT`, `ARRAY<INT>` or `DECIMAL(9, 2)`, and not `a INT`.
    fn is_one_type(&self) -> bool {
        let second = self.tokens.get(1).map(|(_, token)| token);
        matches!(self.peek(), Some(Token::Word(_))) && matches!(second, None | Some(Token::Sign('<' | '(')))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn place(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    fn error(&self, what: impl Into<String>) -> DdlError {
        DdlError { at: self.place(), what: what.into() }
    }

    /// Whether the next token is `sign`, which is then taken.
    fn take(&mut self, sign: char) -> bool {
        let is_next = self.peek() == Some(&Token::Sign(sign));
        self.next += usize::from(is_next);
        is_next
    }

    fn take_word(&mut self, keyword: &str) -> bool {
        let is_next = matches!(self.peek(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(keyword));
        self.next += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, sign: char) -> Result<(), DdlError> {
        if self.take(sign) { Ok(()) } else { Err(self.error(format!("expected `{sign}`"))) }
    }

    fn one_type(&mut self, depth: usize) -> Result<Typed, DdlError> {
        if depth > DEPTH_MAX {
            return Err(self.error(format!("the type nests deeper than {DEPTH_MAX} levels")));
        }
        let at = self.place();
        let Some(Token::Word(word)) = self.peek() else {
            return Err(self.error(format!("expected a type; {TYPES}")));
        };
        let word = word.clone();
        self.next += 1;
        Ok(match word.to_ascii_uppercase().as_str() {
            "BOOLEAN" => plain(Kind::Boolean, DataType::Boolean),
            "TINYINT" | "BYTE" => plain(Kind::Int, DataType::Int8),
            "SMALLINT" | "SHORT" => plain(Kind::Int, DataType::Int16),
            "INT" | "INTEGER" => plain(Kind::Int, DataType::Int32),
            "BIGINT" | "LONG" => plain(Kind::Long, DataType::Int64),
            "FLOAT" | "REAL" => plain(Kind::Float, DataType::Float32),
            "DOUBLE" => plain(Kind::Double, DataType::Float64),
            "STRING" => plain(Kind::String, DataType::Utf8),
            "VARCHAR" | "CHAR" => {
                if self.take('(') {
                    self.number(1, i32::MAX)?;
                    self.expect(')')?;
                }
                plain(Kind::String, DataType::Utf8)
            }
            "BINARY" => plain(Kind::Bytes, DataType::Binary),
            "DATE" => logical(Kind::Int, Logical::Date, DataType::Date32),
            "TIMESTAMP" | "TIMESTAMP_LTZ" => {
                let utc = Some(Arc::from("UTC"));
                let data_type = DataType::Timestamp(TimeUnit::Microsecond, utc);
                logical(Kind::Long, Logical::TimestampMicros, data_type)
            }
            "TIMESTAMP_NTZ" => {
                let data_type = DataType::Timestamp(TimeUnit::Microsecond, None);
                logical(Kind::Long, Logical::LocalTimestampMicros, data_type)
            }
            "DECIMAL" | "DEC" | "NUMERIC" => self.decimal()?,
            "ARRAY" => {
                self.expect('<')?;
                let item = self.one_type(depth + 1)?;
                self.expect('>')?;
                let field = Field::new("item", item.data_type, true);
                plain(Kind::Array(Box::new(item.node)), DataType::List(Arc::new(field)))
            }
            "MAP" => self.map(depth)?,
            "STRUCT" => {
                self.expect('<')?;
                self.columns(depth + 1, Some('>'))?
            }
            _ => return Err(DdlError { at, what: format!("`{word}` is not a type; {TYPES}") }),
        })
    }

    fn map(&mut self, depth: usize) -> Result<Typed, DdlError> {
        self.expect('<')?;
        if !self.take_word("STRING") {
            return Err(self.error("expected STRING: keys in JSON are text"));
        }
        self.expect(',')?;
        let value = self.one_type(depth + 1)?;
        self.expect('>')?;
        let entries =
            vec![Field::new("key", DataType::Utf8, false), Field::new("value", value.data_type, true)];
        let entries = Field::new("entries", DataType::Struct(Fields::from(entries)), false);
        Ok(plain(Kind::Map(Box::new(value.node)), DataType::Map(Arc::new(entries), false)))
    }

    fn decimal(&mut self) -> Result<Typed, DdlError> {
        // What Spark takes for DECIMAL alone.
        let (mut precision, mut scale) = (10_i8, 0_i8);
        if self.take('(') {
            precision = self.number(1, DIGITS_MAX)?;
            if self.take(',') {
                scale = self.number(0, precision)?;
            }
            self.expect(')')?;
        }
        let precision = precision.unsigned_abs();
        let data_type = DataType::Decimal128(precision, scale);
        Ok(logical(Kind::Bytes, Logical::Decimal { precision, scale }, data_type))
    }

    fn number<N>(&mut self, min: N, max: N) -> Result<N, DdlError>
    where
        N: std::str::FromStr + PartialOrd + std::fmt::Display,
    {
        let number = match self.peek() {
            Some(Token::Word(word)) => {
                word.parse::<N>().ok().filter(|number| min <= *number && *number <= max)
            }
            _ => None,
        };
        let number = number.ok_or_else(|| self.error(format!("expected a number from {min} to {max}")))?;
        self.next += 1;
        Ok(number)
    }

    /// A list of columns, up to `close` or to the end.
    fn columns(&mut self, depth: usize, close: Option<char>) -> Result<Typed, DdlError> {
        let (mut nodes, mut fields, mut names) = (Vec::new(), Vec::new(), HashSet::new());
        loop {
            let name = match self.peek() {
                Some(Token::Word(name) | Token::Quoted(name)) => name.clone(),
                _ => return Err(self.error("expected the name of a column and its type")),
            };
            if !names.insert(name.clone()) {
                return Err(self.error(format!("there are two columns `{name}`")));
            }
            self.field_count += 1;
            if self.field_count > FIELDS_MAX {
                return Err(self.error(format!("there are more than {FIELDS_MAX} columns")));
            }
            self.next += 1;
            self.take(':');
            let typed = self.one_type(depth)?;
            self.constraints()?;
            fields.push(Field::new(&name, typed.data_type, true));
            nodes.push(node::Field { name, aliases: Vec::new(), default: None, node: typed.node });
            if self.take(',') {
                continue;
            }
            match close {
                Some(sign) if self.take(sign) => break,
                Some(sign) => return Err(self.error(format!("expected `,` or `{sign}`"))),
                None if self.peek().is_none() => break,
                None => return Err(self.error("expected `,` or the end")),
            }
        }
        let record = Record { name: "struct".to_owned(), fields: nodes };
        Ok(plain(Kind::Record(record), DataType::Struct(Fields::from(fields))))
    }

    /// What is read and means nothing: JSON may lack any column.
    fn constraints(&mut self) -> Result<(), DdlError> {
        if self.take_word("NOT") && !self.take_word("NULL") {
            return Err(self.error("expected NULL"));
        }
        if self.take_word("COMMENT") {
            if self.peek() != Some(&Token::Text) {
                return Err(self.error("expected the comment in quotes"));
            }
            self.next += 1;
        }
        Ok(())
    }
}

fn plain(kind: Kind, data_type: DataType) -> Typed {
    Typed { node: nullable(Node { kind, logical: None }), data_type }
}

fn logical(kind: Kind, logical: Logical, data_type: DataType) -> Typed {
    Typed { node: nullable(Node { kind, logical: Some(logical) }), data_type }
}

fn nullable(node: Node) -> Node {
    let null = Node { kind: Kind::Null, logical: None };
    Node { kind: Kind::Union(vec![null, node]), logical: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_type(text: &str) -> DataType {
        parse(text).unwrap().data_type
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn columns_and_single_types() {
        let expected = [
            Field::new("id", DataType::Int64, true),
            Field::new("a`b", DataType::new_list(DataType::Utf8, true), true),
            Field::new("date", DataType::Date32, true),
            Field::new("n", DataType::Decimal128(9, 2), true),
        ];
        let columns =
            "id BIGINT NOT NULL COMMENT 'it''s', `a``b`: array<string>, date DATE,\n n decimal(9, 2)";
        let expected = DataType::Struct(expected.into_iter().collect());
        assert_eq!(data_type(columns), expected);
        assert_eq!(data_type(&format!("struct<{columns}>")), expected);
        assert_eq!(data_type("Int"), DataType::Int32);
        assert_eq!(data_type("decimal"), DataType::Decimal128(10, 0));
        let lists = DataType::new_list(DataType::new_list(DataType::Int8, true), true);
        assert_eq!(data_type("ARRAY<ARRAY<tinyint>>"), lists);
        let DataType::Map(entries, false) = data_type("MAP<STRING, STRUCT<z: TIMESTAMP>>") else {
            panic!("not a map")
        };
        assert!(!entries.is_nullable());
    }

    #[test]
    fn mistakes_have_a_place_and_a_remedy() {
        let cases = [
            ("", "character 1: expected the name of a column and its type"),
            ("a", "character 1: `a` is not a type; types are BOOLEAN, TINYINT"),
            ("a FOO", "character 3: `FOO` is not a type; types are BOOLEAN, TINYINT"),
            ("a INT b INT", "character 7: expected `,` or the end"),
            ("a INT,", "character 7: expected the name of a column"),
            ("a INT, a INT", "character 8: there are two columns `a`"),
            ("a STRUCT<b INT", "character 15: expected `,` or `>`"),
            ("STRUCT<>", "character 8: expected the name of a column"),
            ("ARRAY<INT> x", "character 12: the type is complete before this"),
            ("MAP<INT, INT>", "character 5: expected STRING"),
            ("DECIMAL(39)", "character 9: expected a number from 1 to 38"),
            ("DECIMAL(3, 4)", "character 12: expected a number from 0 to 3"),
            ("a-b INT", "character 2: `-` has no meaning here; a name with it stands in backticks"),
            ("`a INT", "character 1: this ` is not closed"),
        ];
        for (text, expected) in cases {
            assert!(error(text).starts_with(expected), "{text}: {}", error(text));
        }
        let deep = format!("{}INT{}", "ARRAY<".repeat(100_000), ">".repeat(100_000));
        assert!(error(&deep).contains("nests deeper than 64 levels"), "{}", error(&deep));
    }
}
