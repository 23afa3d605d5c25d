//! YAML as a tree whose every node and key knows its place.

use saphyr_parser::{Event, Parser, ScalarStyle, Span as ParserSpan};

use super::Problem;

/// More nested nodes than this are refused: the reader recurses.
const DEPTH_MAX: usize = 64;

/// A place in the file. Both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span {
    pub line: usize,
    pub column: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub span: Span,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing was written, or `null`, or `~`.
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Scalar {
    pub text: String,
    /// Quoted or a block: text, never a number.
    pub is_text: bool,
    /// Where the first character of `text` stands, and how far later lines are indented.
    pub content: Content,
}

/// Maps a place within a scalar's text to a place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Content {
    pub start: Span,
    /// Spaces before every line of a block; 0 if the text is on one line.
    pub indent: usize,
}

impl Content {
    /// The file's place of line `line`, column `column` of the text (both from 1).
    pub fn place(self, line: usize, column: usize) -> Span {
        if line <= 1 {
            return Span { line: self.start.line, column: self.start.column + column.saturating_sub(1) };
        }
        Span { line: self.start.line + line - 1, column: self.indent + column }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    pub name: String,
    pub span: Span,
}

impl Node {
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Parses one YAML document. Problems that leave a usable tree (a key given twice) are collected.
///
/// # Errors
/// The first syntax error; it comes alone.
pub fn parse(text: &str, problems: &mut Vec<Problem>) -> Result<Node, Problem> {
    let mut events = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let marker = error.marker();
            let place = Span { line: marker.line(), column: marker.col() + 1 };
            Problem::new(place, format!("not valid YAML: {}", error.info()))
        })?;
        events.push((event, span));
    }
    let mut builder =
        Builder { events: events.into_iter().peekable(), lines: text.lines().collect(), problems };
    builder.document()
}

struct Builder<'a, I: Iterator<Item = (Event<'a>, ParserSpan)>> {
    events: std::iter::Peekable<I>,
    lines: Vec<&'a str>,
    problems: &'a mut Vec<Problem>,
}

fn place(span: ParserSpan) -> Span {
    Span { line: span.start.line(), column: span.start.col() + 1 }
}

impl<'a, I: Iterator<Item = (Event<'a>, ParserSpan)>> Builder<'a, I> {
    fn document(&mut self) -> Result<Node, Problem> {
        while let Some((event, span)) = self.events.next() {
            match event {
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => {}
                Event::StreamEnd | Event::DocumentEnd => break,
                event => return self.node(event, span, 0),
            }
        }
        Err(Problem::new(Span { line: 1, column: 1 }, "the file is empty"))
    }

    fn node(&mut self, event: Event<'a>, span: ParserSpan, depth: usize) -> Result<Node, Problem> {
        let at = place(span);
        if depth > DEPTH_MAX {
            return Err(Problem::new(at, format!("nested deeper than {DEPTH_MAX} levels")));
        }
        let value = match event {
            Event::Scalar(text, style, anchor, _) => {
                self.check_anchor(anchor, at);
                self.scalar(text.into_owned(), style, at)
            }
            Event::SequenceStart(anchor, _) => {
                self.check_anchor(anchor, at);
                self.list(depth)?
            }
            Event::MappingStart(anchor, _) => {
                self.check_anchor(anchor, at);
                self.map(depth)?
            }
            Event::Alias(_) => {
                self.check_anchor(1, at);
                Value::Null
            }
            _ => Value::Null,
        };
        Ok(Node { span: at, value })
    }

    fn check_anchor(&mut self, anchor: usize, at: Span) {
        if anchor > 0 {
            let problem = Problem::new(at, "anchors (`&`) and aliases (`*`) are not supported");
            self.problems.push(problem.hint("put what routes share under `defaults:`"));
        }
    }

    fn scalar(&self, text: String, style: ScalarStyle, at: Span) -> Value {
        let is_plain = style == ScalarStyle::Plain;
        if is_plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") {
            return Value::Null;
        }
        let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
        let content = if is_block {
            // The parser places a block at its first line that is not blank; the text has the blank ones too.
            let first = self.lines.get(at.line.saturating_sub(1));
            let indent = first.map_or(0, |line| line.len() - line.trim_start().len());
            let blank = text.chars().take_while(|char| *char == '\n').count();
            Content { start: Span { line: at.line.saturating_sub(blank), column: indent + 1 }, indent }
        } else {
            Content { start: Span { line: at.line, column: at.column + usize::from(!is_plain) }, indent: 0 }
        };
        Value::Scalar(Scalar { text, is_text: !is_plain, content })
    }

    fn list(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.events.next() {
            match event {
                Event::SequenceEnd => break,
                event => items.push(self.node(event, span, depth + 1)?),
            }
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        while let Some((event, span)) = self.events.next() {
            let at = place(span);
            let name = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                other => {
                    self.node(other, span, depth + 1)?;
                    self.problems.push(Problem::new(at, "a key has to be a single value"));
                    String::new()
                }
            };
            let Some((event, span)) = self.events.next() else {
                break;
            };
            let node = self.node(event, span, depth + 1)?;
            if let Some((first, _)) = entries.iter().find(|(key, _)| key.name == name) {
                let line = first.span.line;
                self.problems
                    .push(Problem::new(at, format!("`{name}` is given twice, first on line {line}")));
                continue;
            }
            entries.push((Key { name, span: at }, node));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get<'a>(node: &'a Node, name: &str) -> &'a Node {
        let Value::Map(entries) = &node.value else { panic!("{node:?}") };
        &entries.iter().find(|(key, _)| key.name == name).unwrap().1
    }

    #[test]
    fn places_are_kept_also_within_blocks() {
        let text = "a: [1, 'x']\nsql: |\n\n  SELECT *\n  FROM nowhere\nflow: \"SELECT 1\"\n";
        let mut problems = Vec::new();
        let tree = parse(text, &mut problems).unwrap();
        assert_eq!(problems, []);
        assert_eq!(get(&tree, "a").span, Span { line: 1, column: 4 });
        let Value::Scalar(sql) = &get(&tree, "sql").value else { panic!() };
        // The block keeps its blank first line in the text.
        assert_eq!(sql.text, "\nSELECT *\nFROM nowhere\n");
        assert_eq!(sql.content.place(3, 6), Span { line: 5, column: 8 });
        let Value::Scalar(flow) = &get(&tree, "flow").value else { panic!() };
        assert_eq!(flow.content.place(1, 8), Span { line: 6, column: 15 });
    }

    #[test]
    fn doubled_keys_and_anchors_are_collected_syntax_errors_come_alone() {
        let mut problems = Vec::new();
        parse("a: 1\nb: &x 2\na: 3\nc: *x\n", &mut problems).unwrap();
        let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(messages.len(), 3, "{messages:?}");
        assert!(messages.iter().any(|message| message.contains("given twice, first on line 1")));
        let error = parse("a: [1\nb: 2\n", &mut Vec::new()).unwrap_err();
        assert!(error.message.starts_with("not valid YAML"), "{error:?}");
    }
}
