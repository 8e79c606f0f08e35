//! Our block in `/etc/network/interfaces`: the one writer of it.
//!
//! The controller makes its bridges itself. The block only names them, so that ifupdown and NetworkManager,
//! which both leave alone what this file calls `manual`, keep their hands off. It is there at most once,
//! between two lines that say whose it is, and everything else in the file stays as it is; only a last line
//! without an end gets one.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use api::InterfaceName;
use engine::ports::PortError;

/// Where Debian keeps it.
pub const FILE: &str = "/etc/network/interfaces";

const BEGIN: &str =
    "# BEGIN proximity: written by `proximity node prepare`; changes up to END are lost";
const END: &str = "# END proximity";
/// What begins a first line of ours, of this or another version.
const BEGINS: &str = "# BEGIN proximity";

/// What was done to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The block was written.
    Written,
    /// The block was taken out.
    Removed,
    /// All was as it should be.
    Nothing,
    /// This machine has no such file.
    NoFile,
}

/// Why the text of a file was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("a block of ours begins in line {0} and does not end, or begins twice")]
    Broken(usize),
    #[error("line {line} configures {interface}, which is to be ours")]
    Foreign { line: usize, interface: String },
}

/// Writes the block for these bridges into `file`; an empty list takes it out.
pub fn prepare(file: &Path, bridges: &[InterfaceName]) -> Result<Done, PortError> {
    let failed =
        |e: &dyn std::fmt::Display| PortError::new(format!("change {}", file.display()), e);
    let old = match fs::read_to_string(file) {
        Ok(old) => old,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Done::NoFile),
        Err(e) => return Err(failed(&e)),
    };
    let new = changed(&old, bridges).map_err(|refused| {
        failed(&refused).hint(format!(
            "nothing was changed; mend {} by hand",
            file.display()
        ))
    })?;
    if new == old {
        return Ok(Done::Nothing);
    }
    replace(file, &new).map_err(|e| failed(&e))?;
    Ok(if bridges.is_empty() {
        Done::Removed
    } else {
        Done::Written
    })
}

/// The whole file in one step, with the owner and mode that it had. A link stays a link.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let file = fs::canonicalize(file)?;
    let was = fs::metadata(&file)?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::Builder::new()
        .prefix(".interfaces.proximity-")
        .tempfile_in(directory)?;
    io::Write::write_all(&mut new, text.as_bytes())?;
    chown(new.path(), Some(was.uid()), Some(was.gid()))?;
    fs::set_permissions(new.path(), was.permissions())?;
    new.as_file().sync_all()?;
    new.persist(&file).map_err(|e| e.error)?;
    fs::File::open(directory)?.sync_all()
}

fn changed(old: &str, bridges: &[InterfaceName]) -> Result<String, Refused> {
    let mut kept = String::with_capacity(old.len());
    let mut began = None;
    let mut place = None;
    for (number, line) in (1..).zip(old.split_inclusive('\n')) {
        let text = line.trim_end();
        match began {
            None if text.starts_with(BEGINS) && place.is_none() => {
                began = Some(number);
                place = Some(kept.len());
            }
            None if text.starts_with(BEGINS) || text == END => return Err(Refused::Broken(number)),
            None => {
                if let Some(interface) = configured(text, bridges) {
                    return Err(Refused::Foreign {
                        line: number,
                        interface: interface.to_string(),
                    });
                }
                kept.push_str(line);
            }
            Some(_) if text == END => began = None,
            Some(_) if text.starts_with(BEGINS) => return Err(Refused::Broken(number)),
            Some(_) => {}
        }
    }
    if let Some(number) = began {
        return Err(Refused::Broken(number));
    }
    if bridges.is_empty() {
        return Ok(kept);
    }
    let at = place.unwrap_or(kept.len());
    let (before, after) = kept.split_at(at);
    let gap = if before.is_empty() || before.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    Ok(format!("{before}{gap}{}{after}", block(bridges)))
}

fn block(bridges: &[InterfaceName]) -> String {
    let mut text = format!("{BEGIN}\n");
    for bridge in bridges {
        // Writing to a String can't fail.
        let _ = writeln!(text, "iface {bridge} inet manual");
    }
    text.push_str(END);
    text.push('\n');
    text
}

/// The bridge of these that a line outside our block configures.
fn configured<'a>(line: &str, bridges: &'a [InterfaceName]) -> Option<&'a InterfaceName> {
    let mut words = line.split_whitespace();
    let named: Vec<&str> = match words.next()? {
        "iface" => words.take(1).collect(),
        "auto" => words.collect(),
        word if word.starts_with("allow-") => words.collect(),
        _ => return None,
    };
    bridges
        .iter()
        .find(|bridge| named.contains(&bridge.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    const DEBIAN: &str = "# The loopback network interface\nauto lo\niface lo inet loopback\n\nsource interfaces.d/*\n";

    fn bridges(names: &[&str]) -> Vec<InterfaceName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn the_block_is_there_once_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("interfaces");
        let ours = bridges(&["proximity-lan", "proximity-wan"]);
        assert_eq!(prepare(&file, &ours).unwrap(), Done::NoFile);
        fs::write(&file, DEBIAN).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(prepare(&file, &ours).unwrap(), Done::Written);
        assert_eq!(prepare(&file, &ours).unwrap(), Done::Nothing);
        insta::assert_snapshot!(fs::read_to_string(&file).unwrap(), @r"
        # The loopback network interface
        auto lo
        iface lo inet loopback

        source interfaces.d/*
        # BEGIN proximity: written by `proximity node prepare`; changes up to END are lost
        iface proximity-lan inet manual
        iface proximity-wan inet manual
        # END proximity
        ");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(prepare(&file, &bridges(&["lab0"])).unwrap(), Done::Written);
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.contains("lab0") && !text.contains("proximity-lan"),
            "{text}"
        );
        assert_eq!(prepare(&file, &[]).unwrap(), Done::Removed);
        assert_eq!(fs::read_to_string(&file).unwrap(), DEBIAN);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is beside it"
        );
    }

    #[test]
    fn what_is_somebody_elses_or_broken_is_left_alone() {
        let ours = bridges(&["proximity-lan"]);
        for (line, text) in [
            (3, format!("{BEGIN}\niface a inet manual\n{BEGIN}\n{END}\n")),
            (1, format!("{BEGIN}\niface a inet manual\n")),
            (2, format!("auto lo\n{END}\n")),
            (3, format!("{BEGIN}\n{END}\n{BEGIN}\n{END}\n")),
        ] {
            assert_eq!(changed(&text, &ours), Err(Refused::Broken(line)), "{text}");
            assert_eq!(changed(&text, &[]), Err(Refused::Broken(line)), "{text}");
        }
        for text in [
            "auto lo proximity-lan\n",
            "iface proximity-lan inet static\n",
            "  allow-hotplug\tproximity-lan\n",
        ] {
            let refused = changed(text, &ours).unwrap_err();
            assert!(
                matches!(refused, Refused::Foreign { line: 1, .. }),
                "{text}"
            );
            assert_eq!(changed(text, &[]).unwrap(), text);
        }
        assert!(changed("# auto proximity-lan\nauto proximity-lan2\n", &ours).is_ok());
    }

    proptest! {
        #[test]
        fn other_lines_stay_as_they_are(
            before in "([ -~]{0,20}\n){0,4}",
            after in "([ -~]{0,20}\n){0,4}",
            names in prop::collection::vec("[a-z][a-z0-9-]{0,13}", 0..3),
        ) {
            let names: Vec<InterfaceName> = names.iter().filter_map(|n| n.parse().ok()).collect();
            let text = format!("{before}{BEGIN}\niface old0 inet manual\n{END}\n{after}");
            let with = changed(&text, &names);
            prop_assume!(with.is_ok());
            let with = with.unwrap();
            prop_assert_eq!(changed(&with, &names).unwrap(), with.clone());
            prop_assert_eq!(changed(&with, &[]).unwrap(), format!("{before}{after}"));
            prop_assert!(!with.contains("old0"));
            for name in &names {
                let line = format!("iface {name} inet manual");
                prop_assert!(with.lines().any(|l| l == line));
            }
        }
    }
}
