//! The tables of positions as operators see them: looked at without changing anything, or moved.

use crate::config::plan;
use crate::model::Move;
use crate::sink::SinkError;
use crate::sink::owner::Claim;
use crate::sink::survey::Survey;

use super::connect::Login;
use super::error::PostgresError;
use super::positions::{self, StoreError};
use super::{explain, table};

/// What is said of a sink's table, if there is one that a sink has written to; for who would open it with `claim`.
///
/// # Errors
/// If it cannot be read.
pub async fn survey(target: &plan::Postgres, claim: &Claim) -> Result<Option<Survey>, SinkError> {
    look(target, claim).await.map_err(|error| explain(claim, target, "look at", error))
}

fn login(target: &plan::Postgres) -> Result<Login, PostgresError> {
    let login = Login::new(target.url.secret(), target.ca_file.as_deref());
    login.map_err(|problem| PostgresError::stop(problem, "see `sidestream check`"))
}

async fn look(target: &plan::Postgres, claim: &Claim) -> Result<Option<Survey>, StoreError> {
    let session = login(target)?.connect().await?;
    let found = table::find(&session, target.schema.as_deref(), &target.table).await?;
    let Some((place, _)) = found else {
        return Ok(None);
    };
    if !positions::are_there(&session, &place).await? {
        return Ok(None);
    }
    let writers = positions::read(&session, &place).await?;
    if writers.is_empty() {
        return Ok(None);
    }
    let admission = positions::admission(&writers, claim);
    let accounts = writers.into_iter().collect();
    Ok(Some(Survey { log: None, accounts, admission, weakness: None }))
}

/// Commits `moves` of an operator.
///
/// # Errors
/// [`SinkError::Conflict`] if a position has moved since it was looked at: nothing was committed.
pub async fn reset(target: &plan::Postgres, claim: &Claim, moves: &[Move]) -> Result<(), SinkError> {
    commit(target, claim, moves).await.map_err(|error| explain(claim, target, "move", error))
}

async fn commit(target: &plan::Postgres, claim: &Claim, moves: &[Move]) -> Result<(), StoreError> {
    let session = login(target)?.connect().await?;
    let found = table::find(&session, target.schema.as_deref(), &target.table).await?;
    let Some((place, _)) = found else {
        return Err(PostgresError::stop("the table is gone", "run the command again").into());
    };
    positions::enter(&session, &place, claim).await?;
    session.begin().await?;
    positions::advance(&session, &place, &claim.owner, moves).await?;
    session.run("COMMIT").await?;
    Ok(())
}
