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
//! On a connection that is kept, one *warden* watches over all commands instead, in a session of its own: a command
//! then costs nothing but its own start. It knows the connection's commands by their marks, which hold the number of
//! the command and of its first process; so it needs not be told of any, and tells the one that still runs from what
//! an ended one left behind on purpose.
//!
//! ```text
//!  warden   ◀─ K NUMBER PID     end this command (deadline, caller gone)
//!           ◀─ Q                go: nothing runs
//!           ◀─ end of input     the connection is gone: end every command whose first process lives
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
    /// The soft limit in units of 1024 bytes; with a warden the number of the command's first process is added.
    limit_kib: u64,
}

/// Who ends a command's tree when nobody else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// A watcher of its own.
    Own,
    /// The connection's, which is this process.
    Warden(u32),
    /// The terminal itself, which hangs up when its connection goes.
    Terminal,
    /// Nobody: it does nothing but take its standard input, and ends with that, so also with its connection.
    Input,
}

impl Marks {
    /// Those of one of a connection's commands: `connection` are the connection's own.
    pub fn numbered(connection: &Self, number: u32) -> Self {
        Self {
            cookie: format!("{}.{number}", connection.cookie),
            limit_kib: connection.limit_kib,
        }
    }

    /// Those of a connection: its limits leave room for the number of any process.
    pub fn of_connection() -> Result<Self, getrandom::Error> {
        let mut marks = Self::new()?;
        marks.limit_kib = marks.limit_kib >> PROCESS_BITS << PROCESS_BITS;
        Ok(marks)
    }

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

    /// What stands before the number of the command's first process, where a warden watches.
    pub fn process(&self) -> String {
        format!("{} P ", self.cookie)
    }

    /// The line that says that the warden was gone, so that nothing was begun.
    pub fn unwatched(&self) -> String {
        format!("{} G", self.cookie)
    }

    /// What stands before a warden's own number and the login shell.
    pub fn ready(&self) -> String {
        format!("{} W ", self.cookie)
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

/// How many bits the number of a process has at most on Linux.
const PROCESS_BITS: u32 = 22;

/// Functions of the programs. `$k` is the cookie, `$m` the limit in bytes, `$r` the command's first process and `$y`
/// when that began.
///
/// * `o`: adds all descendants of what is in `$t`;
/// * `y`: looks up when the first process began; `b`: whether it lives;
/// * `l`: looks for everything that belongs to the command, into `$t`;
/// * `h`: ends it.
const ENDING: &str = concat!(
    "o(){ v=$(grep -s -e ^State: -e ^PPid: /proc/[0-9]*/status); e=1; while [ $e = 1 ]; do e=0; j=; ",
    "for f in $v; do case $j in ",
    "S) j=; d=$f;; ",
    "P) j=; case $d in Z|X) continue;; esac; ",
    "case $t in *\" $f \"*) case $t in *\" $q \"*) ;; *) t=\"$t$q \"; e=1;; esac;; esac;; ",
    "*) case $f in */status:State:) j=S;; */status:PPid:) j=P; q=${f#/proc/}; q=${q%%/*};; esac;; ",
    "esac; done; done; }; ",
    "y(){ a=; read -r a </proc/$r/stat || return 1; a=${a##*) }; set -- $a; shift 19; y=$1; }; ",
    "b(){ a=; read -r a </proc/$r/stat || return 1; a=${a##*) }; case $a in Z*|X*|\"\") return 1;; esac; ",
    "set -- $a; shift 19; [ \"$1\" = \"$y\" ]; }; ",
    "l(){ t=\" \"; b && t=\" $r \"; ",
    "for f in $(grep -ls -e \"$k\" -e \"$m\" /proc/[0-9]*/environ /proc/[0-9]*/limits); do ",
    "q=${f#/proc/}; q=${q%%/*}; case $t in *\" $q \"*) ;; *) t=\"$t$q \";; esac; done; o; ",
    "case $t in \" \") return 1;; esac; }; ",
    "h(){ b || exit 0; l && kill -TERM $t; x=0; while [ $x -lt 60 ]; do x=$((x+1)); ",
    "sleep 0.1 || sleep 1; l || exit 0; [ $x -gt 20 ] && kill -KILL $t; done; exit 1; }; ",
);

/// `w`: the watcher of one command without standard input, `p` the one that passes frames on.
const WATCHER: &str = concat!(
    "g(){ trap \"\" HUP INT TERM PIPE; r=$$; y || exit 0; }; ",
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

/// With a warden: reads the order and becomes the command.
const WATCHED_MAIN: &str = "IFS= read -r z || exit 125; eval \"$z\"";

/// The warden. `$c` is the connection's cookie, `$u` its limit in units of 1024 bytes.
///
/// * `n`: ends command `$1`, whose first process is `$2`, or 0 if nobody has heard of it yet;
/// * `s`: the first process `$r` of some command lives on after the connection: ends that command;
/// * `f`: looks for all of those.
const WARDEN: &str = concat!(
    "n(){ k=\"$c[.]$1[.]\"; r=$2; x=0; while [ $r = 0 ]; do ",
    "for f in $(grep -ls -e \"$k\" /proc/[0-9]*/environ); do q=${f#/proc/}; q=${q%%/*}; ",
    "grep -qs -e \"$k$q[.]\" $f && r=$q; done; ",
    "[ $x -gt 20 ] && exit 0; x=$((x+1)); [ $r = 0 ] && { sleep 0.1 || sleep 1; }; done; ",
    "m=$(((u+r)*1024)); y && h; }; ",
    "s(){ k=\"$c[.][0-9]*[.]$r[.]\"; m=$(((u+r)*1024)); y && h; }; ",
    "f(){ for f in $(grep -s -e resident /proc/[0-9]*/limits); do case $j in ",
    "1) j=; [ \"$f\" = $(((u+r)*1024)) ] && { (s) & };; ",
    "*) case $f in /proc/*) r=${f#/proc/}; r=${r%%/*};; set) j=1;; esac;; esac; done; ",
    "for f in $(grep -ls -e \"$c\" /proc/[0-9]*/environ); do r=${f#/proc/}; r=${r%%/*}; ",
    "grep -qs -e \"$c[.][0-9]*[.]$r[.]\" $f && { (s) & }; done; wait; }; ",
    "IFS= read -r z || exit 125; eval \"$z\"; trap \"\" HUP INT TERM PIPE; echo \"$c W $$ $SHELL\"; ",
    "while read -r a d r; do case $a in K) ( (exec </dev/null >/dev/null 2>&1; n $d $r) & );; ",
    "Q) exit 0;; esac; done; exec </dev/null >/dev/null 2>&1; j=; f; sleep 1; f; sleep 1; f",
);

/// What is asked of sshd for a command with a watcher of its own. With another user than the one that logs in, by
/// `sudo`, or by `runuser` for root.
pub(crate) fn exec_line(login: &str, user: Option<&str>) -> String {
    let become_user = become_user(login, user);
    format!("exec {become_user}/bin/sh -c '{ENDING}{WATCHER}{MAIN}'")
}

/// What is asked of sshd for a program that needs no watcher: one in a terminal, or one that ends with its input.
pub(crate) fn unwatched_line(login: &str, user: Option<&str>) -> String {
    format!(
        "exec {}/bin/sh -c '{WATCHED_MAIN}'",
        become_user(login, user)
    )
}

fn become_user(login: &str, user: Option<&str>) -> String {
    match other_user(login, user) {
        Some(user) if login == "root" => format!("runuser -u {user} -- "),
        Some(user) => format!("sudo -n -u {user} -- "),
        None => String::new(),
    }
}

/// The user that a command is to run as, if it is not the one that logs in.
pub(crate) fn other_user<'a>(login: &str, user: Option<&'a str>) -> Option<&'a str> {
    user.filter(|user| *user != login)
}

/// What is asked of sshd for a command that the connection's warden watches. A login shell that speaks POSIX reads
/// the order itself.
pub(crate) fn watched_line(shell_is_posix: bool) -> String {
    if shell_is_posix {
        WATCHED_MAIN.to_owned()
    } else {
        format!("exec /bin/sh -c '{WATCHED_MAIN}'")
    }
}

/// What is asked of sshd for a warden.
pub(crate) fn warden_line() -> String {
    format!("exec /bin/sh -c '{ENDING}{WARDEN}'")
}

/// The one line that a warden reads before its orders, with its newline.
pub(crate) fn warden_order(marks: &Marks) -> String {
    format!("c={};u={}\n", marks.cookie, marks.limit_kib)
}

/// The one line that the program reads, with its newline. It holds the values of the environment: wiped when dropped.
pub(crate) fn order_line(order: Order<'_>, marks: &Marks, watch: Watch) -> Zeroizing<Vec<u8>> {
    let mut line = Zeroizing::new(Vec::with_capacity(4096));
    let has_newline = |bytes: &[u8]| bytes.contains(&b'\n');
    let newlines = order.argv.iter().any(|word| has_newline(word))
        || order.env.iter().any(|(_, value)| has_newline(value))
        || order.cwd.is_some_and(has_newline);
    if newlines {
        line.extend_from_slice(b"n=$(printf \"\\012x\");n=${n%x};");
    }
    let mut head = format!("k={};", marks.cookie);
    let _ = match watch {
        Watch::Own => {
            let (limit, input) = (marks.limit_kib.saturating_mul(1024), u8::from(order.input));
            write!(head, "m={limit};i={input};c(){{ ")
        }
        // The mark comes first: whoever sees the warden alive after it is seen by the warden.
        Watch::Warden(process) => write!(
            head,
            "ulimit -S -m $(({}+$$)) 2>/dev/null;kill -0 {process} 2>/dev/null||{{ echo \"$k G\";exit 125;}};",
            marks.limit_kib
        ),
        Watch::Terminal | Watch::Input => Ok(()),
    };
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
    if watch == Watch::Own {
        let _ = write_bytes(
            &mut line,
            &format!("ulimit -S -m {} 2>/dev/null;", marks.limit_kib),
        );
    }
    for (name, value) in order.env {
        let _ = write_bytes(&mut line, &format!("export {name}="));
        quote(value, &mut line);
        line.push(b';');
    }
    line.extend_from_slice(match watch {
        Watch::Own | Watch::Input => {
            b"export PROXIMITY_RUN=$k;echo \"$k S\";echo \"$k S\">&2;exec ".as_slice()
        }
        Watch::Warden(_) => {
            b"export PROXIMITY_RUN=$k.$$.;echo \"$k S\";echo \"$k P $$ $k S\">&2;exec "
        }
        // Until now it was raw, so that the order came as it is.
        Watch::Terminal => b"stty sane;echo \"$k S\";exec ",
    });
    for word in order.argv {
        quote(word, &mut line);
        line.push(b' ');
    }
    line.extend_from_slice(match watch {
        Watch::Own => b"; };\n".as_slice(),
        Watch::Terminal | Watch::Input => b"\n",
        Watch::Warden(_) if order.input => b"\n",
        Watch::Warden(_) => b"</dev/null\n",
    });
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
            for program in [ENDING, WATCHER, MAIN, WATCHED_MAIN, WARDEN] {
                assert!(!program.contains(character), "{character:?}");
            }
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
        for watch in [Watch::Own, Watch::Warden(7), Watch::Terminal] {
            let line = order_line(order, &marks, watch);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert!(line.ends_with(b"\n"));
        }
    }

    #[test]
    fn limits_of_a_connection_leave_room_for_the_number_of_a_process() {
        let marks = Marks::of_connection().unwrap();
        assert_eq!(marks.limit_kib % (1 << PROCESS_BITS), 0);
        assert!(marks.limit_kib >= 1 << 52);
        // In bytes it is still a number to a shell.
        assert!(marks.limit_kib < 1 << 53);
    }

    #[test]
    fn another_user_is_become_by_the_right_program() {
        assert!(exec_line("root", None).starts_with("exec /bin/sh -c '"));
        assert!(exec_line("root", Some("root")).starts_with("exec /bin/sh -c '"));
        assert!(exec_line("root", Some("web")).starts_with("exec runuser -u web -- /bin/sh -c '"));
        assert!(exec_line("op", Some("web")).starts_with("exec sudo -n -u web -- /bin/sh -c '"));
    }
}
