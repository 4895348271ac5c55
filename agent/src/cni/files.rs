//! The plugin on the disk: its program, its entry in the network's configuration, the file of members. Every file is put in place whole, by a
//! rename, and what others wrote stays.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cni::chain::{self, TYPE, Told};
use cni::members::Members;
use serde_json::{Map, Value};

/// What the configuration of a single plugin is called once a list has taken its place.
const REPLACED: &str = "culvert-replaced";
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
        put(&path, &text, 0o600)
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
            put(&path, &program, 0o755)?;
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
        for path in self.files()?.into_iter().filter(|path| is_configuration(path)) {
            let text = fs::read_to_string(&path).map_err(at(&path))?;
            // What the container runtime cannot read either, it passes over.
            let Ok(list) = chain::read(&text) else { continue };
            let Some(chained) = chain::chained(&list, told) else { return Ok(false) };
            let target = path.with_extension("conflist");
            put(&target, &text_of(&chained, &target)?, mode_of(&path)?)?;
            if target != path {
                let aside = replaced(&path);
                fs::rename(&path, &aside).map_err(at(&path))?;
            }
            return Ok(true);
        }
        Err(InstallError::NoNetwork(self.networks.clone()))
    }

    fn unchain(&self, path: &Path) -> Result<bool, InstallError> {
        if path.extension().is_some_and(|extension| extension == REPLACED) {
            let before = path.with_extension("");
            fs::rename(path, &before).map_err(at(path))?;
            return remove_file(&before.with_extension("conflist"));
        }
        if !is_configuration(path) {
            return Ok(false);
        }
        let text = match fs::read_to_string(path) {
            // It was the list made of a single plugin, which is back.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            text => text.map_err(at(path))?,
        };
        let Some(without) = chain::read(&text).ok().and_then(|list| chain::unchained(&list)) else {
            return Ok(false);
        };
        put(path, &text_of(&without, path)?, mode_of(path)?)?;
        Ok(true)
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

fn replaced(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(REPLACED);
    name.into()
}

fn text_of(list: &Map<String, Value>, path: &Path) -> Result<Vec<u8>, InstallError> {
    let mut text = serde_json::to_vec_pretty(list).map_err(|error| at(path)(error.into()))?;
    text.push(b'\n');
    Ok(text)
}

fn mode_of(path: &Path) -> Result<u32, InstallError> {
    Ok(fs::metadata(path).map_err(at(path))?.permissions().mode() & 0o7777)
}

/// Writes a file aside, under a name that is no configuration's, and renames it into place.
fn put(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.culvert-new"));
    let write = || -> io::Result<()> {
        // One that was left half written may have another owner's mode.
        let _ = fs::remove_file(&aside);
        let mut file = fs::File::create_new(&aside)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(at(path))
}

fn remove_file(path: &Path) -> Result<bool, InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true).map_err(at(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;
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
        stage.write("10-pods.conflist", LIST);
        let path = stage.places.networks.join("10-pods.conflist");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge", TYPE]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let program = stage.places.program();
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(!stage.install().unwrap(), "all is well");
        stage.write("10-pods.conflist", LIST);
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
        stage.write("01-notes.txt", LIST);
        stage.write("10-pods.conflist", LIST);
        stage.write("20-other.conflist", LIST);
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("10-pods.conflist"), ["bridge", TYPE]);
        assert_eq!(stage.types("20-other.conflist"), ["bridge"]);
        stage.write("05-first.conflist", LIST);
        assert!(stage.install().unwrap());
        assert_eq!(stage.types("05-first.conflist"), ["bridge", TYPE]);
    }

    #[test]
    fn what_was_put_in_place_is_taken_away_and_nothing_else() {
        let stage = stage();
        stage.write("10-pods.conflist", LIST);
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
        assert_eq!(stage.types("10-pods.conflist"), ["ptp", TYPE]);
        assert_eq!(stage.names(), ["10-pods.conf.culvert-replaced", "10-pods.conflist"]);
        assert!(!stage.install().unwrap());
        stage.places.remove().unwrap();
        assert_eq!(stage.names(), ["10-pods.conf"]);
        assert_eq!(fs::read_to_string(stage.places.networks.join("10-pods.conf")).unwrap(), SINGLE);
    }
}
