//! Remote execution against real servers of OpenSSH, each started by its test on an address of 127.0.0.0/8.

#![cfg(test)]

mod ending;
mod evidence;
mod exec;
mod faults;
mod jump;
mod relay;
mod sshd;
mod transfer;
mod tree;
mod trust;
