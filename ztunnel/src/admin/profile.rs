//! Profiles over HTTP, at the paths and with the parameters of Istio's (contract 1.10).

use std::ops::RangeInclusive;
use std::time::Duration;

use daemon::admin::{AdminRequest, AdminResponse, Routes, query, status, text};
use http::{HeaderValue, StatusCode, header};

use super::Access;
use crate::profile::{self, CpuError, Frequency, HeapError};

const PROFILING: &str = "/debug/pprof/heap/profiling";

/// The routes.
pub(super) fn profile_routes(routes: Routes, access: &Access) -> Routes {
    let routes = routes.get("/debug/pprof/profile", cpu).get("/debug/pprof/heap", |_| async {
        // To name functions takes a while.
        match tokio::task::spawn_blocking(profile::heap).await {
            Ok(Ok(profile)) => bytes(profile),
            Ok(Err(error)) => of_heap(&error),
            Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR, "putting the profile together failed\n"),
        }
    });
    let toggle = |access: Access| move |request| std::future::ready(profiling(&request, &access));
    routes.get(PROFILING, toggle(access.clone())).post(PROFILING, toggle(access.clone()))
}

async fn cpu(request: AdminRequest) -> AdminResponse {
    let (seconds, frequency) = match parameters(&request) {
        Ok(parameters) => parameters,
        Err(wrong) => return status(StatusCode::BAD_REQUEST, wrong),
    };
    match profile::cpu(Duration::from_secs(seconds.into()), frequency).await {
        Ok(profile) => bytes(profile),
        Err(error @ CpuError::Busy) => status(StatusCode::CONFLICT, format!("{error}\n")),
        Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn parameters(request: &AdminRequest) -> Result<(u32, Frequency), String> {
    let seconds = number(request, "seconds", 10, 1..=300)?;
    let hertz = number(request, "frequency", 100, 1..=1000)?;
    Ok((seconds, Frequency::new(hertz).ok_or_else(|| invalid("frequency", &(1..=1000)))?))
}

fn number(
    request: &AdminRequest,
    name: &str,
    default: u32,
    range: RangeInclusive<u32>,
) -> Result<u32, String> {
    match query(request, name).map(|text| text.parse()) {
        None => Ok(default),
        Some(Ok(number)) if range.contains(&number) => Ok(number),
        Some(_) => Err(invalid(name, &range)),
    }
}

fn invalid(name: &str, range: &RangeInclusive<u32>) -> String {
    format!("invalid {name} value; expected {}-{}\n", range.start(), range.end())
}

/// Istio's takes GET for the change, too. Who may only look may still ask how it stands.
fn profiling(request: &AdminRequest, access: &Access) -> AdminResponse {
    let change = match query(request, "activate").as_deref() {
        None => Ok(()),
        Some(wanted @ ("true" | "false")) => {
            match access.refusal("/debug/pprof/heap/profiling?activate=true") {
                Some(refusal) => return refusal,
                None => profile::activate(wanted == "true"),
            }
        }
        Some(other) => {
            let text = format!("invalid activate value {other:?}; expected true or false\n");
            return status(StatusCode::BAD_REQUEST, text);
        }
    };
    match change.and_then(|()| profile::is_active()) {
        Ok(active) => text(format!("heap profiling active: {active}\n")),
        Err(error) => of_heap(&error),
    }
}

fn of_heap(error: &HeapError) -> AdminResponse {
    status(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}

fn bytes(profile: Vec<u8>) -> AdminResponse {
    let mut response = text(profile);
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::Bytes;

    use super::*;

    fn request(uri: &str) -> AdminRequest {
        http::Request::get(uri).body(Bytes::new()).unwrap()
    }

    #[test]
    fn a_profile_of_the_processors_takes_istios_parameters_in_their_ranges() {
        let hertz = |hertz| Frequency::new(hertz).unwrap();
        for (query, expected) in [
            ("", (10, hertz(100))),
            ("?seconds=300&frequency=1000", (300, hertz(1000))),
            ("?frequency=1&seconds=1", (1, hertz(1))),
        ] {
            assert_eq!(parameters(&request(&format!("/x{query}"))), Ok(expected), "{query}");
        }
        for (query, told) in [
            ("?seconds=0", "invalid seconds value; expected 1-300\n"),
            ("?seconds=301", "invalid seconds value; expected 1-300\n"),
            ("?seconds=ten", "invalid seconds value; expected 1-300\n"),
            ("?frequency=1001", "invalid frequency value; expected 1-1000\n"),
            ("?frequency=-1", "invalid frequency value; expected 1-1000\n"),
        ] {
            assert_eq!(parameters(&request(&format!("/x{query}"))), Err(told.to_owned()), "{query}");
        }
    }

    #[test]
    fn samples_of_memory_are_begun_on_the_unix_socket_alone() {
        let look = Access::ReadOnly { socket: PathBuf::from("/run/x.sock") };
        let answer = |query: &str, access| {
            let answer = profiling(&request(&format!("/x{query}")), access);
            (answer.status().as_u16(), String::from_utf8(answer.body().to_vec()).unwrap())
        };
        assert_eq!(answer("?activate=true", &look).0, 403);
        assert_eq!(answer("?activate=yes", &Access::Full).0, 400);
        for (query, access) in [("", &look), ("?activate=true", &Access::Full)] {
            let (status, told) = answer(query, access);
            assert_eq!(status, 500, "{told}");
            assert!(told.contains("start the process with _RJEM_MALLOC_CONF="), "{told}");
        }
    }
}
