//! In which namespaces pods have pins, by the directories of these. An inode is used again once its namespace is gone, so that one in which
//! another pod has pins too tells nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::directory::subdirectories;
use super::error::AttachError;
use super::pin::decode;
use super::pod::netns_inode;
use super::{PodKey, Programs};
use crate::netns::Netns;

impl Programs {
    /// The inodes of the namespaces but `netns` in which something of this pod is pinned, and of no other pod.
    pub(crate) fn namespaces(
        &self,
        pod: &PodKey,
        netns: Option<&Netns>,
    ) -> Result<BTreeSet<u64>, AttachError> {
        let own = self.pod_directory(pod);
        let mut inodes = inodes(&own)?;
        if let Some(netns) = netns {
            inodes.remove(&netns_inode(netns)?);
        }
        // Nothing is left of every pod that is where it was: for none of those is it worth looking at all others.
        if inodes.is_empty() {
            return Ok(inodes);
        }
        for directory in self.pod_directories()?.iter().filter(|directory| **directory != own) {
            inodes = &inodes - &self::inodes(directory)?;
        }
        Ok(inodes)
    }

    /// The same of all pods that have pins.
    pub(crate) fn all_namespaces(&self) -> Result<BTreeMap<PodKey, BTreeSet<u64>>, AttachError> {
        let of = |directory: PathBuf| Ok((directory.clone(), inodes(&directory)?));
        let pods: Vec<_> = self.pod_directories()?.into_iter().map(of).collect::<Result<_, AttachError>>()?;
        let key = |directory: PathBuf| decode(directory.file_name()?.to_str()?);
        let alone = alone(pods).into_iter();
        Ok(alone.filter_map(|(directory, inodes)| Some((key(directory)?, inodes))).collect())
    }

    fn pod_directories(&self) -> Result<Vec<PathBuf>, AttachError> {
        subdirectories(&self.root.join("pods"))
    }
}

/// The inodes of the namespaces of a pod's directory.
fn inodes(directory: &Path) -> Result<BTreeSet<u64>, AttachError> {
    let inode = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("net-")?.parse::<u64>().ok();
    Ok(subdirectories(directory)?.iter().filter_map(inode).collect())
}

/// Leaves each only the inodes that no other one has.
fn alone<T>(mut all: Vec<(T, BTreeSet<u64>)>) -> Vec<(T, BTreeSet<u64>)> {
    let mut holders: HashMap<u64, usize> = HashMap::new();
    for inode in all.iter().flat_map(|(_, inodes)| inodes) {
        *holders.entry(*inode).or_default() += 1;
    }
    for (_, inodes) in &mut all {
        inodes.retain(|inode| holders.get(inode) == Some(&1));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_that_two_pods_have_is_neithers() {
        let all = vec![("a", BTreeSet::from([1, 2])), ("b", BTreeSet::from([2, 3])), ("c", BTreeSet::new())];
        let expected = vec![("a", BTreeSet::from([1])), ("b", BTreeSet::from([3])), ("c", BTreeSet::new())];
        assert_eq!(alone(all), expected);
    }
}
