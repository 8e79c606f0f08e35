//! Which ids of the node stand for those of a guest.
//!
//! Apps and sandboxes have ranges of their own: should code break out of a sandbox, it is nobody's user, and no
//! app's either. An image's files have the ids of its guests, and a guest's directory has its root as group, by which
//! a guest that was made before sandboxes had their own is known.

use engine::image::IdRange;

/// How many ids each guest has.
pub(crate) const ID_COUNT: u32 = 65_536;

/// The ids of the node that stand for a guest's: [`ID_COUNT`] of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    /// Stands for 0, the guest's root.
    first: u32,
}

impl Ids {
    /// Every range that there is.
    pub(crate) const ALL: [Self; 2] = [Self::of(IdRange::Apps), Self::of(IdRange::Sandboxes)];

    /// Of guests whose images say so.
    pub(crate) const fn of(range: IdRange) -> Self {
        Self {
            first: match range {
                IdRange::Apps => 100_000,
                IdRange::Sandboxes => 165_536,
            },
        }
    }

    /// The range in which this id is root; none when it is nobody's.
    pub(crate) fn of_root(root: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ids| ids.first == root)
    }

    /// The node's id of the guest's root, user and group.
    pub(crate) fn root(self) -> u32 {
        self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap() {
        let [apps, sandboxes] = Ids::ALL;
        assert!(apps.root() + ID_COUNT <= sandboxes.root());
        assert_eq!(Ids::of_root(165_536), Some(sandboxes));
        assert_eq!(Ids::of_root(165_537), None);
        assert_eq!(Ids::of_root(0), None);
    }
}
