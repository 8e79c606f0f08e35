//! The programs and images under test, found like the testbed finds itself. What is missing is a failure
//! that names the command which makes it, never a test left out.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

const BUILD_AGENT: &str = "RUSTFLAGS='-C target-feature=+crt-static' cargo build --profile agent \
                           --target x86_64-unknown-linux-gnu -p agent";
const BUILD_IMAGES: &str = "proximity image build --all";

/// The controller and command line.
pub fn proximity() -> &'static Path {
    static PATH: LazyLock<PathBuf> =
        LazyLock::new(|| find("PROXIMITY_BIN", "proximity", "cargo build -p cli"));
    &PATH
}

/// The static agent that goes into guests.
pub fn agent() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
        let built = "x86_64-unknown-linux-gnu/agent/proximity-agent";
        find("PROXIMITY_AGENT_BIN", built, BUILD_AGENT)
    });
    &PATH
}

/// The file that the variable names, or the one in a directory above this test program.
fn find(variable: &str, name: &str, make: &str) -> PathBuf {
    if let Some(named) = std::env::var_os(variable) {
        let named = PathBuf::from(named);
        assert!(
            named.is_file(),
            "{variable}: {} is no file",
            named.display()
        );
        return named;
    }
    let me = std::env::current_exe().unwrap();
    me.ancestors()
        .skip(1)
        .take(4)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not built: run `{make}`, or name it in {variable}"))
}

/// A look at the image cache, under way while a host starts.
pub struct ImagesLook(Child);

impl ImagesLook {
    pub fn start() -> Self {
        let child = Command::new(proximity())
            .args(["image", "list", "--json"])
            .env_remove("PROXIMITY_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// Every image that the appliance and the recipes need is there.
    pub fn expect_all(self) {
        let output = self.0.wait_with_output().unwrap();
        let images: Value = serde_json::from_slice(&output.stdout).unwrap();
        for image in images.as_array().unwrap() {
            assert!(
                image["cached"] == true,
                "the image of {} is not built: run `{BUILD_IMAGES}`",
                image["used_by"]
            );
        }
    }
}
