//! A controller that serves, and the two doors into it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use audit::{Filter, Log, Options, Record};
use engine::catalog::Catalog;
use engine::controller::Pace;
use engine::fake::FakeNode;
use engine::{Config, Controller};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use store::SqliteStore;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running controller; it goes with its value.
pub struct Served {
    pub dir: TempDir,
    pub node: Arc<FakeNode>,
    pub controller: Controller,
    pub log: Log,
    pub base: String,
    pub token: String,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    tcp: reqwest::Client,
    unix: reqwest::Client,
}

impl Served {
    /// Serves with the built-in configuration; nothing is up.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Arc::new(FakeNode::default());
        let store = SqliteStore::open(&dir.path().join("p.db")).await.unwrap();
        let pace = Pace {
            longest_pause: Duration::from_millis(50),
            appliance: Duration::from_millis(50),
            ..engine::controller::Pace::default()
        };
        let config = Config::built_in().unwrap();
        let catalog = Catalog::new(&[]).unwrap();
        let ports = node.ports(Arc::new(store));
        let controller = Controller::paced(config, catalog, ports, pace);
        let log = Log::open(dir.path().join("audit.log"), Options::default())
            .await
            .unwrap();
        let token_file = dir.path().join("admin.token");
        server::admin_token(&controller, &token_file, log.redactor())
            .await
            .unwrap();
        controller.start().await.unwrap();
        let socket = dir.path().join("p.sock");
        let any = "127.0.0.1:0".parse().unwrap();
        let listeners = server::bind(any, &socket).await.unwrap();
        let base = format!("http://{}", listeners.tcp.local_addr().unwrap());
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (controller, log) = (controller.clone(), log.clone());
            let (socket, stop) = (socket.clone(), stop.clone());
            async move {
                server::serve(controller, log, listeners, &socket, stop)
                    .await
                    .unwrap();
            }
        });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = || {
            reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only([])
                .timeout(Duration::from_secs(30))
        };
        Self {
            token: std::fs::read_to_string(&token_file).unwrap().trim().into(),
            tcp: client().build().unwrap(),
            unix: client().unix_socket(socket.as_path()).build().unwrap(),
            dir,
            node,
            controller,
            log,
            base,
            stop,
            serving,
        }
    }

    /// As [`Served::start`], with the default zone up.
    pub async fn up() -> Self {
        let served = Self::start().await;
        let accepted = served.ok(served.post("/zones/default/up")).await;
        served.end(&accepted).await;
        served
    }

    /// As [`Served::up`], with an nginx of that name in it.
    pub async fn with_app(name: &str) -> Self {
        let served = Self::up().await;
        let answer = served.deploy(name, "?wait=30s").await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        served
    }

    /// Tells the server to end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// A deploy of an nginx.
    pub async fn deploy(&self, name: &str, query: &str) -> Response {
        let body = json!({"app_id": "nginx", "instance_name": name});
        let call = self.post(&format!("/apps/deploy{query}")).json(&body);
        call.send().await.unwrap()
    }

    /// A command in an instance.
    pub fn exec(&self, name: &str, body: &Value) -> RequestBuilder {
        self.post(&format!("/instances/{name}/exec")).json(body)
    }

    /// A call on the port, without a token.
    pub fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.tcp.request(method, format!("{}{path}", self.base))
    }

    /// A call on the port, with the token.
    pub fn call(&self, method: Method, path: &str) -> RequestBuilder {
        let call = self.bare(method, &format!("/api/v1{path}"));
        call.bearer_auth(&self.token)
    }

    /// A call of root on the socket.
    pub fn root(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://localhost/api/v1{path}");
        self.unix.request(method, url)
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.call(Method::GET, path)
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.call(Method::POST, path)
    }

    /// The JSON of an answer that must be a success.
    pub async fn ok(&self, call: RequestBuilder) -> Value {
        let answer = call.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Status, code and hint of an answer that must be a problem.
    pub async fn problem(&self, call: RequestBuilder) -> (u16, String, String) {
        let answer = call.send().await.unwrap();
        let status = answer.status().as_u16();
        let kind = answer.headers()["content-type"].clone();
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(kind, "application/problem+json", "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        let code = problem["code"].as_str().unwrap().to_owned();
        assert_eq!(problem["type"], format!("urn:proximity:problem:{code}"));
        let hint = problem["hint"].as_str().unwrap_or_default().to_owned();
        (status, code, hint)
    }

    /// Waits until the operation of an accepted call has ended.
    pub async fn end(&self, accepted: &Value) -> Value {
        let id = accepted["operation_id"].as_str().unwrap();
        let mut feed = self.controller.feed().subscribe();
        loop {
            feed.mark_unchanged();
            let operation = self.ok(self.get(&format!("/operations/{id}"))).await;
            if operation["status"] != "running" {
                return operation;
            }
            feed.changed().await.unwrap();
        }
    }

    /// The audit log as it stands in the file.
    pub fn records(&self) -> Vec<Record> {
        audit::records(self.log.path(), Filter::default())
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    /// Where the audit log is.
    pub fn audit_file(&self) -> PathBuf {
        self.log.path().to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        self.serving.abort();
        self.controller.stop();
    }
}
