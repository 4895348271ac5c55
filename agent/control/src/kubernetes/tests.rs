//! Watching, against an API server that behaves and one that does not. Every wait ends with the event itself; a deadline is a failure.

use std::time::Duration;

use serde_json::{Value, json};

use super::api_server::{ApiServer, NAMESPACES, PODS, POLICIES};
use super::{Scope, Watches};
use crate::manifests::{Instead, Objects, PolicyAction};

/// Longer than the longest pause; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

fn namespace(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"nodeName": node},
        "status": {"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

async fn next(watches: &mut Watches) -> Objects {
    tokio::time::timeout(PATIENCE, watches.next()).await.expect("a change is told")
}

fn namespaces(objects: &Objects) -> Vec<&str> {
    objects.namespaces.iter().map(|object| object.metadata.name.as_str()).collect()
}

/// A server with two namespaces, which are known.
async fn begin() -> (ApiServer, Watches) {
    let server = ApiServer::start().await;
    server.apply(NAMESPACES, namespace("a"));
    server.apply(NAMESPACES, namespace("b"));
    let mut watches = Watches::new(&server.cluster(), &Scope::Mesh);
    assert_eq!(namespaces(&next(&mut watches).await), ["a", "b"]);
    (server, watches)
}

fn lists(server: &ApiServer) -> usize {
    server.requests(&[NAMESPACES, "limit="])
}

#[tokio::test]
async fn a_long_list_is_read_in_pages_and_changes_follow_it() {
    let server = ApiServer::start().await;
    for number in 0..1001 {
        server.apply(NAMESPACES, namespace(&format!("n{number}")));
    }
    let mut watches = Watches::new(&server.cluster(), &Scope::Mesh);
    assert_eq!(next(&mut watches).await.namespaces.len(), 1001);
    assert_eq!(server.requests(&[NAMESPACES, "continue="]), 2);
    server.apply(NAMESPACES, namespace("one-more"));
    assert_eq!(next(&mut watches).await.namespaces.len(), 1002);
    server.delete(NAMESPACES, "n500");
    assert_eq!(next(&mut watches).await.namespaces.len(), 1001);
    assert_eq!(lists(&server), 3, "nothing was listed twice");
}

#[tokio::test]
async fn a_watch_that_is_cut_goes_on_where_it_was() {
    let (server, mut watches) = begin().await;
    server.cut();
    server.delete(NAMESPACES, "a");
    server.apply(NAMESPACES, namespace("c"));
    assert_eq!(namespaces(&next(&mut watches).await), ["b", "c"]);
    assert_eq!(lists(&server), 1);
}

#[tokio::test]
async fn a_watch_that_has_expired_begins_with_a_list() {
    let (server, mut watches) = begin().await;
    server.cut();
    server.delete(NAMESPACES, "a");
    server.apply(NAMESPACES, namespace("c"));
    server.compact();
    assert_eq!(namespaces(&next(&mut watches).await), ["b", "c"]);
    assert_eq!(lists(&server), 2);
}

#[tokio::test]
async fn a_bookmark_keeps_a_quiet_watch_from_expiring() {
    let (server, mut watches) = begin().await;
    server.apply(PODS, pod("x", "east"));
    assert_eq!(next(&mut watches).await.pods.len(), 1);
    server.bookmark(NAMESPACES);
    server.compact();
    server.cut();
    server.apply(NAMESPACES, namespace("c"));
    assert_eq!(namespaces(&next(&mut watches).await), ["a", "b", "c"]);
    assert_eq!(lists(&server), 1);
}

#[tokio::test]
async fn the_last_state_stays_while_the_api_server_is_away_which_is_known() {
    let (mut server, mut watches) = begin().await;
    let mut heard = watches.heard();
    assert!(*heard.borrow());
    server.go_away().await;
    tokio::select! {
        _ = watches.next() => panic!("something is told of what is not known"),
        away = tokio::time::timeout(PATIENCE, heard.wait_for(|heard| !heard)) => drop(away.unwrap().unwrap()),
    }
    server.apply(NAMESPACES, namespace("c"));
    server.come_back().await;
    assert_eq!(namespaces(&next(&mut watches).await), ["a", "b", "c"]);
    assert!(*watches.heard().borrow());
}

#[tokio::test]
async fn what_is_malformed_harms_nothing_else_and_a_policy_that_cannot_be_read_closes() {
    let (server, mut watches) = begin().await;
    for line in ["garbage", "{}", r#"{"type":"ADDED","object":"a"}"#, r#"{"type":"NOVEL","object":{}}"#] {
        server.say(NAMESPACES, line);
    }
    server.apply(PODS, json!({"metadata": {"name": "x", "namespace": "shop", "labels": 7}, "spec": {"nodeName": "a"}, "status": {"podIPs": "none"}}));
    server.apply(POLICIES, json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"rule": []}}));
    server.apply(NAMESPACES, namespace("c"));
    let mut objects = next(&mut watches).await;
    while objects.namespaces.len() < 3 || objects.unreadable.len() < 2 {
        objects = next(&mut watches).await;
    }
    let instead: Vec<Instead> = objects.unreadable.iter().map(|unreadable| unreadable.instead).collect();
    assert_eq!(instead, [Instead::LeftOut, Instead::Closed]);
    assert!(objects.pods.is_empty());
    assert_eq!(objects.authorization_policies[0].action, PolicyAction::Deny);
    server.apply(POLICIES, json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"rules": []}}));
    let objects = next(&mut watches).await;
    assert_eq!(
        (objects.unreadable.len(), objects.authorization_policies[0].action),
        (1, PolicyAction::Allow)
    );
}

#[tokio::test]
async fn a_cluster_without_istios_kinds_is_whole_and_gets_them_later() {
    let server = ApiServer::start().await;
    server.has_istio(false);
    server.apply(NAMESPACES, namespace("a"));
    let mut watches = Watches::new(&server.cluster(), &Scope::Mesh);
    assert_eq!(namespaces(&next(&mut watches).await), ["a"]);
    server.apply(POLICIES, json!({"metadata": {"name": "p", "namespace": "shop"}}));
    server.has_istio(true);
    assert_eq!(next(&mut watches).await.authorization_policies.len(), 1);
    // Whether that kind is gone or the API server errs: what it said closes something.
    server.has_istio(false);
    server.cut();
    server.apply(NAMESPACES, namespace("b"));
    let objects = next(&mut watches).await;
    assert_eq!((objects.namespaces.len(), objects.authorization_policies.len()), (2, 1));
}

#[tokio::test]
async fn what_may_not_be_read_is_not_taken_for_nothing() {
    let server = ApiServer::start().await;
    server.allow(POLICIES, false);
    server.apply(NAMESPACES, namespace("a"));
    server.apply(POLICIES, json!({"metadata": {"name": "p", "namespace": "shop"}}));
    let mut watches = Watches::new(&server.cluster(), &Scope::Mesh);
    // Until it was refused twice, nothing else was waited for.
    let refused = async {
        while server.requests(&[POLICIES]) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = watches.next() => panic!("a part was taken for the whole"),
        () = refused => server.allow(POLICIES, true),
    }
    let objects = next(&mut watches).await;
    assert_eq!((objects.namespaces.len(), objects.authorization_policies.len()), (1, 1));
}

#[tokio::test]
async fn an_agent_asks_for_the_pods_of_its_node_alone() {
    let server = ApiServer::start().await;
    server.apply(PODS, pod("here", "east"));
    server.apply(PODS, pod("there", "west"));
    let mut watches = Watches::new(&server.cluster(), &Scope::Node("east".to_owned()));
    let objects = next(&mut watches).await;
    let names: Vec<&str> = objects.pods.iter().map(|pod| pod.metadata.name.as_str()).collect();
    assert_eq!(names, ["here"]);
    assert_eq!(server.requests(&["services"]), 0);
}
