//! Reads an event's traits: only their coverage, which is enough for intake, or names and values.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::coverage::Names;
use super::{Entries, Key, no_entries};

/// The traits in an event's `traits` or `context.traits`. They are an object, or an empty list, which is PHP's empty map as
/// JSON.
pub(super) trait Traits<'a>: Deserialize<'a> + Default {
    /// Returns the names with the kinds of their values, in order.
    fn names(&self) -> Names;

    /// Returns the value of the trait of this name, the last one if the name is repeated. `TraitNames` knows only the value of
    /// `company`.
    fn last(&self, name: &str) -> Option<&'a RawValue>;
}

/// The names and values in order, including repeated names.
#[derive(Debug, Default)]
pub(super) struct TraitList<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Traits<'a> for TraitList<'a> {
    fn names(&self) -> Names {
        let mut names = Names::default();
        self.0.iter().for_each(|(name, value)| names.add(name, value));
        names
    }

    fn last(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| *value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for TraitList<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Most events have fewer traits (a guess), so the list grows without being copied.
        let mut traits = Vec::with_capacity(16);
        deserializer.deserialize_any(Entries(|key, value| traits.push((key, value))))?;
        Ok(TraitList(traits))
    }
}

/// The names with the kinds of their values, and the value of `company`, which is the only one that intake reads. A list of all
/// values costs more instructions.
#[derive(Default)]
pub(super) struct TraitNames<'a> {
    names: Names,
    company: Option<&'a RawValue>,
}

impl<'a> Traits<'a> for TraitNames<'a> {
    fn names(&self) -> Names {
        self.names.clone()
    }

    fn last(&self, name: &str) -> Option<&'a RawValue> {
        self.company.filter(|_| name == "company")
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for TraitNames<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = TraitNames<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut traits = TraitNames::default();
        while let Some(Key(name)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            traits.names.add(&name, value);
            if name == "company" {
                traits.company = Some(value);
            }
        }
        Ok(traits)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        no_entries(list).map(|()| TraitNames::default())
    }
}

/// The fields of the context that are read. A derived `Deserialize` alone would also read them from an array, in order.
pub(super) struct Context<S, T>(pub ContextFields<S, T>);

impl<S, T> Default for Context<S, T> {
    fn default() -> Self {
        Context(ContextFields::default())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContextFields<S, T> {
    pub group_id: Option<S>,
    pub traits: Option<T>,
}

impl<S, T> Default for ContextFields<S, T> {
    fn default() -> Self {
        ContextFields { group_id: None, traits: None }
    }
}

impl<'de, S: Deserialize<'de>, T: Deserialize<'de>> Deserialize<'de> for Context<S, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContextVisitor(PhantomData)).map(Context)
    }
}

struct ContextVisitor<S, T>(PhantomData<(S, T)>);

impl<'de, S: Deserialize<'de>, T: Deserialize<'de>> Visitor<'de> for ContextVisitor<S, T> {
    type Value = ContextFields<S, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        ContextFields::deserialize(MapAccessDeserializer::new(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        no_entries(list).map(|()| ContextFields::default())
    }
}
