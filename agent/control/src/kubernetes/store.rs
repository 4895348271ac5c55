//! What the API server has said, kind by kind: pure. A list that is under way takes nothing away until it is whole.

use std::collections::BTreeMap;

use kube::ResourceExt as _;
use kube::runtime::watcher::Event;

use super::decode::Received;
use super::meaning::Meaning;
use crate::manifests::{Kind, Objects};

/// Namespace and name.
type Key = (String, String);

/// The objects of some kinds.
#[derive(Debug)]
pub(super) struct Store(BTreeMap<Kind, Known>);

/// What is known of a kind.
#[derive(Debug, Default)]
struct Known {
    /// None before the first whole list.
    objects: Option<BTreeMap<Key, Meaning>>,
    /// What the list under way has said so far.
    listed: BTreeMap<Key, Meaning>,
}

impl Store {
    /// Nothing yet of these kinds.
    pub(super) fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self(kinds.into_iter().map(|kind| (kind, Known::default())).collect())
    }

    /// Takes what a watch says; whether that changes what is known.
    pub(super) fn take(&mut self, kind: Kind, event: Event<Received>) -> bool {
        let known = self.0.entry(kind).or_default();
        match event {
            Event::Init => {
                known.listed.clear();
                false
            }
            Event::InitApply(object) => {
                let meaning = Meaning::of(kind, &object.tree);
                if meaning != Meaning::Nothing {
                    known.listed.insert(key(&object), meaning);
                }
                false
            }
            Event::InitDone => {
                let now = Some(std::mem::take(&mut known.listed));
                let changed = now != known.objects;
                known.objects = now;
                changed
            }
            Event::Apply(object) => known.put(key(&object), Meaning::of(kind, &object.tree)),
            Event::Delete(object) => known.put(key(&object), Meaning::Nothing),
        }
    }

    /// Takes note that the API server does not have the kind. What it said of it earlier stays: objects end one by one, not with their kind,
    /// and a policy must not end by an API server's passing mistake.
    pub(super) fn lacks(&mut self, kind: Kind) -> bool {
        let known = self.0.entry(kind).or_default();
        let first = known.objects.is_none();
        known.objects.get_or_insert_default();
        first
    }

    /// Whether every kind was listed. What is known before is a part, and must not be taken for the whole.
    pub(super) fn is_complete(&self) -> bool {
        self.0.values().all(|known| known.objects.is_some())
    }

    /// All of it, sorted.
    pub(super) fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        for meaning in self.0.values().filter_map(|known| known.objects.as_ref()).flat_map(BTreeMap::values) {
            match meaning {
                Meaning::Nothing => {}
                Meaning::Read(object) => objects.add(object.clone()),
                Meaning::Unreadable(unreadable, stand_in) => {
                    objects.unreadable.push(unreadable.clone());
                    stand_in.iter().cloned().for_each(|object| objects.add(object));
                }
            }
        }
        objects
    }
}

impl Known {
    fn put(&mut self, key: Key, meaning: Meaning) -> bool {
        let objects = self.objects.get_or_insert_default();
        match meaning {
            Meaning::Nothing => objects.remove(&key).is_some(),
            meaning if objects.get(&key) == Some(&meaning) => false,
            meaning => {
                objects.insert(key, meaning);
                true
            }
        }
    }
}

fn key(object: &Received) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(name: &str, mode: &str) -> Received {
        let object = json!({"metadata": {"name": name, "labels": {"istio.io/dataplane-mode": mode}}});
        serde_json::from_value(object).unwrap()
    }

    fn names(store: &Store) -> Vec<String> {
        store.objects().namespaces.into_iter().map(|object| object.metadata.name).collect()
    }

    fn listed() -> Store {
        let mut store = Store::new([Kind::Namespace]);
        for event in [
            Event::Init,
            Event::InitApply(namespace("b", "ambient")),
            Event::InitApply(namespace("a", "ambient")),
        ] {
            assert!(!store.take(Kind::Namespace, event));
        }
        assert!(!store.is_complete(), "half a list");
        assert!(store.take(Kind::Namespace, Event::InitDone));
        store
    }

    #[test]
    fn changes_are_told_and_what_changes_nothing_is_not() {
        let mut store = listed();
        assert!(store.is_complete());
        assert_eq!(names(&store), ["a", "b"]);
        for (name, event, changes) in [
            ("the same again", Event::Apply(namespace("a", "ambient")), false),
            ("another label", Event::Apply(namespace("a", "none")), true),
            ("a new one", Event::Apply(namespace("c", "none")), true),
            ("one that goes", Event::Delete(namespace("b", "ambient")), true),
            ("one that was gone", Event::Delete(namespace("b", "ambient")), false),
        ] {
            assert_eq!(store.take(Kind::Namespace, event), changes, "{name}");
        }
        assert_eq!(names(&store), ["a", "c"]);
    }

    #[test]
    fn a_second_list_takes_effect_as_a_whole_and_only_when_it_is_one() {
        let mut store = listed();
        store.take(Kind::Namespace, Event::Init);
        store.take(Kind::Namespace, Event::InitApply(namespace("c", "ambient")));
        assert_eq!(names(&store), ["a", "b"]);
        // It is cut and begins anew.
        store.take(Kind::Namespace, Event::Init);
        store.take(Kind::Namespace, Event::InitApply(namespace("b", "ambient")));
        assert!(store.take(Kind::Namespace, Event::InitDone));
        assert_eq!(names(&store), ["b"]);
        store.take(Kind::Namespace, Event::Init);
        store.take(Kind::Namespace, Event::InitApply(namespace("b", "ambient")));
        assert!(!store.take(Kind::Namespace, Event::InitDone), "the same as before");
    }

    #[test]
    fn a_kind_that_the_api_server_lacks_is_empty_unless_it_said_otherwise_before() {
        let mut store = Store::new([Kind::Namespace]);
        assert!(store.lacks(Kind::Namespace));
        assert!(store.is_complete() && names(&store).is_empty());
        let mut store = listed();
        assert!(!store.lacks(Kind::Namespace));
        assert_eq!(names(&store), ["a", "b"]);
    }
}
