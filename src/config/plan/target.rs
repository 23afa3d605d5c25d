//! What targets of sinks say of themselves: files, requests, tables.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{ClientCertificate, Login, PartitionBy, Roll};

/// `http:` of a sink.
#[derive(Clone, PartialEq, Eq)]
pub struct Http {
    pub url: String,
    pub method: HttpMethod,
    pub form: HttpForm,
    pub headers: BTreeMap<String, String>,
    pub login: Option<Login>,
    /// Certificates of authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    pub client_certificate: Option<ClientCertificate>,
    /// For one request.
    pub timeout: Duration,
    /// Limits of one request; a row that is larger goes alone.
    pub rows_max: usize,
    pub bytes_max: usize,
    /// Requests that wait for their answers at the same time.
    pub concurrency: usize,
    /// The field of each object that holds the key of its row, if there is to be one.
    pub key_field: Option<String>,
    /// The name of what it reads: part of the keys of rows.
    pub view: String,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is behind the host, and headers, may hold tokens.
        let host = self.url.split(['/', '?']).take(3).collect::<Vec<_>>().join("/");
        f.debug_struct("Http").field("host", &host).field("form", &self.form).finish_non_exhaustive()
    }
}

/// `method:` of an HTTP sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpMethod {
    Post,
    Put,
    Patch,
}

/// `format:` of an HTTP sink: what the body of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpForm {
    /// An object per line.
    Lines,
    /// An array of objects.
    Array,
    /// One object.
    Row,
}

/// `compression:` of files of text; each with its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextCompression {
    #[default]
    None,
    Gzip(u32),
    Zstd(i32),
}

/// What `parquet:` says of its files besides where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParquetOptions {
    pub compression: ParquetCompression,
    /// Rows of a row group.
    pub group_rows_max: usize,
    pub has_dictionary: bool,
    pub statistics: Statistics,
    /// Columns that differ, by name.
    pub columns: BTreeMap<String, ParquetColumn>,
}

/// `compression:` of Parquet files; with its level where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParquetCompression {
    None,
    Snappy,
    Lz4,
    Gzip(u32),
    Zstd(i32),
}

/// What is kept of the values of a column: lowest, highest, nulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    None,
    /// Of each row group.
    Group,
    /// And of each page.
    Page,
}

/// One column of `columns:`; what is `None` is as in the other columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParquetColumn {
    pub has_dictionary: Option<bool>,
    pub statistics: Option<Statistics>,
    pub has_bloom_filter: bool,
}

/// A table of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    pub url: SecretUrl,
    /// Certificates of authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// `None`: where the user's search path leads.
    pub schema: Option<String>,
    pub table: String,
    pub rows: TableRows,
    /// It is created, and gets the columns that it lacks.
    pub creates: bool,
    /// All its rows are deleted when the table of change events was truncated.
    pub is_truncated: bool,
}

impl Postgres {
    /// The table as the file names it.
    pub fn shown(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{schema}.{}", self.table),
            None => self.table.clone(),
        }
    }
}

/// A Delta table.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    pub path: PathBuf,
    /// In the order of the table's partition columns; empty if there are none.
    pub partition_by: Vec<PartitionBy>,
    pub roll: Roll,
    /// It is created, and gets the columns that it lacks.
    pub creates: bool,
}

/// `mode:` of a table: what becomes of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableRows {
    Append,
    /// A row replaces the one that has its key.
    Upsert(PrimaryKey),
}

/// `primary_key:` of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimaryKey {
    /// The fields of the decoded record key; of a key that is one value, the column `_key`.
    RecordKey,
    Columns(Vec<String>),
}

/// A URL with a password in it; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    pub fn new(url: String) -> Self {
        Self(url)
    }

    /// For the one who connects.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretUrl(…)")
    }
}
