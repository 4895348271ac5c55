//! The registry of metrics and its OpenMetrics text.

use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::admin::Routes;

/// The registry of a process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<std::sync::RwLock<Registry>>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers metrics.
    pub fn register<T>(&self, f: impl FnOnce(&mut Registry) -> T) -> T {
        f(&mut self.registry.write().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> String {
        todo!()
    }

    /// Adds GET `/metrics` and GET `/stats/prometheus`.
    #[must_use]
    pub fn routes(&self, routes: Routes) -> Routes {
        todo!()
    }
}
