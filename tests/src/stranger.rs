//! A pod outside of the mesh whose network namespace has the inode that a captured pod's former one had: inodes are used again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context, ensure};
use sandbox::{Family, Program};

use crate::world::{SETTLE, World, pods, ports};

/// Its open connections, which nobody but itself has any business with.
pub(crate) struct Stranger(Vec<TcpStream>);

impl Stranger {
    /// Has the pins of `shop/near` say, beside the namespace they stand in, that of the stranger; of clsact those of filters alone, which
    /// is all there are before Linux 5.17. To be called while the node has no agent.
    pub(crate) fn named_by_the_pins_of_near(world: &World) -> anyhow::Result<Self> {
        let pod = world.sandbox.pod(pods::OUTSIDER_EAST)?;
        let name = pod.exec(&Program::new("readlink").arg("/proc/self/ns/net"), SETTLE)?;
        let name = String::from_utf8(name.stdout)?;
        let inode = name.trim().trim_start_matches("net:[").trim_end_matches(']').to_owned();
        let script = format!(
            "set -e; cd /sys/fs/bpf/culvert/v*/pods/{near}; pins=$(ls -d net-*/filter-* 2>/dev/null || ls -d net-*/*); mkdir net-{inode}; \
             for pin in $pins; do test -d $pin || ln $pin net-{inode}/; done",
            near = world.sandbox.pod(pods::NEAR)?.spec().uid
        );
        let output = world.sandbox.node("east")?.exec(&Program::new("sh").args(["-c", &script]), SETTLE)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let connect = |family| {
            world.connect(pods::OUTSIDER_EAST, world.address(pods::OUTSIDER_WEST, family, ports::ECHO)?)
        };
        let mut stranger = Self(Family::BOTH.into_iter().map(connect).collect::<anyhow::Result<_>>()?);
        stranger.ensure_alive()?;
        Ok(stranger)
    }

    /// That they go on.
    pub(crate) fn ensure_alive(&mut self) -> anyhow::Result<()> {
        for stream in &mut self.0 {
            let mut answer = [0; 5];
            stream
                .write_all(b"hello")
                .and_then(|()| stream.read_exact(&mut answer))
                .context("a stranger's connection was cut")?;
            ensure!(&answer == b"hello", "{answer:?}");
        }
        Ok(())
    }
}
