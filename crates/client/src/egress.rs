//! The calls about egress policies.

use api::egress::{Egress, EgressRequest, EgressView};
use reqwest::Method;

use crate::connection::{Call, Client};
use crate::error::Error;

impl Client {
    /// `GET /instances/{name}/egress`.
    pub async fn egress(&self, name: &str) -> Result<EgressView, Error> {
        self.json(Call::get(&["instances", name, "egress"])).await
    }

    /// `PUT /instances/{name}/egress`: it holds when this returns.
    pub async fn set_egress(&self, name: &str, egress: &Egress) -> Result<EgressView, Error> {
        let request = EgressRequest {
            egress: egress.clone(),
        };
        let path = ["instances", name, "egress"];
        self.json_with(Call::new(Method::PUT, &path), &request)
            .await
    }
}
