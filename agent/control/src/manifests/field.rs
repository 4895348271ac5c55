//! A cursor on a field of a manifest: reads typed values and, where it cannot, says which field of which object stands where.
//!
//! Unknown fields are tolerated by never being asked for. An absent field and an explicit `null` are the same, as in Kubernetes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use super::error::{ManifestError, ObjectName, Origin, Problem};
use super::tree::{Position, Tree, Value};

/// The outcome of reading a field. Boxed, since errors are rare and large.
pub(crate) type Result<T> = std::result::Result<T, Box<ManifestError>>;

/// The object a field belongs to.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) origin: Origin,
    pub(crate) object: ObjectName,
}

/// A field, present or not.
#[derive(Clone, Debug)]
pub(crate) struct Field<'a> {
    context: &'a Context,
    path: String,
    tree: Option<&'a Tree>,
    /// Its own place, or that of the innermost field that is there.
    position: Position,
}

impl<'a> Field<'a> {
    /// The whole object.
    pub(crate) fn root(context: &'a Context, tree: &'a Tree) -> Self {
        Self { context, path: String::new(), tree: Some(tree), position: tree.position }
    }

    /// A field of a mapping.
    ///
    /// # Errors
    /// This field is something else than a mapping.
    pub(crate) fn get(&self, key: &str) -> Result<Self> {
        let entries = self.raw_entries()?;
        let tree = entries.iter().find(|(name, _)| name == key).map(|(_, tree)| tree);
        let tree = tree.filter(|tree| !matches!(tree.value, Value::Null));
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        let position = tree.map_or(self.position, |tree| tree.position);
        Ok(Self { context: self.context, path, tree, position })
    }

    /// A field of a field, and so on: `at(&["spec", "nodeName"])`.
    pub(crate) fn at(&self, keys: &[&str]) -> Result<Self> {
        keys.iter().try_fold(self.clone(), |field, key| field.get(key))
    }

    pub(crate) fn is_present(&self) -> bool {
        self.tree.is_some()
    }

    pub(crate) fn origin(&self) -> Origin {
        self.context.origin.at(self.position)
    }

    pub(crate) fn error(&self, problem: Problem) -> Box<ManifestError> {
        Box::new(ManifestError {
            origin: self.origin(),
            object: Some(self.context.object.clone()),
            field: self.path.clone(),
            problem,
        })
    }

    pub(crate) fn missing(&self, write: &'static str) -> Box<ManifestError> {
        self.error(Problem::Missing(write))
    }

    pub(crate) fn invalid(&self, value: impl Display, reason: impl Into<String>) -> Box<ManifestError> {
        self.error(Problem::Invalid { value: value.to_string(), reason: reason.into() })
    }

    fn wrong_type(&self, expected: &'static str, found: &Value) -> Box<ManifestError> {
        self.error(Problem::WrongType { expected, found: found.kind() })
    }

    fn raw_entries(&self) -> Result<&'a [(String, Tree)]> {
        match self.tree.map(|tree| &tree.value) {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Map(entries)) => Ok(entries),
            Some(other) => Err(self.wrong_type("a mapping", other)),
        }
    }

    /// The fields of a mapping; none when it is absent.
    pub(crate) fn entries(&self) -> Result<Vec<(&'a str, Self)>> {
        self.raw_entries()?.iter().map(|(key, _)| Ok((key.as_str(), self.get(key)?))).collect()
    }

    /// The items of a list; none when it is absent.
    pub(crate) fn items(&self) -> Result<Vec<Self>> {
        let items = match self.tree.map(|tree| &tree.value) {
            None => return Ok(Vec::new()),
            Some(Value::List(items)) => items,
            Some(other) => return Err(self.wrong_type("a list", other)),
        };
        let item = |(index, tree): (usize, &'a Tree)| Self {
            context: self.context,
            path: format!("{}[{index}]", self.path),
            tree: Some(tree),
            position: tree.position,
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// A text, when it is there.
    pub(crate) fn text(&self) -> Result<Option<&'a str>> {
        match self.tree.map(|tree| &tree.value) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type("a text (put it in quotes)", other)),
        }
    }

    /// A text that must be there and not be empty.
    pub(crate) fn required_text(&self, write: &'static str) -> Result<&'a str> {
        self.text()?.filter(|text| !text.is_empty()).ok_or_else(|| self.missing(write))
    }

    /// Texts of a list.
    pub(crate) fn texts(&self) -> Result<Vec<(&'a str, Self)>> {
        let pair = |item: Self| match item.text()? {
            Some(text) => Ok((text, item)),
            None => Err(item.wrong_type("a text", &Value::Null)),
        };
        self.items()?.into_iter().map(pair).collect()
    }

    /// A mapping of texts to texts: labels, annotations, selectors.
    pub(crate) fn text_map(&self) -> Result<BTreeMap<String, String>> {
        let pair =
            |(key, field): (&str, Self)| Ok((key.to_owned(), field.text()?.unwrap_or_default().to_owned()));
        self.entries()?.into_iter().map(pair).collect()
    }

    /// A boolean, `false` when it is absent.
    pub(crate) fn flag(&self) -> Result<bool> {
        match self.tree.map(|tree| &tree.value) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.wrong_type("true or false", other)),
        }
    }

    /// A port by number or by name, when it is there.
    pub(crate) fn port_reference(&self) -> Result<Option<PortReference>> {
        match self.tree.map(|tree| &tree.value) {
            None => Ok(None),
            Some(Value::Integer(number)) => {
                self.checked_port(*number).map(|port| Some(PortReference::Number(port)))
            }
            Some(Value::Text(name)) if name.bytes().any(|byte| byte.is_ascii_lowercase()) => {
                Ok(Some(PortReference::Name(name.clone())))
            }
            Some(Value::Text(text)) => Err(self
                .invalid(text, "is no port's name, which has a letter in it: write a number without quotes")),
            Some(other) => Err(self.wrong_type("a port's number or name", other)),
        }
    }

    /// A port's number, which must be there.
    pub(crate) fn port(&self, write: &'static str) -> Result<u16> {
        match self.tree.map(|tree| &tree.value) {
            None => Err(self.missing(write)),
            Some(Value::Integer(number)) => self.checked_port(*number),
            Some(other) => Err(self.wrong_type("a port's number", other)),
        }
    }

    fn checked_port(&self, number: i64) -> Result<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        port.ok_or_else(|| self.invalid(number, "is no port: write a number from 1 to 65535"))
    }

    /// The text parsed, where `expected` says what it must be: `is not {expected}`.
    pub(crate) fn parsed<T: FromStr>(&self, text: &str, expected: &str) -> Result<T> {
        text.parse().map_err(|_| self.invalid(text, format!("is not {expected}")))
    }

    /// An address a pod or a Service can have.
    pub(crate) fn unicast(&self, text: &str) -> Result<IpAddr> {
        let address: IpAddr = self.parsed(text, "an IP address, such as 10.42.1.10 or fd42::10")?;
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(self.invalid(text, "is no address another pod could call"));
        }
        Ok(address)
    }

    /// Checks a name that becomes part of identities and resource names (RFC 1123 subdomain).
    pub(crate) fn checked_name(&self, name: &str) -> Result<String> {
        let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let label = |label: &str| {
            let bytes = label.as_bytes();
            bytes.first().is_some_and(|byte| edge(*byte))
                && bytes.last().is_some_and(|byte| edge(*byte))
                && bytes.iter().all(|byte| edge(*byte) || *byte == b'-')
        };
        if name.len() <= 253 && name.split('.').all(label) {
            return Ok(name.to_owned());
        }
        Err(self.invalid(name, "is no Kubernetes name: lower case letters, digits, `-` and `.`, at most 253"))
    }
}

/// A port by number or by the name a container gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortReference {
    /// Its number, never 0.
    Number(u16),
    /// Its name.
    Name(String),
}
