//! The metrics endpoint: one registry a process, rendered as OpenMetrics text.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use http::{HeaderValue, StatusCode, header};

use crate::admin::{self, Routes};

/// The content type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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

    /// Adds GET `/metrics` and GET `/stats/prometheus` (Istio contract 1.10).
    #[must_use]
    pub fn routes(&self, routes: Routes) -> Routes {
        let render = |metrics: Self| move |_| std::future::ready(metrics.response());
        routes.get("/metrics", render(self.clone())).get("/stats/prometheus", render(self.clone()))
    }

    fn response(&self) -> admin::AdminResponse {
        match self.encode() {
            Ok(text) => {
                let mut response = admin::text(text);
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
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

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn a_registered_counter_is_rendered_with_its_prefix() {
        let metrics = Metrics::new();
        let opened: Counter = Counter::default();
        metrics.register(|registry| {
            registry.sub_registry_with_prefix("istio").register("opened", "Opened.", opened.clone());
        });
        opened.inc();
        assert!(metrics.encode().unwrap().contains("istio_opened_total 1\n"));
    }
}
