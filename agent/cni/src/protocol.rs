//! What a container runtime says to a plugin, and what it is answered (CNI specification 1.1.0, section 2): pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::ask::PodName;

/// The versions of the protocol that are spoken. In all of them results have the same form as far as it is read here, and what the plugins before
/// returned is passed on as it came.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Error codes of the specification (section 5, "Error").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration is of a version that is not spoken.
    IncompatibleVersion = 1,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// Something could not be read or written.
    InputOutput = 5,
    /// The input is no JSON of the expected form.
    Decoding = 6,
    /// The configuration is wrong.
    Configuration = 7,
    /// A passing state: try again later.
    TryAgainLater = 11,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// What a person reads, in the event of a pod at that.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As the specification wants it on standard output.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code as u32, "msg": self.message})
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A network namespace has been set up by the plugins before.
    Add(Attachment),
    /// Is it still as after [`Command::Add`]?
    Check(Attachment),
    /// It ends.
    Delete {
        /// The container runtime's name for it.
        container: String,
    },
    /// No others are left than these.
    Collect {
        /// The container runtime's names for them.
        containers: Vec<String>,
    },
    /// Could a namespace be set up now?
    Status,
    /// Which versions are spoken?
    Version,
}

/// A network namespace and what was done in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The container runtime's name for it.
    pub container: String,
    /// Where it is.
    pub netns: PathBuf,
    /// The pod it is for; none: it is no pod of Kubernetes.
    pub pod: Option<PodName>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What the plugins before returned, to be passed on.
    pub result: Map<String, Value>,
}

/// The plugin's entry in the network's configuration, with what the container runtime adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// The version of the protocol; since those before 0.3.0 need not state theirs, none is one that is not spoken.
    pub cni_version: String,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// The file of members.
    pub members: PathBuf,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Vec<ValidAttachment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container: String,
}

/// Reads the configuration.
///
/// # Errors
/// It is no JSON of the expected form, or of a version that is not spoken.
pub fn config(input: &[u8]) -> Result<Config, Failure> {
    let config: Config = serde_json::from_slice(input).map_err(|error| {
        Failure::new(Code::Decoding, format!("culvert-cni: the configuration cannot be read: {error}"))
    })?;
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        let message = format!(
            "culvert-cni: the network's configuration is of version `{}`; spoken are {}",
            config.cni_version,
            VERSIONS.join(", ")
        );
        return Err(Failure::new(Code::IncompatibleVersion, message));
    }
    Ok(config)
}

/// What the environment asks for.
///
/// # Errors
/// A variable is missing or wrong.
pub fn asked(variable: impl Fn(&str) -> Option<String>) -> Result<String, Failure> {
    let command = variable("CNI_COMMAND").filter(|command| !command.is_empty()).ok_or_else(|| {
        let message =
            "culvert-cni: CNI_COMMAND is not set: this is a CNI plugin, which a container runtime runs";
        Failure::new(Code::Environment, message)
    })?;
    let known = ["ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"];
    if known.contains(&command.as_str()) {
        return Ok(command);
    }
    Err(Failure::new(Code::Environment, format!("culvert-cni: CNI_COMMAND `{command}` is unknown")))
}

/// Reads a command of [`asked`] with its parameters.
///
/// # Errors
/// A variable is missing, or the configuration lacks what the command needs.
pub fn command(
    asked: &str,
    variable: impl Fn(&str) -> Option<String>,
    config: &Config,
) -> Result<Command, Failure> {
    let needed = |name: &str| {
        variable(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            Failure::new(Code::Environment, format!("culvert-cni: {name} is not set, which {asked} needs"))
        })
    };
    let attachment = || {
        let result = match &config.prev_result {
            Some(Value::Object(result)) => result.clone(),
            _ => {
                let message = "culvert-cni: the configuration has no prevResult: it has to be chained behind the plugin that makes the network";
                return Err(Failure::new(Code::Configuration, message));
            }
        };
        Ok(Attachment {
            container: needed("CNI_CONTAINERID")?,
            netns: PathBuf::from(needed("CNI_NETNS")?),
            pod: pod(&variable("CNI_ARGS").unwrap_or_default()),
            addresses: addresses(&result)?,
            result,
        })
    };
    Ok(match asked {
        "ADD" => Command::Add(attachment()?),
        "CHECK" => Command::Check(attachment()?),
        "DEL" => Command::Delete { container: needed("CNI_CONTAINERID")? },
        "GC" => Command::Collect {
            containers: config.valid_attachments.iter().map(|valid| valid.container.clone()).collect(),
        },
        "STATUS" => Command::Status,
        _ => Command::Version,
    })
}

/// The pod that `CNI_ARGS` names, as Kubernetes' container runtimes do: `K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;...`.
fn pod(arguments: &str) -> Option<PodName> {
    let arguments: BTreeMap<&str, &str> =
        arguments.split(';').filter_map(|argument| argument.split_once('=')).collect();
    let stated = |name| arguments.get(name).filter(|value| !value.is_empty()).map(|&value| value.to_owned());
    Some(PodName {
        namespace: stated("K8S_POD_NAMESPACE")?,
        name: stated("K8S_POD_NAME")?,
        uid: stated("K8S_POD_UID"),
    })
}

/// The addresses in a result: `{"ips": [{"address": "10.1.0.5/16"}]}`.
fn addresses(result: &Map<String, Value>) -> Result<Vec<IpAddr>, Failure> {
    let listed = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let read = |ip: &Value| {
        let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        text.split('/').next().unwrap_or_default().parse().map_err(|_| {
            Failure::new(
                Code::Decoding,
                format!("culvert-cni: prevResult has an address `{text}` that is none"),
            )
        })
    };
    listed.map(read).collect()
}

/// The result of ADD: what the plugins before returned, in the version of the configuration.
#[must_use]
pub fn result(attachment: Attachment, version: &str) -> Value {
    let mut result = attachment.result;
    result.insert("cniVersion".to_owned(), version.into());
    Value::Object(result)
}

/// The answer to VERSION; `asked` is the version in which it is asked for.
#[must_use]
pub fn versions(asked: &str) -> Value {
    json!({"cniVersion": asked, "supportedVersions": VERSIONS})
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"cniVersion": "1.1.0", "name": "pods", "type": "culvert-cni", "socket": "/run/culvert/cni.sock",
        "members": "/var/lib/culvert/cni-members.json", "runtimeConfig": {},
        "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mtu": 1500}], "dns": {},
            "ips": [{"address": "10.244.1.5/24", "gateway": "10.244.1.1"}, {"address": "fd00::5/64"}]},
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]}"#;

    const ENVIRONMENT: [(&str, &str); 5] = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/var/run/netns/cni-1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=1a;K8S_POD_INFRA_CONTAINER_ID=c1",
        ),
    ];

    /// The command, with a variable of the environment replaced.
    fn read(asked: &str, input: &str, replaced: (&str, &str)) -> Result<Command, Failure> {
        let variable = |name: &str| {
            let stated = std::iter::once(replaced).chain(ENVIRONMENT).find(|(other, _)| *other == name);
            stated.map(|(_, value)| value.to_owned())
        };
        command(asked, variable, &config(input.as_bytes())?)
    }

    fn attachment(command: Command) -> Attachment {
        match command {
            Command::Add(attachment) | Command::Check(attachment) => attachment,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sandbox_is_read_with_its_pod_and_its_addresses() {
        for asked in ["ADD", "CHECK"] {
            let attachment = attachment(read(asked, CONFIG, ("", "")).unwrap());
            assert_eq!(
                (attachment.container.as_str(), attachment.netns.to_str().unwrap()),
                ("c1", "/var/run/netns/cni-1")
            );
            let pod = attachment.pod.unwrap();
            assert_eq!((pod.to_string().as_str(), pod.uid.as_deref()), ("shop/web-0", Some("1a")));
            let expected: [IpAddr; 2] = ["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()];
            assert_eq!(attachment.addresses, expected);
        }
        let without_uid =
            read("ADD", CONFIG, ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")).unwrap();
        assert_eq!(attachment(without_uid).pod.unwrap().uid, None);
        let no_pod = read("ADD", CONFIG, ("CNI_ARGS", "")).unwrap();
        assert_eq!(attachment(no_pod).pod, None);
    }

    #[test]
    fn what_the_plugins_before_returned_is_passed_on_whole() {
        let attachment = attachment(read("ADD", CONFIG, ("", "")).unwrap());
        let before: Value = serde_json::from_str::<Value>(CONFIG).unwrap()["prevResult"].clone();
        assert_eq!(result(attachment, "1.1.0"), before);
    }

    #[test]
    fn the_other_commands_need_little() {
        let bare = r#"{"cniVersion": "1.1.0"}"#;
        assert_eq!(
            read("DEL", bare, ("CNI_NETNS", "")).unwrap(),
            Command::Delete { container: "c1".to_owned() }
        );
        assert_eq!(read("STATUS", bare, ("CNI_CONTAINERID", "")).unwrap(), Command::Status);
        assert_eq!(read("VERSION", bare, ("CNI_CONTAINERID", "")).unwrap(), Command::Version);
        let containers = vec!["c1".to_owned(), "c2".to_owned()];
        assert_eq!(read("GC", CONFIG, ("CNI_CONTAINERID", "")).unwrap(), Command::Collect { containers });
        assert_eq!(versions("1.0.0")["supportedVersions"][3], "1.0.0");
    }

    #[test]
    fn what_is_wrong_is_told_with_the_specifications_code() {
        let version = |version: &str| CONFIG.replace("\"cniVersion\": \"1.1.0\", \"name\"", version);
        for (name, asked, input, replaced, code) in [
            ("no namespace", "ADD", CONFIG.to_owned(), ("CNI_NETNS", ""), Code::Environment),
            ("no container", "ADD", CONFIG.to_owned(), ("CNI_CONTAINERID", ""), Code::Environment),
            ("no container to delete", "DEL", CONFIG.to_owned(), ("CNI_CONTAINERID", ""), Code::Environment),
            ("no JSON", "ADD", "{".to_owned(), ("", ""), Code::Decoding),
            (
                "of a later version",
                "ADD",
                version("\"cniVersion\": \"2.0.0\", \"name\""),
                ("", ""),
                Code::IncompatibleVersion,
            ),
            ("of no version", "ADD", version("\"name\""), ("", ""), Code::IncompatibleVersion),
            (
                "first in its chain",
                "ADD",
                r#"{"cniVersion": "1.0.0"}"#.to_owned(),
                ("", ""),
                Code::Configuration,
            ),
            ("no address", "ADD", CONFIG.replace("10.244.1.5/24", "here"), ("", ""), Code::Decoding),
        ] {
            let failure = read(asked, &input, replaced).expect_err(name);
            assert_eq!(failure.code, code, "{name}: {failure}");
        }
        let unset = asked(|_| None).unwrap_err();
        assert_eq!(asked(|_| Some("UPDATE".to_owned())).unwrap_err().code, Code::Environment);
        assert_eq!(unset.to_json("1.0.0")["code"], 4);
    }

    #[test]
    fn every_version_that_is_stated_as_supported_is_read() {
        for version in VERSIONS {
            let input = CONFIG.replacen("1.1.0", version, 1);
            assert!(read("ADD", &input, ("", "")).is_ok(), "{version}");
        }
    }
}
