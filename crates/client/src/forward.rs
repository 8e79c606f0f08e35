//! `POST /instances/{name}/forward`: connections to ports of an instance's own loopback.

use api::InstanceName;
use hyper::Method;

use crate::connection::Client;
use crate::error::Error;
use crate::stream::{StreamCall, Tunnel};

impl Client {
    /// Connects to `port` on the loopback of an instance. The end of each direction is passed on.
    pub async fn forward(&self, instance: &InstanceName, port: u16) -> Result<Tunnel, Error> {
        let path = ["instances", instance.as_str(), "forward"];
        let call = StreamCall::new(Method::POST, &path).query("port", Some(port));
        let (_, tunnel) = self.upgrade(call, "tcp").await?;
        Ok(tunnel)
    }
}
