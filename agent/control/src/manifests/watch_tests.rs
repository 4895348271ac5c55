//! Reloading on a real directory with real inotify. Every wait ends with the event itself; a deadline is a failure.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use super::{LoadError, Objects, Reloads, watch};

/// What issue and README promise. The second net's period is longer, so that it cannot make these tests pass.
const PROMISED: Duration = Duration::from_secs(1);

fn namespaces(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n"))
        .collect()
}

async fn next(reloads: &mut Reloads) -> Result<Vec<String>, LoadError> {
    let outcome: Result<Objects, LoadError> =
        tokio::time::timeout(PROMISED, reloads.next()).await.expect("a change is in effect within a second");
    outcome.map(|objects| objects.namespaces.into_iter().map(|object| object.metadata.name).collect())
}

async fn begin(directory: &Path, content: &str) -> Reloads {
    fs::write(directory.join("a.yaml"), content).unwrap();
    let mut reloads = watch(directory).unwrap();
    assert!(next(&mut reloads).await.is_ok());
    reloads
}

#[tokio::test]
async fn a_file_written_in_place_replaced_added_or_removed_takes_effect() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut reloads = begin(directory.path(), &namespaces(&["a"])).await;
    fs::write(at("a.yaml"), namespaces(&["b"])).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["b"]);
    fs::write(at("a.yaml.tmp"), namespaces(&["c"])).unwrap();
    fs::rename(at("a.yaml.tmp"), at("a.yaml")).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["c"]);
    fs::write(at("d.yml"), namespaces(&["d"])).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["c", "d"]);
    fs::remove_file(at("a.yaml")).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["d"]);
}

#[tokio::test]
async fn a_bad_file_is_an_error_until_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let mut reloads = begin(directory.path(), &namespaces(&["a"])).await;
    fs::write(directory.path().join("a.yaml"), "kind: [").unwrap();
    let error = next(&mut reloads).await.unwrap_err().to_string();
    assert!(error.contains("a.yaml:"), "{error}");
    fs::write(directory.path().join("a.yaml"), namespaces(&["b"])).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["b"]);
}

#[tokio::test]
async fn a_config_maps_swapped_link_takes_effect() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, name) in [("..v1", "a"), ("..v2", "b")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), namespaces(&[name])).unwrap();
    }
    symlink("..v1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let mut reloads = watch(directory.path()).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["a"]);
    symlink("..v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["b"]);
}

#[tokio::test]
async fn a_change_behind_a_link_to_another_directory_takes_effect() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = elsewhere.path().join("real.yaml");
    fs::write(&target, namespaces(&["a"])).unwrap();
    symlink(&target, directory.path().join("a.yaml")).unwrap();
    let mut reloads = watch(directory.path()).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["a"]);
    fs::write(&target, namespaces(&["b"])).unwrap();
    assert_eq!(next(&mut reloads).await.unwrap(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_comes_later_is_found_by_the_second_net() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("manifests");
    let mut reloads = watch(&directory).unwrap();
    assert!(matches!(reloads.next().await, Err(LoadError::Directory { .. })));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.yaml"), namespaces(&["a"])).unwrap();
    let objects = tokio::time::timeout(Duration::from_secs(6), reloads.next()).await.unwrap().unwrap();
    assert_eq!(objects.namespaces.len(), 1);
}
