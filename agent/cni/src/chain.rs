//! The plugin in a network's configuration: pure. What others wrote there stays.

use std::path::Path;

use serde_json::{Map, Value, json};

/// The plugin's type, which is its file's name.
pub const TYPE: &str = "culvert-cni";

/// Why a file of the directory is no network's configuration, or none that could be chained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Unreadable(String),
    /// It is no object, or without plugins.
    #[error("it has no plugins")]
    NoPlugins,
    /// It has no name, without which container runtimes do not take it.
    #[error("it has no name")]
    NoName,
}

/// What the plugin is told.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Where the agent listens.
    pub socket: &'a Path,
    /// The file of members.
    pub members: &'a Path,
}

impl Told<'_> {
    fn entry(&self) -> Value {
        json!({"type": TYPE, "socket": self.socket, "members": self.members})
    }
}

/// A list of plugins, read from a `.conflist`, or made of the one of a `.conf` or `.json`.
///
/// # Errors
/// It is neither, or has no name.
pub fn read(text: &str) -> Result<Map<String, Value>, ChainError> {
    let content = serde_json::from_str(text).map_err(|error| ChainError::Unreadable(error.to_string()))?;
    let Value::Object(mut content) = content else { return Err(ChainError::NoPlugins) };
    let is_named = content.get("name").is_some_and(Value::is_string);
    let named = |list| if is_named { Ok(list) } else { Err(ChainError::NoName) };
    if content.get("plugins").and_then(Value::as_array).is_some_and(|plugins| !plugins.is_empty()) {
        return named(content);
    }
    if !content.get("type").is_some_and(Value::is_string) {
        return Err(ChainError::NoPlugins);
    }
    let common = ["cniVersion", "name"].into_iter();
    let mut list: Map<String, Value> =
        common.filter_map(|key| Some((key.to_owned(), content.remove(key)?))).collect();
    list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(content)]));
    named(list)
}

/// The list with the plugin at its end, told this; none where that is so already.
#[must_use]
pub fn chained(list: &Map<String, Value>, told: Told<'_>) -> Option<Map<String, Value>> {
    let plugins = list.get("plugins")?.as_array()?;
    let entry = told.entry();
    let last = plugins.len().checked_sub(1)?;
    if plugins.iter().position(is_ours) == Some(last) && plugins[last] == entry {
        return None;
    }
    let others = plugins.iter().filter(|plugin| !is_ours(plugin)).cloned();
    let mut list = list.clone();
    list.insert("plugins".to_owned(), others.chain([entry]).collect());
    Some(list)
}

/// The list without the plugin; none where it is not in it.
#[must_use]
pub fn unchained(list: &Map<String, Value>) -> Option<Map<String, Value>> {
    let plugins = list.get("plugins")?.as_array()?;
    if !plugins.iter().any(is_ours) {
        return None;
    }
    let mut list = list.clone();
    list.insert("plugins".to_owned(), plugins.iter().filter(|plugin| !is_ours(plugin)).cloned().collect());
    Some(list)
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: fn() -> Told<'static> =
        || Told { socket: Path::new("/run/culvert/cni.sock"), members: Path::new("/var/lib/culvert/m") };
    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "disableCheck": true, "plugins": [
        {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local"}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    fn types(list: &Map<String, Value>) -> Vec<&str> {
        list["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn the_plugin_is_chained_last_and_what_others_wrote_stays() {
        let list = read(LIST).unwrap();
        let chained = chained(&list, TOLD()).unwrap();
        assert_eq!(types(&chained), ["bridge", "portmap", TYPE]);
        assert_eq!(chained["plugins"][2]["socket"], "/run/culvert/cni.sock");
        assert_eq!(unchained(&chained).unwrap(), list);
    }

    #[test]
    fn it_is_chained_once_and_moved_when_another_came_behind_it_or_it_is_told_something_else() {
        let list = chained(&read(LIST).unwrap(), TOLD()).unwrap();
        assert_eq!(chained(&list, TOLD()), None);
        let mut behind = list.clone();
        behind["plugins"].as_array_mut().unwrap().push(json!({"type": "tuning"}));
        assert_eq!(types(&chained(&behind, TOLD()).unwrap()), ["bridge", "portmap", "tuning", TYPE]);
        let mut twice = list.clone();
        twice["plugins"].as_array_mut().unwrap().insert(0, json!({"type": TYPE}));
        assert_eq!(chained(&twice, TOLD()).unwrap(), list);
        let elsewhere = Told { socket: Path::new("/elsewhere"), ..TOLD() };
        assert_eq!(chained(&list, elsewhere).unwrap()["plugins"][2]["socket"], "/elsewhere");
    }

    #[test]
    fn a_single_plugin_becomes_a_list_of_one() {
        let text = r#"{"cniVersion": "0.3.1", "name": "pods", "type": "bridge", "bridge": "cni0"}"#;
        let list = read(text).unwrap();
        let expected =
            json!({"cniVersion": "0.3.1", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0"}]});
        assert_eq!(Value::Object(list), expected);
    }

    #[test]
    fn a_list_without_the_plugin_has_nothing_to_take_out() {
        assert_eq!(unchained(&read(LIST).unwrap()), None);
    }

    #[test]
    fn what_is_no_configuration_is_said() {
        for (text, expected) in [
            ("[]", ChainError::NoPlugins),
            ("{}", ChainError::NoPlugins),
            (r#"{"plugins": []}"#, ChainError::NoPlugins),
            (r#"{"plugins": [{"type": "bridge"}]}"#, ChainError::NoName),
            (r#"{"type": "bridge"}"#, ChainError::NoName),
        ] {
            assert_eq!(read(text), Err(expected), "{text}");
        }
        assert!(matches!(read("{"), Err(ChainError::Unreadable(_))));
    }
}
