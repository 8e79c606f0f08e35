//! A terminal of the test's own, with a person at one end and a program of a host at the other.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::PATIENCE;

/// See the module's documentation.
pub struct Terminal {
    person: File,
    program: File,
    comes: Receiver<Vec<u8>>,
}

impl Terminal {
    /// A terminal of this size, with the settings of a fresh one.
    pub fn open(rows: u16, cols: u16) -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let program = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
        let (shown, comes) = channel();
        let mut screen = File::from(person.try_clone().unwrap());
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // Fails when the last program has closed its end.
            while let Ok(length) = screen.read(&mut piece) {
                if shown.send(piece[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let terminal = Self {
            person: File::from(person),
            program: File::from(program),
            comes,
        };
        terminal.resize(rows, cols);
        terminal
    }

    /// Starts a command whose terminal, of its own session, this is.
    pub fn start(&self, mut command: Command) -> Child {
        let stream = || self.program.try_clone().unwrap();
        command.stdin(stream()).stdout(stream()).stderr(stream());
        command.spawn().unwrap()
    }

    pub fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.person, size).unwrap();
    }

    pub fn type_in(&mut self, keys: &[u8]) {
        self.person.write_all(keys).unwrap();
    }

    /// Waits until the screen shows this; returns all that it showed until then and since the last time.
    pub fn until_shown(&self, wanted: &str) -> String {
        let mut shown = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&shown);
            if text.contains(wanted) {
                return text.into_owned();
            }
            match self.comes.recv_timeout(PATIENCE) {
                Ok(piece) => shown.extend(piece),
                Err(e) => panic!("{wanted:?} is not shown ({e}): {text:?}"),
            }
        }
    }

    /// What can be compared of its settings.
    pub fn settings(&self) -> String {
        let Termios {
            input_modes,
            output_modes,
            control_modes,
            local_modes,
            ..
        } = tcgetattr(&self.program).unwrap();
        format!("{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?}")
    }
}
