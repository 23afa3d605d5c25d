//! Random schemas, as texts, and later versions of them: everything from one seed.

use std::collections::HashSet;

/// The message that records are.
pub const TOP: &str = "Top";

const SCALARS: [&str; 15] = [
    "double", "float", "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64",
    "sfixed32", "sfixed64", "bool", "string", "bytes",
];

/// Keys of maps are all scalars but numbers with fractions, and bytes.
const KEYS: [&str; 12] = [
    "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64", "sfixed32", "sfixed64",
    "bool", "string",
];

const KNOWN: [&str; 11] = [
    "Timestamp",
    "Duration",
    "DoubleValue",
    "FloatValue",
    "Int64Value",
    "UInt64Value",
    "Int32Value",
    "UInt32Value",
    "BoolValue",
    "StringValue",
    "BytesValue",
];

/// Numbers of symbols: small ones are looked up in another way than others.
const NUMBERS: [i32; 12] = [0, 1, 2, 3, 7, -1, -5, 255, 256, 5000, i32::MAX, i32::MIN];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Type {
    Scalar(&'static str),
    /// The place of an enum, or of a message, in the schema.
    Enum(usize),
    Message(usize),
    /// One of `google.protobuf`.
    Known(&'static str),
    Map(&'static str, Box<Type>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    /// Proto3 without a label, and maps.
    Plain,
    Optional,
    Required,
    Repeated,
    Oneof(usize),
}

#[derive(Debug, Clone)]
struct Field {
    name: String,
    number: u32,
    label: Label,
    of: Type,
    /// As it is written, with its brackets.
    option: String,
}

#[derive(Debug, Clone)]
struct Message {
    name: String,
    /// The place of the message around it.
    parent: Option<usize>,
    /// Stands where its field is.
    is_group: bool,
    fields: Vec<Field>,
}

#[derive(Debug, Clone)]
struct Enum {
    name: String,
    symbols: Vec<(String, i32)>,
}

#[derive(Debug, Clone)]
pub struct Schema {
    is_proto2: bool,
    /// Another message comes first in the file.
    has_other: bool,
    enums: Vec<Enum>,
    /// The first one is [`TOP`].
    messages: Vec<Message>,
}

impl Schema {
    /// The names of the columns, in their order.
    pub fn columns(&self) -> Vec<&str> {
        self.messages[0].declared().into_iter().map(|field| field.name.as_str()).collect()
    }

    /// The `.proto` file.
    pub fn text(&self) -> String {
        let syntax = if self.is_proto2 { "proto2" } else { "proto3" };
        let mut text = format!("syntax = \"{syntax}\";\npackage t;\n");
        for file in ["timestamp", "duration", "wrappers"] {
            text += &format!("import \"google/protobuf/{file}.proto\";\n");
        }
        if self.has_other {
            text += "message Other { message Inner {} }\n";
        }
        for own in &self.enums {
            let numbers: HashSet<i32> = own.symbols.iter().map(|(_, number)| *number).collect();
            let has_aliases = numbers.len() < own.symbols.len();
            let option = if has_aliases { " option allow_alias = true;" } else { "" };
            let symbols = own.symbols.iter().map(|(name, number)| format!(" {name} = {number};"));
            text += &format!("enum {} {{{option}{} }}\n", own.name, symbols.collect::<String>());
        }
        self.write(0, &format!("message {TOP}"), &mut text);
        text
    }

    fn write(&self, index: usize, head: &str, text: &mut String) {
        *text += &format!("{head} {{\n");
        for (child, message) in self.messages.iter().enumerate() {
            if message.parent == Some(index) && !message.is_group {
                self.write(child, &format!("message {}", message.name), text);
            }
        }
        let mut open = None;
        for field in self.messages[index].declared() {
            let own = if let Label::Oneof(oneof) = field.label { Some(oneof) } else { None };
            if own != open {
                if open.is_some() {
                    *text += "}\n";
                }
                if let Some(oneof) = own {
                    *text += &format!("oneof o{oneof} {{\n");
                }
                open = own;
            }
            self.write_field(field, text);
        }
        if open.is_some() {
            *text += "}\n";
        }
        *text += "}\n";
    }

    fn write_field(&self, field: &Field, text: &mut String) {
        let label = match field.label {
            Label::Plain | Label::Oneof(_) => "",
            Label::Optional => "optional ",
            Label::Required => "required ",
            Label::Repeated => "repeated ",
        };
        if let Some(group) = self.group(field) {
            let name = &self.messages[group].name;
            self.write(group, &format!("{label}group {name} = {}", field.number), text);
            return;
        }
        let Field { name, number, option, .. } = field;
        *text += &format!("{label}{} {name} = {number}{option};\n", self.type_name(&field.of));
    }

    fn type_name(&self, of: &Type) -> String {
        match of {
            Type::Scalar(name) => (*name).to_owned(),
            Type::Enum(index) => self.enums[*index].name.clone(),
            Type::Message(index) => self.messages[*index].name.clone(),
            Type::Known(name) => format!("google.protobuf.{name}"),
            Type::Map(key, value) => format!("map<{key}, {}>", self.type_name(value)),
        }
    }

    fn group(&self, field: &Field) -> Option<usize> {
        match field.of {
            Type::Message(index) if self.messages[index].is_group => Some(index),
            _ => None,
        }
    }

    /// Whether a field may be in a oneof: without a label of its own.
    fn fits_oneof(&self, field: &Field) -> bool {
        let is_single = matches!(field.label, Label::Plain | Label::Optional);
        is_single && !matches!(field.of, Type::Map(..)) && self.group(field).is_none()
    }

    /// A label for one value.
    fn single(&self) -> Label {
        if self.is_proto2 { Label::Optional } else { Label::Plain }
    }
}

impl Message {
    /// The fields in the order of the file: those of a oneof are together.
    fn declared(&self) -> Vec<&Field> {
        let mut declared = Vec::new();
        let mut oneofs = Vec::new();
        for field in &self.fields {
            match field.label {
                Label::Oneof(oneof) if oneofs.contains(&oneof) => {}
                Label::Oneof(oneof) => {
                    oneofs.push(oneof);
                    declared.extend(self.fields.iter().filter(|other| other.label == field.label));
                }
                _ => declared.push(field),
            }
        }
        declared
    }
}

pub struct Generator {
    pub random: fastrand::Rng,
    pub schema: Schema,
    name_count: usize,
    /// Numbers of each message's fields, and of those that it had: no other field gets them.
    used: HashSet<(usize, u32)>,
}

impl Generator {
    /// A schema of so many levels below its top.
    pub fn new(seed: u64, depth: usize) -> Self {
        // Neighbouring seeds shall have nothing in common.
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (is_proto2, has_other) = (random.bool(), random.bool());
        let schema = Schema { is_proto2, has_other, enums: Vec::new(), messages: Vec::new() };
        let mut generator = Self { random, schema, name_count: 0, used: HashSet::new() };
        generator.message(None, TOP.to_owned(), false, depth);
        generator
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.random.u32(..count) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.usize(..of.len())]
    }

    fn fresh(&mut self, prefix: &str) -> String {
        self.name_count += 1;
        format!("{prefix}{}", self.name_count)
    }

    /// Makes a message, and those that are only in it; its place.
    fn message(&mut self, parent: Option<usize>, name: String, is_group: bool, depth: usize) -> usize {
        let index = self.schema.messages.len();
        self.schema.messages.push(Message { name, parent, is_group, fields: Vec::new() });
        let is_empty = parent.is_some() && self.one_in(10);
        let count = if is_empty { 0 } else { self.random.usize(1..7) };
        let mut fields: Vec<Field> = (0..count).map(|_| self.field(index, depth)).collect();
        if self.one_in(2) {
            for field in &mut fields {
                if self.schema.fits_oneof(field) && self.random.bool() {
                    field.label = Label::Oneof(self.random.usize(..2));
                }
            }
        }
        self.schema.messages[index].fields = fields;
        index
    }

    fn field(&mut self, parent: usize, depth: usize) -> Field {
        let number = self.number(parent);
        let is_group = self.schema.is_proto2 && depth > 0 && self.one_in(10);
        let (name, of) = if is_group {
            let group = self.fresh("G");
            let index = self.message(Some(parent), group.clone(), true, depth - 1);
            (group.to_lowercase(), Type::Message(index))
        } else {
            (self.fresh("f"), self.any(parent, depth))
        };
        let label = match self.random.u32(..6) {
            _ if matches!(of, Type::Map(..)) => Label::Plain,
            0 | 1 => Label::Repeated,
            2 if self.schema.is_proto2 => Label::Required,
            3 => Label::Optional,
            _ => self.schema.single(),
        };
        let option = self.option(&of, label);
        Field { name, number, label, of, option }
    }

    fn option(&mut self, of: &Type, label: Label) -> String {
        let is_packable = match of {
            Type::Scalar(name) => !matches!(*name, "string" | "bytes"),
            Type::Enum(_) => true,
            _ => false,
        };
        if label == Label::Repeated && is_packable && self.one_in(2) {
            return format!(" [packed = {}]", self.random.bool());
        }
        let has_default = self.schema.is_proto2 && matches!(label, Label::Optional | Label::Required);
        if !has_default || !self.one_in(3) {
            return String::new();
        }
        match of {
            Type::Scalar("string" | "bytes") => " [default = \"x\"]".to_owned(),
            Type::Scalar("bool") => " [default = true]".to_owned(),
            Type::Scalar("double" | "float") => " [default = 1.5]".to_owned(),
            Type::Scalar(_) => " [default = 5]".to_owned(),
            Type::Enum(index) => format!(" [default = {}]", self.schema.enums[*index].symbols[0].0),
            _ => String::new(),
        }
    }

    /// Small numbers are looked up in another way than others.
    fn number(&mut self, parent: usize) -> u32 {
        loop {
            let number = match self.random.u32(..8) {
                0..=5 => self.random.u32(1..40),
                6 => self.random.u32(1000..1050),
                _ => self.random.u32(20_000..=536_870_911),
            };
            if self.used.insert((parent, number)) {
                return number;
            }
        }
    }

    fn any(&mut self, parent: usize, depth: usize) -> Type {
        if !self.one_in(8) {
            return self.single(parent, depth);
        }
        let key = self.pick(&KEYS);
        let value = match self.single(parent, depth) {
            // Compilers want zero to come first there.
            Type::Enum(index) if self.schema.enums[index].symbols[0].1 != 0 => Type::Scalar("string"),
            value => value,
        };
        Type::Map(key, Box::new(value))
    }

    /// What is no map.
    fn single(&mut self, parent: usize, depth: usize) -> Type {
        match self.random.u32(..10) {
            0 => self.symbols(),
            1 | 2 => Type::Known(self.pick(&KNOWN)),
            3..=5 if depth > 0 => {
                let messages = self.schema.messages.iter().enumerate();
                let known = messages.filter(|(_, other)| other.parent == Some(parent) && !other.is_group);
                let known: Vec<usize> = known.map(|(index, _)| index).collect();
                if !known.is_empty() && self.one_in(3) {
                    return Type::Message(self.pick(&known));
                }
                let name = self.fresh("M");
                Type::Message(self.message(Some(parent), name, false, depth - 1))
            }
            _ => Type::Scalar(self.pick(&SCALARS)),
        }
    }

    fn symbols(&mut self) -> Type {
        let count = self.schema.enums.len();
        if count > 0 && self.one_in(2) {
            return Type::Enum(self.random.usize(..count));
        }
        let name = self.fresh("E");
        let first = if self.schema.is_proto2 { self.pick(&NUMBERS) } else { 0 };
        let mut symbols = vec![(format!("{name}_FIRST"), first)];
        for index in 0..self.random.usize(..6) {
            symbols.push((format!("{name}_S{index}"), self.pick(&NUMBERS)));
        }
        self.schema.enums.push(Enum { name, symbols });
        Type::Enum(count)
    }

    /// Makes another version of the schema: fields go, come, change their names, places and labels.
    pub fn evolve(&mut self) {
        for index in 0..self.schema.messages.len() {
            let fields = std::mem::take(&mut self.schema.messages[index].fields);
            let mut kept = Vec::new();
            for mut field in fields {
                if !self.one_in(5) {
                    self.change(&mut field);
                    kept.push(field);
                }
            }
            let is_top_without = index == 0 && kept.is_empty();
            for _ in 0..self.random.usize(..3).max(usize::from(is_top_without)) {
                kept.push(self.field(index, 1));
            }
            self.random.shuffle(&mut kept);
            self.schema.messages[index].fields = kept;
        }
        for own in &mut self.schema.enums {
            let mut is_first = true;
            // Defaults name the first one.
            own.symbols.retain(|_| std::mem::take(&mut is_first) || self.random.u32(..4) > 0);
        }
    }

    /// What readers of the same bytes may differ in.
    fn change(&mut self, field: &mut Field) {
        let is_group = self.schema.group(field).is_some();
        if !is_group && self.one_in(5) {
            field.name += "_renamed";
        }
        let wider = match field.of {
            Type::Scalar("int32") => "int64",
            Type::Scalar("uint32") => "uint64",
            Type::Scalar("sint32") => "sint64",
            _ => "",
        };
        if !wider.is_empty() && self.one_in(5) {
            field.of = Type::Scalar(wider);
        }
        self.relabel(field);
    }

    fn relabel(&mut self, field: &mut Field) {
        // Several numbers may share one length, and then no reader of one takes them.
        let is_bytes =
            matches!(field.of, Type::Scalar("string" | "bytes") | Type::Message(_) | Type::Known(_));
        let label = match field.label {
            Label::Plain if matches!(field.of, Type::Map(..)) => return,
            Label::Repeated if is_bytes && self.one_in(3) => self.schema.single(),
            Label::Oneof(_) if self.one_in(4) => self.schema.single(),
            Label::Plain | Label::Optional if self.schema.fits_oneof(field) && self.one_in(6) => {
                Label::Oneof(self.random.usize(..2))
            }
            Label::Plain | Label::Optional | Label::Required if self.one_in(6) => Label::Repeated,
            Label::Plain | Label::Required if self.one_in(4) => Label::Optional,
            label => label,
        };
        if label != field.label || label == Label::Repeated {
            field.label = label;
            field.option = self.option(&field.of, label);
        }
    }
}
