//! A manifest as the text has it: a tree whose every node knows its line and column.
//!
//! Serde's own derive would lose the place of a value that is absent or of the wrong kind; a person who mends a manifest
//! needs exactly that. Keys keep their order; unknown ones cost nothing and are skipped by whoever reads the tree.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

pub use api::local::Position;

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) position: Position,
    pub(crate) value: Value,
}

impl Tree {
    /// A field, if this is a mapping that has it and it is not `null`, which is the same as absent.
    pub(crate) fn entry(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        let entry = entries.iter().find(|(name, _)| name == key).map(|(_, tree)| tree);
        entry.filter(|tree| !matches!(tree.value, Value::Null))
    }

    /// A field that is a text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match &self.entry(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// A number that is no integer, or out of range: no field that is read has such a value.
    OtherNumber,
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl Value {
    /// What a person calls this kind of value.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::OtherNumber => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// A syntax error: where and what.
#[derive(Clone, Debug)]
pub(crate) struct SyntaxError {
    pub(crate) position: Position,
    pub(crate) message: String,
}

/// Parses every document of a YAML (or JSON) text. Empty documents are left out.
///
/// # Errors
/// The first place where the text is no YAML, repeats a key, or goes beyond the parser's budget (which stops alias bombs).
pub(crate) fn parse(text: &str) -> Result<Vec<Tree>, SyntaxError> {
    let options = serde_saphyr::options! {
        // Without a snippet the message is one line; the place is reported beside it.
        with_snippet: false,
        // `yes` and `on` as label values are texts, as in YAML 1.2.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_documents: 100_000,
            max_nodes: 10_000_000,
            max_events: 20_000_000,
        },
    };
    let documents: Vec<Tree> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| SyntaxError {
            position: error.location().map(Position::from).unwrap_or_default(),
            message: error.without_snippet().render().lines().next().unwrap_or("not a YAML text").to_owned(),
        })?;
    Ok(documents)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { position: spanned.referenced.into(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor(Everything))
    }
}

/// How what is within a value is read.
pub(crate) trait Within<'de>: Sized {
    /// Reads a tree.
    type Seed: DeserializeSeed<'de, Value = Tree>;

    /// How the value of a field is read; `None`: it is left out.
    fn field(&self, key: &str) -> Option<Self::Seed>;

    /// How the items of a list are read.
    fn item(&self) -> Self::Seed;
}

/// All of it, with its places.
struct Everything;

impl<'de> Within<'de> for Everything {
    type Seed = PhantomData<Tree>;

    fn field(&self, _: &str) -> Option<Self::Seed> {
        Some(PhantomData)
    }

    fn item(&self) -> Self::Seed {
        PhantomData
    }
}

/// Makes a value of whatever comes.
pub(crate) struct ValueVisitor<W>(pub(crate) W);

impl<'de, W: Within<'de>> Visitor<'de> for ValueVisitor<W> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::OtherNumber, Value::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.0.item())? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        // A number as a key (`portLevelMtls`) is its text, as it is in JSON.
        while let Some(key) = entries.next_key::<String>()? {
            match self.0.field(&key) {
                Some(seed) => {
                    let value = entries.next_value_seed(seed)?;
                    map.push((key, value));
                }
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'a>(tree: &'a Tree, path: &[&str]) -> &'a Tree {
        path.iter().fold(tree, |tree, key| match &tree.value {
            Value::Map(entries) => &entries.iter().find(|(name, _)| name == key).unwrap().1,
            Value::List(items) => &items[key.parse::<usize>().unwrap()],
            other => panic!("{key} of {other:?}"),
        })
    }

    #[test]
    fn every_value_knows_its_line_and_column_in_every_document() {
        let text = "a: 1\n---\n# said\nspec:\n  list:\n  - x: true\n  - {y: two}\n  8080: ~\n";
        let documents = parse(text).unwrap();
        assert_eq!(documents.len(), 2);
        let flag = at(&documents[1], &["spec", "list", "0", "x"]);
        assert_eq!((flag.position.line, flag.position.column), (6, 8));
        assert!(matches!(flag.value, Value::Bool(true)));
        assert_eq!(at(&documents[1], &["spec"]).position.line, 5);
        assert!(matches!(at(&documents[1], &["spec", "8080"]).value, Value::Null));
        assert!(
            matches!(&at(&documents[1], &["spec", "list", "1", "y"]).value, Value::Text(text) if text == "two")
        );
    }

    #[test]
    fn plain_words_of_yaml_1_1_are_texts_and_quoted_numbers_too() {
        let documents = parse("a: yes\nb: '1'\nc: 1.5\n").unwrap();
        assert!(matches!(&at(&documents[0], &["a"]).value, Value::Text(text) if text == "yes"));
        assert!(matches!(&at(&documents[0], &["b"]).value, Value::Text(text) if text == "1"));
        assert!(matches!(at(&documents[0], &["c"]).value, Value::OtherNumber));
    }

    #[test]
    fn json_is_read_too_and_a_broken_text_says_where() {
        assert_eq!(parse(r#"{"kind": "List", "items": []}"#).unwrap().len(), 1);
        let error = parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.position.line >= 2, "{error:?}");
        let error = parse("a: 1\na: 2\n").unwrap_err();
        assert_eq!(error.position.line, 2, "{error:?}");
        assert!(!error.message.contains('\n'));
    }

    #[test]
    fn documents_without_content_are_left_out() {
        assert_eq!(parse("---\n# nothing\n---\na: 1\n---\n").unwrap().len(), 1);
        assert!(parse("").unwrap().is_empty());
    }
}
