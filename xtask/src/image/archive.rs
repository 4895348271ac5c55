//! An OCI image as an archive (image-spec 1.1, image layout), made by tar and gzip alone: the same files give the same bytes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::{Value, json};

/// What a file of the image is.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A program or library of this machine.
    File(PathBuf),
    /// Another name of a file beside it.
    Link(&'static str),
}

/// An image of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Its whole name, such as `localhost/culvert:dev`.
    pub(crate) name: String,
    /// What is run, with its arguments.
    pub(crate) entrypoint: Vec<String>,
    /// As whom, by numbers: a cluster can tell that it is not root.
    pub(crate) user: &'static str,
    /// Its files, by their absolute paths.
    pub(crate) files: Vec<(String, Content)>,
}

/// Directories that programs expect.
const DIRECTORIES: [&str; 6] = ["dev", "etc", "proc", "run", "sys", "tmp"];

impl Image {
    /// Writes the archive, which `ctr images import` and registries' tools read.
    ///
    /// # Errors
    /// A file cannot be read or written, or tar fails.
    pub(crate) fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let directory = tempfile::tempdir().context("making a directory for the image")?;
        let (tree, layout) = (directory.path().join("tree"), directory.path().join("layout"));
        self.make_tree(&tree)?;
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let layer = directory.path().join("layer.tar");
        tar(&tree, &layer)?;
        let content = digest(&layer)?;
        let mut gzip = Command::new("gzip");
        run(gzip.args(["--no-name", "-9"]).arg(&layer))?;
        let layer =
            put_file(&blobs, &layer.with_extension("tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip")?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/bin"], "User": self.user},
            "rootfs": {"type": "layers", "diff_ids": [content]},
        });
        let config = put(&blobs, &config, "application/vnd.oci.image.config.v1+json")?;
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let content = json!({"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": [layer]});
        let mut manifest = put(&blobs, &content, manifest)?;
        // containerd names the image by the former; others by the latter.
        manifest["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name});
        fs::write(
            layout.join("index.json"),
            json!({"schemaVersion": 2, "manifests": [manifest]}).to_string(),
        )?;
        fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
        tar(&layout, archive)
    }

    fn make_tree(&self, tree: &Path) -> anyhow::Result<()> {
        for directory in DIRECTORIES {
            fs::create_dir_all(tree.join(directory))?;
        }
        fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        for (path, content) in &self.files {
            let path = tree.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap_or(tree))?;
            match content {
                Content::Link(target) => std::os::unix::fs::symlink(target, &path)?,
                Content::File(file) => {
                    fs::copy(file, &path).with_context(|| format!("copying {}", file.display()))?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                }
            }
        }
        Ok(())
    }
}

/// What Go and the specification call this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Packs a directory: sorted, of nobody in particular, from no time.
fn tar(directory: &Path, archive: &Path) -> anyhow::Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    run(tar.arg("--create").arg("--file").arg(archive).arg("--directory").arg(directory).arg("."))
}

/// Adds a blob and returns its descriptor.
fn put_file(blobs: &Path, file: &Path, media_type: &str) -> anyhow::Result<Value> {
    let digest = digest(file)?;
    let size = fs::metadata(file)?.len();
    fs::copy(file, blobs.join(digest.trim_start_matches("sha256:")))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
}

fn put(blobs: &Path, content: &Value, media_type: &str) -> anyhow::Result<Value> {
    let file = blobs.join("new");
    fs::write(&file, content.to_string())?;
    let descriptor = put_file(blobs, &file, media_type)?;
    fs::remove_file(&file)?;
    Ok(descriptor)
}

fn digest(file: &Path) -> anyhow::Result<String> {
    let output =
        Command::new("sha256sum").arg("--").arg(file).stdin(Stdio::null()).output().context("sha256sum")?;
    let text = String::from_utf8(output.stdout)?;
    let digest = text.split_whitespace().next().filter(|digest| digest.len() == 64);
    Ok(format!("sha256:{}", digest.with_context(|| format!("sha256sum says nothing of {}", file.display()))?))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_archive_and_it_is_a_layout() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::write(&program, "content").unwrap();
        let image = Image {
            name: "localhost/test:1".to_owned(),
            entrypoint: vec!["/bin/program".to_owned()],
            user: "65532",
            files: vec![
                ("/bin/program".to_owned(), Content::File(program)),
                ("/bin/other".to_owned(), Content::Link("program")),
            ],
        };
        let archives = ["a.tar", "b.tar"].map(|name| directory.path().join(name));
        let [first, second] = archives.each_ref().map(|archive| {
            image.write(archive).unwrap();
            fs::read(archive).unwrap()
        });
        assert_eq!(first, second);
        let list = Command::new("tar").arg("--list").arg("--file").arg(&archives[0]).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.contains("./index.json") && list.contains("./oci-layout"), "{list}");
        assert_eq!(
            list.lines().filter(|line| line.starts_with("./blobs/sha256/") && line.len() > 70).count(),
            3
        );
    }
}
