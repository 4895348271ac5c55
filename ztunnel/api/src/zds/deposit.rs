//! What is in a proxy's deposit: certificates with their keys, for its successor.

use std::fmt;

use prost::Message as _;

use super::Violation;
use crate::proto::zds as proto;

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct DepositedKey {
    /// PKCS#8, PEM.
    pub key: String,
    /// PEM: the leaf, intermediates, last the roots.
    pub chain: Vec<String>,
}

impl fmt::Debug for DepositedKey {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DepositedKey").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// The content of a deposit.
pub fn encode_keys(keys: Vec<DepositedKey>) -> Vec<u8> {
    let keys = keys.into_iter().map(|DepositedKey { key, chain }| proto::DepositedKey { key, chain });
    proto::DepositedKeys { keys: keys.collect() }.encode_to_vec()
}

/// Reads it.
///
/// # Errors
/// It is no deposit.
pub fn decode_keys(content: &[u8]) -> Result<Vec<DepositedKey>, Violation> {
    let proto::DepositedKeys { keys } =
        proto::DepositedKeys::decode(content).map_err(Violation::Malformed)?;
    Ok(keys.into_iter().map(|proto::DepositedKey { key, chain }| DepositedKey { key, chain }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deposited_comes_back_and_is_not_shown() {
        let key = DepositedKey { key: "secret".into(), chain: vec!["leaf".into(), "roots".into()] };
        let shown = format!("{key:?}");
        assert!(shown.contains("leaf") && !shown.contains("secret"), "{shown}");
        assert_eq!(decode_keys(&encode_keys(vec![key.clone()])), Ok(vec![key]));
        assert!(decode_keys(b"no such thing").is_err());
    }
}
