//! Rotation of the root, one step at a time: the new root is trusted, then it issues, then the old one is retired.
//!
//! A step is safe once all certificates have ended that were signed before the step in front of it: then everybody who can
//! prove an identity trusts both roots, and later, nobody is proved by the old one any more. The `ledger` knows when
//! that is. Control need not run, and takes a step up within a second.

use std::path::Path;
use std::time::SystemTime;

use mesh::TrustDomain;

use super::ledger::Ledger;
use super::roots::{self, Paths, Root, Stage, Stored};
use super::{LEAF_LIFETIME, OpenError};
use crate::state_directory::write_file;

/// How a rotation stands.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// How far it has got.
    pub stage: Stage,
    /// The roots that are trusted.
    pub roots: Vec<Root>,
    /// Before that the next step would cut somebody off.
    pub not_before: SystemTime,
}

/// A step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The authority cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is none yet.
    #[error("there is no root yet: control makes it when it first starts")]
    NoRoot,
    /// There are certificates that the step would make worthless.
    #[error(
        "in stage `{stage}` and for another {seconds} s: there are certificates from before it, and their holders would be cut off (`--force` does not wait)"
    )]
    TooEarly {
        /// The stage.
        stage: Stage,
        /// How long they last.
        seconds: u64,
    },
    /// Another process has been faster.
    #[error(
        "another process has just taken a step: this is stage `{stage}` now, and another step was not asked for"
    )]
    Taken {
        /// The stage it has led to.
        stage: Stage,
    },
}

/// How things stand in a state directory.
///
/// # Errors
/// Files are missing, open to others, or do not belong together.
pub fn status(state: &Path, now: SystemTime) -> Result<Rotation, RotateError> {
    Ok(look(state, now)?.1)
}

/// Takes the next step. `force`: also while that cuts somebody off, which a stolen key is a reason for. Waits for whoever else changes
/// the authority's files; of two at once only one takes a step.
///
/// # Errors
/// It is too early, another process has taken the step, or the files cannot be used. Nothing has changed then.
pub fn rotate(state: &Path, now: SystemTime, force: bool) -> Result<Rotation, RotateError> {
    let (before, _) = look(state, now)?;
    let paths = Paths::of(state);
    let lock = paths.lock().map_err(OpenError::from)?;
    let (stored, rotation) = look(state, now)?;
    if stored.basis != before.basis {
        return Err(RotateError::Taken { stage: rotation.stage });
    }
    let left = rotation.not_before.duration_since(now).unwrap_or_default();
    if !left.is_zero() && !force {
        return Err(RotateError::TooEarly { stage: rotation.stage, seconds: left.as_secs() + 1 });
    }
    match rotation.stage {
        Stage::Settled => trust_another(&paths, &stored, now)?,
        Stage::BothTrusted => roots::promote(&paths)?,
        Stage::NewIssues => {
            write_file(&paths.roots, 0o644, stored.issuing().pem.as_bytes()).map_err(OpenError::from)?;
        }
    }
    let taken = status(state, now);
    drop(lock);
    taken
}

fn look(state: &Path, now: SystemTime) -> Result<(Stored, Rotation), RotateError> {
    let paths = Paths::of(state);
    if !paths.roots.exists() {
        return Err(RotateError::NoRoot);
    }
    let stored = roots::read(state)?;
    let ledger = Ledger::open(state).map_err(OpenError::from)?;
    let not_before = match (stored.stage, ledger) {
        // Whoever holds a certificate goes on to trust all that it trusts now.
        (Stage::Settled, _) => SystemTime::UNIX_EPOCH,
        (_, Some(ledger)) => ledger.last_of_others(&stored.basis),
        (_, None) => now + LEAF_LIFETIME,
    };
    let rotation = Rotation { stage: stored.stage, roots: stored.roots.clone(), not_before };
    Ok((stored, rotation))
}

/// Makes a new root and has it trusted. Its key is there before it is, and is taken again if that was cut short.
fn trust_another(paths: &Paths, stored: &Stored, now: SystemTime) -> Result<(), OpenError> {
    let key = match roots::read_key(&paths.next)? {
        Some(key) => key,
        None => roots::make_key(&paths.next)?,
    };
    let own = &stored.issuing().der;
    let new = roots::make_root(&key, &trust_domain_of(own), now)?;
    let both = stored.bundle() + &new;
    Ok(write_file(&paths.roots, 0o644, both.as_bytes())?)
}

/// A root is named after its trust domain.
fn trust_domain_of(root: &[u8]) -> TrustDomain {
    let parsed = x509_parser::parse_x509_certificate(root).ok();
    let domain =
        parsed.as_ref().and_then(|(_, root)| root.subject().iter_organization().next()?.as_str().ok());
    domain.map_or_else(TrustDomain::default, TrustDomain::from)
}
