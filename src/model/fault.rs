//! Who must act on an error.

use std::borrow::Cow;

/// What an error means for the lane it happened in. There is no silent fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Passes by itself: pause, back off, try the same again.
    Transient,
    /// Somebody else moved the progress: drop what is not durable, read the positions again.
    Conflict,
    /// Some row of what was written will never be taken: it is looked for, what comes before it is settled, and
    /// the route stops at its record.
    Refused,
    /// Needs a person or an edit: the route stops, the others go on.
    Stop,
}

/// A remedy, shown after the error as `hint: …`.
pub type Hint = Cow<'static, str>;

/// An error that knows who must act. Every error that crosses into the engine has one.
pub trait Classify: std::error::Error {
    fn fault(&self) -> Fault;
    /// What the reader of the message should do, where we know it.
    fn hint(&self) -> Option<Hint>;
}
