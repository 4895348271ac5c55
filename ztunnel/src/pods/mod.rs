//! The pods this process serves.

mod basis;
mod pod;
mod registry;
mod spec;

pub(crate) use pod::{Own, Pod};
pub(crate) use registry::{Likeness, Pods, Serving};
pub(crate) use spec::{Listeners, PodSpec, PodUid};
