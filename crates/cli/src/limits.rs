//! Flags for what a guest may use, the same wherever one is made.

use api::app::LimitsRequest;
use clap::Args;

use crate::quantity;

/// What is left out comes from the recipe or the image.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Cores (0.5) or thousandths of one (500m)
    #[arg(long, value_name = "CORES", value_parser = quantity::cpu_millis)]
    pub cpu: Option<u32>,
    /// Memory, like 256M or 1G
    #[arg(long, value_name = "SIZE", value_parser = quantity::memory_mb)]
    pub memory: Option<u32>,
    /// Most processes and threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pids: Option<u32>,
    /// Size of the disk, like 8G
    #[arg(long, value_name = "SIZE", value_parser = quantity::disk_gb)]
    pub disk: Option<u32>,
}

impl LimitArgs {
    /// As the API takes them.
    pub fn request(&self) -> LimitsRequest {
        LimitsRequest {
            cpu_millis: self.cpu,
            memory_mb: self.memory,
            pids: self.pids,
            disk_gb: self.disk,
        }
    }
}
