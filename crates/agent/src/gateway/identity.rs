//! Numbers of users and groups, from the appliance's own `/etc/passwd` and `/etc/group`.

use std::path::Path;

use super::paths::Paths;
use crate::durable;

/// The numbers that Caddy runs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaddyUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Caddy's user and group, if the appliance has them.
pub fn caddy(paths: &Paths) -> Option<CaddyUser> {
    Some(CaddyUser {
        uid: number(&paths.passwd(), "caddy")?,
        gid: number(&paths.group(), "caddy")?,
    })
}

/// The third field of the line whose first one is `name`; the two files agree in that.
fn number(file: &Path, name: &str) -> Option<u32> {
    let text = String::from_utf8(durable::read_if_there(file).ok()??).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caddy_is_found_by_its_whole_name() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        assert_eq!(caddy(&paths), None);
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(
            paths.passwd(),
            "root:x:0:0::/:\ncaddyx:x:5:5::/:\ncaddy:x:996:7::/:\n",
        )
        .unwrap();
        std::fs::write(paths.group(), "caddy:x:997:\n").unwrap();
        assert_eq!(caddy(&paths), Some(CaddyUser { uid: 996, gid: 997 }));
    }
}
