//! How a root file system is put together: one list of commands for each family of distributions.
//!
//! Packages come from the machine's own sources, never from an address of ours. Each command runs in namespaces of
//! its own; what the last one leaves is a tar of the whole file system. Plans only: nothing is run here.

use std::fs;
use std::path::Path;

use engine::image::ImageSpec;
use engine::ports::PortError;
use wire::family::{Argv, FamilyName};

use super::sources;

/// Where a build works.
pub(super) struct Place<'a> {
    /// Its directory.
    pub(super) work: &'a Path,
    /// Files that go over what packages bring.
    pub(super) overlay: &'a Path,
    /// A script that finishes the file system named by its argument.
    pub(super) hook: &'a Path,
    /// What comes out.
    pub(super) tar: &'a Path,
}

/// The commands that make an image's tar. `options` are settings of the machine's apt.
pub(super) fn steps(
    spec: &ImageSpec,
    place: &Place<'_>,
    options: &[String],
) -> Result<Vec<Argv>, PortError> {
    match spec.family {
        FamilyName::Debian => debian(spec, place, options, &sources::of_suite(&spec.suite)),
        FamilyName::Alpine => alpine(spec, place),
    }
}

/// What a builder says went wrong.
pub(super) fn cause(said: &str) -> Option<&str> {
    let complaint = |line: &&str| line.starts_with("E:") || line.starts_with("ERROR:");
    said.lines().rfind(complaint)
}

/// mmdebstrap does it all, in a directory of its own, outside of everything.
fn debian(
    spec: &ImageSpec,
    place: &Place<'_>,
    options: &[String],
    sources: &[std::path::PathBuf],
) -> Result<Vec<Argv>, PortError> {
    let mut argv: Argv = [
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        "--format=tar",
        "--aptopt=Apt::Install-Recommends \"false\"",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
    ]
    .map(str::to_owned)
    .into();
    argv.push(format!("--include={}", spec.packages.join(",")));
    let (overlay, hook) = (plain(place.overlay)?, plain(place.hook)?);
    argv.push(format!("--customize-hook=sync-in {overlay} /"));
    argv.push(format!("--customize-hook={hook}"));
    argv.extend(options.iter().map(|o| format!("--aptopt={o}")));
    argv.push(spec.suite.clone());
    argv.push(plain(place.tar)?.to_owned());
    let sources = sources.iter().map(|s| s.display().to_string());
    argv.extend(sources);
    Ok(vec![argv])
}

/// apk installs, with the machine's own keys and repositories; the rest is plain copying.
fn alpine(spec: &ImageSpec, place: &Place<'_>) -> Result<Vec<Argv>, PortError> {
    let apk = [
        "/sbin/apk",
        "/usr/sbin/apk",
        "/usr/bin/apk",
        "/usr/local/bin/apk",
    ];
    if !cfg!(test) && !apk.iter().any(|path| fs::exists(path).unwrap_or(false)) {
        return Err(PortError::new("build an image of Alpine", "this machine has no `apk`").hint(
            "install Alpine's static apk-tools with /etc/apk/keys and /etc/apk/repositories, or write `os: debian`",
        ));
    }
    let root = place.work.join("root");
    let root = plain(&root)?;
    let words = |words: &[&str]| -> Argv { words.iter().map(|w| (*w).to_owned()).collect() };
    let mut install = words(&[
        "apk",
        "--root",
        root,
        "--initdb",
        "--no-cache",
        "--no-progress",
        "--keys-dir",
        "/etc/apk/keys",
        "--repositories-file",
        "/etc/apk/repositories",
        "add",
    ]);
    install.extend(spec.packages.iter().cloned());
    let overlay = format!("{}/.", plain(place.overlay)?);
    Ok(vec![
        words(&["mkdir", root]),
        install,
        words(&["cp", "-r", "--preserve=mode", &overlay, root]),
        words(&[plain(place.hook)?, root]),
        words(&[
            "tar",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "-C",
            root,
            "-cf",
            plain(place.tar)?,
            ".",
        ]),
        words(&["rm", "-rf", "--one-file-system", "--", root]),
    ])
}

/// Paths of ours, which a builder may give to a shell.
fn plain(path: &Path) -> Result<&str, PortError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    match path.to_str() {
        Some(s) if s.chars().all(plain) => Ok(s),
        _ => Err(PortError::new(
            "build an image",
            format!("{} has unusual characters", path.display()),
        )
        .hint("use an image directory of letters, digits and / . _ -")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(os: FamilyName, work: &str) -> Result<String, PortError> {
        let work = Path::new(work);
        let (overlay, hook, tar) = (
            work.join("files"),
            work.join("finish"),
            work.join("rootfs.tar"),
        );
        let place = Place {
            work,
            overlay: &overlay,
            hook: &hook,
            tar: &tar,
        };
        let spec = engine::zone::appliance_image(os);
        spec.check().unwrap();
        let options = ["Acquire::http::Proxy \"http://p.example:3128\"".to_owned()];
        let steps = match os {
            FamilyName::Debian => {
                debian(&spec, &place, &options, &["/etc/apt/sources.list".into()])
            }
            FamilyName::Alpine => alpine(&spec, &place),
        };
        let lines = steps?.into_iter().map(|argv| argv.join("\n  ") + "\n");
        Ok(lines.collect::<String>() + "---\n" + &super::super::finish_script(&spec))
    }

    #[test]
    fn an_appliance_of_debian() {
        insta::assert_snapshot!(planned(FamilyName::Debian, "/images/d.partial").unwrap());
    }

    #[test]
    fn an_appliance_of_alpine() {
        insta::assert_snapshot!(planned(FamilyName::Alpine, "/images/d.partial").unwrap());
    }

    #[test]
    fn a_directory_that_a_shell_could_misread_is_refused() {
        for os in [FamilyName::Debian, FamilyName::Alpine] {
            assert!(planned(os, "/images/$(x)").is_err());
        }
    }

    #[test]
    fn causes_are_found_among_warnings() {
        assert_eq!(cause("W: a\nE: b\nI: c\n"), Some("E: b"));
        assert_eq!(cause("WARNING: a\nERROR: b\n"), Some("ERROR: b"));
        assert_eq!(cause("nothing of it\n"), None);
    }
}
