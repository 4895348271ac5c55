//! The mesh's own root, whose key the sandbox has.

use rcgen::{Issuer, KeyPair};

use crate::world::World;

/// Who signs.
pub type Signer = Issuer<'static, KeyPair>;

/// The root, to sign what the CA would not.
pub fn root(world: &World) -> anyhow::Result<Signer> {
    let state = world.mesh.directory().join("state");
    let key = KeyPair::from_pem(&std::fs::read_to_string(state.join("ca.key"))?)?;
    Ok(Issuer::from_ca_cert_pem(&std::fs::read_to_string(state.join("root.pem"))?, key)?)
}
