//! The roots that vouch for a server: those the operator gave, and in their place those the server has told of since.
//!
//! An authority changes its root while processes run that were given the one before, so that a client has to be told by
//! the server itself, while it still trusts it. What was learned is kept beside what the operator's file said at the time,
//! and counts only as long as that file says so: a file that is replaced is the operator's latest word.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::whole_file;

/// Stands between what was given and what was learned.
const LEARNED: &str =
    "\n# Learned from the server whom the above vouched for; it counts in the place of the above:\n";

/// Where roots are; read anew for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    given: Given,
    learned: Option<PathBuf>,
}

/// What the operator said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Given {
    /// They are in a file, as PEM.
    File(PathBuf),
    /// They are these, as PEM.
    Inline(Arc<str>),
    /// They are those of the operating system.
    System,
}

impl From<PathBuf> for Roots {
    /// Those of a file and no others.
    fn from(given: PathBuf) -> Self {
        Self { given: Given::File(given), learned: None }
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.given {
            Given::File(path) => write!(f, "{}", path.display()),
            Given::Inline(_) => f.write_str("the roots given as text"),
            Given::System => f.write_str("the system's roots"),
        }
    }
}

/// There are no roots to trust.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// They cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no certificate among them, or one that is none.
    #[error("{0} has no certificate to trust")]
    Unusable(String),
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
        Self { given: Given::File(given), learned: Some(learned) }
    }

    /// Those of a PEM text.
    pub fn inline(pem: &str) -> Self {
        Self { given: Given::Inline(pem.into()), learned: None }
    }

    /// Those that the operating system trusts: `SSL_CERT_FILE` and `SSL_CERT_DIR`, or where the distribution keeps them.
    pub fn system() -> Self {
        Self { given: Given::System, learned: None }
    }

    /// Those that count now: one at least. Blocks: it reads files.
    ///
    /// # Errors
    /// There are none, or what the operator named cannot be read. (Of what cannot be read of what was learned nothing was
    /// learned.)
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, RootsError> {
        let unreadable = |source| RootsError::Read { what: self.to_string(), source };
        let found = match &self.given {
            Given::File(_) => certificates(&self.read().map_err(unreadable)?),
            Given::Inline(pem) => certificates(pem.as_bytes()),
            Given::System => Some(rustls_native_certs::load_native_certs().certs),
        };
        found.filter(|found| !found.is_empty()).ok_or_else(|| RootsError::Unusable(self.to_string()))
    }

    /// Those of a file that count now, as PEM.
    fn read(&self) -> io::Result<Vec<u8>> {
        let Given::File(given) = &self.given else { return Ok(Vec::new()) };
        let given = fs::read(given)?;
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
        let (Given::File(given), Some(path)) = (&self.given, &self.learned) else { return Ok(false) };
        if certificates(pem.as_bytes()).is_none_or(|certificates| certificates.is_empty()) {
            return Err(LearnError::Unusable);
        }
        let failed = |error| LearnError::Io { path: path.clone(), error };
        if self.read().map_err(failed)? == pem.as_bytes() {
            return Ok(false);
        }
        let given = fs::read(given).map_err(failed)?;
        let content = [&given, LEARNED.as_bytes(), pem.as_bytes()].concat();
        whole_file::write(path, 0o600, &content).map_err(failed)?;
        Ok(true)
    }
}

/// Those of a PEM text; none if one of them is none.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()
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
    fn roots_may_be_a_text_as_well() {
        let (one, other) = (root(), root());
        assert_eq!(Roots::inline(&(one + &other)).certificates().unwrap().len(), 2);
        for bad in ["", "text", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(Roots::inline(bad).certificates(), Err(RootsError::Unusable(_))), "{bad}");
        }
        assert!(!Roots::inline("").learn(&root()).unwrap(), "nowhere to keep it");
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
