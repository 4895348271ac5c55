//! Whether the process can do its work: it is ready when nothing blocks it.

use std::sync::Arc;

use crate::admin::Routes;

/// The tasks that have to be done before the process is ready. Cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness(Arc<std::sync::Mutex<std::collections::BTreeMap<u64, String>>>);

impl Readiness {
    /// Ready until something blocks it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until the returned task is dropped. `name` is what `/healthz/ready` lists.
    #[must_use]
    pub fn block(&self, name: impl Into<String>) -> BlockReady {
        todo!()
    }

    /// What is pending, in the order in which it began.
    pub fn pending(&self) -> Vec<String> {
        todo!()
    }

    /// Adds GET `/healthz/ready`: 200, or 500 with one pending task a line.
    #[must_use]
    pub fn routes(&self, routes: Routes) -> Routes {
        todo!()
    }
}

/// A pending task; done when dropped.
#[derive(Debug)]
#[must_use = "dropped at once it blocks nothing"]
pub struct BlockReady {}
