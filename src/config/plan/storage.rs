//! Object stores that file sinks write to.

use std::fmt;
use std::path::PathBuf;

/// `s3://`, `gs://`, `az://`: which service has a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    S3,
    Google,
    Azure,
}

impl Scheme {
    /// How paths in them begin.
    pub const ALL: [(&'static str, Self); 3] =
        [("s3://", Self::S3), ("gs://", Self::Google), ("az://", Self::Azure)];

    /// The service, the bucket and the prefix that a path names; `None` for a directory.
    pub fn split(path: &str) -> Option<(Self, &str, &str)> {
        let (rest, scheme) = Self::ALL.iter().find_map(|(start, scheme)| {
            let rest = path.strip_prefix(*start)?;
            Some((rest, *scheme))
        })?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        Some((scheme, bucket, prefix.trim_end_matches('/')))
    }
}

/// `storage:` of a file sink.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ObjectStorage {
    pub login: ObjectLogin,
    /// Instead of the service's own.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Of Azure.
    pub account: Option<String>,
    pub allows_http: bool,
    /// The bucket is part of the host's name.
    pub is_virtual_hosted: bool,
    /// Where open files are; `None`: the system's directory for temporary files.
    pub spool_dir: Option<PathBuf>,
}

impl fmt::Debug for ObjectStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStorage")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// How a store knows us; never shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum ObjectLogin {
    /// As the service's own tools: variables, and what a machine of the service knows by itself.
    #[default]
    Environment,
    AccessKey {
        id: String,
        secret: String,
        session_token: Option<String>,
    },
    ServiceAccount {
        file: PathBuf,
    },
    Account {
        key: Option<String>,
        sas_token: Option<String>,
    },
    Anonymous,
}
