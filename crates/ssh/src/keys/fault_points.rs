//! Points at which a test stops a replacement of keys. Debug builds only; in a release build there is no such code.
//!
//! `PROXIMITY_FAULT_POINTS` names a directory. Its file `passed` gets a line for each point that is reached, `stage begin`
//! when that step is recorded and not yet taken, `stage done` when it is taken; whoever reaches the point that the file
//! `hold` names does not go on while it says so.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// A point is reached. Comes back when nobody holds us here.
pub async fn passed(point: &str) {
    let Some(dir) = std::env::var_os("PROXIMITY_FAULT_POINTS").map(PathBuf::from) else {
        return;
    };
    let log = File::options()
        .append(true)
        .create(true)
        .open(dir.join("passed"));
    // A test that sees no point passed fails by itself.
    let _: std::io::Result<()> =
        log.and_then(|mut log| log.write_all(format!("{point}\n").as_bytes()));
    while fs::read_to_string(dir.join("hold")).unwrap_or_default() == point {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
