//! A schema of the registry, compiled: the text of a `.proto` file, or a descriptor in base64, with what it imports.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use protox::Compiler;
use protox::file::{FileResolver, GoogleFileResolver};
use protox::prost_reflect::prost::Message as _;
use protox::prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, UninterpretedOption,
};
use protox::prost_reflect::{FileDescriptor, MessageDescriptor};

use crate::codec::limits::on_deep_stack;
use crate::config::plan::Recursion;
use crate::model::Reference;

/// What the file itself is called: the registry does not say, and nobody imports it.
const OWN_NAME: &str = "sidestream/schema.proto";

/// Confluent's registry has these built in: schemas import them without a reference.
const BUILT_IN: [(&str, &str); 2] = [
    (
        "confluent/meta.proto",
        "syntax = \"proto3\"; package confluent; import \"google/protobuf/descriptor.proto\";
        message Meta { string doc = 1; map<string, string> params = 2; repeated string tags = 3; }
        extend google.protobuf.FileOptions { Meta file_meta = 1088; }
        extend google.protobuf.MessageOptions { Meta message_meta = 1088; }
        extend google.protobuf.FieldOptions { Meta field_meta = 1088; }
        extend google.protobuf.EnumOptions { Meta enum_meta = 1088; }
        extend google.protobuf.EnumValueOptions { Meta enum_value_meta = 1088; }",
    ),
    (
        "confluent/type/decimal.proto",
        "syntax = \"proto3\"; package confluent.type;
        message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }",
    ),
];

/// Why a schema cannot be used. Paths are dotted field names from the top.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("not a valid Protobuf schema: {0}")]
    Invalid(String),
    #[error("it has no message")]
    Empty,
    #[error("it has no message `{0}`")]
    NoMessage(String),
    #[error(
        "`{path}`: the message `{name}` contains itself, and Arrow has no recursive types (`recursive: json` makes text \
         of it)"
    )]
    Recursive { path: String, name: String },
    #[error("the message nests deeper than {0} levels")]
    TooDeep(usize),
    #[error("the message has more than {0} fields")]
    TooWide(usize),
    #[error("the names of the message's fields take more than {0} bytes")]
    TooLarge(usize),
}

/// A compiled file.
#[derive(Debug)]
pub struct File {
    descriptor: FileDescriptor,
    recursion: Recursion,
}

/// Compiles a schema and the schemas that it references. Nothing is read from disk.
///
/// # Errors
/// [`SchemaError::Invalid`] with what the compiler says.
pub fn parse(text: &str, references: &[Reference]) -> Result<File, SchemaError> {
    let parsed = on_deep_stack(|| parse_here(text, references));
    parsed.unwrap_or_else(|| Err(SchemaError::Invalid("its compiler fails on it".to_owned())))
}

fn parse_here(text: &str, references: &[Reference]) -> Result<File, SchemaError> {
    let invalid = |error: protox::Error| SchemaError::Invalid(error.to_string());
    let mut texts: HashMap<String, String> =
        BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    texts.extend(references.iter().map(|reference| (reference.name.clone(), reference.text.clone())));
    texts.insert(OWN_NAME.to_owned(), text.to_owned());
    let mut compiler = Compiler::with_file_resolver(Texts { texts, google: GoogleFileResolver::new() });
    compiler.open_file(OWN_NAME).map_err(invalid)?;
    let file = compiler.descriptor_pool().get_file_by_name(OWN_NAME);
    let file = file.map(|descriptor| File { descriptor, recursion: Recursion::Refuse });
    file.ok_or(SchemaError::Empty)
}

impl File {
    /// What becomes of its messages that contain themselves.
    #[must_use]
    pub fn recursive(mut self, recursion: Recursion) -> Self {
        self.recursion = recursion;
        self
    }

    pub fn recursion(&self) -> Recursion {
        self.recursion
    }

    /// A message by its full name, or by its name within the file's package; without a name the first one.
    ///
    /// # Errors
    /// If there is none.
    pub fn message(&self, name: Option<&str>) -> Result<MessageDescriptor, SchemaError> {
        let Some(name) = name else {
            return self.descriptor.messages().next().ok_or(SchemaError::Empty);
        };
        let in_package = format!("{}.{name}", self.descriptor.package_name());
        let mut all = self.all().into_iter().map(|(_, message)| message);
        all.find(|message| [name, &in_package].contains(&message.full_name()))
            .ok_or_else(|| SchemaError::NoMessage(name.to_owned()))
    }

    /// The full names of all its messages, with their paths.
    pub fn names(&self) -> Vec<(Vec<u64>, String)> {
        self.all().into_iter().map(|(path, message)| (path, message.full_name().to_owned())).collect()
    }

    fn all(&self) -> Vec<(Vec<u64>, MessageDescriptor)> {
        let mut all = Vec::new();
        let mut open: Vec<(Vec<u64>, MessageDescriptor)> =
            (0..).zip(self.descriptor.messages()).map(|(index, message)| (vec![index], message)).collect();
        while let Some((path, message)) = open.pop() {
            // Entries of maps are messages that nobody wrote: Confluent's indexes do not count them.
            let children = message.child_messages().filter(|child| !child.is_map_entry());
            for (index, child) in (0..).zip(children) {
                open.push(([path.as_slice(), &[index]].concat(), child));
            }
            all.push((path, message));
        }
        all
    }
}

struct Texts {
    texts: HashMap<String, String>,
    google: GoogleFileResolver,
}

impl FileResolver for Texts {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        // The well-known ones are compiled in; a registered copy of them would be another type.
        if let Ok(file) = self.google.open_file(name) {
            return Ok(file);
        }
        let text = self.texts.get(name).ok_or_else(|| protox::Error::file_not_found(name))?;
        // A `.proto` file has blanks or signs that base64 has not.
        let descriptor = STANDARD.decode(text.trim()).ok().filter(|bytes| !bytes.is_empty());
        let Some(bytes) = descriptor else {
            let file = protox::file::File::from_source(name, text)?;
            let mut plain = file.file_descriptor_proto().clone();
            return Ok(match leave_out_custom_options(&mut plain) {
                true => protox::file::File::from_file_descriptor_proto(plain),
                false => file,
            });
        };
        let mut file = FileDescriptorProto::decode(bytes.as_slice()).map_err(protox::Error::new)?;
        // Serialisers write `default` there; files find one another by the names of references.
        file.name = Some(name.to_owned());
        leave_out_custom_options(&mut file);
        Ok(protox::file::File::from_file_descriptor_proto(file))
    }
}

/// Takes out the options that a schema's authors have made themselves; `true` if there were any. None says how records
/// are read, while their values, which are messages, are read by recursion, however deep they are.
fn leave_out_custom_options(file: &mut FileDescriptorProto) -> bool {
    let mut found = false;
    let mut plain = |options: &mut Vec<UninterpretedOption>| {
        let count = options.len();
        options.retain(|option| {
            matches!(option.name.as_slice(), [only] if !only.is_extension) && option.aggregate_value.is_none()
        });
        found |= options.len() < count;
    };
    file.options.iter_mut().for_each(|options| plain(&mut options.uninterpreted_option));
    for service in &mut file.service {
        service.options.iter_mut().for_each(|options| plain(&mut options.uninterpreted_option));
        let methods = service.method.iter_mut().filter_map(|method| method.options.as_mut());
        methods.for_each(|options| plain(&mut options.uninterpreted_option));
    }
    let mut fields: Vec<&mut FieldDescriptorProto> = file.extension.iter_mut().collect();
    let mut enums: Vec<&mut EnumDescriptorProto> = file.enum_type.iter_mut().collect();
    let mut messages: Vec<&mut DescriptorProto> = file.message_type.iter_mut().collect();
    while let Some(message) = messages.pop() {
        message.options.iter_mut().for_each(|options| plain(&mut options.uninterpreted_option));
        let oneofs = message.oneof_decl.iter_mut().filter_map(|oneof| oneof.options.as_mut());
        oneofs.for_each(|options| plain(&mut options.uninterpreted_option));
        let ranges = message.extension_range.iter_mut().filter_map(|range| range.options.as_mut());
        ranges.for_each(|options| plain(&mut options.uninterpreted_option));
        fields.extend(message.field.iter_mut().chain(&mut message.extension));
        enums.extend(&mut message.enum_type);
        messages.extend(&mut message.nested_type);
    }
    fields.into_iter().filter_map(|field| field.options.as_mut()).for_each(|options| {
        plain(&mut options.uninterpreted_option);
    });
    for symbols in enums {
        symbols.options.iter_mut().for_each(|options| plain(&mut options.uninterpreted_option));
        let values = symbols.value.iter_mut().filter_map(|value| value.options.as_mut());
        values.for_each(|options| plain(&mut options.uninterpreted_option));
    }
    if found {
        // It says where options stand that are gone.
        file.source_code_info = None;
    }
    found
}
