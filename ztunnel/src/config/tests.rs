//! What flags, variables and the mesh config come to.

use std::time::Duration;

use api::channel::{Header, Roots, Server, Token};
use prost_types::value::Kind;
use tunnel::socket::{Keepalive, OriginalSource, ToldAt};
use tunnel::tls::KeyExchange;

use super::*;

const NOWHERE: &str = "/nonexistent/mesh";

fn parse(flags: &[&str]) -> Result<Config, ConfigError> {
    let arguments = ["ztunnel", "--node-name", "east"].iter().chain(flags);
    Config::read(arguments, Environment::default(), Path::new(NOWHERE))
}

fn in_environment(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    under(variables, NOWHERE)
}

fn under(variables: &[(&str, &str)], mesh_config: &str) -> Result<Config, ConfigError> {
    let all = [("NODE_NAME", "east")].iter().chain(variables).copied();
    Config::read(["ztunnel"], all.collect(), Path::new(mesh_config))
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A root of a test, in PEM.
fn root() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
}

#[test]
fn a_flag_comes_before_its_variable_and_that_before_the_mesh_config() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh");
    std::fs::write(&file, "defaultConfig:\n  concurrency: 3\n  statsPort: 1\n  proxyAdminPort: 2\n").unwrap();
    let read = |arguments: &[&str], variables: &[(&str, &str)]| {
        let all = [("NODE_NAME", "east")].iter().chain(variables).copied();
        Config::read(["ztunnel"].iter().chain(arguments), all.collect(), &file).unwrap()
    };
    let of_file = read(&[], &[]);
    assert_eq!((of_file.workers.count(8), of_file.endpoints.stats().port()), (3, 1));
    assert_eq!(of_file.endpoints.admin(), "127.0.0.1:2".parse().unwrap());
    let over_it = ("PROXY_CONFIG", "concurrency: 5\nstatsPort: 7\n");
    let of_variable = read(&[], &[over_it]);
    assert_eq!((of_variable.workers.count(8), of_variable.endpoints.stats().port()), (5, 7));
    assert_eq!(of_variable.endpoints.admin().port(), 2, "what it does not say stays the file's");
    let by_name = [over_it, ("ZTUNNEL_WORKER_THREADS", "6"), ("STATS_ADDR", "10.0.0.1:9")];
    let of_name = read(&[], &by_name);
    assert_eq!((of_name.workers.count(8), of_name.endpoints.stats()), (6, "10.0.0.1:9".parse().unwrap()));
    let of_flag = read(&["--worker-threads", "4"], &by_name);
    assert_eq!(of_flag.workers.count(8), 4);
}

#[test]
fn a_mesh_config_that_is_none_stops_the_start_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh");
    let at = file.display().to_string();
    let error = under(&[("PROXY_CONFIG", "statsPort: many")], NOWHERE).unwrap_err().to_string();
    assert!(error.starts_with("PROXY_CONFIG: ") && error.contains("line 1"), "{error}");
    std::fs::write(&file, "rootNamespace: x\ndefaultConfig:\n  statsPort: 70000\n").unwrap();
    let error = under(&[], &at).unwrap_err().to_string();
    assert!(error.starts_with(&at) && error.contains("line 3"), "{error}");
    assert!(matches!(
        under(&[], &directory.path().display().to_string()),
        Err(ConfigError::MeshConfig(mesh_config::MeshConfigError::Read { .. }))
    ));
    for says_nothing in ["", "# nothing\n", "rootNamespace: istio-system\n"] {
        std::fs::write(&file, says_nothing).unwrap();
        assert_eq!(under(&[], &at).unwrap().endpoints.stats().port(), 15020, "{says_nothing}");
    }
}

/// Every variable that Istio's ztunnel reads (contract 1.5 and where else it names one), but for families, which have a text of their own
/// in the help.
const ISTIOS: [&str; 66] = [
    "ADMIN_ADDR",
    "ALT_CA_HOSTNAME",
    "ALT_XDS_HOSTNAME",
    "AUTHZ_POLICY_INFO_LOGGING",
    "AUTH_TOKEN",
    "CA_ADDRESS",
    "CA_HEADER_",
    "CA_ROOT_CA",
    "CLUSTER_DOMAIN",
    "CLUSTER_ID",
    "COMPLIANCE_POLICY",
    "CONNECTION_TERMINATION_DEADLINE",
    "CRL_PATH",
    "ENABLE_ORIG_SRC",
    "ENABLE_PROXY",
    "ENABLE_RESPONSE_BAGGAGE",
    "FAKE_CA",
    "HTTP2_CONNECTION_WINDOW_SIZE",
    "HTTP2_FRAME_SIZE",
    "HTTP2_STREAM_WINDOW_SIZE",
    "INPOD_PORT_REUSE",
    "INPOD_UDS",
    "INSTANCE_IP",
    "IPV6_ENABLED",
    "ISTIO_METAJSON_",
    "ISTIO_META_",
    "ISTIO_META_CLUSTER_ID",
    "ISTIO_META_DNS_CAPTURE",
    "ISTIO_META_DNS_PROXY_ADDR",
    "KEEPALIVE_ENABLED",
    "KEEPALIVE_INTERVAL",
    "KEEPALIVE_RETRIES",
    "KEEPALIVE_TIME",
    "LOCALHOST_APP_TUNNEL",
    "LOCAL_XDS",
    "LOCAL_XDS_PATH",
    "LOG_FORMAT",
    "NETWORK",
    "NODE_NAME",
    "PACKET_MARK",
    "POD_NAME",
    "POD_NAMESPACE",
    "POOL_MAX_STREAMS_PER_CONNECTION",
    "POOL_UNUSED_RELEASE_TIMEOUT",
    "PREFERED_SERVICE_NAMESPACE",
    "PROXY_CONFIG",
    "PROXY_MODE",
    "PROXY_WORKLOAD_INFO",
    "READINESS_ADDR",
    "RUST_LOG",
    "SECRET_TTL",
    "SERVICE_ACCOUNT",
    "STATS_ADDR",
    "TERMINATION_GRACE_PERIOD_SECONDS",
    "TLS12_ENABLED",
    "TRUST_DOMAIN",
    "UNSTABLE_ENABLE_SOCKS5",
    "USER_TIMEOUT_ENABLED",
    "XDS_ADDRESS",
    "XDS_HEADER_",
    "XDS_ON_DEMAND",
    "XDS_ROOT_CA",
    "ZTUNNEL_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_REQUEST",
    "ZTUNNEL_WORKER_THREADS",
];

#[test]
fn the_help_says_of_each_of_istios_variables_what_it_does_in_words() {
    let help = Config::command().render_long_help().to_string();
    for variable in ISTIOS {
        assert!(help.contains(variable), "{variable}");
    }
    for argument in Config::command().get_arguments().filter(|argument| argument.get_long().is_some()) {
        let name = argument.get_id();
        assert!(argument.get_env().is_some() || ["help", "version"].contains(&name.as_str()), "{name}");
        assert!(argument.get_help().is_some_and(|help| help.to_string().len() > 20), "{name}");
    }
}

#[test]
fn a_variable_that_is_set_to_nothing_is_not_set() {
    let config = in_environment(&[("XDS_ADDRESS", ""), ("KEEPALIVE_TIME", ""), ("CLUSTER_ID", "")]).unwrap();
    assert_eq!(config.xds_server().unwrap().unwrap(), Server::Unix("/run/culvert/xds.sock".into()));
    assert_eq!(config.node.cluster_id(), "Kubernetes");
    assert!(
        Config::read(["ztunnel"], [("NODE_NAME", "")].into_iter().collect(), Path::new(NOWHERE)).is_err()
    );
}

#[test]
fn the_ca_is_where_configuration_comes_from_unless_told_otherwise() {
    let config = parse(&["--xds-address", "unix:///tmp/x"]).unwrap();
    assert_eq!(config.ca_server().unwrap(), Server::Unix("/tmp/x".into()));
    let config =
        parse(&["--ca-address", "https://istiod.istio-system.svc:15012", "--root-ca", "/root.pem"]).unwrap();
    let expected = Server::Tls {
        authority: "istiod.istio-system.svc:15012".to_owned(),
        name: "istiod.istio-system.svc".to_owned(),
        roots: PathBuf::from("/root.pem").into(),
        key_exchange: KeyExchange::HybridPreferred,
    };
    assert_eq!(config.ca_server().unwrap(), expected);
    assert_eq!(config.xds_server().unwrap().unwrap(), Server::Unix("/run/culvert/xds.sock".into()));
}

#[test]
fn istios_own_variables_lead_to_istiod() {
    let config = in_environment(&[
        ("PROXY_CONFIG", "discoveryAddress: istiod.istio-system.svc:15012"),
        ("XDS_ROOT_CA", "/a.pem"),
        ("CA_ADDRESS", "ca.example:443"),
        ("CA_ROOT_CA", "SYSTEM"),
        ("ALT_XDS_HOSTNAME", "istiod.istio-system.svc.cluster.local"),
        ("AUTH_TOKEN", "./var/run/token"),
    ]);
    let config = config.unwrap();
    let xds = Server::Tls {
        authority: "istiod.istio-system.svc:15012".to_owned(),
        name: "istiod.istio-system.svc.cluster.local".to_owned(),
        roots: PathBuf::from("/a.pem").into(),
        key_exchange: KeyExchange::HybridPreferred,
    };
    assert_eq!(config.xds_server().unwrap(), Some(xds));
    let ca = Server::Tls {
        authority: "ca.example:443".to_owned(),
        name: "ca.example".to_owned(),
        roots: Roots::system(),
        key_exchange: KeyExchange::HybridPreferred,
    };
    assert_eq!(config.ca_server().unwrap(), ca);
    assert_eq!(config.ca_credentials().token, Some(Token::File("./var/run/token".into())));
}

#[test]
fn a_local_file_is_all_there_is_unless_an_address_is_given_too() {
    use crate::local_config::Source;
    let none = in_environment(&[]).unwrap();
    assert_eq!(none.control.local(), None);
    let file = ("LOCAL_XDS_PATH", "/mesh.yaml");
    let alone = in_environment(&[file]).unwrap();
    assert_eq!(alone.control.local(), Some(Source::File("/mesh.yaml".into())));
    assert_eq!(alone.xds_server().unwrap(), None);
    let both = in_environment(&[file, ("XDS_ADDRESS", "unix:///x")]).unwrap();
    assert_eq!(both.xds_server().unwrap(), Some(Server::Unix("/x".into())));
    let inline = in_environment(&[("LOCAL_XDS", "{}")]).unwrap();
    assert_eq!(
        (inline.control.local(), inline.xds_server().unwrap()),
        (Some(Source::Inline("{}".into())), None)
    );
    let two = in_environment(&[file, ("LOCAL_XDS", "{}")]).unwrap_err().to_string();
    assert!(two.contains("--local-xds <FILE>") && two.contains("--local-xds-text"), "{two}");
    assert!(in_environment(&[("XDS_ON_DEMAND", "true")]).unwrap().control.xds_on_demand);
}

#[test]
fn roots_are_a_file_a_text_or_the_systems() {
    let pem = root();
    for (text, expected) in [
        ("/root.pem", Roots::from(PathBuf::from("/root.pem"))),
        ("root.pem", PathBuf::from("root.pem").into()),
        ("SYSTEM", Roots::system()),
        (pem.as_str(), Roots::inline(&pem)),
    ] {
        let config = in_environment(&[("XDS_ADDRESS", "a:1"), ("XDS_ROOT_CA", text)]).unwrap();
        let Some(Server::Tls { roots, .. }) = config.xds_server().unwrap() else { panic!("not TLS") };
        assert_eq!(roots, expected, "{text}");
        assert_eq!(Some(config.ca_server().unwrap()), config.xds_server().unwrap(), "{text}");
    }
    assert!(in_environment(&[("XDS_ROOT_CA", "-----BEGIN CERTIFICATE-----\n!")]).is_err());
}

#[test]
fn tls_is_not_spoken_without_roots_and_verified_against_the_name_stated() {
    let flags = ["--xds-address", "https://[::1]:15012", "--xds-name", "culvert-control.culvert-system.svc"];
    assert!(parse(&flags).unwrap().xds_server().is_err());
    let config = parse(&[&flags[..], &["--root-ca", "/root.pem"]].concat()).unwrap();
    let Some(Server::Tls { name, .. }) = config.xds_server().unwrap() else { panic!("not TLS") };
    assert_eq!(name, "culvert-control.culvert-system.svc");
}

#[test]
fn a_token_is_a_file_or_itself() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let file = file.to_str().unwrap();
    for (text, expected) in
        [(file, Token::File(file.into())), ("eyJh.e30.c2ln", Token::Literal("eyJh.e30.c2ln".to_owned()))]
    {
        let config = in_environment(&[("AUTH_TOKEN", text)]).unwrap();
        assert_eq!(config.xds_credentials().token, Some(expected), "{text}");
        assert!(!format!("{config:?}").contains("eyJh"));
    }
}

#[test]
fn headers_go_to_whom_they_are_for() {
    let config = in_environment(&[("XDS_HEADER_X_TENANT", "blue"), ("CA_HEADER_region", "r1")]).unwrap();
    assert_eq!(config.xds_credentials().headers, [Header::new("x_tenant", "blue").unwrap()]);
    assert_eq!(config.ca_credentials().headers, [Header::new("region", "r1").unwrap()]);
    for (variable, value) in [("XDS_HEADER_", "v"), ("CA_HEADER_A B", "v"), ("CA_HEADER_A", "a\nb")] {
        let error = in_environment(&[(variable, value)]).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Variable { variable: named, .. } if named == variable),
            "{error}"
        );
    }
}

#[test]
fn a_node_describes_itself_as_istio_expects_it() {
    let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
    let variables = [
        ("INSTANCE_IP", "10.1.2.3"),
        ("POD_NAME", "ztunnel-x"),
        ("POD_NAMESPACE", "istio-system"),
        ("CLUSTER_ID", "c1"),
        ("NETWORK", "n1"),
        ("PROXY_CONFIG", "proxyMetadata:\n  ISTIO_META_A: file\n  B: file\n  C: file\n"),
        ("ISTIO_META_CLUSTER_ID", "c2"),
        ("ISTIO_META_B", "variable"),
        ("ISTIO_METAJSON_C", r#"{"list": [1, true, null, "x"]}"#),
    ];
    let config = in_environment(&variables).unwrap();
    assert_eq!(config.xds_credentials().cluster_id.as_deref(), Some("c2"));
    let node = config.node.describe();
    assert_eq!(node.id, "ztunnel~10.1.2.3~ztunnel-x.istio-system~istio-system.svc.cluster.local");
    let fields = node.metadata.unwrap().fields;
    for (name, value) in [
        ("NAME", "ztunnel-x"),
        ("NAMESPACE", "istio-system"),
        ("INSTANCE_IPS", "10.1.2.3"),
        ("NODE_NAME", "east"),
        ("CLUSTER_ID", "c2"),
        ("NETWORK", "n1"),
        ("A", "file"),
        ("B", "variable"),
    ] {
        assert_eq!(fields[name].kind, text(value), "{name}");
    }
    let Some(Kind::StructValue(json)) = &fields["C"].kind else { panic!("{:?}", fields["C"]) };
    let Some(Kind::ListValue(list)) = &json.fields["list"].kind else { panic!("{json:?}") };
    let kinds: Vec<_> = list.values.iter().map(|value| value.kind.clone()).collect();
    let expected = [Kind::NumberValue(1.0), Kind::BoolValue(true), Kind::NullValue(0)].map(Some);
    assert_eq!(kinds, [&expected[..], &[text("x")]].concat());

    let alone = in_environment(&[]).unwrap().node.describe();
    assert_eq!(alone.id, "ztunnel~1.1.1.1~east.ztunnel~ztunnel.svc.cluster.local");
    let error = in_environment(&[("ISTIO_METAJSON_C", "{")]).unwrap_err().to_string();
    assert!(error.starts_with("ISTIO_METAJSON_C: not JSON"), "{error}");
}

#[test]
fn connections_get_a_thread_a_core_unless_told_otherwise_and_one_at_least() {
    for (flags, threads) in [
        (&[][..], 8),
        (&["--worker-threads", "0"], 8),
        (&["--worker-threads", "3"], 3),
        (&["--worker-threads", "50%"], 4),
        (&["--worker-threads", "1%"], 1),
    ] {
        assert_eq!(parse(flags).unwrap().workers.count(8), threads, "{flags:?}");
    }
    for wrong in ["-1", "0%", "101%", "1025", "half", "%", ""] {
        assert!(parse(&["--worker-threads", wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn the_containers_limit_of_processors_comes_before_the_nodes() {
    const LIMIT: &str = "ZTUNNEL_RESOURCE_CPU_LIMIT";
    const REQUEST: &str = "ZTUNNEL_RESOURCE_CPU_REQUEST";
    const NODE: &str = "ZTUNNEL_CPU_LIMIT";
    const THREADS: &str = "ZTUNNEL_WORKER_THREADS";
    for (sentence, variables, threads) in [
        ("the node's", &[(NODE, "6")][..], 6),
        ("a limit counts as it is", &[(LIMIT, "2"), (NODE, "6")], 2),
        ("in thousandths, rounded up", &[(LIMIT, "1500m")], 2),
        ("as a fraction, rounded up", &[(LIMIT, "2.1")], 3),
        ("below one it is one", &[(LIMIT, "100m")], 1),
        ("the request raises it", &[(LIMIT, "1"), (REQUEST, "3")], 3),
        ("a share is of the limit", &[(THREADS, "50%"), (LIMIT, "3"), (NODE, "6")], 2),
        ("a share is of the node's", &[(THREADS, "50%"), (NODE, "6")], 3),
        ("all are those of the limit", &[(THREADS, "0"), (LIMIT, "3")], 3),
        ("a number counts whatever the limit", &[(THREADS, "5"), (LIMIT, "3")], 5),
    ] {
        assert_eq!(in_environment(variables).unwrap().workers.count(8), threads, "{sentence}");
    }
    for (variable, wrong) in [(LIMIT, "0"), (LIMIT, "-1"), (LIMIT, "2 cores"), (REQUEST, "inf"), (NODE, "0")]
    {
        assert!(in_environment(&[(variable, wrong)]).is_err(), "{variable}={wrong}");
    }
}

#[test]
fn live_connections_may_go_on_for_the_deadline_or_else_for_what_the_grace_period_leaves() {
    const DEADLINE: &str = "CONNECTION_TERMINATION_DEADLINE";
    const GRACE: &str = "TERMINATION_GRACE_PERIOD_SECONDS";
    for (variables, deadline) in [
        (&[][..], 25),
        (&[(GRACE, "30")][..], 25),
        (&[(GRACE, "11")], 6),
        (&[(GRACE, "10")], 9),
        (&[(GRACE, "2")], 1),
        (&[(GRACE, "1")], 1),
        (&[(GRACE, "0")], 1),
        (&[(GRACE, "7200")], 3600),
        (&[(DEADLINE, "0s"), (GRACE, "30")], 0),
        (&[(DEADLINE, "1m30s"), (GRACE, "30")], 90),
    ] {
        assert_eq!(in_environment(variables).unwrap().drain_deadline(), secs(deadline), "{variables:?}");
    }
    assert!(in_environment(&[(GRACE, "-1")]).is_err());
}

#[test]
fn keepalives_and_the_user_timeout_that_follows_from_them() {
    let at = |variables: &[(&str, &str)]| in_environment(variables).unwrap().sockets.options(secs(1));
    let default = at(&[]);
    assert_eq!((default.keepalive, default.user_timeout), (Some(Keepalive::default()), None));
    let set = at(&[
        ("KEEPALIVE_TIME", "10s"),
        ("KEEPALIVE_INTERVAL", "2"),
        ("KEEPALIVE_RETRIES", "5"),
        ("USER_TIMEOUT_ENABLED", "true"),
    ]);
    let keepalive = Keepalive { time: secs(10), interval: secs(2), probes: 5 };
    assert_eq!((set.keepalive, set.user_timeout), (Some(keepalive), Some(secs(20))));
    let off = at(&[("KEEPALIVE_ENABLED", "false"), ("USER_TIMEOUT_ENABLED", "true")]);
    assert_eq!((off.keepalive, off.user_timeout), (None, Some(secs(1800))));
}

#[test]
fn applications_are_told_of_their_clients_on_the_loopback_unless_told_otherwise() {
    assert_eq!(parse(&[]).unwrap().sockets.told_at(), ToldAt::Loopback);
    let config = in_environment(&[("LOCALHOST_APP_TUNNEL", "false")]).unwrap();
    assert_eq!(config.sockets.told_at(), ToldAt::PodAddress);
}

#[test]
fn the_hybrid_key_exchange_is_preferred_unless_it_is_demanded() {
    for (flags, expected) in [
        (&[][..], KeyExchange::HybridPreferred),
        (&["--compliance-policy", ""], KeyExchange::HybridPreferred),
        (&["--compliance-policy", "pqc", "--tls12-enabled", "false"], KeyExchange::HybridOnly),
    ] {
        let config = parse(&[flags, &["--xds-address", "a:1", "--root-ca", "/root.pem"]].concat()).unwrap();
        assert_eq!(config.identity.compliance_policy, expected, "{flags:?}");
        for server in [config.xds_server().unwrap().unwrap(), config.ca_server().unwrap()] {
            let Server::Tls { key_exchange, .. } = server else { panic!("not TLS") };
            assert_eq!(key_exchange, expected, "{flags:?}");
        }
    }
}

#[test]
fn what_is_listed_for_people_has_no_secrets() {
    let secret = "eyJh.e30.c2ln";
    let config = in_environment(&[
        ("AUTH_TOKEN", secret),
        ("XDS_HEADER_KEY", secret),
        ("CLUSTER_ID", "c1"),
        ("ISTIO_META_CLUSTER_ID", "c2"),
        ("LOCAL_XDS", secret),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
    ]);
    let listed = config.unwrap().listed();
    assert!(!listed.to_string().contains(secret), "{listed}");
    let what_counts = ["localNode", "clusterId", "selfTerminationDeadline"].map(|name| listed[name].clone());
    assert_eq!(what_counts, ["east", "c2", "25s"]);
}

#[test]
fn tunnels_are_as_istios_variables_say() {
    let pool = in_environment(&[
        ("POOL_MAX_STREAMS_PER_CONNECTION", "7"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "90s"),
        ("HTTP2_STREAM_WINDOW_SIZE", "65536"),
        ("HTTP2_FRAME_SIZE", "16KiB"),
    ]);
    let pool = pool.unwrap().tunnels.pool(secs(3));
    assert_eq!((pool.streams_per_tunnel, pool.idle_release), (7, secs(90)));
    assert_eq!((pool.http2.stream_window, pool.http2.max_frame), (65_536, 16_384));
    assert_eq!((pool.dial_timeout, pool.reply_timeout), (secs(3), secs(8)));
    assert!(parse(&[]).unwrap().tunnels.response_baggage);
    assert!(!in_environment(&[("ENABLE_RESPONSE_BAGGAGE", "false")]).unwrap().tunnels.response_baggage);
    let default = parse(&[]).unwrap().tunnels.http2();
    assert_eq!(default, tunnel::hbone::Http2::default());
    assert_eq!(
        parse(&[]).unwrap().tunnels.pool(secs(1)).budget.stats().total,
        tunnel::hbone::Budget::DEFAULT
    );
}

#[test]
fn sockets_in_pods_are_as_istios_variables_say() {
    let rules = |variables: &[(&str, &str)]| in_environment(variables).unwrap().rules();
    let default = rules(&[]);
    assert_eq!((default.mark.get(), default.port_reuse, default.ipv6, default.dns), (1337, true, true, true));
    assert_eq!(default.original_source, OriginalSource::Preferred);
    let set = rules(&[
        ("PACKET_MARK", "42"),
        ("ENABLE_ORIG_SRC", "false"),
        ("INPOD_PORT_REUSE", "false"),
        ("IPV6_ENABLED", "false"),
        ("ISTIO_META_DNS_CAPTURE", "False"),
    ]);
    assert_eq!((set.mark.get(), set.port_reuse, set.ipv6, set.dns), (42, false, false, false));
    assert_eq!(set.original_source, OriginalSource::Off);
    assert_eq!(rules(&[("ENABLE_ORIG_SRC", "true")]).original_source, OriginalSource::Required);
}

#[test]
fn without_ipv6_nothing_listens_on_it() {
    let config = in_environment(&[("IPV6_ENABLED", "false")]).unwrap();
    assert!(config.endpoints.stats().is_ipv4() && config.endpoints.readiness().is_ipv4());
    assert_eq!(config.endpoints.readiness().port(), 15021);
}

#[test]
fn the_admin_socket_stands_beside_the_agents_unless_told_otherwise() {
    assert_eq!(parse(&[]).unwrap().admin_socket(), PathBuf::from("/run/culvert/ztunnel-admin.sock"));
    let istios = parse(&["--inpod-uds", "/var/run/ztunnel/ztunnel.sock"]).unwrap();
    assert_eq!(istios.admin_socket(), PathBuf::from("/var/run/ztunnel/ztunnel-admin.sock"));
    let told = parse(&["--admin-socket", "/tmp/a.sock"]).unwrap();
    assert_eq!(told.admin_socket(), PathBuf::from("/tmp/a.sock"));
}

#[test]
fn values_out_of_bounds_are_refused_with_the_flags_name_wherever_they_come_from() {
    let command = Config::command();
    for (flag, value) in [
        ("xds-address", "http://plain:80"),
        ("xds-address", "unix://relative"),
        ("xds-address", "https://no-port"),
        ("trust-domain", ""),
        ("trust-domain", "Upper"),
        ("instance-ip", "here"),
        ("cluster-domain", "a b"),
        ("compliance-policy", "fips-140-2"),
        ("tls12-enabled", "true"),
        ("certificate-validity", "59s"),
        ("localhost-app-tunnel", "maybe"),
        ("drain-deadline", "2h"),
        ("drain-deadline", "5x"),
        ("idle-timeout", "0s"),
        ("stage-timeout", "99ms"),
        ("stage-timeout", "18446744073709551615h"),
        ("max-connections-per-pod", "0"),
        ("buffer-budget", "512"),
        ("buffer-budget", "1025GiB"),
        ("log-format", "xml"),
        ("keepalive-time", "500ms"),
        ("keepalive-time", "10h"),
        ("keepalive-interval", "0"),
        ("keepalive-retries", "128"),
        ("keepalive-enabled", "1"),
        ("user-timeout-enabled", "yes"),
        ("packet-mark", "0"),
        ("original-source", "maybe"),
        ("ipv6-enabled", "no"),
        ("pool-max-streams", "0"),
        ("pool-unused-release", "25h"),
        ("http2-stream-window", "1"),
        ("http2-stream-window", "2GiB"),
        ("http2-frame", "16MiB"),
        ("grace-period-seconds", "soon"),
    ] {
        let long = format!("--{flag}");
        let error = parse(&[&format!("{long}={value}")]).expect_err(&format!("{flag} {value}"));
        assert!(error.to_string().contains(&long), "{error}");
        let argument = command.get_arguments().find(|argument| argument.get_long() == Some(flag)).unwrap();
        let variable = argument.get_env().unwrap().to_str().unwrap();
        if !value.is_empty() {
            let error = in_environment(&[(variable, value)]).expect_err(&format!("{variable}={value}"));
            assert!(error.to_string().contains(&long), "{error}");
        }
    }
}

#[test]
fn sizes_and_durations_are_read_with_their_unit() {
    for (text, bytes) in [("0MiB", 0), ("64KiB", 64 << 10), ("1024GiB", 1 << 40), ("65535", 65_535)] {
        assert_eq!(units::size(text), Ok(bytes), "{text}");
    }
    for (text, millis) in [
        ("0s", 0),
        ("250ms", 250),
        ("3s", 3000),
        ("3", 3000),
        ("2m", 120_000),
        ("1h30m", 5_400_000),
        ("1d", 86_400_000),
        ("30days", 2_592_000_000),
    ] {
        assert_eq!(units::duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for wrong in ["", "s", "-1s", "1.5s", "1 s", "1s2x", "1ü"] {
        assert!(units::duration(wrong).is_err(), "{wrong}");
        assert!(units::size(wrong).is_err(), "{wrong}");
    }
}
