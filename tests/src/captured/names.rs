//! Names: what the pods' DNS becomes, whichever mode its servers are in.

use super::Mode;
use crate::dns::{others as names_of_others, services, within};
use crate::world::World;

pub(super) fn of_the_mesh(world: &mut World, _: Mode) -> anyhow::Result<()> {
    services(world)
}

pub(super) fn others(world: &mut World, _: Mode) -> anyhow::Result<()> {
    names_of_others(world)
}

pub(super) fn own_resolver(world: &mut World, _: Mode) -> anyhow::Result<()> {
    within(world)
}
