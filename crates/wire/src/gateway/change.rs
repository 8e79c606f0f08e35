//! What lies between two states of an appliance, so that one more route costs what it is and not what is there.
//!
//! Who gave an appliance a state and got a tag for it (`ETag`) may give the next one as a change of that
//! (`PATCH` with `If-Match`). An appliance that has another state says so and gets the whole one.

use serde::{Deserialize, Serialize};

use super::edge::{Edge, KeptAddress, PublishedPort};
use super::{EgressRule, GatewayState, Lease, NameRecord, ReservedHost, Route, ZonePort};

/// A list is changed in one place; what is equal before and behind it stays. Lists of a state are sorted, so that one
/// entry more is a change of one entry. Entries that lie between two changes are sent with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Splice<T> {
    /// How many entries stay before it.
    at: usize,
    /// How many go.
    remove: usize,
    /// What comes instead.
    insert: Vec<T>,
}

/// The change is of another state than the one at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the change is of another state")]
pub struct OtherBase;

/// Entries of a list before a change and after it.
#[derive(Debug)]
pub struct Sides<'a, T> {
    /// Those that go.
    pub before: &'a [T],
    /// Those that are there instead. Some may be the same.
    pub after: &'a [T],
}

/// What a change does that is of routes and names only.
#[derive(Debug)]
pub struct RouteChange<'a> {
    /// The routes.
    pub routes: Sides<'a, Route>,
    /// Names that people added, or that routes have.
    pub names: Sides<'a, NameRecord>,
}

impl<T: Clone + PartialEq> Splice<T> {
    /// What makes `new` of `old`; none when they are equal.
    fn between(old: &[T], new: &[T]) -> Option<Self> {
        let equal = |(a, b): &(&T, &T)| a == b;
        let at = old.iter().zip(new).take_while(equal).count();
        let (old, new) = (old.get(at..)?, new.get(at..)?);
        let behind = old.iter().rev().zip(new.iter().rev());
        let behind = behind.take_while(equal).count();
        let remove = old.len().saturating_sub(behind);
        let insert = new.get(..new.len().saturating_sub(behind))?.to_vec();
        (remove > 0 || !insert.is_empty()).then_some(Self { at, remove, insert })
    }

    /// What it replaces in `old`, and by what; none when that is another list.
    fn sides<'a>(splice: Option<&'a Self>, old: &'a [T]) -> Option<Sides<'a, T>> {
        let Some(Self { at, remove, insert }) = splice else {
            let (before, after) = (&[], &[]);
            return Some(Sides { before, after });
        };
        Some(Sides {
            before: old.get(*at..at.checked_add(*remove)?)?,
            after: insert,
        })
    }

    fn apply(self, list: &mut Vec<T>) -> Result<(), OtherBase> {
        let end = self.at.checked_add(self.remove).ok_or(OtherBase)?;
        if end > list.len() {
            return Err(OtherBase);
        }
        list.splice(self.at..end, self.insert);
        Ok(())
    }
}

/// What lies between two states of the same network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts: Option<Splice<ReservedHost>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<Splice<Route>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leases: Option<Splice<Lease>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<Splice<ZonePort>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Splice<EgressRule>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Splice<PublishedPort>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<Splice<NameRecord>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reservations: Option<Splice<KeptAddress>>,
}

impl GatewayChange {
    /// What makes `new` of `old`; none when only the whole state can tell.
    pub fn between(old: &GatewayState, new: &GatewayState) -> Option<Self> {
        // By name, so that a field that is added is thought of here.
        let GatewayState {
            network,
            hosts,
            routes,
            leases,
            published,
            egress,
            edge:
                Edge {
                    ports,
                    names,
                    reservations,
                    acme,
                    outside,
                },
        } = new;
        if *network != old.network || *acme != old.edge.acme || *outside != old.edge.outside {
            return None;
        }
        Some(Self {
            hosts: Splice::between(&old.hosts, hosts),
            routes: Splice::between(&old.routes, routes),
            leases: Splice::between(&old.leases, leases),
            published: Splice::between(&old.published, published),
            egress: Splice::between(&old.egress, egress),
            ports: Splice::between(&old.edge.ports, ports),
            names: Splice::between(&old.edge.names, names),
            reservations: Splice::between(&old.edge.reservations, reservations),
        })
    }

    /// The routes and names that it changes in `old`, when it changes nothing else.
    pub fn of_routes<'a>(&'a self, old: &'a GatewayState) -> Option<RouteChange<'a>> {
        let routes = Splice::sides(self.routes.as_ref(), &old.routes)?;
        let names = Splice::sides(self.names.as_ref(), &old.edge.names)?;
        let rest = Self {
            routes: None,
            names: None,
            ..self.clone()
        };
        let any = self.routes.is_some() || self.names.is_some();
        (any && rest == Self::default()).then_some(RouteChange { routes, names })
    }

    /// Makes the new state of the old one.
    pub fn apply(self, state: &mut GatewayState) -> Result<(), OtherBase> {
        fn one<T: Clone + PartialEq>(
            splice: Option<Splice<T>>,
            list: &mut Vec<T>,
        ) -> Result<(), OtherBase> {
            splice.map_or(Ok(()), |splice| splice.apply(list))
        }
        one(self.hosts, &mut state.hosts)?;
        one(self.routes, &mut state.routes)?;
        one(self.leases, &mut state.leases)?;
        one(self.published, &mut state.published)?;
        one(self.egress, &mut state.egress)?;
        one(self.ports, &mut state.edge.ports)?;
        one(self.names, &mut state.edge.names)?;
        one(self.reservations, &mut state.edge.reservations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_splice_leads_from_any_list_to_any_other(old: Vec<u8>, new: Vec<u8>) {
            let mut list = old.clone();
            match Splice::between(&old, &new) {
                Some(splice) => splice.apply(&mut list).unwrap(),
                None => prop_assert_eq!(&old, &new),
            }
            prop_assert_eq!(list, new);
        }

        #[test]
        fn one_more_is_one(mut list: Vec<u8>, at: prop::sample::Index, more: u8) {
            let old = list.clone();
            list.insert(at.index(old.len() + 1), more);
            let splice = Splice::between(&old, &list).unwrap();
            prop_assert_eq!((splice.remove, splice.insert.len()), (0, 1));
        }
    }

    #[test]
    fn a_change_of_a_longer_list_is_refused() {
        let splice = Splice::between(&[1, 2, 3], &[1, 2]).unwrap();
        assert_eq!(splice.apply(&mut vec![1]), Err(OtherBase));
        let endless = Splice {
            at: usize::MAX,
            remove: 1,
            insert: vec![0],
        };
        assert_eq!(endless.apply(&mut vec![1]), Err(OtherBase));
    }
}
