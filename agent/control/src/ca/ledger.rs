//! Until when there are certificates that were signed on which basis, so that a rotation knows whom it would cut off.
//!
//! A basis is a key that signs and the roots that are handed out with what it signs: who holds a certificate of a basis
//! trusts those roots and no others until the certificate ends. The file `ca.issued` is written before a signature that
//! it does not cover leaves the process, some way ahead, so that it is written seldom. Only the process that signs writes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};

use crate::state_directory::{StateError, read_file, write_file};

/// A key that signs with the roots it hands out, by their hash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Basis(String);

impl Basis {
    pub(super) fn of(public_key: &[u8], roots_pem: &str) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(public_key);
        hash.update(roots_pem.as_bytes());
        Self(super::hex(&hash.finish().as_ref()[..16]))
    }

    /// Enough of it to tell a few apart.
    pub(super) fn short(&self) -> &str {
        &self.0[..8]
    }
}

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lines(BTreeMap<Basis, SystemTime>);

impl Lines {
    fn parse(text: &str) -> Option<Self> {
        let line = |line: &str| {
            let (basis, until) = line.split_once(' ')?;
            let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(until.parse().ok()?))?;
            Some((Basis(basis.to_owned()), until))
        };
        text.lines().map(line).collect::<Option<_>>().map(Self)
    }

    fn text(&self) -> String {
        let line = |(Basis(basis), until): (&Basis, &SystemTime)| {
            // In whole seconds, and none too early.
            let until = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() + 1;
            format!("{basis} {until}\n")
        };
        self.0.iter().map(line).collect()
    }
}

/// The ledger of the process that signs.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    lines: Lines,
}

impl Ledger {
    /// That of a state directory; `None`: it has none yet.
    pub(super) fn open(state: &Path) -> Result<Option<Self>, StateError> {
        let path = state.join("ca.issued");
        // What cannot be read is as good as nothing, which counts as the worst.
        let lines = read_file(&path)?.and_then(|text| Lines::parse(&text));
        Ok(lines.map(|lines| Self { path, lines }))
    }

    /// Begins one in a state directory. `before`: there may be certificates that were signed on that basis and last so long.
    pub(super) fn begin(state: &Path, before: Option<(Basis, SystemTime)>) -> Result<Self, StateError> {
        let (path, lines) = (state.join("ca.issued"), Lines(before.into_iter().collect()));
        write_file(&path, 0o600, lines.text().as_bytes())?;
        Ok(Self { path, lines })
    }

    /// Whether a certificate of `basis` that ends at `until` is on the disk already.
    pub(super) fn covers(&self, basis: &Basis, until: SystemTime) -> bool {
        self.lines.0.get(basis).is_some_and(|noted| *noted >= until)
    }

    /// Makes sure that a certificate of `basis` that ends at `until` is on the disk. `ahead` is how much further it may
    /// then reach without another write.
    pub(super) fn note(
        &mut self,
        basis: &Basis,
        until: SystemTime,
        ahead: Duration,
        now: SystemTime,
    ) -> Result<(), StateError> {
        if self.covers(basis, until) {
            return Ok(());
        }
        let mut lines = self.lines.0.clone();
        lines.retain(|_, until| *until > now);
        lines.insert(basis.clone(), until + ahead);
        let lines = Lines(lines);
        write_file(&self.path, 0o600, lines.text().as_bytes())?;
        self.lines = lines;
        Ok(())
    }

    /// When the last certificate ends that was signed on another basis than this; in the past where there is none.
    pub(super) fn last_of_others(&self, basis: &Basis) -> SystemTime {
        let others = self.lines.0.iter().filter(|(other, _)| *other != basis);
        others.map(|(_, until)| *until).max().unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_ledger_never_says_less_than_was_signed_and_forgets_what_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Ledger::open(directory.path()).unwrap().is_none());
        let (old, new) = (Basis::of(b"key", "one"), Basis::of(b"key", "one two"));
        assert_ne!(old, new);
        let mut ledger = Ledger::begin(directory.path(), None).unwrap();
        let reopened = || Ledger::open(directory.path()).unwrap().unwrap();
        ledger.note(&old, at(100), Duration::from_secs(20), at(0)).unwrap();
        assert!(reopened().last_of_others(&new) >= at(120));
        assert_eq!(reopened().last_of_others(&old), SystemTime::UNIX_EPOCH);
        std::fs::remove_file(directory.path().join("ca.issued")).unwrap();
        ledger.note(&old, at(120), Duration::from_secs(20), at(1)).unwrap();
        assert!(!directory.path().join("ca.issued").exists(), "it was noted ahead");
        ledger.note(&new, at(130), Duration::from_secs(20), at(50)).unwrap();
        assert!(reopened().last_of_others(&new) >= at(120));
        ledger.note(&new, at(300), Duration::from_secs(20), at(200)).unwrap();
        assert_eq!(reopened().last_of_others(&new), SystemTime::UNIX_EPOCH);
        std::fs::write(directory.path().join("ca.issued"), "what").unwrap();
        assert!(Ledger::open(directory.path()).unwrap().is_none());
    }
}
