//! Client and server joined by a stream of two queues that can break at any point.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost_types::Any;

use super::*;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use crate::type_url::ResourceType;

const KIND: ResourceType = ResourceType::Address;

/// What a server offers: (type, name) -> content; the version is the content.
#[derive(Default)]
struct Shelf(BTreeMap<(ResourceType, String), String>);

impl Shelf {
    fn put(&mut self, kind: ResourceType, name: &str, content: &str) {
        self.0.insert((kind, name.to_owned()), content.to_owned());
    }

    fn take(&mut self, kind: ResourceType, name: &str) {
        self.0.remove(&(kind, name.to_owned()));
    }
}

fn versioned(content: &str) -> Versioned {
    let value = content.as_bytes().to_vec();
    Versioned { version: content.to_owned(), content: Any { type_url: String::new(), value } }
}

impl Source for Shelf {
    fn all(&self, kind: ResourceType, each: &mut dyn FnMut(&str, &Versioned)) {
        for ((_, name), content) in self.0.iter().filter(|((of, _), _)| *of == kind) {
            each(name, &versioned(content));
        }
    }

    fn get(&self, kind: ResourceType, name: &str) -> Option<Versioned> {
        self.0.get(&(kind, name.to_owned())).map(|content| versioned(content))
    }
}

fn client(types: &[ResourceType]) -> ClientState {
    ClientState::new(Node::default(), types)
}

fn subscribed(client: &ClientState) -> ServerState {
    let mut server = ServerState::new();
    for request in client.connect(&[]) {
        assert!(matches!(server.receive(request), Ok(Heard::Subscribed(_))));
    }
    server
}

/// Applies a push, but for what `rejects` says, and gives the answer.
fn apply(
    client: &mut ClientState,
    held: &mut BTreeMap<String, String>,
    response: DeltaDiscoveryResponse,
    rejects: impl Fn(&str) -> bool,
) -> DeltaDiscoveryRequest {
    let push = client.receive(response).unwrap();
    let mut rejected = Vec::new();
    for resource in &push.resources {
        let content = String::from_utf8(resource.resource.clone().unwrap().value).unwrap();
        if rejects(&content) {
            rejected.push(Rejection { name: resource.name.clone(), reason: "no".to_owned() });
        } else {
            held.insert(resource.name.clone(), content);
        }
    }
    for name in &push.removed {
        held.remove(name);
    }
    client.answer(push.receipt, &rejected)
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[test]
fn a_subscription_is_answered_even_when_there_is_nothing_and_the_client_is_synced_then() {
    let mut client = client(&ResourceType::ZTUNNEL);
    let mut server = subscribed(&client);
    let shelf = Shelf::default();
    let mut held = BTreeMap::new();
    for kind in ResourceType::ZTUNNEL {
        assert!(!client.is_synced());
        let response = server.next_push(&shelf).unwrap();
        assert_eq!(response.type_url, kind.url(), "in the order of subscription");
        let answer = apply(&mut client, &mut held, response, |_| false);
        assert_eq!(server.receive(answer), Ok(Heard::Ack(kind)));
    }
    assert!(client.is_synced());
    assert!(server.next_push(&shelf).is_none() && server.is_idle());
}

#[test]
fn the_first_request_of_a_type_is_a_wildcard_with_what_is_held() {
    let mut client = client(&[KIND]);
    assert!(client.connect(&[])[0].initial_resource_versions.is_empty());
    let mut shelf = Shelf::default();
    shelf.put(KIND, "a", "1");
    let response = subscribed(&client).next_push(&shelf).unwrap();
    apply(&mut client, &mut BTreeMap::new(), response, |_| false);
    let [request] = &client.connect(&[])[..] else { panic!("one type, one request") };
    assert!(request.resource_names_subscribe.is_empty() && request.response_nonce.is_empty());
    assert_eq!(request.initial_resource_versions, BTreeMap::from([("a".to_owned(), "1".to_owned())]));
    assert!(request.node.is_some());
}

#[test]
fn one_push_is_under_way_and_what_changes_meanwhile_comes_in_the_next() {
    let mut client = client(&[KIND]);
    let mut server = subscribed(&client);
    let mut shelf = Shelf::default();
    let mut held = BTreeMap::new();
    let first = server.next_push(&shelf).unwrap();
    for (name, content) in [("a", "1"), ("b", "1"), ("a", "2")] {
        shelf.put(KIND, name, content);
        server.changed(KIND, name);
        assert!(server.next_push(&shelf).is_none(), "the first push is not answered");
    }
    server.receive(apply(&mut client, &mut held, first, |_| false)).unwrap();
    let second = server.next_push(&shelf).unwrap();
    assert_eq!(names(&second), ["a", "b"]);
    server.receive(apply(&mut client, &mut held, second, |_| false)).unwrap();
    assert_eq!(held.get("a").map(String::as_str), Some("2"));
    server.changed(KIND, "a");
    assert!(server.next_push(&shelf).is_none(), "nothing differs");
}

#[test]
fn a_workload_is_not_told_before_the_policy_it_names() {
    let [policies, workloads] = ResourceType::ZTUNNEL;
    let mut client = client(&ResourceType::ZTUNNEL);
    let mut server = subscribed(&client);
    let mut shelf = Shelf::default();
    let mut held = BTreeMap::new();
    while let Some(response) = server.next_push(&shelf) {
        server.receive(apply(&mut client, &mut held, response, |_| false)).unwrap();
    }
    shelf.put(policies, "first", "1");
    server.changed(policies, "first");
    let under_way = server.next_push(&shelf).unwrap();
    // Before that is answered there is another policy, and a workload that names it.
    shelf.put(policies, "second", "1");
    server.changed(policies, "second");
    shelf.put(workloads, "web", "names second");
    server.changed(workloads, "web");
    assert_eq!(server.next_push(&shelf), None);
    server.receive(apply(&mut client, &mut held, under_way, |_| false)).unwrap();
    for (kind, name) in [(policies, "second"), (workloads, "web")] {
        let response = server.next_push(&shelf).unwrap();
        assert_eq!((response.type_url.as_str(), names(&response)), (kind.url(), vec![name]));
        server.receive(apply(&mut client, &mut held, response, |_| false)).unwrap();
    }
    assert!(server.is_idle());
}

#[test]
fn a_nack_names_what_was_rejected_and_the_rest_is_held() {
    let mut client = client(&[KIND]);
    let mut server = subscribed(&client);
    let mut shelf = Shelf::default();
    shelf.put(KIND, "good", "1");
    shelf.put(KIND, "bad", "x");
    let mut held = BTreeMap::new();
    let response = server.next_push(&shelf).unwrap();
    let answer = apply(&mut client, &mut held, response, |content| content == "x");
    let detail = answer.error_detail.clone().unwrap();
    assert_eq!((detail.code, detail.message.as_str()), (3, "bad: no"));
    assert_eq!(server.receive(answer), Ok(Heard::Nack { kind: KIND, message: "bad: no".to_owned() }));
    assert!(server.next_push(&shelf).is_none(), "the same content is not sent again");
    assert!(client.is_synced(), "one malformed resource does not keep a node from serving");
    assert_eq!(held.len(), 1);
    let versions = &client.connect(&[])[0].initial_resource_versions;
    assert_eq!(versions.get("good").map(String::as_str), Some("1"));
    assert_eq!(versions.get("bad").map(String::as_str), Some(""), "held under no known version");
    shelf.take(KIND, "bad");
    let reconnected = subscribed(&client).next_push(&shelf).unwrap();
    assert_eq!(reconnected.removed_resources, ["bad"], "a refusal in its place ends with it");
}

#[test]
fn after_a_reconnect_only_the_differences_are_sent() {
    let mut client = client(&[KIND]);
    let mut shelf = Shelf::default();
    for name in ["gone", "kept", "changed"] {
        shelf.put(KIND, name, "1");
    }
    let response = subscribed(&client).next_push(&shelf).unwrap();
    apply(&mut client, &mut BTreeMap::new(), response, |_| false);
    shelf.take(KIND, "gone");
    shelf.put(KIND, "changed", "2");
    shelf.put(KIND, "new", "1");
    let response = subscribed(&client).next_push(&shelf).unwrap();
    assert_eq!(names(&response), ["changed", "new"]);
    assert_eq!(response.removed_resources, ["gone"]);
}

#[test]
fn a_removal_that_was_never_answered_does_not_hide_the_same_resource_coming_back() {
    let mut client = client(&[KIND]);
    let mut shelf = Shelf::default();
    shelf.put(KIND, "a", "1");
    let mut server = subscribed(&client);
    let mut held = BTreeMap::new();
    let response = server.next_push(&shelf).unwrap();
    server.receive(apply(&mut client, &mut held, response, |_| false)).unwrap();
    shelf.take(KIND, "a");
    server.changed(KIND, "a");
    let removal = server.next_push(&shelf).unwrap();
    let _never_answered = client.receive(removal).unwrap();
    shelf.put(KIND, "a", "1");
    assert_eq!(names(&subscribed(&client).next_push(&shelf).unwrap()), ["a"]);
}

#[test]
fn answers_to_other_pushes_mean_nothing() {
    let client = client(&[KIND]);
    let mut server = subscribed(&client);
    let shelf = Shelf::default();
    let nonce = server.next_push(&shelf).unwrap().nonce;
    let answer = |nonce: &str| DeltaDiscoveryRequest {
        type_url: KIND.url().to_owned(),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(server.receive(answer("other")), Ok(Heard::Stale(KIND)));
    assert_eq!(server.receive(answer(&nonce)), Ok(Heard::Ack(KIND)));
    assert_eq!(server.receive(answer(&nonce)), Ok(Heard::Stale(KIND)), "answered already");
}

#[test]
fn what_is_not_offered_is_refused() {
    let request = |kind: &str| DeltaDiscoveryRequest { type_url: kind.to_owned(), ..Default::default() };
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let refuse = |request| ServerState::new().receive(request).unwrap_err();
    assert_eq!(refuse(request("x")), ServerViolation::UnknownType("x".to_owned()));
    let answer = DeltaDiscoveryRequest { response_nonce: "1".to_owned(), ..request(KIND.url()) };
    assert_eq!(refuse(answer), ServerViolation::NotSubscribed(KIND));
    let some = DeltaDiscoveryRequest { resource_names_subscribe: names(&["a"]), ..request(KIND.url()) };
    assert_eq!(refuse(some), ServerViolation::NotWildcard);
    let on_demand = DeltaDiscoveryRequest {
        resource_names_subscribe: names(&["*"]),
        resource_names_unsubscribe: names(&["*"]),
        ..request(KIND.url())
    };
    assert_eq!(refuse(on_demand), ServerViolation::NotWildcard);
    let spelled = DeltaDiscoveryRequest { resource_names_subscribe: names(&["*"]), ..request(KIND.url()) };
    assert_eq!(ServerState::new().receive(spelled), Ok(Heard::Subscribed(KIND)));
    let push = DeltaDiscoveryResponse { type_url: "x".to_owned(), ..Default::default() };
    let violation = client(&[KIND]).receive(push).unwrap_err();
    assert_eq!(violation, ClientViolation::UnknownType("x".to_owned()));
}

/// Repeatable numbers (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A client, a server and the two queues between them.
struct World {
    numbers: Numbers,
    shelf: Shelf,
    client: ClientState,
    server: ServerState,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    /// What the client's consumer has applied.
    held: BTreeMap<(ResourceType, String), String>,
    /// What its consumer enforces a refusal for.
    refused: BTreeSet<(ResourceType, String)>,
    sent: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let client = client(&ResourceType::ZTUNNEL);
        let to_server = client.connect(&[]).into();
        Self {
            numbers: Numbers(seed),
            shelf: Shelf::default(),
            client,
            server: ServerState::new(),
            to_client: VecDeque::new(),
            to_server,
            held: BTreeMap::new(),
            refused: BTreeSet::new(),
            sent: 0,
        }
    }

    fn reconnect(&mut self) {
        self.to_client.clear();
        self.to_server = self.client.connect(&[]).into();
        self.server = ServerState::new();
    }

    fn change(&mut self) {
        let kind = ResourceType::ZTUNNEL[usize::try_from(self.numbers.below(2)).unwrap()];
        let name = format!("r{}", self.numbers.below(6));
        match self.numbers.below(5) {
            0 | 1 => self.shelf.take(kind, &name),
            2 => self.shelf.put(kind, &name, "bad"),
            other => self.shelf.put(kind, &name, &format!("{other}{}", self.numbers.below(2))),
        }
        if self.numbers.below(10) == 0 {
            self.server.all_changed();
        } else {
            self.server.changed(kind, &name);
        }
    }

    fn serve(&mut self) {
        if let Some(request) = self.to_server.pop_front() {
            self.server.receive(request).unwrap();
        }
        if let Some(push) = self.server.next_push(&self.shelf) {
            self.sent += push.resources.len() + push.removed_resources.len();
            self.to_client.push_back(push);
        }
    }

    /// The client takes a push, and with luck its answer still goes out.
    fn take(&mut self, lose_answer: bool) {
        let Some(response) = self.to_client.pop_front() else { return };
        let push = self.client.receive(response).unwrap();
        let mut rejected = Vec::new();
        for resource in &push.resources {
            let key = (push.kind, resource.name.clone());
            if resource.version == "bad" {
                rejected.push(Rejection { name: resource.name.clone(), reason: "bad".to_owned() });
                self.held.remove(&key);
                self.refused.insert(key);
            } else {
                self.refused.remove(&key);
                self.held.insert(key, resource.version.clone());
            }
        }
        for name in &push.removed {
            self.held.remove(&(push.kind, name.clone()));
            self.refused.remove(&(push.kind, name.clone()));
        }
        if lose_answer {
            self.reconnect();
        } else {
            self.to_server.push_back(self.client.answer(push.receipt, &rejected));
        }
    }

    fn step(&mut self) {
        match self.numbers.below(12) {
            0..3 => self.change(),
            3..7 => self.serve(),
            7..10 => self.take(false),
            10 => self.take(true),
            _ => self.reconnect(),
        }
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            self.serve();
            self.take(false);
        }
    }
}

#[test]
fn client_and_server_converge_through_any_changes_and_disconnects() {
    let mut total = 0;
    for seed in 1..=2000 {
        let mut world = World::new(seed);
        for _ in 0..80 {
            world.step();
        }
        world.settle();
        let (bad, good): (BTreeMap<_, _>, BTreeMap<_, _>) =
            world.shelf.0.clone().into_iter().partition(|(_, content)| content == "bad");
        assert_eq!(world.held, good, "seed {seed}");
        assert_eq!(world.refused, bad.into_keys().collect::<BTreeSet<_>>(), "seed {seed}");
        assert!(world.server.is_idle() && world.client.is_synced(), "seed {seed}");
        total += world.sent;
        world.reconnect();
        world.sent = 0;
        world.settle();
        assert_eq!(world.sent, world.refused.len(), "seed {seed}: only what was rejected comes again");
    }
    assert!(total > 2000, "the test has to move something: {total}");
}
