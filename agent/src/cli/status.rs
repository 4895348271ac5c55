//! `culvert status`: what the agent of this node says of itself and its pods.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use comfy_table::{Cell, ContentArrangement, Row, Table, presets};
use ebpf_common::Decision;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::status::{AgentStatus, PodStatus};

/// What the table's words mean.
const MEANINGS: &str = "\
States:
  searching         no process or address of the pod is found yet
  preparing         being set up or mended; what holds it up stands below the table
  awaiting-ztunnel  captured or about to be, and no ztunnel has taken it
  enrolled          captured
  draining          leaving: captured connections are ending

LINKS are the programs attached, LISTENERS the ports of the mesh held in the pod, PRE-MESH its
connections from before it joined that live on past the mesh.";

/// The options.
#[derive(Debug, clap::Args)]
#[command(after_help = MEANINGS)]
pub(crate) struct Args {
    /// The agent's directory of sockets.
    #[arg(long, default_value = "/run/culvert")]
    run_dir: PathBuf,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let socket = args.run_dir.join("agent.sock");
    let answer = ask(&socket).await.with_context(|| format!("asking the agent at {}", socket.display()))?;
    if args.json {
        println!("{}", answer.trim_end());
    } else {
        let status = serde_json::from_str(&answer).context("the agent's answer is of another version")?;
        print!("{}", render(&status, SystemTime::now(), Table::new().width()));
    }
    Ok(())
}

/// One request over HTTP/1.0, which ends with the connection.
async fn ask(socket: &Path) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    anyhow::ensure!(head.lines().next().is_some_and(|line| line.contains(" 200 ")), "{}", body.trim_end());
    Ok(body.to_owned())
}

/// `width` is the terminal's; none: there is none, and lines may be as long as they like.
fn render(status: &AgentStatus, now: SystemTime, width: Option<u16>) -> String {
    let control = match (status.control.connected, status.control.synchronised) {
        (true, true) => "connected",
        (true, false) => "connected, nothing received yet",
        (false, true) => "away; the last state stays in force",
        (false, false) => "away, nothing received yet",
    };
    let mut text = format!(
        "node {} · culvert {} · {}\ncontrol {}: {control}\n",
        status.node, status.version, status.redirection, status.control.address
    );
    match status.ztunnels.as_slice() {
        [] => text.push_str("ztunnel: none is connected; captured connections wait or are refused\n"),
        [draining @ .., active] => {
            text.push_str(&format!("ztunnel: process {}, {} pods", active.pid, active.pods));
            if !active.takes_listeners {
                text.push_str("; it makes its own listeners: connections are refused while it restarts");
            }
            if !draining.is_empty() {
                text.push_str(&format!("; {} draining", draining.len()));
            }
            text.push('\n');
        }
    }
    text.push_str(&format!("\n{}\n", within(&pods(status, now), width)));
    for pod in status.pods.values() {
        if let Some(error) = &pod.last_error {
            let (name, age) = (full_name(pod), ago(error.since, now));
            text.push_str(&format!("{name}: {} ({age}, tried {} times)\n", error.message, error.attempts));
        }
    }
    text.push_str(&format!("\n{}\n", packets(status)));
    let of_pods = pod_packets(status);
    if !of_pods.is_empty() {
        text.push_str(&format!("\n{}\n", within(&of_pods, width)));
    }
    text
}

fn full_name(pod: &PodStatus) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

/// A table, or, where its lines would be broken anywhere, its rows one below the other.
fn within(table: &Table, width: Option<u16>) -> String {
    let text = table.to_string();
    let fits = |width: u16| text.lines().all(|line| line.trim_end().chars().count() <= usize::from(width));
    if width.is_none_or(fits) {
        return text;
    }
    let heads: Vec<String> =
        table.header().iter().flat_map(|row| row.cell_iter().map(Cell::content)).collect();
    let row = |row: &Row| {
        let cells = heads.iter().zip(row.cell_iter());
        cells.map(|(head, cell)| format!("{head:<11}{}\n", cell.content())).collect::<String>()
    };
    table.row_iter().map(row).collect::<Vec<_>>().join("\n")
}

fn pods(status: &AgentStatus, now: SystemTime) -> Table {
    let mut table =
        table(&["POD", "STATE", "SINCE", "ADDRESSES", "NETNS", "DEVICES", "LINKS", "LISTENERS", "PRE-MESH"]);
    for pod in status.pods.values() {
        table.add_row([
            full_name(pod),
            pod.state.as_str().to_owned(),
            ago(pod.since, now),
            join(&pod.addresses),
            pod.netns.clone().unwrap_or_else(|| "-".to_owned()),
            join(&pod.devices),
            join(&pod.links),
            join(&pod.listeners),
            pod.pre_mesh.len().to_string(),
        ]);
    }
    table
}

/// What was dropped of each pod: such a packet is somebody's who waits for an answer.
fn pod_packets(status: &AgentStatus) -> Table {
    let mut table = table(&["POD", "PACKETS", "DECISION", "REASON"]);
    for (uid, counts) in &status.pod_packets {
        let Some(pod) = status.pods.get(uid) else { continue };
        for count in counts.iter().filter(|count| count.decision == Decision::Dropped.label()) {
            let (packets, decision, reason) =
                (count.packets.to_string(), count.decision.clone(), count.reason.clone());
            table.add_row([full_name(pod), packets, decision, reason]);
        }
    }
    table
}

fn packets(status: &AgentStatus) -> Table {
    let mut table = table(&["PACKETS", "DECISION", "REASON"]);
    for count in status.packets.iter().filter(|count| count.packets > 0) {
        table.add_row([count.packets.to_string(), count.decision.clone(), count.reason.clone()]);
    }
    table
}

fn join<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// How long ago, in the largest unit of which there is one.
fn ago(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ages_are_in_the_largest_unit() {
        let cases = [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (200_000, "2d")];
        let then = SystemTime::UNIX_EPOCH;
        for (seconds, expected) in cases {
            assert_eq!(ago(then, then + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_person_sees_which_pod_is_not_where_it_should_be_and_why() {
        let status: AgentStatus = serde_json::from_value(serde_json::json!({
            "node": "east", "version": "0.1.0", "redirection": "tcx + sk_lookup",
            "control": { "address": "https://10.0.0.1:15012", "connected": false, "synchronised": true },
            "ztunnels": [],
            "pods": { "u1": {
                "name": "web", "namespace": "shop", "service_account": "web", "addresses": ["10.0.0.5"],
                "strict": true, "state": "preparing", "since": SystemTime::UNIX_EPOCH, "netns": "net:[7]",
                "devices": ["eth0"], "links": [], "listeners": [], "pre_mesh": [],
                "last_error": { "message": "port 15001 is in use by the application", "reason": "port_in_use",
                                "since": SystemTime::UNIX_EPOCH, "attempts": 3 },
            } },
            "packets": [{ "decision": "captured", "reason": "outbound", "packets": 7 },
                        { "decision": "dropped", "reason": "assign", "packets": 0 }],
            "pod_packets": { "u1": [{ "decision": "captured", "reason": "inbound", "packets": 3 },
                                    { "decision": "dropped", "reason": "fragment", "packets": 2 }] },
        }))
        .unwrap();
        let text = render(&status, SystemTime::UNIX_EPOCH + Duration::from_secs(120), None);
        for expected in [
            "control https://10.0.0.1:15012: away; the last state stays in force",
            "ztunnel: none is connected",
            "shop/web: port 15001 is in use by the application (2m, tried 3 times)",
            "7        captured  outbound",
            "shop/web  2        dropped   fragment",
        ] {
            assert!(text.contains(expected), "{expected} is missing in:\n{text}");
        }
        assert!(!text.contains("inbound"), "what goes its way is no matter of single pods");
        assert!(!text.contains("assign"), "what never happened is left out");
        let narrow = render(&status, SystemTime::UNIX_EPOCH, Some(60));
        assert!(narrow.contains("\nPOD        shop/web\nSTATE      preparing\n"), "{narrow}");
        assert!(narrow.contains("\nLISTENERS  -\n"), "{narrow}");
    }
}
