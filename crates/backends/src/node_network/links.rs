//! Interfaces of this machine, by netlink.

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};

use engine::ports::PortError;

/// One interface.
#[derive(Debug, Clone)]
pub(super) struct Link {
    index: u32,
    pub(super) name: String,
    alias: Option<String>,
    group: u32,
    pub(super) up: bool,
    pub(super) addresses: Vec<Ipv4Net>,
}

impl Link {
    /// Whether it was made with this mark. Not every kernel keeps an alias that is given at creation, so
    /// until the alias is set the group tells.
    pub(super) fn carries(&self, mark: &str) -> bool {
        match &self.alias {
            Some(alias) => alias == mark,
            None => self.group == group(mark),
        }
    }

    /// Whether its making ended before its alias was set.
    pub(super) fn is_unfinished(&self) -> bool {
        self.alias.is_none()
    }
}

/// The interface group that stands for a mark: 31 bits of its FNV-1a hash, since `ip` shows groups with a
/// sign. Never 0, the group of all others.
fn group(mark: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    (mark.bytes().fold(0x811c_9dc5, step) >> 1).max(1)
}

/// A netlink connection; it ends with this value.
pub(super) struct Links {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn failed(what: String) -> impl FnOnce(rtnetlink::Error) -> PortError {
    move |e| PortError::new(what, e)
}

impl Links {
    pub(super) fn connect() -> Result<Self, PortError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| PortError::new("open a netlink socket", e))?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// All interfaces with their IPv4 addresses.
    pub(super) async fn all(&self) -> Result<Vec<Link>, PortError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list interfaces".into()))?;
        let mut links: Vec<Link> = messages.iter().filter_map(link).collect();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses
            .try_next()
            .await
            .map_err(failed("list addresses".into()))?
        {
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(std::net::IpAddr::V4(ip)) => {
                    Ipv4Net::new(*ip, message.header.prefix_len).ok()
                }
                _ => None,
            });
            if let (Some(address), Some(link)) = (
                address,
                links.iter_mut().find(|l| l.index == message.header.index),
            ) {
                link.addresses.push(address);
            }
        }
        Ok(links)
    }

    async fn index(&self, name: &str) -> Result<u32, PortError> {
        let links = self.all().await?;
        let found = links.iter().find(|l| l.name == name);
        found
            .map(|l| l.index)
            .ok_or_else(|| PortError::new(format!("find interface {name}"), "it is not there"))
    }

    /// Makes a bridge that carries the mark from its first moment.
    pub(super) async fn add_bridge(&self, name: &str, mark: &str) -> Result<(), PortError> {
        self.handle
            .link()
            .add(LinkBridge::new(name).link_group(group(mark)).build())
            .execute()
            .await
            .map_err(failed(format!("make bridge {name}")))?;
        self.show_mark(name, mark).await
    }

    /// Sets the mark as the interface's alias, which people see.
    pub(super) async fn show_mark(&self, name: &str, mark: &str) -> Result<(), PortError> {
        let index = self.index(name).await?;
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(index).alias(mark).build())
            .execute()
            .await
            .map_err(failed(format!("mark bridge {name}")))
    }

    pub(super) async fn bring_up(
        &self,
        name: &str,
        address: Option<Ipv4Net>,
    ) -> Result<(), PortError> {
        let index = self.index(name).await?;
        if let Some(net) = address {
            self.handle
                .address()
                .add(index, net.addr().into(), net.prefix_len())
                .replace()
                .execute()
                .await
                .map_err(failed(format!("give {net} to {name}")))?;
        }
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .map_err(failed(format!("bring {name} up")))
    }

    pub(super) async fn remove(&self, link: &Link) -> Result<(), PortError> {
        self.handle
            .link()
            .del(link.index)
            .execute()
            .await
            .map_err(failed(format!("remove {}", link.name)))
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    let name = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(n) => Some(n.clone()),
        _ => None,
    })?;
    let alias = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfAlias(n) => Some(n.clone()),
        _ => None,
    });
    let group = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::Group(group) => Some(*group),
        _ => None,
    });
    Some(Link {
        index: message.header.index,
        name,
        alias,
        group: group.unwrap_or(0),
        up: message.header.flags.contains(LinkFlags::Up),
        addresses: vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_a_mark() {
        let check = |alias: Option<&str>, group: u32, carries: bool| {
            let link = Link {
                index: 1,
                name: "proximity-lan".into(),
                alias: alias.map(str::to_owned),
                group,
                up: true,
                addresses: vec![],
            };
            assert_eq!(link.carries("zone a"), carries, "{link:?}");
        };
        check(Some("zone a"), 0, true);
        check(None, group("zone a"), true);
        check(None, group("zone b"), false);
        check(None, 0, false);
        check(Some("zone b"), group("zone a"), false);
        check(Some(""), group("zone a"), false);
    }
}
