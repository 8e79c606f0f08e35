//! New identities for guests and appliances that run longer than a certificate lasts.

use api::InstanceId;
use wire::identity::Bundle;

use super::Controller;
use crate::ports::PortError;

impl Controller {
    /// Gives what runs as `id` a new identity before the old one ends. It is told first, and what is told
    /// is put in its place on the node afterwards: who could not be told, or was told by a controller
    /// that ended in between, is told again at the next look.
    pub(super) async fn renew_identity(
        &self,
        id: &InstanceId,
        tell: impl AsyncFnOnce(&Bundle) -> Result<(), PortError>,
    ) {
        let backend = &self.ports().backend;
        let renewed = async {
            let Some(identity) = backend.due_identity(id).await? else {
                return Ok(false);
            };
            tell(&identity).await?;
            backend.place_identity(id, &identity).await?;
            Ok::<_, PortError>(true)
        };
        match renewed.await {
            Ok(false) => {}
            Ok(true) => tracing::info!(instance.id = %id, "its identity was renewed"),
            Err(e) => tracing::warn!(instance.id = %id, "its identity was not renewed: {e}"),
        }
    }
}
