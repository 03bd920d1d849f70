//! Reads the merged tree into settings, value by value, so that it reports every wrong value and not only the first.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use strsim::levenshtein;

use super::load::Tree;
use super::{Config, Destination, DestinationSettings, Problem};
use crate::kafka::settings::is_secret;
use crate::providers::ProviderConfig;

/// Reads the whole tree. A value that cannot be read is reported and keeps its default.
pub(super) fn config(tree: Tree, problems: &mut Vec<Problem>) -> Config {
    let mut config = Config::default();
    let shape = tree_of(&config);
    for (key, value) in tree {
        match key.as_str() {
            "kafka" => config.kafka = block(&key, value, problems),
            "events" => config.events = block(&key, value, problems),
            "http" => config.http = block(&key, value, problems),
            "shutdown" => config.shutdown = block(&key, value, problems),
            "log" => config.log = block(&key, value, problems),
            "destinations" => match value {
                Value::Null => {}
                Value::Object(destinations) => {
                    for (id, value) in destinations {
                        if let Some(destination) = destination(&id, value, problems) {
                            config.destinations.insert(id, destination);
                        }
                    }
                }
                other => problems.push(not_a_block("destinations", &other, "one block per destination")),
            },
            _ => problems.push(unknown(&key, &key, &shape, &shape)),
        }
    }
    config
}

/// Reads one flat block into the provider's settings and the settings that every destination has.
fn destination(id: &str, value: Value, problems: &mut Vec<Problem>) -> Option<Destination> {
    let path = format!("destinations.{id}");
    let types = ProviderConfig::TYPES.join(", ");
    let mut given = match value {
        Value::Object(given) => given,
        Value::Null => Tree::new(),
        other => {
            problems.push(not_a_block(&path, &other, "type, token and more"));
            return None;
        }
    };
    let type_path = format!("{path}.type");
    let type_name = match given.remove("type") {
        Some(Value::String(name)) if ProviderConfig::TYPES.contains(&name.as_str()) => name,
        Some(other) => {
            problems.push(Problem::new(type_path, shown(&other), format!("no such provider: choose one of {types}")));
            return None;
        }
        None => {
            problems.push(Problem::new(
                type_path,
                None,
                format!(
                    "is missing: choose one of {types}; or correct the destination's id, if it was meant as another"
                ),
            ));
            return None;
        }
    };

    let provider = |mut keys: Tree| {
        keys.insert("type".to_owned(), Value::String(type_name.clone()));
        serde_json::from_value::<ProviderConfig>(Value::Object(keys))
    };
    let mut own = tree_of(&provider(Tree::new()).expect("a provider's settings all have defaults"));
    own.remove("type");
    let mut shape = tree_of(&DestinationSettings::default());
    shape.extend(own.clone());

    let check = |keys: Tree| {
        let is_own = keys.keys().any(|key| own.contains_key(key));
        if is_own { provider(keys).map(drop) } else { parse::<DestinationSettings>(keys).map(drop) }
    };
    let read = Reader { shape: &shape, check: &check }.fields(&path, &shape, given, &mut Vec::new(), problems);
    let (own, settings) = read.into_iter().partition(|(key, _)| own.contains_key(key));
    Some(Destination {
        provider: provider(own).expect("each setting was read alone"),
        settings: parse(settings).expect("each setting was read alone"),
    })
}

/// Reads one block, each of its values alone.
fn block<T: Default + Serialize + DeserializeOwned>(path: &str, value: Value, problems: &mut Vec<Problem>) -> T {
    let shape = tree_of(&T::default());
    let given = match value {
        Value::Object(given) => given,
        Value::Null => return T::default(),
        other => {
            problems.push(not_a_block(path, &other, &keys(&shape)));
            return T::default();
        }
    };
    let check = |keys: Tree| parse::<T>(keys).map(drop);
    let read = Reader { shape: &shape, check: &check }.fields(path, &shape, given, &mut Vec::new(), problems);
    parse(read).expect("each setting was read alone")
}

/// Reads given values one by one. The defaults show which keys exist and which of them are blocks.
struct Reader<'a> {
    /// The defaults of the whole block, for suggestions.
    shape: &'a Tree,
    /// The check that the block can be read with this setting alone.
    check: &'a dyn Fn(Tree) -> Result<(), serde_json::Error>,
}

impl Reader<'_> {
    /// Returns the values that can be read. `at` holds the keys from the block down to `given`.
    fn fields(&self, path: &str, shape: &Tree, given: Tree, at: &mut Vec<String>, problems: &mut Vec<Problem>) -> Tree {
        // A map of free keys, such as `kafka.properties`, is empty by default; a block never is.
        let free = shape.is_empty() && !at.is_empty();
        let mut read = Tree::new();
        for (key, value) in given {
            let path = format!("{path}.{key}");
            let known = shape.get(&key);
            if known.is_none() && !free {
                problems.push(unknown(&path, &key, shape, self.shape));
                continue;
            }
            at.push(key.clone());
            match (known, value) {
                (Some(Value::Object(inner)), Value::Object(given)) => {
                    let inner = self.fields(&path, inner, given, at, problems);
                    read.insert(key, Value::Object(inner));
                }
                (Some(Value::Object(_)), Value::Null) => {}
                (Some(Value::Object(inner)), other) => problems.push(not_a_block(&path, &other, &keys(inner))),
                (_, value) => match self.leaf(at, &value) {
                    Ok(value) => {
                        read.insert(key, value);
                    }
                    Err(error) => problems.push(unreadable(path, &key, &value, &error.to_string())),
                },
            }
            at.pop();
        }
        read
    }

    /// Tries a value as it is, and then a text as the number or boolean that it may mean, because the environment has only
    /// text. In this order a token of digits stays text.
    fn leaf(&self, at: &[String], value: &Value) -> Result<Value, serde_json::Error> {
        let alone = |value: &Value| {
            let mut leaf = value.clone();
            for key in at[1..].iter().rev() {
                leaf = Value::Object(Tree::from_iter([(key.clone(), leaf)]));
            }
            (self.check)(Tree::from_iter([(at[0].clone(), leaf)]))
        };
        let first = match alone(value) {
            Ok(()) => return Ok(value.clone()),
            Err(error) => error,
        };
        let scalar = value.as_str().and_then(|text| serde_json::from_str::<Value>(text.trim()).ok());
        match scalar {
            Some(scalar) if (scalar.is_number() || scalar.is_boolean()) && alone(&scalar).is_ok() => Ok(scalar),
            _ => Err(first),
        }
    }
}

fn parse<T: DeserializeOwned>(keys: Tree) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::Object(keys))
}

fn tree_of(settings: &impl Serialize) -> Tree {
    match serde_json::to_value(settings) {
        Ok(Value::Object(tree)) => tree,
        _ => unreachable!("settings serialize to a map"),
    }
}

fn keys(shape: &Tree) -> String {
    shape.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Returns a value in a form that may be shown. A list or a block does not fit in one line, so only its kind is returned.
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(_) => Some("a list".to_owned()),
        Value::Object(_) => Some("a block".to_owned()),
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
    }
}

fn not_a_block(path: &str, value: &Value, keys: &str) -> Problem {
    // Leaves out the value, because it may be a token in the wrong place.
    let what = if value.is_array() { "a list" } else { "a single value" };
    let holds = if keys.is_empty() { String::new() } else { format!(" that holds {keys}") };
    Problem::new(path, Some(what.to_owned()), format!("make it a block{holds}"))
}

fn unreadable(path: String, key: &str, value: &Value, error: &str) -> Problem {
    if key == "token" || is_secret(key) {
        return Problem::new(path, None, "is not text: put it in quotes");
    }
    if value.is_null() {
        return Problem::new(path, None, "has no value: give one, or remove the line");
    }
    // serde's message repeats the value before the type that it expected.
    let remedy = match error.rsplit_once(", expected ") {
        Some((before, expected)) if before.starts_with("unknown variant") => {
            format!("no such choice: use {}", expected.replace('`', ""))
        }
        Some((_, expected)) => format!("use {}", plainly(expected)),
        None if error.contains("socket address") => {
            "not an address: write an IP address and a port, such as 0.0.0.0:9464".to_owned()
        }
        None => error.to_owned(),
    };
    Problem::new(path, shown(value), remedy)
}

/// Returns the type that serde expects, in an operator's words.
fn plainly(expected: &str) -> &str {
    match expected {
        "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "text",
        other => other,
    }
}

/// Returns the problem of a key that does not exist, with the key that was probably meant. The value is not shown, because it
/// may be a secret under a misspelled key.
fn unknown(path: &str, key: &str, siblings: &Tree, block: &Tree) -> Problem {
    let near = siblings.keys().min_by_key(|known| levenshtein(key, known)).filter(|known| {
        // The distance may be a third of the letters, and at least two: "tokn", "broker", "maxrows".
        levenshtein(key, known) <= (known.len() / 3).max(2)
    });
    let near = near.or_else(|| siblings.keys().find(|known| key.starts_with(known.as_str())));
    let deeper = block.iter().find(|(_, inner)| inner.as_object().is_some_and(|inner| inner.contains_key(key)));
    let remedy = match (near, deeper) {
        (Some(near), _) => format!("no such setting: did you mean {near}?"),
        (None, Some((inner, _))) => format!("no such setting here: did you mean {inner}.{key}?"),
        (None, None) => format!("no such setting: use one of {}", keys(siblings)),
    };
    Problem::new(path, None, remedy)
}
