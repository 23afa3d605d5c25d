//! Errors of sinks, with who must act.

use std::borrow::Cow;
use std::error::Error;

use crate::failpoint;
use crate::model::{Classify, Conflict, Fault, Hint};

/// Why a sink could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Passes by itself: a disk without room, a service away.
    #[error("failed to {action}")]
    Transient { action: String, hint: Option<Hint>, source: Box<dyn Error + Send + Sync> },
    /// Another writer moved a position.
    #[error("another writer moved the progress of this sink")]
    Conflict(#[source] Conflict),
    /// A row that the target will never take. Nothing of the batch counts as written.
    #[error("failed to {action}")]
    Refused { action: String, hint: Option<Hint>, source: Box<dyn Error + Send + Sync> },
    /// Needs a person.
    #[error("failed to {action}")]
    Stop { action: String, hint: Option<Hint>, source: Box<dyn Error + Send + Sync> },
}

impl SinkError {
    pub(crate) fn stop(
        action: impl Into<String>,
        hint: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Stop { action: action.into(), hint: Some(hint.into()), source: source.into() }
    }
}

impl SinkError {
    pub(crate) fn refused(
        action: impl Into<String>,
        hint: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Refused { action: action.into(), hint: Some(hint.into()), source: source.into() }
    }

    /// A fail point behind a step of a sink.
    pub(crate) fn point(name: &'static str) -> Result<(), Self> {
        let told = failpoint::check(name);
        told.map_err(|error| Self::Transient {
            action: "finish a step".to_owned(),
            hint: None,
            source: error.into(),
        })
    }
}

impl Classify for SinkError {
    fn fault(&self) -> Fault {
        match self {
            Self::Transient { .. } => Fault::Transient,
            Self::Conflict(_) => Fault::Conflict,
            Self::Refused { .. } => Fault::Refused,
            Self::Stop { .. } => Fault::Stop,
        }
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::Transient { hint, .. } | Self::Refused { hint, .. } | Self::Stop { hint, .. } => {
                hint.clone()
            }
            Self::Conflict(_) => Some(Cow::Borrowed(
                "two deployments write to one target: give each its own path, or stop one of them",
            )),
        }
    }
}
