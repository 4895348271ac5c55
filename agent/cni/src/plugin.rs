//! The program: reads, asks the agent, writes. Standard output is the container runtime's; nothing else is written there.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ask::{self, Answer, Question, Sandbox, Sandboxes};
use crate::members::Members;
use crate::protocol::{self, Attachment, Code, Command, Config, Failure};
use crate::verdict::{self, Membership, Verdict};

/// How long a pod may take to be captured, the restart of an agent included. Kubelet tries again after that, and tells why in an event.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an agent may take to note that a sandbox has ended; it learns of that from the API server as well.
const NOTE: Duration = Duration::from_secs(1);
/// Between two attempts to reach an agent that does not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs one command of the container runtime.
#[must_use]
pub fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().read_to_end(&mut input);
    let variable = |name: &str| std::env::var(name).ok();
    let outcome = match read {
        Ok(_) => run(&input, variable),
        Err(error) => Err(Failure::new(Code::InputOutput, format!("culvert-cni: standard input: {error}"))),
    };
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}", failure.to_json(&version_of(&input)));
            ExitCode::FAILURE
        }
    }
}

/// The version that the input states, in which errors are told, too.
fn version_of(input: &[u8]) -> String {
    let stated = serde_json::from_slice::<Value>(input).ok();
    let stated = stated.as_ref().and_then(|input| input.get("cniVersion")).and_then(Value::as_str);
    stated.unwrap_or("1.0.0").to_owned()
}

fn run(input: &[u8], variable: impl Fn(&str) -> Option<String>) -> Result<Option<Value>, Failure> {
    let asked = protocol::asked(&variable)?;
    if asked == "VERSION" {
        return Ok(Some(protocol::versions(&version_of(input))));
    }
    let config = protocol::config(input)?;
    match protocol::command(&asked, variable, &config)? {
        Command::Add(attachment) => {
            admit(&config, Question::Add, &attachment, PATIENCE)?;
            Ok(Some(protocol::result(attachment, &config.cni_version)))
        }
        Command::Check(attachment) => admit(&config, Question::Check, &attachment, NOTE).map(|()| None),
        // An agent that is away has forgotten its sandboxes; nobody must be kept from ending a pod by that.
        Command::Delete { container } => {
            let _ = note(&config, Question::Delete, vec![container]);
            Ok(None)
        }
        Command::Collect { containers } => {
            let _ = note(&config, Question::Keep, containers);
            Ok(None)
        }
        // That the agent is away is no reason: the node would not be ready then, and pods outside of the mesh not started.
        Command::Status | Command::Version => Ok(None),
    }
}

fn note(config: &Config, question: Question, containers: Vec<String>) -> std::io::Result<Value> {
    ask::ask(&config.socket, question, &Sandboxes { containers }, NOTE)
}

/// Has the agent say that the sandbox is captured, or finds that it need not be.
fn admit(
    config: &Config,
    question: Question,
    attachment: &Attachment,
    patience: Duration,
) -> Result<(), Failure> {
    let Some(pod) = &attachment.pod else { return Ok(()) };
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let sandbox = Sandbox {
            container: attachment.container.clone(),
            pod: pod.clone(),
            netns: attachment.netns.clone(),
            addresses: attachment.addresses.clone(),
            patience_ms: left.as_millis().try_into().unwrap_or(u64::MAX),
        };
        let answer = ask::ask::<_, Answer>(&config.socket, question, &sandbox, left)
            .map_err(|error| format!("{}: {error}", config.socket.display()));
        let is_late = Instant::now() + PAUSE >= end;
        match verdict::of(answer, || membership(&config.members, &sandbox), is_late) {
            Verdict::Pass => return Ok(()),
            Verdict::AskAgain => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "an agent that comes back tells nobody who has no connection to it"
                )]
                std::thread::sleep(PAUSE);
            }
            Verdict::Refuse(reason) => {
                return Err(Failure::new(Code::TryAgainLater, format!("{pod}: {reason}")));
            }
        }
    }
}

fn membership(file: &Path, sandbox: &Sandbox) -> Membership {
    let read = || -> std::io::Result<Members> { Ok(serde_json::from_slice(&std::fs::read(file)?)?) };
    match read() {
        Ok(members) if members.counts(&sandbox.pod) => Membership::Member,
        Ok(_) => Membership::Outside,
        Err(error) => Membership::Unknown(format!("{}: {error}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run_with(command: &str, members: Option<&str>) -> Result<Option<Value>, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("members.json");
        if let Some(members) = members {
            std::fs::write(&file, members).unwrap();
        }
        let config = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "culvert-cni", "members": file, "socket": directory.path().join("nobody.sock"),
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]},
        });
        let variable = |name: &str| {
            let value = match name {
                "CNI_COMMAND" => command,
                "CNI_CONTAINERID" => "c1",
                "CNI_NETNS" => "/run/netns/cni-1",
                "CNI_ARGS" => "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=1a",
                _ => return None,
            };
            Some(value.to_owned())
        };
        run(config.to_string().as_bytes(), variable)
    }

    const OUTSIDE: &str = r#"{"namespaces": ["shop"], "pods": {"1a": false}}"#;

    #[test]
    fn without_an_agent_a_pod_outside_of_the_mesh_starts_at_once() {
        let begun = Instant::now();
        let answer = run_with("ADD", Some(OUTSIDE)).unwrap().unwrap();
        assert_eq!(answer, json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]}));
        assert!(begun.elapsed() < PAUSE, "{:?}", begun.elapsed());
    }

    #[test]
    fn without_an_agent_a_pod_of_the_mesh_fails_its_check_with_a_reason() {
        for members in [Some(r#"{"namespaces": ["shop"], "pods": {}}"#), None, Some("{")] {
            let failure = run_with("CHECK", members).unwrap_err();
            assert_eq!(failure.code, Code::TryAgainLater);
            assert!(failure.message.starts_with("shop/web-0: "), "{failure}");
            assert!(failure.message.contains("agent does not answer on this node"), "{failure}");
        }
    }

    #[test]
    fn without_an_agent_pods_end_and_the_network_is_usable() {
        for command in ["DEL", "GC", "STATUS"] {
            assert_eq!(run_with(command, None), Ok(None), "{command}");
        }
        assert!(run_with("VERSION", None).unwrap().is_some());
    }
}
