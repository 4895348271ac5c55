//! The plugin on the disk: its program, its entry in the network's configuration, the file of members. Every file is put in place whole, by a
//! rename, and what others wrote stays.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use api::whole_file;
use cni::chain::{self, TYPE, Told};
use cni::members::Members;
use serde_json::{Map, Value};

/// What the configuration of a single plugin is called once a list has taken its place.
const REPLACED: &str = "culvert-replaced";
/// What follows its name in that of the list: no other writes such a file, and it sorts where the single plugin did.
const LIST: &str = ".culvert.conflist";
/// How often a configuration is read again that another writes meanwhile.
const TRIES: usize = 5;
/// The file of members, in the directory of state.
const MEMBERS: &str = "cni-members.json";

/// Something cannot be put in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No network is configured.
    #[error("no network is configured in {} yet: the plugin goes behind the one that makes the network", .0.display())]
    NoNetwork(PathBuf),
    /// Another writes, again and again, what is to be changed.
    #[error("another rewrites the networks in {} all the time", .0.display())]
    Contended(PathBuf),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { path, source }
}

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Where the container runtime looks for plugins.
    pub(crate) programs: PathBuf,
    /// Where it looks for networks' configurations.
    pub(crate) networks: PathBuf,
    /// Where the file of members is kept.
    pub(crate) state: PathBuf,
}

impl Places {
    /// The file of members.
    pub(crate) fn members(&self) -> PathBuf {
        self.state.join(MEMBERS)
    }

    fn program(&self) -> PathBuf {
        self.programs.join(TYPE)
    }

    /// The file of members as it is on the disk.
    pub(crate) fn read_members(&self) -> io::Result<Members> {
        Ok(serde_json::from_slice(&fs::read(self.members())?)?)
    }

    /// Writes it.
    ///
    /// # Errors
    /// See the type.
    pub(crate) fn write_members(&self, members: &Members) -> Result<(), InstallError> {
        let path = self.members();
        fs::create_dir_all(&self.state).map_err(at(&self.state))?;
        let text = serde_json::to_vec(members).map_err(|error| at(&path)(error.into()))?;
        whole_file::write(&path, 0o600, &text).map_err(at(&path))
    }

    /// Puts the program `from` in place, and the plugin at the end of the network's configuration; whether anything was to be done.
    ///
    /// # Errors
    /// See the type. What could be done is done.
    pub(crate) fn install(&self, from: &Path, socket: &Path) -> Result<bool, InstallError> {
        let program = fs::read(from).map_err(at(from))?;
        let path = self.program();
        let copied = !fs::read(&path).is_ok_and(|there| there == program);
        if copied {
            // Before it is named anywhere.
            whole_file::write(&path, 0o755, &program).map_err(at(&path))?;
        }
        let told = Told { socket, members: &self.members() };
        Ok(self.chain(told)? || copied)
    }

    /// Takes the plugin out of every configuration, then away; whether anything was to be done.
    ///
    /// # Errors
    /// See the type.
    pub(crate) fn remove(&self) -> Result<bool, InstallError> {
        let mut removed = false;
        for path in self.files()? {
            removed |= self.unchain(&path)?;
        }
        for path in [self.program(), self.members()] {
            removed |= remove_file(&path)?;
        }
        // Only if there is nothing else in it, and if it is there at all.
        let _ = fs::remove_dir(&self.state);
        Ok(removed)
    }

    /// Chains the plugin in the configuration that the container runtime takes: the first one, by name, that is one.
    fn chain(&self, told: Told<'_>) -> Result<bool, InstallError> {
        for _ in 0..TRIES {
            let mut configurations = self.files()?.into_iter().filter(|path| is_configuration(path));
            let Some((path, read)) = configurations.find_map(|path| read(&path).map(|read| (path, read)))
            else {
                return Err(InstallError::NoNetwork(self.networks.clone()));
            };
            let Some(chained) = chain::chained(&read.list, told) else { return Ok(false) };
            if path.extension().is_some_and(|extension| extension == "conflist") {
                if put(&path, &path, &read.text, &chained)? {
                    return Ok(true);
                }
            } else if put(&with_suffix(&path, LIST), &path, &read.text, &chained)? {
                fs::rename(&path, with_suffix(&path, &format!(".{REPLACED}"))).map_err(at(&path))?;
                return Ok(true);
            }
        }
        Err(InstallError::Contended(self.networks.clone()))
    }

    fn unchain(&self, path: &Path) -> Result<bool, InstallError> {
        if path.extension().is_some_and(|extension| extension == REPLACED) {
            let before = path.with_extension("");
            if fs::symlink_metadata(&before).is_ok() {
                // It was written anew after the agents had ended.
                return remove_file(path);
            }
            fs::rename(path, &before).map_err(at(path))?;
            return Ok(true);
        }
        if !is_configuration(path) {
            return Ok(false);
        }
        for _ in 0..TRIES {
            let Some(read) = read(path) else { return Ok(false) };
            let Some(without) = chain::unchained(&read.list) else { return Ok(false) };
            if single_of(path).is_some_and(|single| fs::metadata(single).is_ok()) {
                // The single plugin, which comes before its list, is back.
                return remove_file(path);
            }
            if put(path, path, &read.text, &without)? {
                return Ok(true);
            }
        }
        Err(InstallError::Contended(self.networks.clone()))
    }

    /// The files of the directory of networks, sorted as the container runtime sorts them.
    fn files(&self) -> Result<Vec<PathBuf>, InstallError> {
        let entries = match fs::read_dir(&self.networks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(&self.networks))?,
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        Ok(files)
    }
}

fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|one| extension == *one))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The configuration of the single plugin in whose place this list is.
fn single_of(list: &Path) -> Option<PathBuf> {
    Some(PathBuf::from(list.to_str()?.strip_suffix(LIST)?))
}

/// A network's configuration.
struct Read {
    text: String,
    list: Map<String, Value>,
}

/// What the container runtime cannot read either, it passes over.
fn read(path: &Path) -> Option<Read> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "passing over a network's configuration that cannot be read");
            return None;
        }
    };
    let list = chain::read(&text).ok()?;
    Some(Read { text, list })
}

/// Puts the list, which was made of the `text` in `of`, in place at `path`, or where that leads; not if another has written to `of`
/// meanwhile: whether it is in place.
fn put(path: &Path, of: &Path, text: &str, list: &Map<String, Value>) -> Result<bool, InstallError> {
    let mut content = serde_json::to_vec_pretty(list).map_err(|error| at(path)(error.into()))?;
    content.push(b'\n');
    let mode = fs::metadata(of).map_err(at(of))?.permissions().mode() & 0o7777;
    let path = if path == of { fs::canonicalize(path).map_err(at(path))? } else { path.to_owned() };
    let is_same = || fs::read(of).is_ok_and(|now| now == text.as_bytes());
    whole_file::write_if(&path, mode, &content, is_same).map_err(at(&path))
}

fn remove_file(path: &Path) -> Result<bool, InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true).map_err(at(path)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    use super::*;

    const PODS: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;
    const SINGLE: &str = r#"{"cniVersion": "0.4.0", "name": "pods", "type": "ptp"}"#;

    struct Stage {
        directory: tempfile::TempDir,
        places: Places,
    }

    fn stage() -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let [programs, networks, state] = ["bin", "net.d", "state"].map(|name| directory.path().join(name));
        fs::create_dir(&programs).unwrap();
        fs::create_dir(&networks).unwrap();
        fs::write(directory.path().join("plugin"), "program 1").unwrap();
        Stage { directory, places: Places { programs, networks, state } }
    }

    impl Stage {
        fn install(&self) -> Result<bool, InstallError> {
            self.places.install(&self.directory.path().join("plugin"), Path::new("/run/culvert/cni.sock"))
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.places.networks.join(name), text).unwrap();
        }

        fn types(&self, name: &str) -> Vec<String> {
            let text = fs::read_to_string(self.places.networks.join(name)).unwrap();
            let list: Value = serde_json::from_str(&text).unwrap();
            let plugins = list["plugins"].as_array().unwrap();
            plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
        }

        fn names(&self) -> Vec<String> {
            let files = self.places.files().unwrap();
            files.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        }
    }

    #[test]
    fn the_plugin_is_put_in_place_once_and_again_when_another_rewrote_the_network() {
        let stage = stage();
        stage.write("10-pods.conflist", PODS);
        let path = stage.places.networks.join("10-pods.conflist");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge", TYPE]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let program = stage.places.program();
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(!stage.install().unwrap(), "all is well");
        stage.write("10-pods.conflist", PODS);
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge", TYPE]);
        fs::write(stage.directory.path().join("plugin"), "program 2").unwrap();
        assert!(stage.install().unwrap());
        assert_eq!(fs::read_to_string(program).unwrap(), "program 2");
        assert_eq!(stage.names(), ["10-pods.conflist"], "nothing half written is left");
    }

    #[test]
    fn the_network_is_the_one_that_the_container_runtime_takes() {
        let stage = stage();
        assert!(matches!(stage.install(), Err(InstallError::NoNetwork(_))));
        stage.write("00-broken.conflist", "{");
        stage.write("01-notes.txt", PODS);
        stage.write("10-pods.conflist", PODS);
        stage.write("20-other.conflist", PODS);
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge", TYPE]);
        assert_eq!(stage.types("20-other.conflist"), ["bridge"]);
        stage.write("05-first.conflist", PODS);
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("05-first.conflist"), ["bridge", TYPE]);
    }

    #[test]
    fn what_was_put_in_place_is_taken_away_and_nothing_else() {
        let stage = stage();
        stage.write("10-pods.conflist", PODS);
        stage.places.write_members(&Members::default()).unwrap();
        assert_eq!(stage.places.read_members().unwrap(), Members::default());
        stage.install().unwrap();
        assert!(stage.places.remove().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge"]);
        assert!(!stage.places.program().exists() && !stage.places.members().exists());
        assert!(!stage.places.remove().unwrap(), "nothing is left to do");
    }

    #[test]
    fn a_single_plugin_gives_way_to_a_list_and_comes_back() {
        let stage = stage();
        stage.write("10-pods.conf", SINGLE);
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conf.culvert.conflist"), ["ptp", TYPE]);
        assert_eq!(stage.names(), ["10-pods.conf.culvert-replaced", "10-pods.conf.culvert.conflist"]);
        assert!(!stage.install().unwrap());
        stage.places.remove().unwrap();
        assert_eq!(stage.names(), ["10-pods.conf"]);
        assert_eq!(fs::read_to_string(stage.places.networks.join("10-pods.conf")).unwrap(), SINGLE);
    }

    #[test]
    fn a_list_beside_a_single_plugin_of_its_name_is_not_touched() {
        let stage = stage();
        stage.write("10-pods.conf", SINGLE);
        stage.write("10-pods.conflist", PODS);
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conf.culvert.conflist"), ["ptp", TYPE]);
        assert_eq!(stage.types("10-pods.conflist"), ["bridge"]);
        stage.places.remove().unwrap();
        assert_eq!(stage.names(), ["10-pods.conf", "10-pods.conflist"]);
        assert_eq!(stage.types("10-pods.conflist"), ["bridge"]);
    }

    #[test]
    fn a_single_plugin_that_was_written_anew_stays_when_ours_goes() {
        let stage = stage();
        stage.write("10-pods.conf", SINGLE);
        stage.install().unwrap();
        let anew = SINGLE.replace("ptp", "bridge");
        stage.write("10-pods.conf", &anew);
        stage.places.remove().unwrap();
        assert_eq!(stage.names(), ["10-pods.conf"]);
        assert_eq!(fs::read_to_string(stage.places.networks.join("10-pods.conf")).unwrap(), anew);
    }

    #[test]
    fn a_list_that_is_all_there_is_of_a_network_stays_without_ours() {
        let stage = stage();
        stage.write("10-pods.conf", SINGLE);
        stage.install().unwrap();
        fs::remove_file(stage.places.networks.join("10-pods.conf.culvert-replaced")).unwrap();
        stage.places.remove().unwrap();
        assert_eq!(stage.types("10-pods.conf.culvert.conflist"), ["ptp"]);
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let stage = stage();
        symlink("nowhere", stage.places.networks.join("00-link.conf")).unwrap();
        fs::create_dir(stage.places.networks.join("01-directory.conf")).unwrap();
        fs::write(stage.places.networks.join("02-bytes.conf"), [0xff]).unwrap();
        stage.write("03-nameless.conflist", r#"{"plugins": [{"type": "bridge"}]}"#);
        stage.write("10-pods.conflist", PODS);
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge", TYPE]);
        assert!(stage.places.remove().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge"]);
    }

    #[test]
    fn a_list_that_is_a_link_stays_one() {
        let stage = stage();
        fs::write(stage.directory.path().join("elsewhere"), PODS).unwrap();
        let path = stage.places.networks.join("10-pods.conflist");
        symlink("../elsewhere", &path).unwrap();
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge", TYPE]);
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    }

    #[test]
    fn what_another_wrote_meanwhile_is_not_overwritten() {
        let stage = stage();
        stage.write("10-pods.conflist", SINGLE);
        let path = stage.places.networks.join("10-pods.conflist");
        assert!(!put(&path, &path, PODS, &Map::new()).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), SINGLE);
        assert_eq!(stage.names(), ["10-pods.conflist"]);
    }
}
