//! Remote execution against real servers of OpenSSH, each started by its test on an address of 127.0.0.0/8.

#![cfg(test)]

mod ending;
mod exec;
mod jump;
mod relay;
mod sessions;
mod sshd;
mod terminal;
mod transfer;
mod trust;
