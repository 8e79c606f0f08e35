//! Remote execution against real servers of OpenSSH, each started by its test on an address of 127.0.0.0/8.

#![cfg(test)]

mod agent;
mod certificates;
mod ending;
mod evidence;
mod exec;
mod faults;
mod jump;
mod keys;
mod parsers;
mod relay;
mod sessions;
mod ssh_config;
mod sshd;
mod terminal;
mod transfer;
mod tree;
mod trust;
