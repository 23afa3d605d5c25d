//! An Avro schema as the codec wants it: names resolved, references in place, limits checked. JSON Schemas become the
//! same (`codec/json_schema`).

use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::schema::{InnerDecimalSchema, Name, NamesRef, RecordSchema, ResolvedSchema, UuidSchema};
use serde_json::Value;

use crate::codec::limits::{
    BRANCHES_MAX, FIXED_BYTES_MAX, NAME_BYTES_MAX, SCHEMA_BYTES_MAX, TEXT_LEVELS_MAX, TYPE_BYTES,
    on_deep_stack,
};
use crate::config::plan::Recursion;
use crate::model::Reference;

pub use crate::codec::limits::{DEPTH_MAX, FIELDS_MAX};

/// Types of a union that messages name.
const DESCRIBED_MAX: usize = 20;

/// What defaults of fields are called while apache-avro reads a schema.
const DEFAULT: &str = "sidestream.default";

/// Why a schema cannot be used. Paths are dotted field names from the top.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("not a valid Avro schema: {0}")]
    Invalid(String),
    #[error("not a valid JSON Schema: {0}")]
    InvalidJsonSchema(String),
    #[error(
        "`{path}`: the type `{name}` contains itself, and Arrow has no recursive types (a form of the registry can have \
         `recursive: json`)"
    )]
    Recursive { path: String, name: String },
    #[error("`{path}`: a union without types has no Arrow column type")]
    Union { path: String },
    #[error("`{path}`: items without bytes of their own: a few bytes could claim billions of them")]
    ZeroWidthItems { path: String },
    #[error("`{path}`: {what}")]
    Unsupported { path: String, what: String },
    #[error("the schema nests deeper than {DEPTH_MAX} levels")]
    TooDeep,
    #[error("the schema has more than {FIELDS_MAX} fields")]
    TooWide,
    #[error("the top level of a value has to be a record, not {0}")]
    NotARecord(&'static str),
    #[error("it has no record `{0}`")]
    NoRecord(String),
    #[error("`{path}`: the writer's {writer} cannot be read as the reader's {reader}")]
    Incompatible { path: String, writer: String, reader: String },
    #[error("`{path}`: the reader needs this field, the writer does not have it, and it has no default")]
    MissingField { path: String },
}

/// One type of a schema.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub kind: Kind,
    pub logical: Option<Logical>,
}

/// What is on the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed {
        name: String,
        size: usize,
    },
    Enum(Enum),
    Array(Box<Node>),
    Map(Box<Node>),
    Record(Record),
    Union(Vec<Node>),
    /// One of several types: the first that a value fits. Of JSON Schemas only.
    Choice(Vec<Arm>),
}

/// One of the types of a [`Kind::Choice`].
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// Of its member in the struct that the choice becomes.
    pub name: String,
    pub node: Node,
    pub when: When,
}

/// What besides its type tells that an object is of an arm.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct When {
    /// Properties that are there.
    pub required: Vec<String>,
    /// Properties that have one of these values, if they are there.
    pub values: Vec<(String, Vec<Value>)>,
    /// If given, it has no others.
    pub only: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Enum {
    pub name: String,
    pub symbols: Vec<Arc<str>>,
    pub default: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub name: String,
    pub fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: String,
    pub aliases: Vec<String>,
    pub default: Option<Value>,
    pub node: Node,
}

/// What the bytes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logical {
    Date,
    TimeMillis,
    TimeMicros,
    TimestampMillis,
    TimestampMicros,
    TimestampNanos,
    LocalTimestampMillis,
    LocalTimestampMicros,
    LocalTimestampNanos,
    Decimal {
        precision: u8,
        scale: i8,
    },
    /// As text.
    BigDecimal,
    Uuid,
    Duration,
    /// Text that is the JSON of a value: of any, on `string`, in JSON Schemas; of the record of this name that is around,
    /// on a record without fields, where a schema begins again (`recursive: json`).
    Json,
}

impl Node {
    /// Parses a schema text and the texts of the schemas it references. One that contains itself is refused.
    ///
    /// # Errors
    /// [`SchemaError`], naming the field.
    pub fn parse(text: &str, references: &[Reference]) -> Result<Self, SchemaError> {
        Self::parse_with(text, references, Recursion::Refuse)
    }

    /// As [`Node::parse`], with what becomes of a type that contains itself.
    ///
    /// # Errors
    /// Likewise.
    pub fn parse_with(
        text: &str,
        references: &[Reference],
        recursion: Recursion,
    ) -> Result<Self, SchemaError> {
        Self::parse_part(text, references, recursion, None).map(|(node, _)| node)
    }

    /// As [`Node::parse_with`], of the record with this full name alone: the whole schema, or one branch of the union that
    /// it is, which is `true`. Other branches are not looked at.
    ///
    /// # Errors
    /// Likewise.
    pub fn parse_record(
        text: &str,
        references: &[Reference],
        recursion: Recursion,
        name: &str,
    ) -> Result<(Self, bool), SchemaError> {
        Self::parse_part(text, references, recursion, Some(name))
    }

    fn parse_part(
        text: &str,
        references: &[Reference],
        recursion: Recursion,
        record: Option<&str>,
    ) -> Result<(Self, bool), SchemaError> {
        let parsed = on_deep_stack(|| Self::parse_here(text, references, recursion, record));
        parsed.unwrap_or_else(|| Err(SchemaError::Invalid("its parser fails on it".to_owned())))
    }

    fn parse_here(
        text: &str,
        references: &[Reference],
        recursion: Recursion,
        record: Option<&str>,
    ) -> Result<(Self, bool), SchemaError> {
        let invalid = |error: apache_avro::Error| SchemaError::Invalid(error.to_string());
        let mut levels = 0;
        let text = without_defaults(text, &mut levels)?;
        let others = references.iter().map(|reference| without_defaults(&reference.text, &mut levels));
        let others = others.collect::<Result<Vec<String>, SchemaError>>()?;
        if levels > TEXT_LEVELS_MAX {
            return Err(SchemaError::TooDeep);
        }
        let (schema, others) = Schema::parse_str_with_list(&text, &others).map_err(invalid)?;
        let all: Vec<&Schema> = others.iter().chain([&schema]).collect();
        let resolved = ResolvedSchema::new_with_schemata(all).map_err(invalid)?;
        let mut reader = Reader {
            names: resolved.get_names(),
            recursion,
            open: Vec::new(),
            path: Vec::new(),
            field_count: 0,
            bytes_left: SCHEMA_BYTES_MAX,
        };
        let (part, is_branch) = match record {
            Some(name) => find_record(&schema, name)?,
            None => (&schema, false),
        };
        Ok((reader.node(part, None)?, is_branch))
    }

    pub fn plain(kind: Kind) -> Self {
        Self { kind, logical: None }
    }

    pub fn logical(kind: Kind, logical: Logical) -> Self {
        Self { kind, logical: Some(logical) }
    }

    /// Where the record `name`, which is around it, begins again.
    fn again(name: String) -> Self {
        Self::logical(Kind::Record(Record { name, fields: Vec::new() }), Logical::Json)
    }

    /// Does the record of this name begin again here?
    pub fn is_again(&self) -> bool {
        self.logical == Some(Logical::Json) && matches!(self.kind, Kind::Record(_))
    }

    /// What Avro calls the type as a branch of a union: a named one by its full name.
    pub fn branch_name(&self) -> &str {
        match &self.kind {
            Kind::Null => "null",
            Kind::Boolean => "boolean",
            Kind::Int => "int",
            Kind::Long => "long",
            Kind::Float => "float",
            Kind::Double => "double",
            Kind::Bytes => "bytes",
            Kind::String => "string",
            Kind::Array(_) => "array",
            Kind::Map(_) => "map",
            Kind::Union(_) | Kind::Choice(_) => "union",
            Kind::Fixed { name, .. } => name,
            Kind::Enum(symbols) => &symbols.name,
            Kind::Record(record) => &record.name,
        }
    }

    /// [`Node::branch_name`] without its namespace.
    pub fn branch_short_name(&self) -> &str {
        let name = self.branch_name();
        name.rsplit_once('.').map_or(name, |(_, short)| short)
    }

    /// The fewest bytes a value takes on the wire.
    pub fn size_min(&self) -> usize {
        match &self.kind {
            // A record that contains itself does it in a union, an array or a map.
            Kind::Record(_) if self.is_again() => 1,
            Kind::Null => 0,
            Kind::Fixed { size, .. } => *size,
            Kind::Float => 4,
            Kind::Double => 8,
            Kind::Record(record) => {
                let sizes = record.fields.iter().map(|field| field.node.size_min());
                sizes.fold(0, usize::saturating_add)
            }
            _ => 1,
        }
    }

    /// The type's name in messages.
    pub fn describe(&self) -> String {
        let kind = match &self.kind {
            Kind::Null => "null".to_owned(),
            Kind::Boolean => "boolean".to_owned(),
            Kind::Int => "int".to_owned(),
            Kind::Long => "long".to_owned(),
            Kind::Float => "float".to_owned(),
            Kind::Double => "double".to_owned(),
            Kind::Bytes => "bytes".to_owned(),
            Kind::String => "string".to_owned(),
            Kind::Fixed { name, size } => format!("fixed({size}) `{name}`"),
            Kind::Enum(symbols) => format!("enum `{}`", symbols.name),
            Kind::Array(item) => format!("array of {}", item.describe()),
            Kind::Map(value) => format!("map of {}", value.describe()),
            Kind::Record(record) => format!("record `{}`", record.name),
            Kind::Union(arms) => {
                format!("union of {}", described(arms.iter()))
            }
            Kind::Choice(arms) => {
                format!("one of {}", described(arms.iter().map(|arm| &arm.node)))
            }
        };
        match self.logical {
            Some(Logical::Decimal { precision, scale }) => {
                format!("{kind} (decimal({precision}, {scale}))")
            }
            Some(logical) => format!("{kind} ({logical:?})"),
            None => kind,
        }
    }
}

/// The first of them: it is said of each bad record.
fn described<'n>(arms: impl ExactSizeIterator<Item = &'n Node>) -> String {
    let count = arms.len();
    let mut names: Vec<String> = arms.take(DESCRIBED_MAX).map(Node::describe).collect();
    if count > DESCRIBED_MAX {
        names.push(format!("{} more", count - DESCRIBED_MAX));
    }
    names.join(", ")
}

struct Reader<'s> {
    names: &'s NamesRef<'s>,
    recursion: Recursion,
    /// Names of the types around this one.
    open: Vec<String>,
    path: Vec<String>,
    field_count: usize,
    /// Of [`SCHEMA_BYTES_MAX`].
    bytes_left: usize,
}

/// The schema with the defaults of its fields under another name, which apache-avro keeps and does not look into.
///
/// It would resolve each with the type of its field, for unions twice and more at every level and through the defaults of
/// the fields below: a few thousand types with `{}` as default would take for ever, or all of the stack. Here a default is
/// looked at when a writer lacks its field. Adds the levels of the text to `levels`.
fn without_defaults(text: &str, levels: &mut usize) -> Result<String, SchemaError> {
    let schema = serde_json::from_str(text).map_err(|error| SchemaError::Invalid(error.to_string()));
    let mut schema: Value = schema?;
    *levels += depth(&schema);
    rename_defaults(&mut schema)?;
    Ok(schema.to_string())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

fn rename_defaults(value: &mut Value) -> Result<(), SchemaError> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(rename_defaults),
        Value::Object(map) => {
            let mut names = ["name", "namespace"].into_iter().filter_map(|key| map.get(key)?.as_str());
            if names.any(|name| name.len() > NAME_BYTES_MAX) {
                let problem = format!("a name of more than {NAME_BYTES_MAX} bytes");
                return Err(SchemaError::Invalid(problem));
            }
            if let Some(Value::Array(fields)) = map.get_mut("fields") {
                for field in fields.iter_mut().filter_map(Value::as_object_mut) {
                    field.remove(DEFAULT);
                    if let Some(default) = field.remove("default") {
                        field.insert(DEFAULT.to_owned(), default);
                    }
                }
            }
            let mut parts = map.iter_mut().filter(|(name, _)| *name != DEFAULT);
            parts.try_for_each(|(_, inner)| rename_defaults(inner))
        }
        _ => Ok(()),
    }
}

/// What a type keeps of its text, those inside it not counted.
fn kept_bytes(node: &Node) -> usize {
    let texts = match &node.kind {
        Kind::Fixed { name, size } => name.len() + (*size).min(FIXED_BYTES_MAX),
        Kind::Enum(symbols) => {
            let all = symbols.symbols.iter().map(|symbol| TYPE_BYTES + symbol.len());
            symbols.name.len() + all.sum::<usize>()
        }
        Kind::Record(record) => {
            let fields = record.fields.iter().map(|field| {
                let aliases: usize = field.aliases.iter().map(|alias| TYPE_BYTES + alias.len()).sum();
                let default = field.default.as_ref().map_or(0, |default| default.to_string().len());
                field.name.len() + aliases + default
            });
            record.name.len() + fields.sum::<usize>()
        }
        _ => 0,
    };
    TYPE_BYTES + texts
}

impl<'s> Reader<'s> {
    fn path(&self) -> String {
        self.path.join(".")
    }

    fn unsupported(&self, what: impl Into<String>) -> SchemaError {
        SchemaError::Unsupported { path: self.path(), what: what.into() }
    }

    fn node(&mut self, schema: &'s Schema, namespace: Option<&str>) -> Result<Node, SchemaError> {
        if self.path.len() > DEPTH_MAX {
            return Err(SchemaError::TooDeep);
        }
        let node = self.read(schema, namespace)?;
        self.bytes_left = self.bytes_left.checked_sub(kept_bytes(&node)).ok_or_else(|| {
            self.unsupported(format!("the types up to here take more than {SCHEMA_BYTES_MAX} bytes"))
        })?;
        Ok(node)
    }

    fn read(&mut self, schema: &'s Schema, namespace: Option<&str>) -> Result<Node, SchemaError> {
        Ok(match schema {
            Schema::Null => Node::plain(Kind::Null),
            Schema::Boolean => Node::plain(Kind::Boolean),
            Schema::Int => Node::plain(Kind::Int),
            Schema::Long => Node::plain(Kind::Long),
            Schema::Float => Node::plain(Kind::Float),
            Schema::Double => Node::plain(Kind::Double),
            Schema::Bytes => Node::plain(Kind::Bytes),
            Schema::String => Node::plain(Kind::String),
            Schema::Fixed(fixed) => Node::plain(fixed_kind(&fixed.name, fixed.size, namespace)),
            Schema::Enum(symbols) => Node::plain(Kind::Enum(Enum {
                name: symbols.name.fullname(namespace),
                symbols: symbols.symbols.iter().map(|symbol| Arc::from(symbol.as_str())).collect(),
                default: symbols.default.as_deref().map(Arc::from),
            })),
            Schema::Array(array) => {
                let item = self.nested("items", &array.items, namespace)?;
                self.items(item).map(|item| Node::plain(Kind::Array(item)))?
            }
            Schema::Map(map) => {
                let value = self.nested("values", &map.types, namespace)?;
                Node::plain(Kind::Map(Box::new(value)))
            }
            Schema::Union(union) => {
                let arms = union.variants();
                if arms.is_empty() {
                    return Err(SchemaError::Union { path: self.path() });
                }
                if arms.len() > BRANCHES_MAX {
                    return Err(self.unsupported(format!("a union of more than {BRANCHES_MAX} types")));
                }
                // Of several, each becomes a member of a struct.
                if arms.iter().filter(|arm| !matches!(arm, Schema::Null)).count() > 1 {
                    self.count_fields(arms.len())?;
                }
                let arms = arms.iter().map(|arm| self.node(arm, namespace));
                Node::plain(Kind::Union(arms.collect::<Result<_, _>>()?))
            }
            Schema::Record(record) => self.record(record, namespace)?,
            Schema::Ref { name } => self.reference(name, namespace)?,
            logical => self.logical(logical, namespace)?,
        })
    }

    fn logical(&self, schema: &Schema, namespace: Option<&str>) -> Result<Node, SchemaError> {
        let long = |logical| Ok(Node::logical(Kind::Long, logical));
        match schema {
            Schema::Date => Ok(Node::logical(Kind::Int, Logical::Date)),
            Schema::TimeMillis => Ok(Node::logical(Kind::Int, Logical::TimeMillis)),
            Schema::TimeMicros => long(Logical::TimeMicros),
            Schema::TimestampMillis => long(Logical::TimestampMillis),
            Schema::TimestampMicros => long(Logical::TimestampMicros),
            Schema::TimestampNanos => long(Logical::TimestampNanos),
            Schema::LocalTimestampMillis => long(Logical::LocalTimestampMillis),
            Schema::LocalTimestampMicros => long(Logical::LocalTimestampMicros),
            Schema::LocalTimestampNanos => long(Logical::LocalTimestampNanos),
            Schema::Decimal(decimal) => {
                let kind = match &decimal.inner {
                    InnerDecimalSchema::Bytes => Kind::Bytes,
                    InnerDecimalSchema::Fixed(fixed) => fixed_kind(&fixed.name, fixed.size, namespace),
                };
                // 76 digits are what Arrow's widest decimal holds.
                match (u8::try_from(decimal.precision), i8::try_from(decimal.scale)) {
                    (Ok(precision @ 1..=76), Ok(scale)) => {
                        Ok(Node::logical(kind, Logical::Decimal { precision, scale }))
                    }
                    _ => Err(self.unsupported("a decimal of more than 76 digits")),
                }
            }
            Schema::Uuid(uuid) => {
                let kind = match uuid {
                    UuidSchema::String => Kind::String,
                    UuidSchema::Bytes => Kind::Bytes,
                    UuidSchema::Fixed(fixed) => fixed_kind(&fixed.name, fixed.size, namespace),
                };
                Ok(Node::logical(kind, Logical::Uuid))
            }
            Schema::Duration(fixed) => {
                let kind = fixed_kind(&fixed.name, fixed.size, namespace);
                Ok(Node::logical(kind, Logical::Duration))
            }
            Schema::BigDecimal => Ok(Node::logical(Kind::Bytes, Logical::BigDecimal)),
            other => Err(self.unsupported(format!("an unknown type {other:?}"))),
        }
    }

    fn nested(
        &mut self,
        step: &str,
        schema: &'s Schema,
        namespace: Option<&str>,
    ) -> Result<Node, SchemaError> {
        self.path.push(step.to_owned());
        let node = self.node(schema, namespace);
        self.path.pop();
        node
    }

    fn count_fields(&mut self, count: usize) -> Result<(), SchemaError> {
        self.field_count += count;
        if self.field_count > FIELDS_MAX { Err(SchemaError::TooWide) } else { Ok(()) }
    }

    fn items(&self, item: Node) -> Result<Box<Node>, SchemaError> {
        if item.size_min() == 0 {
            return Err(SchemaError::ZeroWidthItems { path: self.path() });
        }
        Ok(Box::new(item))
    }

    fn record(&mut self, record: &'s RecordSchema, around: Option<&str>) -> Result<Node, SchemaError> {
        let name = record.name.fullname(around);
        if self.open.contains(&name) {
            return match self.recursion {
                Recursion::Json => Ok(Node::again(name)),
                Recursion::Refuse => Err(SchemaError::Recursive { path: self.path(), name }),
            };
        }
        self.count_fields(record.fields.len())?;
        let namespace = record.name.namespace().or(around);
        self.open.push(name.clone());
        let mut fields = Vec::with_capacity(record.fields.len());
        for field in &record.fields {
            fields.push(Field {
                name: field.name.clone(),
                aliases: field.aliases.clone(),
                default: field.custom_attributes.get(DEFAULT).cloned(),
                node: self.nested(&field.name, &field.schema, namespace)?,
            });
        }
        self.open.pop();
        Ok(Node::plain(Kind::Record(Record { name, fields })))
    }

    fn reference(&mut self, name: &Name, namespace: Option<&str>) -> Result<Node, SchemaError> {
        let full = name.fully_qualified_name(namespace);
        let schema = self
            .names
            .get(full.as_ref())
            .or_else(|| self.names.get(name))
            .copied()
            .ok_or_else(|| self.unsupported(format!("the type `{full}` is not defined")))?;
        self.read(schema, namespace)
    }
}

/// The record of this name, at the top or as a branch of the union at the top, which is `true`.
fn find_record<'s>(schema: &'s Schema, name: &str) -> Result<(&'s Schema, bool), SchemaError> {
    let is_it = |schema: &&Schema| match schema {
        Schema::Record(record) => record.name.fullname(None) == name,
        Schema::Ref { name: own } => own.fullname(None) == name,
        _ => false,
    };
    let found = match schema {
        Schema::Union(union) => union.variants().iter().find(is_it).map(|branch| (branch, true)),
        other => Some(other).filter(is_it).map(|record| (record, false)),
    };
    found.ok_or_else(|| SchemaError::NoRecord(name.to_owned()))
}

fn fixed_kind(name: &Name, size: usize, namespace: Option<&str>) -> Kind {
    Kind::Fixed { name: name.fullname(namespace), size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Node::parse(text, &[]).unwrap_err().to_string()
    }

    #[test]
    fn hostile_and_recursive_schemas_are_refused_with_their_path() {
        let recursive = r#"{"type":"record","name":"a.Tree","fields":[
            {"name":"left","type":["null","Tree"]}]}"#;
        assert!(error(recursive).contains("`left`: the type `a.Tree` contains itself"));
        let bomb = r#"{"type":"record","name":"R","fields":[
            {"name":"xs","type":{"type":"array","items":"null"}}]}"#;
        assert!(error(bomb).contains("`xs`: items without bytes"), "{}", error(bomb));
        let fixed = r#"{"type":"record","name":"R","fields":[{"name":"xs","type":{"type":"array",
            "items":{"type":"record","name":"E","fields":[{"name":"n","type":"null"}]}}}]}"#;
        assert!(error(fixed).contains("items without bytes"));
        assert!(error("{").contains("not a valid Avro schema"));
    }

    #[test]
    fn one_record_of_a_union_is_read_whatever_the_others_are() {
        let customer = r#"{"type":"record","name":"shop.Customer","fields":[{"name":"id","type":"long"}]}"#;
        let references = [Reference { name: "shop.Customer".to_owned(), text: customer.to_owned() }];
        let union = r#"["null","shop.Customer",{"type":"record","name":"Tree","namespace":"a","fields":[
            {"name":"left","type":["null","Tree"]}]}]"#;
        assert!(Node::parse(union, &references).is_err());
        let (node, is_branch) =
            Node::parse_record(union, &references, Recursion::Refuse, "shop.Customer").unwrap();
        assert_eq!((node.describe().as_str(), is_branch), ("record `shop.Customer`", true));
        let (_, is_branch) = Node::parse_record(customer, &[], Recursion::Refuse, "shop.Customer").unwrap();
        assert!(!is_branch);
        let (tree, _) = Node::parse_record(union, &references, Recursion::Json, "a.Tree").unwrap();
        assert_eq!(tree.describe(), "record `a.Tree`");
        for name in ["Customer", "null", "Tree"] {
            let error = Node::parse_record(union, &references, Recursion::Refuse, name).unwrap_err();
            assert_eq!(error, SchemaError::NoRecord(name.to_owned()));
        }
    }

    #[test]
    fn references_are_put_in_place() {
        let customer = r#"{"type":"record","name":"shop.Customer","fields":[{"name":"id","type":"long"}]}"#;
        let order = r#"{"type":"record","name":"shop.Order","fields":[
            {"name":"by","type":"Customer"},{"name":"to","type":["null","shop.Customer"]}]}"#;
        let node =
            Node::parse(order, &[Reference { name: "shop.Customer".to_owned(), text: customer.to_owned() }])
                .unwrap();
        let Kind::Record(record) = node.kind else { panic!("not a record") };
        assert_eq!(record.fields[0].node.describe(), "record `shop.Customer`");
        assert_eq!(record.fields[1].node.describe(), "union of null, record `shop.Customer`");
    }
}
