//! The shared libraries of a program, as its own loader finds them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// The loader and the libraries that the program needs; none for one that is static.
///
/// # Errors
/// One of them is missing.
pub(super) fn of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output =
        Command::new("ldd").arg(program).env("LC_ALL", "C.UTF-8").output().context("starting ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    parse(&text).with_context(|| format!("the libraries of {}", program.display()))
}

/// What `ldd` prints: `name => path (address)` or, of the loader, `path (address)`.
fn parse(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        anyhow::ensure!(!line.contains("not found"), "{line}");
        let path = line.split(" => ").last().unwrap_or(line).split(" (").next().unwrap_or_default();
        // The kernel's own (vdso) has no path, and a static program says so in words.
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_libraries_are_its_loader_and_what_that_finds() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = parse(text).unwrap();
        assert_eq!(
            paths,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
        assert!(parse("\tlibx.so => not found\n").is_err());
    }
}
