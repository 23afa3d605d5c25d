//! What is wrong with a table, or on the way to it, and who must act.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::plan;
use crate::model::Conflict;
use crate::sink::SinkError;
use crate::sink::file::durable::LogError;
use crate::sink::owner::{Claim, Refusal};

use super::positions::Objection;
use super::types::Unfit;

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("failed to {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Files(#[from] LogError),
    #[error("failed to {action}")]
    Kernel { action: &'static str, source: Box<delta_kernel::Error> },
    #[error("the table was moved on by another writer")]
    Conflict(#[from] Conflict),
    #[error("its table {0}")]
    Refused(Refusal),
    #[error("{0}")]
    Unfit(#[from] Unfit),
    #[error("{problem}")]
    Stop { problem: String, hint: &'static str },
    /// Passes by itself, after the table was looked at anew.
    #[error("{0}")]
    Again(String),
}

impl TableError {
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub fn kernel(action: &'static str) -> impl Fn(delta_kernel::Error) -> Self {
        move |source| Self::Kernel { action, source: Box::new(source) }
    }

    pub fn stop(problem: impl Into<String>, hint: &'static str) -> Self {
        Self::Stop { problem: problem.into(), hint }
    }
}

impl From<Objection> for TableError {
    fn from(objection: Objection) -> Self {
        match objection {
            Objection::Conflict(conflict) => Self::Conflict(conflict),
            Objection::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

/// What follows from an error while doing `what`.
pub fn explain(claim: &Claim, target: &plan::Delta, what: &str, error: TableError) -> SinkError {
    let place = target.path.display();
    let action = format!("{what} sink `{}` in table `{place}`", claim.owner.identity);
    let passes = |hint: Option<&'static str>, error: TableError, action: String| SinkError::Transient {
        action,
        hint: hint.map(Into::into),
        source: error.into(),
    };
    match error {
        TableError::Conflict(conflict) => SinkError::Conflict(conflict),
        TableError::Refused(ref refusal) => {
            let remedy = refusal.remedy(claim, "path");
            SinkError::stop(action, remedy, error)
        }
        TableError::Unfit(unfit) => {
            SinkError::refused(action, "mend the row or its view, or widen the column", unfit)
        }
        TableError::Stop { hint, .. } => SinkError::stop(action, hint, error),
        TableError::Io { ref source, .. } | TableError::Files(LogError::Io { ref source, .. }) => {
            let hint = disk_hint(source);
            passes(hint, error, action)
        }
        TableError::Kernel { ref source, .. } if !passes_by_itself(source) => {
            let remedy = "look at the table with another reader; restore it, or give the sink another `path`";
            SinkError::stop(action, remedy, error)
        }
        TableError::Kernel { .. } | TableError::Files(_) | TableError::Again(_) => {
            passes(None, error, action)
        }
    }
}

fn disk_hint(source: &io::Error) -> Option<&'static str> {
    match source.kind() {
        io::ErrorKind::StorageFull => Some("free space on that disk"),
        io::ErrorKind::PermissionDenied => Some("let this user write there"),
        io::ErrorKind::ReadOnlyFilesystem => Some("mount it writable, or change `path`"),
        _ => None,
    }
}

/// A file that is gone was cleaned up by another writer while we read.
fn passes_by_itself(error: &delta_kernel::Error) -> bool {
    use delta_kernel::Error::{Backtraced, FileNotFound, IOError, JoinFailure, ObjectStore};
    match error {
        Backtraced { source, .. } => passes_by_itself(source),
        FileNotFound(_) | IOError(_) | JoinFailure(_) | ObjectStore(_) => true,
        _ => false,
    }
}
