//! What PostgreSQL, or the way to it, says is wrong: who must act, and a text without values. A server's messages may quote
//! a row (`Failing row contains …`), so of most of them only the kind is told, with the names of table and constraint.

use std::error::Error;
use std::fmt;

use tokio_postgres::error::DbError;

use crate::model::{Fault, Hint};

/// An error of a server or of the connection to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresError {
    pub fault: Fault,
    pub hint: Option<Hint>,
    text: String,
}

impl fmt::Display for PostgresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for PostgresError {}

impl PostgresError {
    pub fn transient(text: impl Into<String>) -> Self {
        Self { fault: Fault::Transient, hint: None, text: text.into() }
    }

    pub fn stop(text: impl Into<String>, hint: impl Into<Hint>) -> Self {
        Self { fault: Fault::Stop, hint: Some(hint.into()), text: text.into() }
    }

    pub fn refused(text: impl Into<String>, hint: impl Into<Hint>) -> Self {
        Self { fault: Fault::Refused, hint: Some(hint.into()), text: text.into() }
    }

    /// Of a server, by its SQLSTATE.
    fn of_server(error: &DbError) -> Self {
        let state = error.code().code();
        let (fault, hint) = judge(state);
        let mut text = match condition(state) {
            Some(condition) => condition.to_owned(),
            None if is_silent(state) => "the server refuses what was written".to_owned(),
            None => error.message().to_owned(),
        };
        for (what, name) in
            [("table", error.table()), ("column", error.column()), ("constraint", error.constraint())]
        {
            if let Some(name) = name {
                text.push_str(&format!(", {what} `{name}`"));
            }
        }
        Self { fault, hint: hint.map(Hint::Borrowed), text: format!("{text} (SQLSTATE {state})") }
    }
}

impl From<tokio_postgres::Error> for PostgresError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(error) = error.as_db_error() {
            return Self::of_server(error);
        }
        let text = error.to_string();
        let cause = root(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        // What kind of error it is, is private; these are its words for a login that cannot be tried.
        let is_login = ["authentication error", "invalid configuration"].contains(&text.as_str());
        let hint = match text.as_str() {
            "error performing TLS handshake" => Some(
                "say `ca_file` if its certificate is not of an authority that the system trusts; the host in `url` is the \
                 one in the certificate",
            ),
            _ if is_login => Some("look at the user, the password and the options in `url`"),
            _ => None,
        };
        let fault = if is_login { Fault::Stop } else { Fault::Transient };
        Self { fault, hint: hint.map(Hint::Borrowed), text: format!("{text}{cause}") }
    }
}

/// The innermost cause.
fn root(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(next) = cause.source() {
        cause = next;
    }
    Some(cause.to_string())
}

/// Classes whose messages may quote values: data, constraints, what functions and triggers raise, limits.
fn is_silent(state: &str) -> bool {
    ["22", "23", "44", "54", "P0", "38", "39"].iter().any(|class| state.starts_with(class))
}

/// Who must act.
pub fn judge(state: &str) -> (Fault, Option<&'static str>) {
    let class = state.get(..2).unwrap_or_default();
    match (class, state) {
        // Ours: a copy that is no copy would be refused row by row.
        (_, "22P04") => (Fault::Stop, Some("this is a defect of sidestream: please report it")),
        (_, "42501") => {
            (Fault::Stop, Some("grant this user what is missing; `docs/sinks/postgres.md` lists it"))
        }
        (_, "42P01" | "42703" | "42P10" | "42804") => {
            (Fault::Stop, Some("the table was changed: restart, and it is looked at again"))
        }
        (_, "25006") => (Fault::Transient, Some("this server takes no writes; is it a standby?")),
        (_, "53100") => (Fault::Transient, Some("free space on the server's disk")),
        (_, "53300") => {
            (Fault::Transient, Some("the server has no connection left: raise `max_connections`"))
        }
        (_, "55P03") => (
            Fault::Transient,
            Some("`pg_locks` tells who holds the lock: perhaps a transaction that was left open"),
        ),
        // Of the table, not of a row: the next row would be told the same.
        (_, "55000") => (
            Fault::Transient,
            Some("a table that is published needs a replica identity before its rows are updated or deleted"),
        ),
        // Ended by us or by a limit, a deadlock or another writer in between, out of resources, on its way down.
        ("08" | "25" | "40" | "53" | "55" | "57" | "58" | "72" | "XX", _) => (Fault::Transient, None),
        ("22" | "23" | "44" | "54" | "P0", _) => (
            Fault::Refused,
            Some("mend the row or its view, or let the table take it; everything before it is committed"),
        ),
        ("28" | "3D", _) => {
            (Fault::Stop, Some("look at the user, the password and the name of the database in `url`"))
        }
        _ => (Fault::Stop, None),
    }
}

/// What a state means, where the server's own message may quote a value.
fn condition(state: &str) -> Option<&'static str> {
    Some(match state {
        "22001" => "text that is too long for its column",
        "22003" => "a number that its column cannot hold",
        "22007" | "22008" => "a time that PostgreSQL cannot hold",
        "22021" => "text that the database's encoding does not have, such as a zero byte",
        "22P02" => "text that is no value of its column's type",
        "22P05" => "JSON with a character that PostgreSQL does not store, such as \\u0000",
        "23502" => "null in a column that takes none",
        "23503" => "a row that a foreign key refuses",
        "23505" => "a row whose key is there already",
        "23514" => "a row that a check constraint refuses",
        "23P01" => "a row that an exclusion constraint refuses",
        "44000" => "a row that the view's check refuses",
        "P0001" => "a trigger or a function refuses the row",
        _ if state.starts_with("54") => "a row that is beyond a limit of PostgreSQL",
        _ => return None,
    })
}
