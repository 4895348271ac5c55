//! The process's environment, and what lies beneath it: variables by name, and families that share a prefix.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::Command;

/// See the module. What is set to nothing counts as not set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self(variables.filter(|(_, value)| !value.is_empty()).collect())
    }
}

impl Environment {
    /// That of this process; without what is no UTF-8.
    pub(crate) fn of_process() -> Self {
        let text = |text: OsString| text.into_string().ok();
        std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
    }

    /// A variable.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The variables whose names begin with `prefix`, by what follows it.
    pub(super) fn family(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// With `others` where nothing is set.
    pub(super) fn over(mut self, others: Self) -> Self {
        for (name, value) in others.0 {
            self.0.entry(name).or_insert(value);
        }
        self
    }

    /// The flags of `command` that are set by variables, as arguments.
    pub(super) fn as_arguments(&self, command: &Command) -> Vec<OsString> {
        let argument = |argument: &clap::Arg| {
            let value = self.get(argument.get_env()?.to_str()?)?;
            Some(format!("--{}={value}", argument.get_long()?).into())
        };
        command.get_arguments().filter_map(argument).collect()
    }
}
