//! A host of one's own with `proximity serve` on it, and the ways to talk to it: the command line as a
//! person uses it, the API over the controller's socket. Shows the controller's log when a test fails.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testbed::Host;

use super::eventually;
use super::programs::{self, ImagesLook};
use crate::Place;

/// Where a host has its guests.
pub const GUESTS: &str = "/var/lib/proximity/guests";
/// The environment of every command: nothing of the caller's, whose proxies and variables are not ours.
const ENVIRONMENT: [(&str, &str); 4] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("NO_COLOR", "1"),
];
/// Tells the controller of a debug build where its fault points are.
const FAULT_POINTS: &str = "PROXIMITY_FAULT_POINTS";
/// How much of the log a failed test shows, in lines.
const LOG_SHOWN: usize = 80;

/// See the module's documentation. Dropped, all of it is gone.
pub struct Controller {
    pub host: Host,
    place: Place,
    serving: Option<u32>,
    /// Whether it can be held at its records, see [`super::walk`].
    pub fault_points: bool,
}

/// How a command ended.
pub struct Ran {
    line: String,
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ran {
    /// The command ended with this code, or the test fails.
    pub fn expect(self, code: i32) -> Self {
        let out = String::from_utf8_lossy(&self.out);
        let tail = |text: &str| text.lines().rev().take(40).collect::<Vec<_>>().join("\n");
        assert_eq!(
            self.code,
            code,
            "`{}` said (last line first)\n{}\n{}",
            self.line,
            tail(&out),
            tail(&self.err)
        );
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.out)
            .unwrap_or_else(|e| panic!("`{}` printed no JSON: {e}: {:?}", self.line, self.text()))
    }
}

impl Controller {
    /// A host on which nothing serves yet.
    pub fn on_a_host() -> Self {
        let images = ImagesLook::start();
        let (place, host) = crate::start();
        images.expect_all();
        Self {
            host,
            place,
            serving: None,
            fault_points: false,
        }
    }

    /// A controller with the built-in configuration and no zone up.
    pub fn start() -> Self {
        let mut controller = Self::on_a_host();
        controller.serve();
        controller
    }

    /// A controller with this configuration.
    pub fn configured(config: &str) -> Self {
        let mut controller = Self::on_a_host();
        controller.write_etc("config.yml", config);
        controller.serve();
        controller
    }

    /// A controller with its zone up.
    pub fn up() -> Self {
        let controller = Self::start();
        controller.ok(["up"]);
        controller
    }

    /// The same, where agents are reached through their zone's relay, as on a node elsewhere.
    pub fn up_through_relay() -> Self {
        let controller =
            Self::configured("nodes: { local: { backend: lxc, through_relay: true } }\n");
        controller.ok(["up"]);
        controller
    }

    /// Writes a file of the host's `/etc/proximity`; returns its path inside.
    pub fn write_etc(&self, name: &str, content: &str) -> String {
        let file = self.host.state().join("etc").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
        format!("/etc/proximity/{name}")
    }

    // ── the controller's process ──

    /// The command line that serves, as the words of a command in the host.
    pub fn serve_words(&self, more: &[&str]) -> Vec<String> {
        let mut words = vec!["env".to_owned(), "--ignore-environment".to_owned()];
        words.extend(ENVIRONMENT.map(|(key, value)| format!("{key}={value}")));
        words.extend(
            self.fault_points
                .then(|| format!("{FAULT_POINTS}=/etc/proximity/faults")),
        );
        let agent = programs::agent().to_str().unwrap();
        words.extend(
            [
                programs::proximity().to_str().unwrap(),
                "serve",
                "--agent",
                agent,
            ]
            .map(str::to_owned),
        );
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Starts the controller; returns when it answers.
    pub fn serve(&mut self) {
        assert!(self.serving.is_none(), "a controller serves already");
        let pid = self
            .host
            .spawn(self.serve_words(&[]), &self.log_file())
            .unwrap();
        self.serving = Some(pid);
        eventually("the controller answers", || {
            assert!(alive(pid), "the controller ended at its start");
            self.try_api("GET", "/system/health", None).is_some()
        });
    }

    /// As [`Controller::serve`] over a data directory that only the host sees: the API answers its command line
    /// alone.
    pub fn serve_inside(&mut self) {
        let words = self.serve_words(&[]);
        let pid = self.host.spawn(words, &self.log_file()).unwrap();
        self.serving = Some(pid);
        eventually("the controller answers", || {
            assert!(alive(pid), "the controller ended at its start");
            self.run(["zone", "list"]).code == 0
        });
    }

    /// Ends the controller with a signal; returns when it is gone.
    pub fn end(&mut self, signal: Signal) {
        let pid = self.serving.take().expect("a controller serves");
        let target = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(target, signal).unwrap();
        eventually("the controller ends", || !alive(pid));
    }

    /// Ends the controller as a power cut would, and starts it again.
    pub fn crash(&mut self) {
        self.end(Signal::KILL);
        self.serve();
    }

    /// The controller's pid on the machine.
    pub fn pid(&self) -> u32 {
        self.serving.expect("a controller serves")
    }

    fn log_file(&self) -> PathBuf {
        self.place.dir.path().join("serve.log")
    }

    /// What the controllers of this host have said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Waits until the log after its first `from` bytes says that a step of an object (`zone default`,
    /// `instance web`) began.
    pub fn until_step(&self, from: usize, object: &str, step: &str) {
        let wanted = format!("object={object} step=\"{step}\" state=Started");
        crate::until(&format!("{object} is at step {step}"), || {
            self.log()
                .get(from..)
                .is_some_and(|log| log.contains(&wanted))
        });
    }

    // ── the command line ──

    /// A command in the host with a plain environment, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.host.command(argv);
        command.env_clear().envs(ENVIRONMENT).stdin(Stdio::null());
        command
    }

    /// `proximity WORDS…`, not yet started.
    pub fn proximity<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command([programs::proximity()]);
        command.args(words);
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ran {
        finish(self.proximity(words))
    }

    /// As [`Controller::run`], with something to read.
    pub fn run_with<'a>(&self, words: impl IntoIterator<Item = &'a str>, stdin: &[u8]) -> Ran {
        let mut command = self.proximity(words);
        let line = format!("{command:?}");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let input = stdin.to_owned();
        // A reader that ends early is the command's business.
        let feed = std::thread::spawn(move || drop(pipe.write_all(&input)));
        let ran = collect(line, child);
        feed.join().unwrap();
        ran
    }

    /// What a command prints that must succeed.
    pub fn ok<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        self.run(words).expect(0).text()
    }

    /// The document of a command that must succeed.
    pub fn json<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Value {
        self.run(["--json"].into_iter().chain(words))
            .expect(0)
            .json()
    }

    /// The `error` of a command that must be refused with exit code 1, which has this code and a hint.
    pub fn refused<'a>(&self, words: impl IntoIterator<Item = &'a str>, code: &str) -> Value {
        let document = self
            .run(["--json"].into_iter().chain(words))
            .expect(1)
            .json();
        let error = document["error"].clone();
        assert_eq!(error["code"], code, "{error}");
        assert!(
            error["hint"].as_str().is_some_and(|h| !h.is_empty()),
            "{error}"
        );
        error
    }

    /// What a command in a guest prints; it must end with 0.
    pub fn exec<'a>(&self, guest: &'a str, argv: impl IntoIterator<Item = &'a str>) -> String {
        let words = ["exec", guest, "--timeout", "30s", "--"];
        self.ok(words.into_iter().chain(argv))
    }

    /// Deploys an app of the built-in nginx recipe and returns it as the API shows it.
    pub fn deploy(&self, name: &str) -> Value {
        self.json(["app", "deploy", "nginx", name])
    }

    /// Makes a sandbox and returns it as the API shows it; commands can be run in it.
    pub fn sandbox(&self, name: &str) -> Value {
        self.json(["sandbox", "create", "--name", name])
    }

    /// Ends sandboxes; returns when nothing is left of them.
    pub fn kill_sandboxes<'a>(&self, names: impl IntoIterator<Item = &'a str> + Clone) {
        self.ok(["sandbox", "kill"].into_iter().chain(names.clone()));
        for name in names {
            eventually(&format!("{name} is gone"), || {
                self.api("GET", &format!("/sandboxes/{name}"), None).0 == 404
            });
        }
    }

    /// What a shell script in a guest prints, sent there by the node and past the product; it must end with 0.
    pub fn inside(&self, guest: &Value, script: &str) -> String {
        let id = guest["id"].as_str().unwrap();
        let attach = ["lxc-attach", "-P", GUESTS, "-n", id, "--clear-env", "--"];
        let shell = ["sh", "-euc", script];
        finish(self.command(attach.into_iter().chain(shell)))
            .expect(0)
            .text()
    }

    /// What a shell script in the host prints; it must end with 0.
    pub fn script(&self, script: &str) -> String {
        finish(self.command(["sh", "-euc", script]))
            .expect(0)
            .text()
    }

    /// The exit code of a shell script in the host.
    pub fn run_in_host(&self, script: &str) -> i32 {
        finish(self.command(["sh", "-uc", script])).code
    }

    // ── what there is ──

    pub fn infrastructure(&self) -> Value {
        self.api("GET", "/system/infrastructure", None).1
    }

    /// An app as the API shows it.
    pub fn app(&self, name: &str) -> Value {
        let (status, app) = self.api("GET", &format!("/apps/{name}"), None);
        assert_eq!(status, 200, "{app}");
        app
    }

    /// Waits until an app counts as running, whoever brings it there.
    pub fn until_running(&self, name: &str) -> Value {
        eventually(&format!("{name} runs"), || {
            self.app(name)["status"] == "running"
        });
        self.app(name)
    }

    /// Waits until the zone can take apps, whoever brings it there.
    pub fn until_available(&self) -> Value {
        eventually("the zone is available", || {
            self.infrastructure()["available"] == true
        });
        self.infrastructure()
    }

    pub fn wan_address(&self) -> Ipv4Addr {
        let facts = self.infrastructure();
        facts["appliance_wan_ip"].as_str().unwrap().parse().unwrap()
    }

    /// The guest's id of the zone's appliance, as the node's disk has it.
    pub fn appliance_id(&self) -> String {
        let guests = fs::read_dir(self.host.state().join("node/guests")).unwrap();
        let mut marks = guests.map(|guest| {
            let mark = fs::read(guest.unwrap().path().join("guest.json")).unwrap();
            serde_json::from_slice::<Value>(&mark).unwrap()
        });
        let mark = marks
            .find(|mark| mark["spec"]["kind"] == "appliance")
            .unwrap();
        mark["id"].as_str().unwrap().to_owned()
    }

    /// Status and body of the page that the gateway serves for a host name, asked from the node.
    pub fn page(&self, host: &str) -> (u16, String) {
        let url = format!("http://{}/", self.wan_address());
        self.page_at(&url, &["--header", &format!("Host: {host}")])
    }

    /// Status and body of a page, asked from the node with further options of curl.
    pub fn page_at(&self, url: &str, options: &[&str]) -> (u16, String) {
        let mut curl = self.command(["curl", "--silent", "--show-error", "--max-time", "10"]);
        curl.args(["--write-out", "\n%{http_code}"])
            .args(options)
            .arg(url);
        let answer = finish(curl).expect(0).text();
        let (body, status) = answer.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    // ── the API over the controller's socket ──

    /// Status and document of a call as root.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_api(method, path, body)
            .expect("the controller answers")
    }

    /// The events of a command in a guest, one after the other as the API streams them.
    pub fn events(&self, guest: &str, request: &Value) -> Vec<Value> {
        let path = format!("/instances/{guest}/exec");
        let lines = "Accept: application/x-ndjson\r\n";
        let mut stream = self.call("POST", &path, lines, Some(request)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, lines) = answer.split_once("\r\n\r\n").unwrap();
        let event = |line: &str| serde_json::from_str(line).unwrap();
        lines.lines().map(event).collect()
    }

    /// A call that was sent: its answer comes on this stream, and whoever drops it hangs up.
    pub fn call(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: Option<&Value>,
    ) -> Option<UnixStream> {
        let socket = self.host.state().join("node/proximity.sock");
        let mut stream = UnixStream::connect(socket).ok()?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} /api/v1{path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             {headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        Some(stream)
    }

    /// As [`Controller::api`], or nothing while nobody answers.
    pub fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let mut stream = self.call(method, path, "", body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let document = serde_json::from_str(body).unwrap_or(Value::Null);
        Some((status, document))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines
                .get(lines.len().saturating_sub(LOG_SHOWN)..)
                .unwrap_or_default();
            eprintln!("── the controller's log ──\n{}\n──", tail.join("\n"));
        }
    }
}

/// Runs a command to its end.
pub fn finish(mut command: Command) -> Ran {
    let line = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    collect(line, command.spawn().unwrap())
}

fn collect(line: String, child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    Ran {
        line,
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether a process is there.
pub fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
