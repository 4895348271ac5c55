//! `/drain`: how long live connections may go on once the process ends, and how far that is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use daemon::admin::{Address, Admin, AdminRequest, AdminResponse, Routes, json, query, status};
use daemon::drain::{Deadline, DrainSignal};
use http::StatusCode;
use serde_json::json;

use super::{Access, Shown, routes};
use crate::config::{Config, drain_deadline};

/// What is to be seen and changed of a process's end.
#[derive(Clone)]
pub(super) struct End {
    pub(super) deadline: Deadline,
    pub(super) signal: DrainSignal,
}

/// Reading, and `POST ?deadline=60s`, which counts from the drain's beginning.
pub(super) fn drain_routes(routes: Routes, end: End, access: &Access) -> Routes {
    let (shown, access) = (end.clone(), access.clone());
    let routes = routes.get("/drain", move |_| {
        let answer = shown.show();
        async move { answer }
    });
    routes.post("/drain", move |request| {
        let answer = access.refusal("/drain?deadline=60s").unwrap_or_else(|| end.change(&request));
        async move { answer }
    })
}

impl End {
    fn show(&self) -> AdminResponse {
        json(&json!({
            "draining": self.signal.is_draining(),
            "deadlineSeconds": self.deadline.get().as_secs_f64(),
            "connectionsLeft": self.signal.held(),
        }))
    }

    fn change(&self, request: &AdminRequest) -> AdminResponse {
        let Some(wanted) = query(request, "deadline") else {
            return status(StatusCode::BAD_REQUEST, "say how long, such as ?deadline=60s; 0s to 1h\n");
        };
        match drain_deadline(&wanted) {
            Ok(deadline) => {
                tracing::info!(
                    ?deadline,
                    draining = self.signal.is_draining(),
                    "the drain deadline is changed"
                );
                self.deadline.set(deadline);
                self.show()
            }
            Err(error) => status(StatusCode::BAD_REQUEST, format!("deadline: {error}\n")),
        }
    }
}

/// The admin socket's place belongs to the successor once this process drains; so what there is still to see and change of it is at a
/// socket of its own, until the process ends.
pub(crate) fn serve_while_draining(config: &Config, shown: &Arc<Shown>) {
    let socket = draining_socket(&config.admin_socket(), std::process::id());
    match Admin::bind(&Address::Unix(socket.clone()), "--admin-socket") {
        Ok(server) => {
            tracing::info!(socket = %socket.display(), "the deadline can be changed: POST /drain?deadline=60s");
            let routes = routes(shown, &Access::Full);
            tokio::spawn(server.serve(routes, std::future::pending()));
        }
        Err(error) => {
            tracing::warn!(%error, "this process can no longer be looked into, and its deadline stays");
        }
    }
}

/// `ztunnel-admin.sock` of process 7 becomes `ztunnel-admin-draining-7.sock`.
fn draining_socket(socket: &Path, process: u32) -> PathBuf {
    let stem = socket.file_stem().unwrap_or_default().to_string_lossy();
    socket.with_file_name(format!("{stem}-draining-{process}.sock"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use daemon::drain::drain;
    use tokio::net::UnixStream;

    use super::super::tests::ask;
    use super::*;

    #[tokio::test]
    async fn the_deadline_is_read_everywhere_and_changed_where_our_own_user_alone_comes() {
        let directory = tempfile::tempdir().unwrap();
        let (open, full) = (directory.path().join("open.sock"), directory.path().join("full.sock"));
        let end = End { deadline: Deadline::new(Duration::from_secs(5)), signal: drain().1 };
        for (path, access) in [(&open, Access::ReadOnly { socket: full.clone() }), (&full, Access::Full)] {
            let server = Admin::bind(&Address::Unix(path.clone()), "--admin-socket").unwrap();
            let routes = drain_routes(Routes::new(), end.clone(), &access);
            tokio::spawn(server.serve(routes, std::future::pending()));
        }
        for (path, line, code, says) in [
            (&open, "GET /drain", 200, "\"deadlineSeconds\": 5.0"),
            (&open, "POST /drain?deadline=60s", 403, "/full.sock 'http://localhost/drain?deadline=60s'"),
            (&full, "POST /drain", 400, "?deadline=60s"),
            (&full, "POST /drain?deadline=2h", 400, "between 0ns and 3600s"),
            (&full, "POST /drain?deadline=90s", 200, "\"deadlineSeconds\": 90.0"),
        ] {
            let reply = ask(UnixStream::connect(path).await.unwrap(), line).await;
            assert!(
                reply.starts_with(&format!("HTTP/1.1 {code} ")) && reply.contains(says),
                "{line}: {reply}"
            );
        }
        assert_eq!(end.deadline.get(), Duration::from_secs(90));
    }

    #[test]
    fn each_draining_process_has_a_socket_of_its_own_beside_the_admin_socket() {
        let path = draining_socket(Path::new("/run/culvert/ztunnel-admin.sock"), 7);
        assert_eq!(path, Path::new("/run/culvert/ztunnel-admin-draining-7.sock"));
    }
}
