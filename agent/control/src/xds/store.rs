//! The resources there are, each at a version made of its content.
//!
//! A snapshot is immutable; watchers see the latest one and nothing in between, so that a slow one costs no memory. A
//! resource published again with the same content keeps its version: clients that reconnect, also to another replica
//! or after a restart, are sent only what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::delta::Versioned;
use api::type_url::ResourceType;
use prost_types::Any;
use tokio::sync::watch;

/// A resource to be published.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name, unique within its type.
    pub name: String,
    /// Its content.
    pub content: Any,
    /// The node it is for; `None`: for all.
    pub node: Option<String>,
}

impl From<(String, Any)> for Entry {
    /// A resource for all nodes.
    fn from((name, content): (String, Any)) -> Self {
        Self { name, content, node: None }
    }
}

/// A resource as it is held.
#[derive(Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) versioned: Versioned,
    pub(super) node: Option<String>,
}

/// The resources of a type, by name.
pub(super) type Resources = BTreeMap<Arc<str>, Arc<Stored>>;

/// The resources at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts changes.
    revision: u64,
    required: BTreeSet<ResourceType>,
    types: BTreeMap<ResourceType, Arc<Resources>>,
    /// What differs from the snapshot before, of revision one less.
    changed: BTreeSet<(ResourceType, Arc<str>)>,
    closed: bool,
}

impl Snapshot {
    /// Whether every type that must be known before clients are told anything has been published.
    pub fn is_ready(&self) -> bool {
        self.required.iter().all(|kind| self.types.contains_key(kind))
    }

    /// The resources of a type, by name.
    pub fn contents(&self, kind: ResourceType) -> impl Iterator<Item = (&str, &Any)> {
        let resources = self.types.get(&kind).into_iter().flat_map(|resources| resources.iter());
        resources.map(|(name, stored)| (&**name, &stored.versioned.content))
    }

    /// How many resources of a type there are.
    pub fn count(&self, kind: ResourceType) -> usize {
        self.types.get(&kind).map_or(0, |resources| resources.len())
    }

    /// Whether there will be no other, and clients are sent away.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn changed(&self) -> &BTreeSet<(ResourceType, Arc<str>)> {
        &self.changed
    }

    pub(super) fn resources(&self, kind: ResourceType) -> Option<&Arc<Resources>> {
        self.types.get(&kind)
    }
}

/// What is published and watched. Clones are the same store.
#[derive(Clone, Debug)]
pub struct ResourceStore {
    current: watch::Sender<Arc<Snapshot>>,
}

impl ResourceStore {
    /// An empty store. Clients are answered only once every type of `required` has been published: an empty answer would
    /// take from them what they hold from before.
    pub fn new(required: impl IntoIterator<Item = ResourceType>) -> Self {
        let snapshot = Snapshot { required: required.into_iter().collect(), ..Snapshot::default() };
        Self { current: watch::Sender::new(Arc::new(snapshot)) }
    }

    /// Publishes the whole of each of these types, at once: what is not among the entries is gone.
    pub fn replace(&self, types: impl IntoIterator<Item = (ResourceType, Vec<Entry>)>) {
        let types: Vec<(ResourceType, Resources)> = types
            .into_iter()
            .map(|(kind, entries)| (kind, entries.into_iter().map(stored).collect()))
            .collect();
        self.publish(|before| {
            let keep = |(kind, resources): (ResourceType, Resources)| {
                let same = |(name, fresh): (Arc<str>, Arc<Stored>)| {
                    let held = before.types.get(&kind).and_then(|held| held.get(&name));
                    (name, held.filter(|held| **held == fresh).map_or(fresh, Arc::clone))
                };
                (kind, resources.into_iter().map(same).collect())
            };
            types.into_iter().map(keep).collect()
        });
    }

    /// Publishes what is new and what is gone of one type. The first call makes the type known, and be it with nothing.
    pub fn update(&self, kind: ResourceType, entries: Vec<Entry>, removed: &[String]) {
        let entries: Resources = entries.into_iter().map(stored).collect();
        self.publish(|before| {
            let mut resources =
                before.types.get(&kind).map(|held| Resources::clone(held)).unwrap_or_default();
            for name in removed {
                resources.remove(name.as_str());
            }
            resources.extend(entries);
            vec![(kind, resources)]
        });
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.borrow())
    }

    /// Tells of new snapshots from now on.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Ends every stream: clients go to another server, or come back to this one's successor.
    pub fn close(&self) {
        self.current.send_modify(|current| {
            let types = current.types.clone();
            let (revision, required) = (current.revision + 1, current.required.clone());
            *current =
                Arc::new(Snapshot { revision, required, types, changed: BTreeSet::new(), closed: true });
        });
    }

    fn publish(&self, make: impl FnOnce(&Snapshot) -> Vec<(ResourceType, Resources)>) {
        self.current.send_if_modified(|current| {
            let fresh = make(current);
            let mut next = Snapshot {
                revision: current.revision + 1,
                required: current.required.clone(),
                types: current.types.clone(),
                changed: BTreeSet::new(),
                closed: current.closed,
            };
            let mut newly_known = false;
            for (kind, resources) in fresh {
                newly_known |= !current.types.contains_key(&kind);
                let held = current.types.get(&kind).map(Arc::as_ref);
                next.changed.extend(differences(held, &resources).into_iter().map(|name| (kind, name)));
                next.types.insert(kind, Arc::new(resources));
            }
            let modified = newly_known || !next.changed.is_empty();
            if modified {
                *current = Arc::new(next);
            }
            modified
        });
    }
}

/// Names of what was added, removed or changed.
fn differences(before: Option<&Resources>, after: &Resources) -> Vec<Arc<str>> {
    let empty = Resources::new();
    let before = before.unwrap_or(&empty);
    let changed =
        after.iter().filter(|(name, stored)| before.get(*name) != Some(*stored)).map(|(name, _)| name);
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    changed.chain(gone).map(Arc::clone).collect()
}

fn stored(entry: Entry) -> (Arc<str>, Arc<Stored>) {
    let version = version(&entry.content, entry.node.as_deref());
    let versioned = Versioned { version, content: entry.content };
    (entry.name.into(), Arc::new(Stored { versioned, node: entry.node }))
}

/// 128 bits of SHA-256: no two contents of one resource will ever share a version.
fn version(content: &Any, node: Option<&str>) -> String {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    hash.update(content.type_url.as_bytes());
    hash.update(&[0]);
    hash.update(node.unwrap_or_default().as_bytes());
    hash.update(&[0]);
    hash.update(&content.value);
    hash.finish().as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
