//! Staying up at a terminal: commands to try, until Ctrl-C.

use std::time::Duration;

use sandbox::{Mesh, Sandbox, interrupt};

use crate::cargo::Built;

/// How often it is looked whether a program has ended.
const LOOK: Duration = Duration::from_millis(500);

/// Prints what can be tried and waits for Ctrl-C.
pub(crate) fn stay(sandbox: &Sandbox, mesh: &mut Mesh, built: &Built) -> anyhow::Result<()> {
    let frontend = sandbox.pod("shop/frontend")?.pid();
    let cart = sandbox.pod("shop/cart")?.pid();
    let agent = mesh.agent("east")?.pid();
    let ztunnel = mesh.ztunnel("east")?.pid();
    let culvert = built.culvert.display();
    let mesh_directory = mesh.directory().display();
    println!("\nThe mesh stays up. To try, from another terminal:");
    for (what, command) in [
        ("a call to another node", format!("nsenter -t {frontend} -n -m curl -s http://payments.shop/")),
        ("one that a policy refuses", format!("nsenter -t {cart} -n -m curl -s http://payments.shop/")),
        ("the access log of both", format!("tail -n 1 {mesh_directory}/ztunnel-*.log")),
        ("the pods of a node", format!("nsenter -t {agent} -n -m {culvert} status")),
        (
            "what its kernel programs did",
            format!("nsenter -t {agent} -n curl -s http://127.0.0.1:15011/metrics"),
        ),
        ("its ztunnel's metrics", format!("nsenter -t {ztunnel} -n curl -s http://127.0.0.1:15020/metrics")),
        ("what control, both agents and both ztunnels log", format!("tail -n 3 {mesh_directory}/*.log")),
        (
            "another policy, in effect at once",
            format!("$EDITOR {}/shop-policies.yaml", sandbox.manifests_directory().display()),
        ),
        (
            "its ztunnel killed; whatever ends is started again, as its DaemonSet would",
            format!("kill -9 {ztunnel}"),
        ),
    ] {
        println!("  # {what}\n  {command}");
    }
    println!("Ctrl-C takes everything down.");
    interrupt::wait(LOOK, || {
        mesh.restart_ended(sandbox)?.iter().for_each(|event| println!("{event}"));
        Ok::<_, anyhow::Error>(())
    })?;
    println!();
    Ok(())
}
