//! Rules of iptables in pods.

use std::time::Duration;

use anyhow::bail;
use sandbox::{Pod, Program};

use crate::toolchain::find_program;

/// The program, and its package.
pub(crate) const IPTABLES: &str = "iptables";

/// How long a short program may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Has a pod lead to `port` what passes a chain and is TCP and one of `those`.
pub(crate) fn redirect(pod: &Pod, chain: &str, those: &str, port: u16) -> anyhow::Result<()> {
    let rule = format!("--wait --table nat --append {chain} --protocol tcp {those}");
    let target = format!("--jump REDIRECT --to-ports {port}");
    let arguments = rule.split(' ').chain(target.split(' '));
    run(pod, &Program::new(find_program(IPTABLES)?).args(arguments))
}

/// Runs a short program in a pod.
pub(crate) fn run(pod: &Pod, program: &Program) -> anyhow::Result<()> {
    let output = pod.exec(program, DEADLINE)?;
    if !output.status.success() {
        bail!("{program:?} in pod {}: {}", pod.name(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
