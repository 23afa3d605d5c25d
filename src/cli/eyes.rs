//! The admin port of a run.

use std::sync::Arc;

use tracing::{info, warn};

use crate::admin::{self, Server};
use crate::config::plan::Plan;
use crate::engine::chain;
use crate::kafka::{self, KafkaCluster};
use crate::model::Classify;
use crate::status::Board;

use super::Failure;

/// Listens where the file says so; a service otherwise on the default, if it can be had there.
///
/// # Errors
/// [`Failure::Failed`] if the file says where, and it cannot be had.
pub async fn open(plan: &Plan, board: &Arc<Board>, is_bounded: bool) -> Result<Option<Server>, Failure> {
    let Some(listen) = plan.admin.listen.as_deref().filter(|_| plan.admin.is_given || !is_bounded) else {
        return Ok(None);
    };
    // A client of its own, made when somebody looks: its questions hold up nobody else's.
    let cluster = Arc::new(KafkaCluster::new(kafka::client_config(&plan.kafka)));
    match admin::serve(listen, board.clone(), cluster).await {
        Ok(server) => {
            info!(address = %server.address(), "metrics and status are served");
            Ok(Some(server))
        }
        Err(error) if plan.admin.is_given => Err(Failure::Failed(error.into())),
        Err(error) => {
            warn!(
                error = chain(&error),
                hint = error.hint().as_deref(),
                "no metrics and no status: the default port cannot be had"
            );
            Ok(None)
        }
    }
}
