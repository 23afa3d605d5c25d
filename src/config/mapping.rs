//! Reads the keys of a mapping against its scope; whatever goes wrong is collected.

use super::Problem;
use super::expand::Environment;
use super::keys::{Key as TableKey, Scope};
use super::tree::{Key, Node, Scalar, Span, Value};
use super::values;

/// What reading needs everywhere.
pub struct Context<'a> {
    pub environment: &'a Environment,
    pub problems: Vec<Problem>,
}

impl Context<'_> {
    pub fn problem(&mut self, span: Span, message: impl Into<String>) {
        self.problems.push(Problem::new(span, message));
    }
}

/// A mapping of the file, with the mapping its missing keys are taken from.
#[derive(Clone, Copy)]
pub struct Mapping<'t> {
    pub span: Span,
    scope: &'static Scope,
    entries: &'t [(Key, Node)],
    fallback: Option<&'t [(Key, Node)]>,
}

impl<'t> Mapping<'t> {
    /// Checks that `node` is a mapping with keys of `scope` only.
    pub fn open(node: &'t Node, scope: &'static Scope, context: &mut Context<'_>) -> Option<Self> {
        let entries: &[(Key, Node)] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                context.problem(node.span, format!("expected a mapping, found {}", node.kind()));
                return None;
            }
        };
        let names: Vec<&str> = scope.keys.iter().map(|key| key.name).collect();
        for (key, _) in entries {
            if !names.contains(&key.name.as_str()) {
                context.problems.push(unknown("key", key.span, &key.name, &names));
            }
        }
        Some(Self { span: node.span, scope, entries, fallback: None })
    }

    /// Keys that are missing here are taken from `defaults`.
    #[must_use]
    pub fn with_defaults(mut self, defaults: Option<Mapping<'t>>) -> Self {
        self.fallback = defaults.map(|mapping| mapping.entries);
        self
    }

    fn find(entries: &'t [(Key, Node)], name: &str) -> Option<&'t Node> {
        entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    fn table(&self, name: &str) -> &'static TableKey {
        let key = self.scope.keys.iter().find(|key| key.name == name);
        key.unwrap_or_else(|| unreachable!("`{name}` is not in the table of {}", self.scope.name))
    }

    /// The node of a key, here or in the defaults.
    pub fn get(&self, name: &str) -> Option<&'t Node> {
        self.table(name);
        Self::find(self.entries, name)
            .or_else(|| Self::find(self.fallback?, name))
            .filter(|node| node.value != Value::Null)
    }

    /// Is the key written here, even with nothing behind it?
    pub fn names(&self, name: &str) -> bool {
        self.table(name);
        Self::find(self.entries, name).is_some()
    }

    /// The node of a key that is given here, not in the defaults.
    pub fn own(&self, name: &str) -> Option<&'t Node> {
        self.table(name);
        Self::find(self.entries, name).filter(|node| node.value != Value::Null)
    }

    /// Where a key is written; the mapping's place if it is not.
    pub fn place(&self, name: &str) -> Span {
        self.table(name);
        let key = self.entries.iter().find(|(key, _)| key.name == name);
        key.map_or(self.span, |(key, _)| key.span)
    }

    /// The node of a required key.
    pub fn require(&self, name: &str, context: &mut Context<'_>) -> Option<&'t Node> {
        let found = self.get(name);
        if found.is_none() {
            let about = self.table(name).about;
            let problem = Problem::new(self.span, format!("`{name}` is missing"));
            context.problems.push(problem.hint(about));
        }
        found
    }

    /// A nested mapping, merged by key with the same one of the defaults. Missing: all defaults.
    pub fn nested(
        &self,
        name: &str,
        scope: &'static Scope,
        context: &mut Context<'_>,
    ) -> Option<Mapping<'t>> {
        self.table(name);
        let own = Self::find(self.entries, name);
        let fallback = self.fallback.and_then(|entries| Self::find(entries, name));
        let fallback = match fallback.map(|node| &node.value) {
            Some(Value::Map(entries)) => Some(entries.as_slice()),
            _ => None,
        };
        let mut mapping = match own {
            Some(node) => Self::open(node, scope, context)?,
            None => Self { span: self.span, scope, entries: &[], fallback: None },
        };
        mapping.fallback = fallback;
        Some(mapping)
    }

    /// The names and nodes of a mapping with free names.
    pub fn named(&self, name: &str, context: &mut Context<'_>) -> Vec<(&'t Key, &'t Node)> {
        let Some(node) = self.get(name) else {
            return Vec::new();
        };
        match &node.value {
            Value::Map(entries) => entries.iter().map(|(key, node)| (key, node)).collect(),
            _ => {
                context.problem(node.span, format!("expected names and values, found {}", node.kind()));
                Vec::new()
            }
        }
    }

    pub fn text(&self, name: &str, context: &mut Context<'_>) -> Option<String> {
        let node = self.get(name)?;
        text(node, context)
    }

    /// As [`Self::text`], for a value nobody may see: what is wrong with it is said at its key. The key's
    /// line tells that it holds a secret, a line further down would not.
    pub fn secret(&self, name: &str, context: &mut Context<'_>) -> Option<String> {
        let known = context.problems.len();
        let text = self.text(name, context);
        let place = self.place(name);
        for problem in &mut context.problems[known..] {
            problem.span = place;
        }
        text
    }

    /// One of the words the table allows; the table's default if the key is missing.
    pub fn choice(&self, name: &str, context: &mut Context<'_>) -> String {
        let key = self.table(name);
        let super::keys::Kind::Choice(words) = &key.kind else { unreachable!("`{name}` is not a choice") };
        let Some(node) = self.get(name) else {
            return key.default.to_owned();
        };
        let Some(word) = text(node, context) else {
            return key.default.to_owned();
        };
        if !words.contains(&word.as_str()) {
            context.problems.push(unknown("value", node.span, written(node), words));
            return key.default.to_owned();
        }
        word
    }

    /// A value of a designed form; the table's default if the key is missing.
    pub fn parsed<T>(
        &self,
        name: &str,
        parse: fn(&str) -> Result<T, String>,
        context: &mut Context<'_>,
    ) -> Option<T> {
        let key = self.table(name);
        match self.get(name) {
            None if key.default.is_empty() => None,
            None => parse(key.default).ok(),
            Some(node) => {
                let value = text(node, context)?;
                match parse(&value) {
                    Ok(parsed) => Some(parsed),
                    Err(message) => {
                        // A message shows what is in the file, never what a variable holds.
                        let shown =
                            if value.is_empty() { message } else { message.replace(&value, written(node)) };
                        context.problem(node.span, shown);
                        None
                    }
                }
            }
        }
    }

    pub fn bytes(&self, name: &str, context: &mut Context<'_>) -> Option<u64> {
        self.parsed(name, values::bytes, context)
    }

    pub fn duration(&self, name: &str, context: &mut Context<'_>) -> Option<std::time::Duration> {
        self.parsed(name, values::duration, context)
    }

    pub fn integer(&self, name: &str, context: &mut Context<'_>) -> Option<u64> {
        self.parsed(name, values::positive, context)
    }
}

/// A single value with `${…}` expanded.
pub fn text(node: &Node, context: &mut Context<'_>) -> Option<String> {
    let Value::Scalar(Scalar { text, .. }) = &node.value else {
        context.problem(node.span, format!("expected a single value, found {}", node.kind()));
        return None;
    };
    match context.environment.expand(text) {
        Ok(text) => Some(text),
        Err(message) => {
            context.problem(node.span, message);
            None
        }
    }
}

/// A single value as it is written in the file.
pub fn written(node: &Node) -> &str {
    match &node.value {
        Value::Scalar(scalar) => &scalar.text,
        _ => "",
    }
}

/// A name that leads nowhere, with the nearest one that would not.
pub fn unknown(what: &str, span: Span, name: &str, known: &[&str]) -> Problem {
    let problem = Problem::new(span, format!("`{name}` is not a known {what} here"));
    let nearest = known.iter().map(|known| (strsim::damerau_levenshtein(name, known), known)).min();
    match nearest {
        // More than half of the letters differ: that is another word.
        Some((distance, nearest)) if distance * 2 <= name.len().max(nearest.len()) => {
            problem.hint(format!("did you mean `{nearest}`?"))
        }
        _ => problem.hint(format!("one of: {}", known.join(", "))),
    }
}
