//! How a tunnel through a relay begins. Everything before the splice is below 4 KiB and must be done
//! within five seconds.
//!
//! ```text
//!   controller                                relay
//!     ── "PXT1" ──────────────────────────────▶
//!     ◀── nonce: 16 bytes, fresh for this connection
//!     ── length (u16, big-endian) + token ────▶   JWT with scope tunnel: aud = the appliance,
//!                                                 nonce, target, exp
//!     ◀── one byte: 0, or 1 + length (u16) + reason in UTF-8, then close
//!     ◀═══ bytes of a connection to the target ═══▶
//! ```
//!
//! A preface can't be replayed: the nonce exists for one connection only, whatever the relay forgets
//! in a restart. The relay connects to its own zone's addresses and to the agent port only.

/// What a tunnel begins with.
pub const MAGIC: [u8; 4] = *b"PXT1";
/// Length of the relay's nonce in bytes.
pub const NONCE_BYTES: usize = 16;
/// A token is at most this long, in bytes.
pub const TOKEN_MAX_BYTES: u16 = 2048;
/// The tunnel is open.
pub const OPEN: u8 = 0;
/// The tunnel is refused; a reason follows.
pub const REFUSED: u8 = 1;
/// How both hops of a tunnel pace what they send, as the kernel names it. They lie within one machine, where
/// what is made for long ways (BBR) loses a third to its timers; every Linux has this one.
pub const CONGESTION: &str = "reno";
