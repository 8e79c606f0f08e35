//! `doctor`: shows what this machine lacks as a node, and the commands that mend it.

use serde_json::json;

use crate::arguments::Globals;
use crate::connection;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::screen::{Look, Screen};
use backends::doctor::{self as examination, Finding};

/// Looks at this machine and shows what was found; exit code 1 if something is lacking.
pub fn run(globals: &Globals, screen: &Screen) -> Result<Exit, Failure> {
    let findings = examination::examine_for(&connection::data_dir(globals)?);
    let ok = findings.iter().all(|f| f.ok);
    if screen.json() {
        let install = examination::install_line(&findings);
        screen.document(&json!({ "ok": ok, "findings": findings, "install": install }))?;
    } else {
        screen.print(&text(&findings, screen.out()))?;
    }
    Ok(if ok { Exit::OK } else { Exit::FAILED })
}

fn text(findings: &[Finding], look: Look) -> String {
    let width = findings.iter().map(|f| f.name.len()).max().unwrap_or(0);
    let indent = if look.fancy { "    " } else { "       " };
    let mut lines = Vec::new();
    for finding in findings {
        let sign = if finding.ok { look.good() } else { look.bad() };
        let detail = guest_text::line(&finding.detail);
        lines.push(format!("{sign} {:width$}  {detail}", finding.name));
        // Packages have one line for all of them at the end as well.
        if let Some(mend) = finding.mend.as_deref().filter(|_| !finding.ok) {
            lines.push(format!("{indent}{}", guest_text::line(mend)));
        }
    }
    let lacking = findings.iter().filter(|f| !f.ok).count();
    lines.push(String::new());
    if lacking == 0 {
        lines.push("This machine can be a node.".to_owned());
    } else {
        let things = if lacking == 1 {
            "thing is"
        } else {
            "things are"
        };
        lines.push(format!("{lacking} {things} lacking."));
    }
    if let Some(install) = examination::install_line(findings) {
        lines.push("All missing packages at once:".to_owned());
        lines.push(format!("{indent}{install}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(name: &str, ok: bool, mend: Option<&str>, package: Option<&str>) -> Finding {
        Finding {
            name: name.to_owned(),
            ok,
            detail: if ok { "/usr/bin/x" } else { "not found" }.to_owned(),
            mend: mend.map(str::to_owned),
            package: package.map(str::to_owned),
        }
    }

    #[test]
    fn lacks_come_with_what_mends_them() {
        let findings = [
            finding("tar", true, None, None),
            finding(
                "nft",
                false,
                Some("apt-get install -y nftables"),
                Some("nftables"),
            ),
            finding(
                "lxc-start",
                false,
                Some("apt-get install -y lxc"),
                Some("lxc"),
            ),
        ];
        insta::assert_snapshot!(text(&findings, Look::PLAIN), @r"
        ok   tar        /usr/bin/x
        FAIL nft        not found
               apt-get install -y nftables
        FAIL lxc-start  not found
               apt-get install -y lxc

        2 things are lacking.
        All missing packages at once:
               apt-get update && apt-get install -y lxc nftables
        ");
    }

    #[test]
    fn a_node_is_told_so() {
        insta::assert_snapshot!(text(&[finding("tar", true, None, None)], Look::PLAIN), @r"
        ok   tar  /usr/bin/x

        This machine can be a node.
        ");
    }
}
