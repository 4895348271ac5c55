//! `/config_dump`, in the shape that `istioctl ztunnel-config` reads (contract 2.7). Pure: mesh types in, JSON out.

use ipnet::IpNet;
use mesh::gateway::WeightedWaypoint;
use mesh::policy::{Action, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use mesh::service::{Mode, Scope, Visibility};
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

fn gateway_address(gateway: &GatewayAddress) -> Value {
    json!({ "destination": gateway.to_string(), "hboneMtlsPort": gateway.hbone_port })
}

/// One of `services`, with the workloads that are its endpoints.
pub(crate) fn service<'a>(service: &Service, endpoints: impl Iterator<Item = &'a Workload>) -> Value {
    let endpoints: Map<String, Value> = endpoints
        .map(|workload| {
            let value = json!({
                "workloadUid": workload.uid.as_str(),
                "service": "",
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
        "ipFamilies": "",
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

    #[test]
    fn services_carry_their_endpoints_and_addresses_their_network() {
        use mesh::gateway::GatewayDestination;
        use mesh::service::LoadBalancing;
        let at = |name| GatewayAddress { destination: GatewayDestination::Hostname(name), hbone_port: 15008 };
        let name: mesh::ServiceName = "shop/web.shop.svc.cluster.local".parse().unwrap();
        let web = Service {
            name: name.clone(),
            short_name: "web".to_owned(),
            vips: vec![mesh::NetworkAddress { network: "n1".into(), ip: "10.96.0.1".parse().unwrap() }],
            cidr_vips: vec![mesh::NetworkRange::new("n1".into(), "10.99.0.0/16".parse().unwrap())],
            ports: [(80, 8080)].into(),
            subject_alt_names: Vec::new(),
            load_balancing: LoadBalancing::default(),
            canonical: true,
            visibility: Visibility::Public,
            waypoint: Some(at("shop/way".parse().unwrap())),
            weighted_waypoints: Vec::new(),
        };
        let pod = Workload {
            uid: "Kubernetes//Pod/shop/web-1".into(),
            name: "web-1".to_owned(),
            namespace: "shop".into(),
            trust_domain: "cluster.local".into(),
            service_account: "web".into(),
            network: "n1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            tunnel_protocol: TunnelProtocol::Hbone,
            network_mode: mesh::workload::NetworkMode::Standard,
            node: "east".to_owned(),
            canonical_name: "web".to_owned(),
            canonical_revision: "v1".to_owned(),
            workload_type: WorkloadType::Pod,
            workload_name: "web-1".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            locality: mesh::workload::Locality::default(),
            health: Health::Healthy,
            capacity: 1,
            services: [(name, [(80, 8080)].into())].into(),
            authorization_policies: Vec::new(),
            waypoint: Some(Box::new(at("shop/way".parse().unwrap()))),
            network_gateway: None,
            hostname: None,
            application_tunnel: None,
        };
        let told = service(&web, [&pod].into_iter());
        assert_eq!(told["vips"], json!(["n1/10.96.0.1"]));
        assert_eq!(told["cidrVips"], json!(["n1/10.99.0.0/16"]));
        let way = json!({ "destination": "shop/way", "hboneMtlsPort": 15008 });
        assert_eq!(told["waypoint"], way);
        assert_eq!(told["ports"], json!({ "80": 8080 }));
        assert_eq!(told["endpoints"]["Kubernetes//Pod/shop/web-1"]["address"], "n1/10.0.0.1");
        assert_eq!(told["endpoints"]["Kubernetes//Pod/shop/web-1"]["port"], json!({ "80": 8080 }));
        let told = workload(&pod);
        assert_eq!(told["waypoint"], way);
        assert_eq!(told["workloadIps"], json!(["10.0.0.1", "fd00::1"]));
        assert_eq!((&told["protocol"], &told["status"]), (&json!("HBONE"), &json!("Healthy")));
    }
}
