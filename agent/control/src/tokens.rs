//! The tokens by which nodes' agents prove who they are. Only hashes are kept: whoever reads the files cannot use them.
//!
//! One file a node, `tokens/NODE`, holds the SHA-256 of its token in hexadecimal. Another process (`culvert token`) may
//! change them at any time; what holds is what is on the disk.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::state_directory::{self, StateError};

/// Random bytes in a token: 256 bits cannot be guessed, so that a plain hash protects it.
const TOKEN_BYTES: usize = 32;
/// A directory's time is as coarse as the kernel's tick. A listing taken within this of the last change may miss another
/// one of the same tick, and is not kept.
const COARSE: Duration = Duration::from_millis(100);

/// A token. Shown once, to whoever creates it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token itself: 64 hexadecimal digits.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Tokens cannot be managed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// No node can have this name.
    #[error("`{0}` is no node's name: lower case letters, digits, `-` and `.`, at most 253")]
    NodeName(String),
    /// The kernel gives no random bytes.
    #[error("no random bytes from the kernel: {0}")]
    Random(rand::rand_core::OsError),
}

/// The tokens of a state directory. Usable by several processes at once.
#[derive(Debug)]
pub struct Tokens {
    directory: PathBuf,
    known: Mutex<Known>,
}

/// What was read, while it is known to hold.
#[derive(Debug, Default)]
struct Known {
    as_of: Option<SystemTime>,
    hashes: BTreeMap<String, [u8; 32]>,
}

impl Tokens {
    /// The tokens kept in `state`, which is made private (0700) where it does not exist.
    ///
    /// # Errors
    /// The directories cannot be made, or are open to other users.
    pub fn open(state: &Path) -> Result<Self, TokenError> {
        state_directory::private_directory(state)?;
        let directory = state.join("tokens");
        state_directory::private_directory(&directory)?;
        Ok(Self { directory, known: Mutex::default() })
    }

    /// The tokens kept in `state`, if it is there: for looking, which makes nothing.
    ///
    /// # Errors
    /// There is no such directory, or it is open to other users.
    pub fn existing(state: &Path) -> Result<Self, TokenError> {
        state_directory::existing_directory(state)?;
        let directory = state.join("tokens");
        state_directory::existing_directory(&directory)?;
        Ok(Self { directory, known: Mutex::default() })
    }

    /// Makes a token for a node. An earlier one of the node is valid no longer.
    ///
    /// # Errors
    /// The name is no node's; the file cannot be written.
    pub fn create(&self, node: &str) -> Result<Token, TokenError> {
        check_name(node)?;
        let mut bytes = [0_u8; TOKEN_BYTES];
        OsRng.try_fill_bytes(&mut bytes).map_err(TokenError::Random)?;
        let token = hex(&bytes);
        let content = format!("{}\n", hex(&hash(&token)));
        state_directory::write_file(&self.directory.join(node), 0o600, content.as_bytes())?;
        Ok(Token(token))
    }

    /// The nodes that have a token, sorted.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn list(&self) -> Result<Vec<String>, TokenError> {
        Ok(self.read()?.into_keys().collect())
    }

    /// Takes a node's token back; `false`: it had none. Its agent is cut off within seconds.
    ///
    /// # Errors
    /// The name is no node's; the file cannot be removed.
    pub fn revoke(&self, node: &str) -> Result<bool, TokenError> {
        check_name(node)?;
        Ok(state_directory::remove_file(&self.directory.join(node))?)
    }

    /// The node a token was made for; `None`: for none.
    ///
    /// # Errors
    /// The files cannot be read: nobody is known then.
    pub fn node_of(&self, token: &str) -> Result<Option<String>, TokenError> {
        let presented = hash(token);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut known)?;
        // Every hash is compared, whichever matches, so that time tells nothing.
        let mut found = None;
        for (node, hash) in &known.hashes {
            if verify_slices_are_equal(hash, &presented).is_ok() {
                found = Some(node);
            }
        }
        Ok(found.cloned())
    }

    /// Reads the files anew where the directory has changed. Every way of changing one (see `write_file`) is a change of
    /// the directory.
    fn refresh(&self, known: &mut Known) -> Result<(), TokenError> {
        let modified =
            std::fs::metadata(&self.directory).and_then(|metadata| metadata.modified()).map_err(|error| {
                StateError::Io { what: "cannot look at", path: self.directory.clone(), error }
            })?;
        if known.as_of == Some(modified) {
            return Ok(());
        }
        let settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age > COARSE);
        *known = Known { as_of: None, hashes: BTreeMap::new() };
        known.hashes = self.read()?;
        known.as_of = settled.then_some(modified);
        Ok(())
    }

    fn read(&self) -> Result<BTreeMap<String, [u8; 32]>, TokenError> {
        let mut hashes = BTreeMap::new();
        for name in state_directory::list(&self.directory)? {
            let path = self.directory.join(&name);
            // Half-written ones beside their place have names that no node has.
            if check_name(&name).is_err() || name.ends_with(api::whole_file::BESIDE) {
                continue;
            }
            let Some(content) = state_directory::read_file(&path)? else { continue };
            match parse_hash(content.trim()) {
                Some(hash) => {
                    hashes.insert(name, hash);
                }
                None => tracing::warn!(file = %path.display(), "no token's hash: the file is passed over"),
            }
        }
        Ok(hashes)
    }
}

fn check_name(node: &str) -> Result<(), TokenError> {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
            && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
    };
    if node.len() <= 253 && node.split('.').all(label) {
        Ok(())
    } else {
        Err(TokenError::NodeName(node.to_owned()))
    }
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&directory.path().join("state")).unwrap();
        (directory, tokens)
    }

    #[test]
    fn looking_at_tokens_makes_no_directory_and_says_which_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let error = Tokens::existing(&state).unwrap_err();
        assert!(error.to_string().contains(&format!("there is no {}", state.display())), "{error}");
        assert!(!state.exists());
        Tokens::open(&state).unwrap().create("east").unwrap();
        assert_eq!(Tokens::existing(&state).unwrap().list().unwrap(), ["east"]);
    }

    #[test]
    fn a_token_names_its_node_until_it_is_revoked_or_replaced_by_another_process() {
        let (directory, tokens) = tokens();
        let other = Tokens::open(&directory.path().join("state")).unwrap();
        assert_eq!(tokens.node_of("anything").unwrap(), None);
        let first = other.create("east").unwrap();
        let west = other.create("west.example").unwrap();
        assert_eq!(tokens.node_of(first.reveal()).unwrap().as_deref(), Some("east"));
        assert_eq!(tokens.node_of(west.reveal()).unwrap().as_deref(), Some("west.example"));
        let second = other.create("east").unwrap();
        assert_ne!(first, second);
        assert_eq!(tokens.node_of(first.reveal()).unwrap(), None, "replaced");
        assert_eq!(tokens.node_of(second.reveal()).unwrap().as_deref(), Some("east"));
        assert_eq!(tokens.list().unwrap(), ["east", "west.example"]);
        assert!(other.revoke("east").unwrap());
        assert!(!other.revoke("east").unwrap());
        assert_eq!(tokens.node_of(second.reveal()).unwrap(), None, "revoked");
    }

    #[test]
    fn the_disk_holds_a_hash_only_its_owner_can_read() {
        let (directory, tokens) = tokens();
        let token = tokens.create("east").unwrap();
        let file = directory.path().join("state/tokens/east");
        let content = std::fs::read_to_string(&file).unwrap();
        assert!(!content.contains(token.reveal()));
        assert_eq!(content.trim(), hex(&hash(token.reveal())));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(directory.path().join("state").metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let (_directory, tokens) = tokens();
        for name in ["", ".", "..", "../east", "a/b", "East", ".hidden", "a b"] {
            assert!(matches!(tokens.create(name), Err(TokenError::NodeName(_))), "{name}");
            assert!(matches!(tokens.revoke(name), Err(TokenError::NodeName(_))), "{name}");
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_is_not_used() {
        let (directory, _tokens) = tokens();
        let state = directory.path().join("state");
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o750)).unwrap();
        let error = Tokens::open(&state).unwrap_err().to_string();
        assert!(error.contains("0750") && error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn files_that_hold_no_hash_are_nobodys_tokens() {
        let (directory, tokens) = tokens();
        for (name, content) in [("empty", ""), ("short", "ab"), ("odd", &"zz".repeat(32) as &str)] {
            std::fs::write(directory.path().join("state/tokens").join(name), content).unwrap();
        }
        assert!(tokens.list().unwrap().is_empty());
        assert_eq!(tokens.node_of("").unwrap(), None);
    }
}
