//! Compiles `proto/` to Rust with a compiler that is itself Rust: no `protoc` needed.

use std::error::Error;

const FILES: [&str; 6] =
    ["workload.proto", "authorization.proto", "zds.proto", "ca.proto", "discovery.proto", "culvert.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
