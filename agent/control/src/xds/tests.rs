//! The store and one client's conversation, joined to the client's own bookkeeping without a stream.

use std::sync::Arc;

use api::delta::Heard;
use api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::type_url::ResourceType::{self, Address, Authorization, NodePod};
use prost_types::Any;

use super::service::Client;
use super::store::{Entry, ResourceStore};
use super::stream::Conversation;

fn entry(kind: ResourceType, name: &str, content: &str, node: Option<&str>) -> Entry {
    let content = Any { type_url: kind.url().to_owned(), value: content.as_bytes().to_vec() };
    Entry { name: name.to_owned(), content, node: node.map(str::to_owned) }
}

fn entries(kind: ResourceType, names: &[&str]) -> Vec<Entry> {
    names.iter().map(|name| entry(kind, name, name, None)).collect()
}

fn client(node: Option<&str>) -> Client {
    Client { name: "test".to_owned(), node: node.map(str::to_owned), kinds: &ResourceType::AGENT }
}

fn subscribe(kind: ResourceType, held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let held = held.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        initial_resource_versions: held.collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(push: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: push.type_url.clone(),
        response_nonce: push.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// All pushes until there is nothing more to say, each answered at once: type, names, removed names.
fn talk(conversation: &mut Conversation) -> Vec<(ResourceType, Vec<String>, Vec<String>)> {
    let mut said = Vec::new();
    while let Some(push) = conversation.next_push() {
        assert!(matches!(conversation.state.receive(ack(&push)), Ok(Heard::Ack(_))));
        let kind = ResourceType::from_url(&push.type_url).unwrap();
        said.push((
            kind,
            push.resources.into_iter().map(|resource| resource.name).collect(),
            push.removed_resources,
        ));
    }
    said
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A conversation about `store` that has said all there is to say of these types.
fn settled(store: &ResourceStore, node: Option<&str>, kinds: &[ResourceType]) -> Conversation {
    let mut conversation = Conversation::new(client(node), store.snapshot());
    for kind in kinds {
        conversation.state.receive(subscribe(*kind, &[])).unwrap();
    }
    talk(&mut conversation);
    conversation
}

#[test]
fn nothing_is_said_before_all_that_is_needed_is_known() {
    let store = ResourceStore::new([Authorization, Address]);
    let mut conversation = Conversation::new(client(None), store.snapshot());
    conversation.state.receive(subscribe(Address, &[("old", "1")])).unwrap();
    assert!(talk(&mut conversation).is_empty());
    store.update(Address, entries(Address, &["a"]), &[]);
    conversation.follow(store.snapshot());
    assert!(talk(&mut conversation).is_empty(), "policies are not known yet");
    store.update(Authorization, vec![], &[]);
    conversation.follow(store.snapshot());
    assert_eq!(talk(&mut conversation), [(Address, names(&["a"]), names(&["old"]))]);
}

#[test]
fn only_what_differs_is_said_also_to_one_who_missed_states_between() {
    let store = ResourceStore::new([]);
    store.replace([(Address, entries(Address, &["a", "b"]))]);
    let mut conversation = settled(&store, None, &[Address]);
    store.replace([(Address, vec![entry(Address, "a", "new", None), entry(Address, "c", "c", None)])]);
    conversation.follow(store.snapshot());
    assert_eq!(talk(&mut conversation), [(Address, names(&["a", "c"]), names(&["b"]))]);
    store.update(Address, entries(Address, &["d"]), &[]);
    store.update(Address, vec![], &names(&["c", "never"]));
    conversation.follow(store.snapshot());
    assert_eq!(talk(&mut conversation), [(Address, names(&["d"]), names(&["c"]))]);
}

#[test]
fn the_same_content_is_the_same_version_and_no_news() {
    let store = ResourceStore::new([]);
    store.replace([(Address, entries(Address, &["a"]))]);
    let before = store.snapshot();
    store.replace([(Address, entries(Address, &["a"]))]);
    assert!(Arc::ptr_eq(&before, &store.snapshot()), "nothing was published");
    let other = ResourceStore::new([]);
    other.replace([(Address, entries(Address, &["a", "b"]))]);
    let mut first = Conversation::new(client(None), store.snapshot());
    first.state.receive(subscribe(Address, &[])).unwrap();
    let push = first.next_push().unwrap();
    let version = push.resources[0].version.clone();
    let mut reconnected = Conversation::new(client(None), other.snapshot());
    reconnected.state.receive(subscribe(Address, &[("a", &version)])).unwrap();
    assert_eq!(talk(&mut reconnected), [(Address, names(&["b"]), vec![])]);
}

#[test]
fn a_node_sees_its_own_pods_alone() {
    let store = ResourceStore::new([]);
    let pods =
        |east: &str| vec![entry(NodePod, "e", "e", Some(east)), entry(NodePod, "w", "w", Some("west"))];
    store.replace([(NodePod, pods("east"))]);
    for (node, expected) in [(Some("east"), vec!["e"]), (Some("west"), vec!["w"]), (None, vec![])] {
        let mut conversation = Conversation::new(client(node), store.snapshot());
        conversation.state.receive(subscribe(NodePod, &[])).unwrap();
        assert_eq!(talk(&mut conversation), [(NodePod, names(&expected), vec![])], "{node:?}");
    }
    let (mut east, mut west) =
        (settled(&store, Some("east"), &[NodePod]), settled(&store, Some("west"), &[NodePod]));
    store.replace([(NodePod, pods("west"))]);
    east.follow(store.snapshot());
    west.follow(store.snapshot());
    assert_eq!(talk(&mut east), [(NodePod, vec![], names(&["e"]))], "the same name moves to another node");
    assert_eq!(talk(&mut west), [(NodePod, names(&["e"]), vec![])]);
}

#[test]
fn a_policy_goes_only_after_the_workloads_that_named_it_have_changed() {
    let store = ResourceStore::new([]);
    store
        .replace([(Authorization, entries(Authorization, &["p", "q"])), (Address, entries(Address, &["a"]))]);
    let mut conversation = settled(&store, None, &[Address, Authorization]);
    store.replace([
        (Authorization, entries(Authorization, &["q"])),
        (Address, vec![entry(Address, "a", "without p", None)]),
    ]);
    conversation.follow(store.snapshot());
    let expected = [(Address, names(&["a"]), vec![]), (Authorization, vec![], names(&["p"]))];
    assert_eq!(talk(&mut conversation), expected);
}

#[test]
fn a_policy_that_comes_back_meanwhile_stays() {
    let store = ResourceStore::new([]);
    let both = || [(Authorization, entries(Authorization, &["p"])), (Address, entries(Address, &["a"]))];
    store.replace(both());
    let mut conversation = settled(&store, None, &[Authorization, Address]);
    store.replace([(Authorization, vec![]), (Address, vec![entry(Address, "a", "new", None)])]);
    conversation.follow(store.snapshot());
    let push = conversation.next_push().unwrap();
    assert_eq!(push.type_url, Address.url());
    store.replace(both());
    conversation.follow(store.snapshot());
    conversation.state.receive(ack(&push)).unwrap();
    assert_eq!(talk(&mut conversation), [(Address, names(&["a"]), vec![])], "and nothing of the policy");
}
