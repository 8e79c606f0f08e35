//! An instance behind a controller: sessions as the test plays them, files and ports by the agent's own
//! code on this machine.

use std::path::Path;
use std::sync::{Arc, Mutex};

use api::exec::ExecEvent;
use api::session::{SessionControl, SessionStart, Stream};
use axum::Router;
use axum::extract::WebSocketUpgrade;
use axum::extract::ws::{Message, WebSocket};
use axum::http::HeaderMap;
use axum::routing::get;
use futures::future::BoxFuture;

use crate::controller::{answer, serve, serve_unix};

/// What came over a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Stdin(Vec<u8>),
    Control(SessionControl),
    /// The client closed it, or went.
    Closed,
}

/// The instance's end of a session.
pub struct Session {
    socket: WebSocket,
    /// Whether something could not be said.
    gone: bool,
}

impl Session {
    pub async fn hear(&mut self) -> Said {
        match self.socket.recv().await {
            Some(Ok(Message::Binary(bytes))) => {
                assert_eq!(bytes.first(), Some(&(Stream::Stdin as u8)));
                assert!(bytes.len() <= api::session::MESSAGE_MAX_BYTES);
                Said::Stdin(bytes[1..].to_vec())
            }
            Some(Ok(Message::Text(text))) => Said::Control(serde_json::from_str(&text).unwrap()),
            _ => Said::Closed,
        }
    }

    pub async fn say(&mut self, stream: Stream, bytes: &[u8]) {
        let message = [&[stream as u8], bytes].concat();
        self.send(Message::Binary(message.into())).await;
    }

    pub async fn event(&mut self, event: ExecEvent) {
        let text = serde_json::to_string(&event).unwrap();
        self.send(Message::text(text)).await;
    }

    pub async fn close(&mut self) {
        self.send(Message::Close(None)).await;
    }

    async fn send(&mut self, message: Message) {
        // The client may have gone.
        self.gone |= self.socket.send(message).await.is_err();
    }

    pub fn is_closed(&self) -> bool {
        self.gone
    }

    pub async fn exit(&mut self, exit_code: Option<i32>, signal: Option<i32>) {
        let event = ExecEvent::Exit {
            exit_code,
            signal,
            timed_out: false,
            duration_ms: 1500,
        };
        self.event(event).await;
    }
}

/// A running controller with an instance.
pub struct Guest {
    pub url: String,
    starts: Arc<Mutex<Vec<SessionStart>>>,
    heard: Arc<Mutex<Vec<Said>>>,
}

impl Guest {
    /// A controller whose sessions go as `play` does, on a free port of this machine.
    pub fn start<F>(play: F) -> Self
    where
        F: for<'a> Fn(&'a mut Session) -> BoxFuture<'a, ()> + Clone + Send + Sync + 'static,
    {
        let mut guest = Self {
            url: String::new(),
            starts: Arc::default(),
            heard: Arc::default(),
        };
        guest.url = serve(guest.router(play));
        guest
    }

    /// One that has files and ports only, on a unix socket.
    pub fn start_unix(path: &Path) -> Self {
        let mut guest = Self {
            url: String::new(),
            starts: Arc::default(),
            heard: Arc::default(),
        };
        guest.url = serve_unix(path, guest.router(|_| Box::pin(async {})));
        guest
    }

    fn router<F>(&self, play: F) -> Router
    where
        F: for<'a> Fn(&'a mut Session) -> BoxFuture<'a, ()> + Clone + Send + Sync + 'static,
    {
        let (starts, heard) = (Arc::clone(&self.starts), Arc::clone(&self.heard));
        let session = async move |headers: HeaderMap, upgrade: WebSocketUpgrade| {
            if let Some(token) = headers.get("authorization") {
                assert_eq!(token, "Bearer prox_hunter2");
            }
            upgrade.on_upgrade(async move |mut socket| {
                let first = socket.recv().await.unwrap().unwrap();
                let start = serde_json::from_str(first.to_text().unwrap()).unwrap();
                starts.lock().unwrap().push(start);
                let mut session = Session {
                    socket,
                    gone: false,
                };
                session
                    .event(ExecEvent::Started {
                        pid: 7,
                        channel: String::new(),
                    })
                    .await;
                play(&mut session).await;
                let last = session.hear().await;
                heard.lock().unwrap().push(last);
            })
        };
        let health = async || answer(200, serde_json::json!({ "status": "ok", "version": "9" }));
        let instance = Router::new()
            .route("/session", get(session))
            .merge(agent::files::router())
            .merge(agent::forward::router());
        Router::new()
            .nest("/api/v1/instances/web", instance)
            .route("/api/v1/system/health", get(health))
    }

    /// What was started so far.
    pub fn starts(&self) -> Vec<SessionStart> {
        self.starts.lock().unwrap().clone()
    }

    /// What came after the play of each session was over.
    pub fn last_heard(&self) -> Vec<Said> {
        self.heard.lock().unwrap().clone()
    }
}
