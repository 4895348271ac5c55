//! The roots that vouch for a server: those the operator gave, and in their place those the server has told of since.
//!
//! An authority changes its root while processes run that were given the one before, so that a client has to be told by
//! the server itself, while it still trusts it. What was learned is kept beside what the operator's file said at the time,
//! and counts only as long as that file says so: a file that is replaced is the operator's latest word.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::whole_file;

/// Stands between what was given and what was learned.
const LEARNED: &str =
    "\n# Learned from the server whom the above vouched for; it counts in the place of the above:\n";

/// Where roots are, as PEM; read anew for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    given: PathBuf,
    learned: Option<PathBuf>,
}

impl From<PathBuf> for Roots {
    /// Those of a file and no others.
    fn from(given: PathBuf) -> Self {
        Self { given, learned: None }
    }
}

/// Roots cannot be learned.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The server is at fault.
    #[error("what the server says of its roots has no certificate, or one that is none")]
    Unusable,
    /// They cannot be kept.
    #[error("cannot keep the server's roots in {path}: {error}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
}

impl Roots {
    /// Those of the file `given`, or what was learned while it said what it says now, which is kept in `learned`.
    pub fn learning(given: PathBuf, learned: PathBuf) -> Self {
        Self { given, learned: Some(learned) }
    }

    /// The file that the operator gave.
    pub fn given(&self) -> &Path {
        &self.given
    }

    /// Those that count now.
    ///
    /// # Errors
    /// The operator's file cannot be read. (Of what cannot be read of what was learned nothing was learned.)
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let given = fs::read(&self.given)?;
        let learned = self.learned.as_ref().and_then(|path| fs::read(path).ok());
        let learned = learned.as_deref().and_then(|kept| learned_from(&given, kept)).map(<[u8]>::to_vec);
        Ok(learned.unwrap_or(given))
    }

    /// Takes what the server says of its roots, in place of what it said before. Whether that is news. Without a place to
    /// keep it nothing is learned.
    ///
    /// # Errors
    /// There is no certificate in it, or it cannot be kept; what was known stays known.
    pub fn learn(&self, pem: &str) -> Result<bool, LearnError> {
        let Some(path) = &self.learned else { return Ok(false) };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        if certificates.map_or(true, |certificates| certificates.is_empty()) {
            return Err(LearnError::Unusable);
        }
        let failed = |error| LearnError::Io { path: path.clone(), error };
        if self.read().map_err(failed)? == pem.as_bytes() {
            return Ok(false);
        }
        let given = fs::read(&self.given).map_err(failed)?;
        let content = [&given, LEARNED.as_bytes(), pem.as_bytes()].concat();
        whole_file::write(path, 0o600, &content).map_err(failed)?;
        Ok(true)
    }
}

fn learned_from<'a>(given: &[u8], kept: &'a [u8]) -> Option<&'a [u8]> {
    kept.strip_prefix(given)?.strip_prefix(LEARNED.as_bytes()).filter(|pem| !pem.is_empty())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn root() -> String {
        CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn what_the_server_told_counts_until_the_operator_says_something_else() {
        let directory = tempfile::tempdir().unwrap();
        let (given, learned) = (directory.path().join("root.pem"), directory.path().join("learned.pem"));
        let (old, new, other) = (root(), root(), root());
        fs::write(&given, &old).unwrap();
        let roots = Roots::learning(given.clone(), learned.clone());
        let counts = || String::from_utf8(roots.read().unwrap()).unwrap();
        assert_eq!(counts(), old);
        assert!(!roots.learn(&old).unwrap() && !learned.exists(), "no news");
        assert!(roots.learn(&(old.clone() + &new)).unwrap());
        assert_eq!(counts(), old.clone() + &new);
        assert!(roots.learn(&new).unwrap());
        assert_eq!(counts(), new);
        assert!(!roots.learn(&new).unwrap());
        fs::write(&given, &other).unwrap();
        assert_eq!(counts(), other);
        fs::write(&given, &old).unwrap();
        assert_eq!(counts(), new, "the word of the time is back");
    }

    #[test]
    fn what_is_no_certificate_is_not_learned_and_a_spoilt_file_counts_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (given, learned) = (directory.path().join("root.pem"), directory.path().join("learned.pem"));
        let old = root();
        fs::write(&given, &old).unwrap();
        let roots = Roots::learning(given.clone(), learned.clone());
        for bad in ["", "text", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(roots.learn(bad), Err(LearnError::Unusable)), "{bad}");
        }
        fs::write(&learned, [old.as_str(), LEARNED].concat()).unwrap();
        assert_eq!(roots.read().unwrap(), old.as_bytes());
        assert!(!Roots::from(given).learn(&root()).unwrap(), "nowhere to keep it");
    }
}
