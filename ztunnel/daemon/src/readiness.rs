//! Readiness: a process is ready when nothing blocks it any more. What still does is named, for whoever asks why.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;

use crate::admin::{self, Routes};

/// The process's readiness; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// One thing that has to happen first: the process is not ready while this is held.
#[derive(Debug)]
#[must_use = "readiness is blocked only while this is held"]
pub struct BlockReady {
    readiness: Readiness,
    what: String,
}

impl Readiness {
    /// Nothing blocks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Blocks readiness until the guard is dropped. The same name may be blocked more than once.
    pub fn block(&self, what: impl Into<String>) -> BlockReady {
        let what = what.into();
        *self.lock().entry(what.clone()).or_default() += 1;
        BlockReady { readiness: self.clone(), what }
    }

    /// What still blocks, in order of name.
    pub fn pending(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Adds GET `/healthz/ready`: 200, or 500 (Istio contract 1.10) with one pending task a line.
    #[must_use]
    pub fn routes(&self, routes: Routes) -> Routes {
        let readiness = self.clone();
        routes.get("/healthz/ready", move |_| {
            let pending = readiness.pending();
            async move {
                if pending.is_empty() {
                    admin::text("ready\n")
                } else {
                    admin::status(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", pending.join("\n")))
                }
            }
        })
    }

    // A panic elsewhere leaves the map whole: each change to it is a single step.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        let mut pending = self.readiness.lock();
        if let Some(count) = pending.get_mut(&self.what) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_blocked_twice_is_ready_after_both_are_done() {
        let readiness = Readiness::new();
        let first = readiness.block("a pod");
        let second = readiness.block("a pod");
        let config = readiness.block("configuration");
        drop((first, config));
        assert_eq!(readiness.pending(), ["a pod"]);
        drop(second);
        assert!(readiness.pending().is_empty());
    }
}
