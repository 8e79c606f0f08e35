//! Every call that may change something stands in the audit log: its intent before anything is done,
//! its outcome after. A call whose intent can't be written is not carried out.
//!
//! ```text
//!   refusals ▸ host ▸ token ▸ ┌ actions ───────────────────────────────┐
//!                             │ intent ▸ idempotency ▸ handler ▸ outcome │
//!                             └──────────────────────────────────────────┘
//! ```
//!
//! [`actions`] writes intents and outcomes; [`refusals`] writes what did not get that far. Handlers only
//! say how their action ended ([`Told`]). What is read from a body are names and argument vectors, never
//! the values of parameters and variables, and never a command's input.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use ::audit::{Entry, Intent, Log, Outcome};
use api::app::DeployRequest;
use api::egress::EgressRequest;
use api::exec::{ExecRequest, ExecResult};
use api::gateway::DownRequest;
use api::sandbox::{ExtendRequest, SandboxRequest};
use api::{Problem, ZoneName};
use axum::body::{Body, Bytes};
use axum::extract::{
    ConnectInfo, FromRequest, FromRequestParts, MatchedPath, Query, RawPathParams, Request,
    State as Extract,
};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::answer::Failed;
use crate::auth::Actor;
use crate::entries;
use crate::idempotency::REPLAYED;
use crate::system::OfZone;
use crate::{Peer, State};

/// The head of the audit log after the call: kept elsewhere, it shows later that nothing was cut off.
pub(crate) const HEAD: HeaderName = HeaderName::from_static("proximity-audit-head");

/// Every call that changes something: method, path, and the name of the action.
const ACTIONS: &[(Method, &str, &str)] = &[
    (Method::POST, "/api/v1/zones/{zone}/up", "zone.up"),
    (Method::POST, "/api/v1/zones/{zone}/down", "zone.down"),
    (Method::POST, "/api/v1/apps/deploy", "app.deploy"),
    (Method::DELETE, "/api/v1/apps/{name}", "app.delete"),
    (Method::POST, "/api/v1/apps/{name}/start", "app.start"),
    (Method::POST, "/api/v1/apps/{name}/stop", "app.stop"),
    (Method::POST, "/api/v1/apps/{name}/restart", "app.restart"),
    (
        Method::POST,
        "/api/v1/instances/{name}/exec",
        "instance.exec",
    ),
    (
        Method::PUT,
        "/api/v1/instances/{name}/egress",
        "instance.egress",
    ),
    (
        Method::PUT,
        "/api/v1/instances/{name}/files",
        "instance.file.write",
    ),
    (
        Method::POST,
        "/api/v1/instances/{name}/forward",
        "instance.forward",
    ),
    (Method::POST, "/api/v1/sandboxes", "sandbox.create"),
    (Method::DELETE, "/api/v1/sandboxes/{id}", "sandbox.kill"),
    (
        Method::POST,
        "/api/v1/sandboxes/{id}/extend",
        "sandbox.extend",
    ),
    (Method::DELETE, "/api/v1/orphans/{id}", "orphan.remove"),
    (
        Method::PUT,
        "/api/v1/appliance/password",
        "appliance.password",
    ),
];

/// All calls that change something.
fn actions_known() -> impl Iterator<Item = &'static (Method, &'static str, &'static str)> {
    ACTIONS.iter().chain(entries::ACTIONS)
}

/// Calls whose bodies are streams: what the log shows of them stands in their query.
const STREAMED: &[&str] = &["instance.file.write", "instance.forward"];

/// How an action ended, in the extensions of its answer.
#[derive(Clone)]
pub(crate) struct Told {
    outcome: Outcome,
    /// The code of the problem that it ended with.
    problem: Option<String>,
    /// How the command ended, for people.
    ended: Option<String>,
}

impl From<Outcome> for Told {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            problem: None,
            ended: None,
        }
    }
}

impl Told {
    /// It was begun; the operation tells the rest.
    pub(crate) fn accepted(operation: &api::OperationId) -> Self {
        Outcome::ok()
            .detail(json!({ "operation": operation }))
            .into()
    }

    /// A deploy was begun, under this name.
    pub(crate) fn deploying(operation: &api::OperationId, name: &api::InstanceName) -> Self {
        let accepted = Self::accepted(operation).outcome;
        accepted.target(name.as_str()).into()
    }

    /// A command ran to an end.
    pub(crate) fn ran(result: &ExecResult) -> Self {
        let (outcome, ended) = match (result.exit_code, result.signal) {
            (Some(code), _) => (Outcome::exited(code), format!("exit code {code}")),
            (None, signal) => {
                let ended = match signal {
                    Some(signal) => format!("ended by signal {signal}"),
                    None => "ended by its deadline".to_owned(),
                };
                (Outcome::failed(ended.clone()), ended)
            }
        };
        let outcome = outcome.duration_ms(result.duration_ms);
        Self {
            ended: Some(format!("the command: {ended}")),
            ..outcome.channel(&result.channel).into()
        }
    }

    /// How the command ended, if it was one.
    pub(crate) fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// A file was written.
    pub(crate) fn wrote(size_bytes: u64, sha256: &str) -> Self {
        Outcome::ok()
            .detail(json!({ "size_bytes": size_bytes, "sha256": sha256 }))
            .into()
    }

    /// What the log keeps of it.
    pub(crate) fn into_outcome(self) -> Outcome {
        self.outcome
    }

    /// The code of the problem that it ended with.
    pub(crate) fn code(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// It ended with a problem.
    pub(crate) fn problem(problem: &Problem) -> Self {
        let code = problem.code.as_str();
        Self {
            outcome: match problem.status {
                _ if code == "outcome_unknown" => Outcome::unknown(code),
                400..=499 => Outcome::refused(code),
                _ => Outcome::failed(code),
            },
            problem: Some(problem.code.clone()),
            ended: None,
        }
    }
}

/// The intent of a call whose answer is a stream: its handler takes it and tells the outcome when the
/// stream ends. Dropped instead, the outcome is unknown.
#[derive(Clone, Default)]
pub(crate) struct Pending(Arc<Mutex<Option<Intent>>>);

impl Pending {
    /// The intent, if nobody has taken it.
    pub(crate) fn take(&self) -> Option<Intent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, intent: Intent) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(intent);
    }
}

/// Writes the intent of a call that the middleware does not see as a change: a websocket, a file that is
/// read out of a guest.
pub(crate) async fn begin(
    state: &State,
    actor: &Actor,
    action: &str,
    target: &str,
    detail: Value,
) -> Result<Intent, Failed> {
    let mut entry = Entry::new(actor.name.clone(), action, target);
    entry.detail = detail;
    state.audit.intent(entry).await.map_err(|e| unavailable(&e))
}

/// Writes an outcome. One that can't be written is kept by the log and written before the next intent.
pub(crate) async fn finish(intent: Intent, outcome: Outcome) {
    if let Err(e) = intent.finish(outcome).await {
        tracing::error!("the outcome of a call is not in the audit log yet: {e}");
    }
}

/// The mark of an answer whose call stands in the log, or could not be put there.
#[derive(Clone, Copy)]
struct Recorded;

/// Writes the intent, lets the call go on, writes the outcome.
pub(crate) async fn actions(
    Extract(state): Extract<State>,
    request: Request,
    next: Next,
) -> Result<Response, Failed> {
    if !may_change(request.method()) {
        let response = next.run(request).await;
        return Ok(with_head(response, &state.audit));
    }
    let (mut parts, body) = request.into_parts();
    let mut entry = named(&mut parts, &state).await;
    entry.actor = match parts.extensions.get::<Actor>() {
        Some(actor) => actor.name.clone(),
        None => UNIDENTIFIED.to_owned(),
    };
    let body = if STREAMED.contains(&entry.action.as_str()) {
        entry.detail = json!({ "query": parts.uri.query().unwrap_or_default() });
        body
    } else {
        let whole = Request::from_parts(parts.clone(), body);
        match Bytes::from_request(whole, &state).await {
            Ok(body) => {
                entry = with_body(entry, &body);
                Body::from(body)
            }
            Err(rejection) => {
                let status = rejection.status().as_u16();
                let problem = Problem::new(status, "bad_body", rejection.body_text());
                refuse(&state, entry, &problem.code).await;
                return Ok(recorded(Failed(problem).into_response(), &state.audit));
            }
        }
    };
    let pending = Pending::default();
    // A command's guest is looked for while the disk takes the intent.
    let guest = (entry.action == "instance.exec").then(|| entry.target.clone());
    let looking = async {
        match &guest {
            Some(name) => state.controller.find_guest(name).await,
            None => None,
        }
    };
    let (intent, found) = tokio::join!(state.audit.intent(entry), looking);
    if let Some(found) = found {
        parts.extensions.insert(found);
    }
    match intent {
        Ok(intent) => pending.put(intent),
        Err(e) => return Ok(recorded(unavailable(&e).into_response(), &state.audit)),
    }
    parts.extensions.insert(pending.clone());
    let response = next.run(Request::from_parts(parts, body)).await;
    if let Some(intent) = pending.take() {
        finish(intent, outcome_of(&response)).await;
    }
    Ok(recorded(response, &state.audit))
}

/// Writes down the calls that were turned away before [`actions`] saw them: without a token, with a
/// foreign host name, for a path that does not exist.
pub(crate) async fn refusals(
    Extract(state): Extract<State>,
    request: Request,
    next: Next,
) -> Response {
    if !may_change(request.method()) {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let mut entry = named(&mut parts, &state).await;
    entry.actor = UNIDENTIFIED.to_owned();
    entry.detail = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "peer": parts.extensions.get::<ConnectInfo<Peer>>().map(|peer| peer.0.to_string()),
    });
    let response = next.run(Request::from_parts(parts, body)).await;
    let turned_away = response.status().is_client_error() || response.status().is_server_error();
    if turned_away && response.extensions().get::<Recorded>().is_none() {
        let told = response.extensions().get::<Told>();
        let code = told.and_then(Told::code);
        refuse(&state, entry, code.unwrap_or(response.status().as_str())).await;
    }
    response
}

const UNIDENTIFIED: &str = "unidentified";

fn may_change(method: &Method) -> bool {
    !matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

/// The action and its target, as far as method and path tell them.
async fn named(parts: &mut Parts, state: &State) -> Entry {
    let path = parts
        .extensions
        .get::<MatchedPath>()
        .map(MatchedPath::as_str);
    let known = actions_known().find(|(method, at, _)| parts.method == *method && path == Some(at));
    let Some((_, _, action)) = known else {
        let action = format!("http.{}", parts.method.as_str().to_ascii_lowercase());
        return Entry::new("", action, parts.uri.path());
    };
    let params = RawPathParams::from_request_parts(parts, state).await;
    let words = params.ok().map(|p| {
        p.iter()
            .map(|(_, word)| word.to_owned())
            .collect::<Vec<_>>()
    });
    let target = match words.filter(|words| !words.is_empty()) {
        Some(words) => words.join("/"),
        None if *action == "appliance.password" => zone_of(parts, state).await,
        None => String::new(),
    };
    Entry::new("", *action, target)
}

/// The zone that a call is about, named or not.
async fn zone_of(parts: &mut Parts, state: &State) -> String {
    let asked = Query::<OfZone>::from_request_parts(parts, state).await;
    let asked = asked.ok().and_then(|Query(of)| of.zone);
    match state.controller.zone_name(asked.as_deref()) {
        Ok(zone) => zone.to_string(),
        Err(_) => asked.unwrap_or_default(),
    }
}

/// Adds what the body tells. A body that can't be read is refused by its handler.
fn with_body(mut entry: Entry, body: &[u8]) -> Entry {
    match entry.action.as_str() {
        "app.deploy" => {
            if let Ok(deploy) = serde_json::from_slice::<DeployRequest>(body) {
                entry.target = deploy.instance_name.unwrap_or_default();
                entry.detail = json!({
                    "recipe": deploy.app_id,
                    "zone": deploy.zone,
                    "parameters": deploy.config.keys().collect::<Vec<_>>(),
                    "limits": deploy.limits,
                    "resume": deploy.resume,
                });
            }
        }
        "zone.down" => {
            if let Ok(down) = serde_json::from_slice::<DownRequest>(body) {
                entry.detail = json!({ "with_instances": down.with_instances });
            }
        }
        "sandbox.create" => {
            if let Ok(sandbox) = serde_json::from_slice::<SandboxRequest>(body) {
                entry.target = sandbox.name.clone().unwrap_or_default();
                entry.detail = json!(sandbox);
            }
        }
        "sandbox.extend" => {
            if let Ok(extend) = serde_json::from_slice::<ExtendRequest>(body) {
                entry.detail = json!(extend);
            }
        }
        "instance.egress" => {
            if let Ok(request) = serde_json::from_slice::<EgressRequest>(body) {
                entry.detail = json!(request);
            }
        }
        "instance.exec" => {
            if let Ok(exec) = serde_json::from_slice::<ExecShape>(body) {
                entry.detail = exec.detail();
                entry.channel = exec.channel;
            }
        }
        action => {
            if let Some((target, detail)) = entries::told(action, body) {
                entry.detail = detail;
                if !target.is_empty() {
                    entry.target = target;
                }
            }
        }
    }
    entry
}

/// What the log shows of a command: no input, no values of variables.
#[derive(Deserialize)]
struct ExecShape {
    #[serde(default)]
    argv: Vec<String>,
    command: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, IgnoredAny>,
    cwd: Option<String>,
    user: Option<String>,
    timeout_ms: Option<u64>,
    channel: Option<String>,
}

impl ExecShape {
    fn detail(&self) -> Value {
        let mut detail = serde_json::Map::new();
        match &self.command {
            Some(line) => detail.insert("command".into(), json!(line)),
            None => detail.insert("argv".into(), json!(self.argv)),
        };
        if !self.env.is_empty() {
            let names: Vec<&String> = self.env.keys().collect();
            detail.insert("env".into(), json!(names));
        }
        for (key, value) in [("cwd", &self.cwd), ("user", &self.user)] {
            if let Some(value) = value {
                detail.insert(key.into(), json!(value));
            }
        }
        if let Some(timeout_ms) = self.timeout_ms {
            detail.insert("timeout_ms".into(), json!(timeout_ms));
        }
        Value::Object(detail)
    }
}

/// What the log shows of a command whose request was parsed already.
pub(crate) fn command_detail(request: &ExecRequest) -> Value {
    ExecShape {
        argv: request.argv.clone(),
        command: request.command.clone(),
        env: request
            .env
            .keys()
            .map(|k| (k.clone(), IgnoredAny))
            .collect(),
        cwd: request.cwd.clone(),
        user: request.user.clone(),
        timeout_ms: request.timeout_ms,
        channel: request.channel.clone(),
    }
    .detail()
}

fn outcome_of(response: &Response) -> Outcome {
    let status = response.status();
    let told = response.extensions().get::<Told>();
    let outcome = match told {
        Some(told) => told.outcome.clone(),
        None if status.is_success() => Outcome::ok(),
        None if status.is_client_error() => Outcome::refused(status.as_str()),
        None => Outcome::failed(status.as_str()),
    };
    if response.headers().contains_key(REPLAYED) {
        // Nothing was done again: the caller got the answer of the first call.
        return outcome.detail(json!({ "replayed": status.as_u16() }));
    }
    outcome
}

async fn refuse(state: &State, entry: Entry, reason: &str) {
    if let Err(e) = state.audit.refused(entry, reason).await {
        tracing::error!("a refused call is not in the audit log: {e}");
    }
}

fn unavailable(e: &::audit::Error) -> Failed {
    tracing::error!("a call was refused because the audit log can't be written: {e}");
    Problem::new(
        503,
        "audit_unavailable",
        format!("nothing was done: {e}"),
    )
    .hint("make room on the disk of the data directory; if the log was damaged or moved: proximity audit verify, then restart the controller")
    .into()
}

fn recorded(mut response: Response, log: &Log) -> Response {
    response.extensions_mut().insert(Recorded);
    with_head(response, log)
}

fn with_head(mut response: Response, log: &Log) -> Response {
    if let Ok(head) = HeaderValue::from_str(&log.head().to_string()) {
        response.headers_mut().insert(HEAD, head);
    }
    response
}

/// The passwords of the management pages that were set while this process runs: kept so that they can
/// be kept out of the log.
#[derive(Clone, Default)]
pub(crate) struct Passwords(Arc<Mutex<HashMap<ZoneName, String>>>);

impl Passwords {
    /// From now on the log hides this password of the zone, and no longer the one before it.
    ///
    /// The caller chooses the password, and must not be able to blank out who did what with it: what
    /// is the name of an action or of the caller stays visible.
    pub(crate) fn hide(&self, log: &Log, zone: &ZoneName, password: &str, actor: &Actor) {
        let is_ours = |word: &str| word.contains(password.trim());
        if is_ours(&actor.name) || actions_known().any(|(_, _, action)| is_ours(action)) {
            return;
        }
        // Shorter ones than the log takes are refused long before this.
        let _ = log.redactor().register(password);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = known.insert(zone.clone(), password.to_owned())
            && before != password
        {
            log.redactor().forget(&before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_writing_call_of_the_document_has_an_action() {
        let document = crate::openapi_document();
        let mut written: Vec<(String, String)> = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                if !matches!(method.as_str(), "get" | "head") {
                    written.push((method.to_uppercase(), path.clone()));
                }
            }
        }
        let mut named: Vec<(String, String)> = actions_known()
            .map(|(method, path, _)| (method.to_string(), (*path).to_owned()))
            .collect();
        written.sort();
        named.sort();
        assert_eq!(named, written);
    }

    #[test]
    fn a_command_shows_no_values_and_no_input() {
        let body =
            br#"{"argv":["sh","-c","x"],"env":{"A":"secret-a","B":"secret-b"},"stdin":"secret-c",
            "cwd":"/srv","user":"www","timeout_ms":5,"channel":"agent"}"#;
        let shape: ExecShape = serde_json::from_slice(body).unwrap();
        assert_eq!(
            shape.detail(),
            json!({"argv": ["sh", "-c", "x"], "env": ["A", "B"], "cwd": "/srv", "user": "www", "timeout_ms": 5})
        );
    }
}
