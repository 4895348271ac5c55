//! The agent's side of the CNI plugin: it captures what the plugin brings, before any container starts.
//!
//! - `service` answers the plugin on `cni.sock`; `attachments` holds what the plugin has told of sandboxes until the API server tells of them.
//! - `install` has the plugin in the network's configuration, and the file of members beside it; `files` are its steps on the disk.

mod attachments;
pub(crate) mod files;
mod install;
mod service;

pub(crate) use attachments::Attachments;
pub(crate) use install::{Installation, keep_installed, last_members};
pub(crate) use service::{Knowledge, Service};

use std::sync::Arc;

use cni::members::Members;
use tokio::sync::watch;

/// Who is in the mesh; none before anybody has said so.
pub(crate) type Membership = watch::Receiver<Option<Arc<Members>>>;
