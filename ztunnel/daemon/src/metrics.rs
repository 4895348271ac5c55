//! The metrics endpoint: one registry a process, told in the format that the client takes.

use std::io::{self, Write as _};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::admin::{self, AdminRequest, AdminResponse, Routes};
use crate::exposition::{Format, as_text, takes_gzip};

/// The process's registry; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    registry: Arc<RwLock<Registry>>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers metrics; names get their prefix by `Registry::sub_registry_with_prefix`.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.write())
    }

    /// All metrics as OpenMetrics text. Fails only if a metric's own encoder does.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.read())?;
        Ok(text)
    }

    /// Adds GET `/metrics` and GET `/stats/prometheus` (Istio contract 1.10): OpenMetrics for who asks for it by name, as Prometheus
    /// does, or its older text format; compressed for who takes gzip.
    #[must_use]
    pub fn routes(&self, routes: Routes) -> Routes {
        let render = |metrics: Self| {
            move |request: AdminRequest| std::future::ready(metrics.response(request.headers()))
        };
        routes.get("/metrics", render(self.clone())).get("/stats/prometheus", render(self.clone()))
    }

    fn response(&self, headers: &HeaderMap) -> AdminResponse {
        let format = Format::wanted(headers);
        let text = self.encode().map(|text| match format {
            Format::OpenMetrics => text,
            Format::Text => as_text(&text),
        });
        match text.map_err(io::Error::other).and_then(|text| body(text, takes_gzip(headers))) {
            Ok((body, encoding)) => {
                let mut response = admin::text(body);
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
                headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
                headers.extend(encoding.map(|encoding| (header::CONTENT_ENCODING, encoding)));
                response
            }
            Err(error) => {
                admin::status(StatusCode::INTERNAL_SERVER_ERROR, format!("rendering the metrics: {error}\n"))
            }
        }
    }

    // Registering is all that writes, and it happens at start: a panic there ends the process anyway.
    fn read(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Registry> {
        self.registry.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The text, compressed if that is wanted, and how it is encoded then. Fast: it shrinks to a tenth all the same.
fn body(text: String, gzip: bool) -> io::Result<(Bytes, Option<HeaderValue>)> {
    if !gzip {
        return Ok((text.into(), None));
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    Ok((encoder.finish()?.into(), Some(HeaderValue::from_static("gzip"))))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use prometheus_client::metrics::counter::Counter;

    use super::*;

    fn one_counter() -> Metrics {
        let metrics = Metrics::new();
        let opened: Counter = Counter::default();
        metrics.register(|registry| {
            registry.sub_registry_with_prefix("istio").register("opened", "Opened", opened.clone());
        });
        opened.inc();
        metrics
    }

    #[test]
    fn a_registered_counter_is_rendered_with_its_prefix() {
        assert!(one_counter().encode().unwrap().contains("istio_opened_total 1\n"));
    }

    #[test]
    fn the_answer_is_what_the_client_takes_and_says_what_it_is() {
        let open = "# HELP istio_opened Opened.\n# TYPE istio_opened counter\nistio_opened_total 1\n# EOF\n";
        let text =
            "# HELP istio_opened_total Opened.\n# TYPE istio_opened_total counter\nistio_opened_total 1\n";
        for (accept, kind, expected) in [
            (
                "application/openmetrics-text",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                open,
            ),
            ("*/*", "text/plain; version=0.0.4; charset=utf-8", text),
        ] {
            for compressed in [false, true] {
                let mut asked = HeaderMap::new();
                asked.insert(header::ACCEPT, HeaderValue::from_static(accept));
                if compressed {
                    asked.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
                }
                let response = one_counter().response(&asked);
                assert_eq!(response.headers()[header::CONTENT_TYPE], kind);
                let encoding = response.headers().get(header::CONTENT_ENCODING);
                assert_eq!(encoding.is_some_and(|encoding| encoding == "gzip"), compressed);
                let mut told = String::new();
                match compressed {
                    true => {
                        flate2::read::GzDecoder::new(&**response.body()).read_to_string(&mut told).unwrap()
                    }
                    false => (&**response.body()).read_to_string(&mut told).unwrap(),
                };
                assert_eq!(told, expected, "{accept}");
            }
        }
    }
}
