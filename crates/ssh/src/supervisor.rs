//! The shell program that stands between sshd and a command on the far side, and the one line that tells it what
//! to do.
//!
//! ```text
//!  sshd ─▶ login shell: exec /bin/sh -c 'PROGRAM'        constant: no value ever stands on a command line
//!            │  reads one line from standard input         (what to run, where, with which environment)
//!            ├─ the watcher, in the background: reads on until the channel ends
//!            └─ becomes the command: same process, so sshd reports its true end
//!
//!  the channel ends while the command lives (deadline, caller gone, connection lost)
//!            watcher: TERM to the whole tree, two seconds later KILL until nobody is left
//! ```
//!
//! The tree is found by what a process cannot lose by accident: its parent, the cookie in its environment, and a
//! soft limit of resident memory (which Linux inherits, shows and does not act on). The same idea, for guests with an
//! agent, is the crate `process-tree`.
//!
//! The program speaks POSIX shell with `grep`, `sleep` and, for standard input, `dd`: GNU, BusyBox and toybox. It
//! holds no single quote, backslash, exclamation mark or newline, so every login shell (bash, zsh, dash, fish, csh)
//! passes it on unchanged. Before the command there is one marker line on each stream; what login files print
//! before it is not the command's output.
//!
//! Pure.

use std::fmt::Write as _;

use zeroize::Zeroizing;

/// Marks of one run: nobody else's process has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marks {
    /// 32 hexadecimal digits.
    cookie: String,
    /// The soft limit in units of 1024 bytes.
    limit_kib: u64,
}

impl Marks {
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 22];
        getrandom::fill(&mut bytes)?;
        let (cookie, limit) = bytes.split_at(16);
        let bits = limit
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte));
        Ok(Self {
            cookie: hex::encode(cookie),
            // 2^52 KiB and more: no machine has so much memory, so it limits nothing.
            limit_kib: (1 << 52) | bits,
        })
    }

    /// The line, without its newline, that says that the command begins.
    pub fn started(&self) -> String {
        format!("{} S", self.cookie)
    }

    /// Whether a text holds what was sent, or a part of it.
    pub fn stand_in(&self, text: &str) -> bool {
        text.contains(&self.cookie) || text.contains("PROXIMITY_RUN")
    }

    /// The line that says that the directory cannot be entered.
    pub fn no_directory(&self) -> String {
        format!("{} D", self.cookie)
    }
}

/// Everything that the far side is told about a command. All of it is checked: no NUL bytes, names of variables are
/// identifiers, the program does not begin with a dash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order<'a> {
    pub argv: &'a [Vec<u8>],
    pub env: &'a [(String, Zeroizing<Vec<u8>>)],
    pub cwd: Option<&'a [u8]>,
    /// Whether standard input follows, in frames.
    pub input: bool,
}

/// Functions of the program. `$k` is the cookie, `$m` the limit in bytes.
///
/// * `o`: adds all descendants of what is in `$t`;
/// * `l`: looks for everything that belongs to the command, into `$t`;
/// * `h`: ends it;
/// * `w`: the watcher without standard input, `p` the one that passes frames on.
const FUNCTIONS: &str = concat!(
    "o(){ v=$(grep -s -e ^State: -e ^PPid: /proc/[0-9]*/status); e=1; while [ $e = 1 ]; do e=0; j=; ",
    "for f in $v; do case $j in ",
    "S) j=; d=$f;; ",
    "P) j=; case $d in Z|X) continue;; esac; ",
    "case $t in *\" $f \"*) case $t in *\" $q \"*) ;; *) t=\"$t$q \"; e=1;; esac;; esac;; ",
    "*) case $f in */status:State:) j=S;; */status:PPid:) j=P; q=${f#/proc/}; q=${q%%/*};; esac;; ",
    "esac; done; done; }; ",
    "b(){ a=; read -r a </proc/$$/stat || return 1; a=${a##*) }; case $a in Z*|X*|\"\") return 1;; esac; ",
    "set -- $a; shift 19; [ \"$1\" = \"$y\" ]; }; ",
    "l(){ t=\" \"; b && t=\" $$ \"; ",
    "for f in $(grep -ls -e \"$k\" -e \"$m\" /proc/[0-9]*/environ /proc/[0-9]*/limits); do ",
    "q=${f#/proc/}; q=${q%%/*}; case $t in *\" $q \"*) ;; *) t=\"$t$q \";; esac; done; o; ",
    "case $t in \" \") return 1;; esac; }; ",
    "h(){ b || exit 0; l && kill -TERM $t; x=0; while [ $x -lt 60 ]; do x=$((x+1)); ",
    "sleep 0.1 || sleep 1; l || exit 0; [ $x -gt 20 ] && kill -KILL $t; done; exit 1; }; ",
    "g(){ trap \"\" HUP INT TERM PIPE; read -r a </proc/$$/stat || exit 0; a=${a##*) }; set -- $a; shift 19; y=$1; }; ",
    "w(){ g; while read -r a; do :; done; h; }; ",
    "p(){ g; while read -r a; do case $a in 0) exec >/dev/null;; ",
    "*) dd bs=$a count=1 iflag=fullblock;; esac; done; exec >/dev/null; h; }; ",
);

/// Reads the order, starts the watcher, becomes the command. Redirections of the watcher are made by `exec` in a
/// subshell of its own: those of a function call are saved, and what is saved keeps the command's output open.
const MAIN: &str = concat!(
    "IFS= read -r z || exit 125; eval \"$z\"; ",
    "if [ $i = 0 ]; then exec 3<&0 </dev/null; ( (exec <&3 >/dev/null 2>&1 3<&-; w) & ); exec 3<&-; c; ",
    "else exec 3<&0; { ( (exec <&3 2>/dev/null 3<&-; p) & ); } | { exec 3<&-; c; }; fi",
);

/// What is asked of sshd. With another user than the one that logs in, by `sudo`, or by `runuser` for root.
pub(crate) fn exec_line(login: &str, user: Option<&str>) -> String {
    let become_user = match user {
        Some(user) if user != login && login == "root" => format!("runuser -u {user} -- "),
        Some(user) if user != login => format!("sudo -n -u {user} -- "),
        _ => String::new(),
    };
    format!("exec {become_user}/bin/sh -c '{FUNCTIONS}{MAIN}'")
}

/// The one line that the program reads, with its newline. It holds the values of the environment: wiped when dropped.
pub(crate) fn order_line(order: Order<'_>, marks: &Marks) -> Zeroizing<Vec<u8>> {
    let mut line = Zeroizing::new(Vec::with_capacity(4096));
    let has_newline = |bytes: &[u8]| bytes.contains(&b'\n');
    let newlines = order.argv.iter().any(|word| has_newline(word))
        || order.env.iter().any(|(_, value)| has_newline(value))
        || order.cwd.is_some_and(has_newline);
    if newlines {
        line.extend_from_slice(b"n=$(printf \"\\012x\");n=${n%x};");
    }
    let mut head = String::new();
    let limit = marks.limit_kib.saturating_mul(1024);
    let _ = write!(
        head,
        "k={};m={limit};i={};c(){{ ",
        marks.cookie,
        u8::from(order.input)
    );
    line.extend_from_slice(head.as_bytes());
    if let Some(cwd) = order.cwd {
        // A relative directory that begins with a dash is an option to nobody.
        line.extend_from_slice(b"cd ");
        if cwd.first() != Some(&b'/') {
            line.extend_from_slice(b"./");
        }
        quote(cwd, &mut line);
        line.extend_from_slice(b" >/dev/null||{ echo \"$k D\";exit 125;};");
    }
    let _ = write_bytes(
        &mut line,
        &format!("ulimit -S -m {} 2>/dev/null;", marks.limit_kib),
    );
    for (name, value) in order.env {
        let _ = write_bytes(&mut line, &format!("export {name}="));
        quote(value, &mut line);
        line.push(b';');
    }
    line.extend_from_slice(b"export PROXIMITY_RUN=$k;echo \"$k S\";echo \"$k S\">&2;exec ");
    for word in order.argv {
        quote(word, &mut line);
        line.push(b' ');
    }
    line.extend_from_slice(b"; };\n");
    line
}

fn write_bytes(line: &mut Vec<u8>, text: &str) -> std::fmt::Result {
    line.extend_from_slice(text.as_bytes());
    Ok(())
}

/// A word of POSIX shell that is exactly these bytes; a newline is `$n`.
fn quote(word: &[u8], line: &mut Vec<u8>) {
    line.push(b'\'');
    for byte in word {
        match byte {
            b'\'' => line.extend_from_slice(b"'\\''"),
            b'\n' => line.extend_from_slice(b"'\"$n\"'"),
            other => line.push(*other),
        }
    }
    line.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_login_shell_passes_the_program_on_unchanged() {
        for character in ['\'', '\\', '!', '\n'] {
            assert!(!FUNCTIONS.contains(character), "{character:?}");
            assert!(!MAIN.contains(character), "{character:?}");
        }
    }

    #[test]
    fn an_order_is_one_line() {
        let marks = Marks::new().unwrap();
        let argv = [b"printf".to_vec(), b"a\nb'c".to_vec()];
        let env = [("A".to_owned(), Zeroizing::new(b"x\ny".to_vec()))];
        let order = Order {
            argv: &argv,
            env: &env,
            cwd: Some(b"-x"),
            input: true,
        };
        let line = order_line(order, &marks);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert!(line.ends_with(b"; };\n"));
    }

    #[test]
    fn another_user_is_become_by_the_right_program() {
        assert!(exec_line("root", None).starts_with("exec /bin/sh -c '"));
        assert!(exec_line("root", Some("root")).starts_with("exec /bin/sh -c '"));
        assert!(exec_line("root", Some("web")).starts_with("exec runuser -u web -- /bin/sh -c '"));
        assert!(exec_line("op", Some("web")).starts_with("exec sudo -n -u web -- /bin/sh -c '"));
    }
}
