//! Way (a): rustup's nightly, if it is there and has the source of `core`.

use std::path::{Path, PathBuf};

use super::{Compiler, step};

/// Where `rust-src` puts what `-Zbuild-std=core` builds.
const SOURCE: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";

/// The nightly compiler, past rustup's proxies, which would follow `RUSTUP_TOOLCHAIN` of whoever called us.
pub(super) fn find() -> Option<Compiler> {
    // `which` must not install what it does not find.
    let answer =
        step::output_with(Path::new("rustup"), &["which", "--toolchain", "nightly", "rustc"], |command| {
            command.env("RUSTUP_AUTO_INSTALL", "0");
        })?;
    let rustc = PathBuf::from(answer.trim());
    let sysroot = rustc.parent()?.parent()?;
    if !sysroot.join(SOURCE).is_file() {
        return None;
    }
    Compiler::ask(rustc)
}
