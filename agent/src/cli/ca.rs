//! `culvert ca`: the mesh's root certificate and its rotation. Control need not run, and takes up changes within a second.

use std::time::SystemTime;

use control::ca::{self, Rotation, Stage};

use super::state::At;

/// What to do with the authority.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show the roots, how far a rotation has got, and when its next step can be taken.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        at: At,
    },
    /// Take the next step of a rotation: a new root is trusted, then it issues, then the old one is retired.
    ///
    /// Three runs make a rotation. Each is refused while there are certificates that it would make worthless, which
    /// with certificates of a day is for a day or a little longer.
    Rotate {
        /// Do not wait, as when the key was stolen: whoever has no certificate of the stage before is cut off until it has a
        /// new one.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        at: At,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<()> {
    let now = SystemTime::now();
    match command {
        Command::Status { json: true, at } => println!("{}", json(&ca::status(&at.state, now)?, now)),
        Command::Status { json: false, at } => print(&ca::status(&at.state, now)?, now),
        Command::Rotate { force, at } => {
            let rotation = ca::rotate(&at.state, now, force)?;
            println!("The step is taken.");
            print(&rotation, now);
        }
    }
    Ok(())
}

/// Seconds until the next step is safe.
fn wait(rotation: &Rotation, now: SystemTime) -> u128 {
    rotation.not_before.duration_since(now).map_or(0, |left| left.as_millis().div_ceil(1000))
}

fn print(rotation: &Rotation, now: SystemTime) {
    for root in &rotation.roots {
        let days = root.expires.duration_since(now).unwrap_or_default().as_secs() / (24 * 60 * 60);
        let role = if root.issues { "trusted, issues" } else { "trusted" };
        println!("{} (SHA-256 {}): {role}; valid for {days} days", root.name, root.fingerprint);
    }
    let next = match rotation.stage {
        Stage::Settled => {
            println!("stage: {}. `culvert ca rotate` begins a rotation.", rotation.stage);
            return;
        }
        Stage::BothTrusted => "has the new root issue; by then give root.pem to nodes that do not run now",
        Stage::NewIssues => "retires the old root",
    };
    println!("stage: {}. The next `culvert ca rotate` {next}.", rotation.stage);
    match wait(rotation, now) {
        0 => println!("It can be run now."),
        seconds => {
            println!(
                "It can be run in {}, when the certificates from before this stage have ended (`--force` does not wait).",
                duration(seconds)
            );
        }
    }
}

/// As people say it, rounded up.
fn duration(seconds: u128) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    }
}

fn json(rotation: &Rotation, now: SystemTime) -> serde_json::Value {
    let unix = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let roots = rotation.roots.iter().map(|root| {
        serde_json::json!({
            "name": root.name,
            "sha256": root.fingerprint,
            "issues": root.issues,
            "expires": unix(root.expires),
        })
    });
    serde_json::json!({
        "stage": rotation.stage.to_string(),
        "roots": roots.collect::<Vec<_>>(),
        "next_step_in_seconds": wait(rotation, now),
    })
}
