//! The calls about orphans.

use std::time::Duration;

use api::status::Orphan;
use reqwest::Method;

use crate::connection::{Call, Client};
use crate::error::Error;

/// A guest's tree may be large.
const REMOVAL: Duration = Duration::from_secs(180);

impl Client {
    /// `GET /orphans`.
    pub async fn orphans(&self) -> Result<Vec<Orphan>, Error> {
        self.json(Call::get(&["orphans"])).await
    }

    /// `DELETE /orphans/{id}`: answers when it is gone.
    pub async fn remove_orphan(&self, id: &str) -> Result<Orphan, Error> {
        let path = ["orphans", id];
        let mut call = Call::new(Method::DELETE, &path);
        call.deadline = REMOVAL;
        self.json(call).await
    }
}
