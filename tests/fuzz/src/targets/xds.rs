//! What a server pushes, and what a client answers, over delta xDS.

use std::collections::BTreeSet;

use api::convert::{read, service_resource};
use api::delta::{ClientState, Heard, Rejection, ServerState, Source, Versioned};
use api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use api::type_url::ResourceType;
use prost::Message as _;

use super::address::service;

/// A server that has nothing.
struct Nothing;

impl Source for Nothing {
    fn all(&self, _: ResourceType, _: &mut dyn FnMut(&str, &Versioned)) {}
    fn get(&self, _: ResourceType, _: &str) -> Option<Versioned> {
        None
    }
}

/// Messages, each after its length in two bytes. To the client they are pushes, to the server requests.
///
/// The client answers each push by its nonce, with an error just where it rejected something, and then holds what was pushed and not
/// removed; the server comes to rest.
pub fn run(input: &[u8]) {
    let mut client = ClientState::new(Node::default(), &ResourceType::AGENT);
    let mut server = ServerState::new();
    for message in messages(input) {
        if let Ok(response) = DeltaDiscoveryResponse::decode(message) {
            take_push(&mut client, response);
        }
        if let Ok(request) = DeltaDiscoveryRequest::decode(message)
            && let Ok(Heard::Subscribed(kind)) = server.receive(request)
        {
            assert!(server.is_subscribed(kind));
        }
        let mut pushes = 0;
        while let Some(push) = server.next_push(&Nothing) {
            pushes += 1;
            assert!(push.resources.is_empty() && pushes <= ResourceType::AGENT.len());
        }
    }
    // Whatever it has heard, it can subscribe anew.
    assert_eq!(client.connect(&[]).len(), ResourceType::AGENT.len());
}

fn take_push(client: &mut ClientState, response: DeltaDiscoveryResponse) {
    let nonce = response.nonce.clone();
    let Ok(push) = client.receive(response) else { return };
    let kind = push.kind;
    let rejections = push.resources.iter().filter_map(|resource| {
        let content = resource.resource.clone().unwrap_or_default();
        let rejected = read(kind, &resource.name, &resource.aliases, &content).err()?;
        Some(Rejection { name: resource.name.clone(), reason: rejected.error.to_string() })
    });
    let rejections: Vec<Rejection> = rejections.collect();
    let removed: BTreeSet<String> = push.removed.iter().cloned().collect();
    let pushed: BTreeSet<String> = push.resources.iter().map(|resource| resource.name.clone()).collect();
    let answer = client.answer(push.receipt, &rejections);
    assert_eq!(answer.response_nonce, nonce);
    assert_eq!(answer.error_detail.is_some(), !rejections.is_empty());
    let anew = client.connect(&[]).into_iter().find(|one| one.type_url == kind.url());
    let held = anew.map(|one| one.initial_resource_versions).unwrap_or_default();
    assert!(pushed.iter().all(|name| held.contains_key(name)));
    assert!(removed.iter().all(|name| pushed.contains(name) || !held.contains_key(name)));
    assert!(rejections.iter().all(|rejection| held.get(&rejection.name).is_some_and(String::is_empty)));
}

fn messages(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = input;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length)).min(tail.len());
        let (message, after) = tail.split_at(length);
        rest = after;
        Some(message)
    })
}

/// Pushes, removals and answers of each type.
pub fn seeds() -> Vec<Vec<u8>> {
    let framed = |message: Vec<u8>| {
        let length = u16::try_from(message.len()).unwrap_or_default();
        [length.to_be_bytes().to_vec(), message].concat()
    };
    let (name, content) = service_resource(&service());
    let push = |nonce: &str, names: &[&str], removed: &[&str]| DeltaDiscoveryResponse {
        type_url: ResourceType::Address.url().to_owned(),
        nonce: nonce.to_owned(),
        resources: names
            .iter()
            .map(|name| Resource {
                name: (*name).to_owned(),
                version: "1".to_owned(),
                resource: Some(content.clone()),
                ..Resource::default()
            })
            .collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    let pushes =
        [push("1", &[&name, "another"], &[]), push("2", &[], &[&name]), push("3", &[&name], &[&name])];
    let request = |nonce: &str| DeltaDiscoveryRequest {
        type_url: ResourceType::Authorization.url().to_owned(),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    vec![
        pushes.iter().flat_map(|push| framed(push.encode_to_vec())).collect(),
        [request(""), request("1"), request("1")]
            .iter()
            .flat_map(|one| framed(one.encode_to_vec()))
            .collect(),
    ]
}
