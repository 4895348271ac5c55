//! Images that every node has from its start: what holds a pod's namespaces, and a shell to try things with.

use std::path::Path;

use crate::image::{Content, Image};

const BUSYBOX: &str = "/bin/busybox";
/// Names by which busybox does one thing each.
const APPLETS: [&str; 8] = ["cat", "httpd", "ip", "nc", "sh", "sleep", "wget", "nslookup"];

/// Writes both into the directory.
pub(super) fn busybox(directory: &Path) -> anyhow::Result<()> {
    let program = || vec![(BUSYBOX.to_owned(), Content::File(BUSYBOX.into()))];
    let image = |name: &str, entrypoint: &[&str], files| Image {
        name: name.to_owned(),
        entrypoint: entrypoint.iter().map(|&part| part.to_owned()).collect(),
        user: "65532",
        files,
    };
    image("localhost/pause:1", &[BUSYBOX, "sleep", "2147483647"], program())
        .write(&directory.join("pause.tar"))?;
    let applets = APPLETS.map(|applet| (format!("/bin/{applet}"), Content::Link("busybox")));
    let files = program().into_iter().chain(applets).collect();
    image("localhost/busybox:1", &["/bin/sh"], files).write(&directory.join("busybox.tar"))
}
