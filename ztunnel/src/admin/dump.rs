//! `/config_dump`, in the shape that `istioctl ztunnel-config` reads (contract 2.7). Pure: mesh types in, JSON out.

use ipnet::IpNet;
use mesh::gateway::WeightedWaypoint;
use mesh::policy::{Action, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use mesh::service::{IpFamilies, Mode, Scope, Visibility};
use mesh::state::RejectedAddress;
use mesh::workload::{ApplicationTunnel, Health, TunnelProtocol, WorkloadType};
use mesh::{Authorization, GatewayAddress, Service, Workload};
use serde_json::{Map, Value, json};

/// One of `workloads`.
pub(crate) fn workload(workload: &Workload) -> Value {
    let mut value = json!({
        "uid": workload.uid.as_str(),
        "workloadIps": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "protocol": match workload.tunnel_protocol {
            TunnelProtocol::Hbone => "HBONE",
            TunnelProtocol::None => "TCP",
        },
        "name": workload.name,
        "namespace": workload.namespace.as_str(),
        "serviceAccount": workload.service_account.as_str(),
        "workloadName": workload.workload_name,
        "workloadType": match workload.workload_type {
            WorkloadType::Deployment => "deployment",
            WorkloadType::CronJob => "cronjob",
            WorkloadType::Pod => "pod",
            WorkloadType::Job => "job",
        },
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "clusterId": workload.cluster_id,
        "trustDomain": workload.trust_domain.as_str(),
        "locality": {
            "region": workload.locality.region,
            "zone": workload.locality.zone,
            "subzone": workload.locality.subzone,
        },
        "node": workload.node,
        "network": workload.network.as_str(),
        "status": match workload.health {
            Health::Healthy => "Healthy",
            Health::Unhealthy => "Unhealthy",
        },
        "hostname": workload.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
        "capacity": workload.capacity,
    });
    for (key, gateway) in [("waypoint", &workload.waypoint), ("networkGateway", &workload.network_gateway)] {
        if let Some(gateway) = gateway {
            value[key] = gateway_address(gateway);
        }
    }
    if let Some(tunnel) = workload.application_tunnel {
        value["applicationTunnel"] = match tunnel {
            ApplicationTunnel::Proxy { port } => json!({ "protocol": "PROXY", "port": port }),
            ApplicationTunnel::Unknown => json!({ "protocol": "unknown" }),
        };
    }
    if !workload.authorization_policies.is_empty() {
        let names = workload.authorization_policies.iter().map(ToString::to_string);
        value["authorizationPolicies"] = names.collect();
    }
    value
}

/// One of `unreadable`, which only this mesh has: a workload or service that connections are refused to, and why.
pub(crate) fn rejected(rejected: &RejectedAddress) -> Value {
    let addresses = rejected.addresses.iter().map(ToString::to_string);
    let ranges = rejected.ranges.iter().map(ToString::to_string);
    json!({
        "resource": rejected.resource,
        "addresses": addresses.chain(ranges).collect::<Vec<_>>(),
        "error": rejected.reason,
    })
}

fn gateway_address(gateway: &GatewayAddress) -> Value {
    json!({ "destination": gateway.to_string(), "hboneMtlsPort": gateway.hbone_port })
}

/// One of `services`, with the workloads that are its endpoints.
pub(crate) fn service<'a>(service: &Service, endpoints: impl Iterator<Item = &'a Workload>) -> Value {
    let endpoints: Map<String, Value> = endpoints
        .map(|workload| {
            let value = json!({
                "workloadUid": workload.uid.as_str(),
                "service": service.name.to_string(),
                "address": workload.addresses.first().map(|ip| format!("{}/{ip}", workload.network)),
                "port": workload.services.get(&service.name).cloned().unwrap_or_default(),
            });
            (workload.uid.to_string(), value)
        })
        .collect();
    let balancing = &service.load_balancing;
    let mut value = json!({
        "name": service.short_name,
        "namespace": service.name.namespace.as_str(),
        "hostname": service.name.hostname.as_str(),
        "vips": service.vips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "cidrVips": service.cidr_vips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "ports": service.ports,
        "loadBalancer": {
            "mode": match balancing.mode {
                Mode::Failover => "FAILOVER",
                Mode::Strict => "STRICT",
                Mode::Passthrough => "PASSTHROUGH",
            },
            "routingPreferences": balancing.routing_preference.iter().map(|scope| scope_name(*scope)).collect::<Vec<_>>(),
            "healthPolicy": if balancing.allow_unhealthy { "ALLOW_ALL" } else { "ONLY_HEALTHY" },
        },
        "endpoints": endpoints,
        "subjectAltNames": service.subject_alt_names,
        "ipFamilies": match service.ip_families {
            IpFamilies::Automatic => "",
            IpFamilies::V4Only => "IPv4",
            IpFamilies::V6Only => "IPv6",
            IpFamilies::Dual => "Dual",
        },
        "canonical": service.canonical,
        "visibility": match service.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        },
    });
    if let Some(waypoint) = &service.waypoint {
        value["waypoint"] = gateway_address(waypoint);
    }
    if !service.weighted_waypoints.is_empty() {
        let weighted = |one: &WeightedWaypoint| json!({ "destination": gateway_address(&one.destination), "weight": one.weight });
        value["weightedWaypoints"] = service.weighted_waypoints.iter().map(weighted).collect();
    }
    value
}

fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Region => "REGION",
        Scope::Zone => "ZONE",
        Scope::Subzone => "SUBZONE",
        Scope::Node => "NODE",
        Scope::Cluster => "CLUSTER",
        Scope::Network => "NETWORK",
    }
}

/// One of `policies`.
pub(crate) fn policy(policy: &Authorization) -> Value {
    json!({
        "name": policy.name.name.as_str(),
        "namespace": policy.name.namespace.as_str(),
        "scope": match policy.scope {
            PolicyScope::Global => "Global",
            PolicyScope::Namespace => "Namespace",
            PolicyScope::WorkloadSelector => "WorkloadSelector",
        },
        "action": match policy.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        },
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
        "dryRun": policy.dry_run,
    })
}

fn rule(rule: &Rule) -> Value {
    rule.clauses.iter().map(|clause| clause.matches.iter().map(one_match).collect::<Value>()).collect()
}

fn one_match(stated: &Match) -> Value {
    let fields = [
        ("namespaces", strings(&stated.namespaces)),
        ("notNamespaces", strings(&stated.not_namespaces)),
        ("principals", strings(&stated.principals)),
        ("notPrincipals", strings(&stated.not_principals)),
        ("serviceAccounts", accounts(&stated.service_accounts)),
        ("notServiceAccounts", accounts(&stated.not_service_accounts)),
        ("sourceIps", networks(&stated.source_ips)),
        ("notSourceIps", networks(&stated.not_source_ips)),
        ("destinationIps", networks(&stated.destination_ips)),
        ("notDestinationIps", networks(&stated.not_destination_ips)),
        ("destinationPorts", json!(stated.destination_ports)),
        ("notDestinationPorts", json!(stated.not_destination_ports)),
    ];
    let stated =
        fields.into_iter().filter(|(_, value)| value.as_array().is_some_and(|list| !list.is_empty()));
    stated.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn strings(list: &[StringMatch]) -> Value {
    list.iter()
        .map(|one| match one {
            StringMatch::Exact(text) => json!({ "Exact": text }),
            StringMatch::Prefix(text) => json!({ "Prefix": text }),
            StringMatch::Suffix(text) => json!({ "Suffix": text }),
            StringMatch::Presence => json!({ "Presence": {} }),
        })
        .collect()
}

fn accounts(list: &[ServiceAccountMatch]) -> Value {
    let one = |account: &ServiceAccountMatch| {
        json!({
            "namespace": account.namespace.as_str(),
            "serviceAccount": account.service_account.as_str(),
        })
    };
    list.iter().map(one).collect()
}

fn networks(list: &[IpNet]) -> Value {
    list.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use mesh::PolicyName;
    use mesh::policy::Clause;

    use super::*;

    #[test]
    fn a_policy_is_told_in_the_shape_istioctl_reads() {
        let strict = Authorization {
            name: PolicyName { namespace: "shop".into(), name: "strict".into() },
            scope: PolicyScope::Namespace,
            action: Action::Deny,
            rules: vec![Rule {
                clauses: vec![Clause {
                    matches: vec![Match {
                        not_principals: vec![StringMatch::Presence],
                        destination_ports: vec![80],
                        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
                        ..Match::default()
                    }],
                }],
            }],
            dry_run: false,
        };
        let expected = json!({
            "name": "strict",
            "namespace": "shop",
            "scope": "Namespace",
            "action": "Deny",
            "dryRun": false,
            "rules": [[[{
                "notPrincipals": [{ "Presence": {} }],
                "sourceIps": ["10.0.0.0/8"],
                "destinationPorts": [80],
            }]]],
        });
        assert_eq!(policy(&strict), expected);
    }

    fn gateway(name: &str) -> GatewayAddress {
        use mesh::gateway::GatewayDestination;
        GatewayAddress { destination: GatewayDestination::Hostname(name.parse().unwrap()), hbone_port: 15008 }
    }

    fn name() -> mesh::ServiceName {
        "shop/web.shop.svc.cluster.local".parse().unwrap()
    }

    /// A pod with everything that a dump tells of one.
    fn pod() -> Workload {
        Workload {
            name: "web-1".to_owned(),
            service_account: "web".into(),
            network: "n1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            node: "east".to_owned(),
            canonical_name: "web".to_owned(),
            workload_type: WorkloadType::Deployment,
            workload_name: "web".to_owned(),
            locality: mesh::workload::Locality {
                region: "r".to_owned(),
                zone: "z".to_owned(),
                subzone: "s".to_owned(),
            },
            capacity: 2,
            services: [(name(), [(80, 8080)].into())].into(),
            authorization_policies: vec!["shop/strict".parse().unwrap()],
            waypoint: Some(Box::new(gateway("shop/way"))),
            network_gateway: Some(Box::new(gateway("infra/east-west"))),
            hostname: Some("web.example.com".into()),
            application_tunnel: Some(ApplicationTunnel::Proxy { port: Some(15088) }),
            ..crate::proxy::tests::workload("web-1", "10.0.0.1")
        }
    }

    /// Contract 2.7, field by field.
    #[test]
    fn a_workload_is_told_in_the_shape_istioctl_reads() {
        let expected = json!({
            "uid": "Kubernetes//Pod/shop/web-1",
            "workloadIps": ["10.0.0.1", "fd00::1"],
            "waypoint": { "destination": "shop/way", "hboneMtlsPort": 15008 },
            "networkGateway": { "destination": "infra/east-west", "hboneMtlsPort": 15008 },
            "protocol": "HBONE",
            "name": "web-1",
            "namespace": "shop",
            "serviceAccount": "web",
            "workloadName": "web",
            "workloadType": "deployment",
            "canonicalName": "web",
            "canonicalRevision": "v1",
            "clusterId": "Kubernetes",
            "trustDomain": "cluster.local",
            "locality": { "region": "r", "zone": "z", "subzone": "s" },
            "node": "east",
            "network": "n1",
            "status": "Healthy",
            "hostname": "web.example.com",
            "capacity": 2,
            "applicationTunnel": { "protocol": "PROXY", "port": 15088 },
            "authorizationPolicies": ["shop/strict"],
        });
        assert_eq!(workload(&pod()), expected);
        let plain = Workload {
            tunnel_protocol: TunnelProtocol::None,
            health: Health::Unhealthy,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            authorization_policies: Vec::new(),
            ..pod()
        };
        let told = workload(&plain);
        assert_eq!((&told["protocol"], &told["status"]), (&json!("TCP"), &json!("Unhealthy")));
        for absent in ["waypoint", "networkGateway", "applicationTunnel", "authorizationPolicies"] {
            assert!(told.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_service_is_told_in_the_shape_istioctl_reads() {
        use mesh::service::LoadBalancing;
        let web = Service {
            name: name(),
            short_name: "web".to_owned(),
            vips: vec![mesh::NetworkAddress { network: "n1".into(), ip: "10.96.0.1".parse().unwrap() }],
            cidr_vips: vec![mesh::NetworkRange::new("n1".into(), "10.99.0.0/16".parse().unwrap())],
            ip_families: IpFamilies::default(),
            ports: [(80, 8080)].into(),
            subject_alt_names: vec!["spiffe://cluster.local/ns/shop/sa/web".to_owned()],
            load_balancing: LoadBalancing {
                routing_preference: vec![Scope::Network, Scope::Region],
                ..LoadBalancing::default()
            },
            canonical: true,
            visibility: Visibility::Public,
            waypoint: Some(gateway("shop/way")),
            weighted_waypoints: Vec::new(),
        };
        let expected = json!({
            "name": "web",
            "namespace": "shop",
            "hostname": "web.shop.svc.cluster.local",
            "vips": ["n1/10.96.0.1"],
            "cidrVips": ["n1/10.99.0.0/16"],
            "ports": { "80": 8080 },
            "loadBalancer": {
                "mode": "FAILOVER",
                "routingPreferences": ["NETWORK", "REGION"],
                "healthPolicy": "ONLY_HEALTHY",
            },
            "waypoint": { "destination": "shop/way", "hboneMtlsPort": 15008 },
            "endpoints": {
                "Kubernetes//Pod/shop/web-1": {
                    "workloadUid": "Kubernetes//Pod/shop/web-1",
                    "service": "shop/web.shop.svc.cluster.local",
                    "address": "n1/10.0.0.1",
                    "port": { "80": 8080 },
                },
            },
            "subjectAltNames": ["spiffe://cluster.local/ns/shop/sa/web"],
            "ipFamilies": "",
            "canonical": true,
            "visibility": "Public",
        });
        assert_eq!(service(&web, [&pod()].into_iter()), expected);
    }
}
