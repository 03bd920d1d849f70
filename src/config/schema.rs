//! The JSON Schema (2020-12) of the configuration file, for editors and for the chart's values.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::{Config, DestinationSettings};
use crate::providers::ProviderConfig;

/// Returns the schema of the whole file. The environment's forms (numbers as text, lists with commas) are not part of it.
pub fn json_schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Config>();
    schema.insert("title".to_owned(), "Sluicegate".into());
    schema.insert("description".to_owned(), "The configuration of sluicegate.".into());
    schema.to_value()
}

/// Returns the schema of `destinations`: one flat block per destination, with the settings of every destination and those of
/// its type.
pub(super) fn destinations(generator: &mut SchemaGenerator) -> Schema {
    let shared = DestinationSettings::json_schema(generator).to_value();
    let mut types = ProviderConfig::json_schema(generator).to_value();
    let mut choices = Vec::new();
    for choice in types["oneOf"].as_array_mut().map(std::mem::take).unwrap_or_default() {
        choices.push(flat(choice, &shared));
    }
    let schema = json!({
        "type": "object",
        "description": "By id; the id is the lane's name and part of its consumer group's.",
        "propertyNames": { "pattern": "^[a-z][a-z0-9]*(_[a-z0-9]+)*$", "maxLength": 64 },
        "additionalProperties": { "oneOf": choices },
    });
    schema.try_into().expect("an object is a schema")
}

/// Adds the shared keys to the keys of one type.
fn flat(mut choice: Value, shared: &Value) -> Value {
    if let (Some(own), Some(shared)) = (choice["properties"].as_object_mut(), shared["properties"].as_object()) {
        own.extend(shared.clone());
    }
    choice["type"] = "object".into();
    choice["required"] = json!(["type"]);
    choice["additionalProperties"] = false.into();
    choice
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::super::documented_file;
    use super::*;

    #[test]
    fn the_documented_file_fits_the_schema_and_names_all_its_keys() {
        let text = fs::read_to_string(documented_file()).expect("read");
        let file: Value = serde_norway::from_str(&text).expect("YAML");
        let schema = json_schema();
        let mut keys = BTreeSet::new();
        fit(&schema, &schema, &file, "", &mut keys);
        for key in keys {
            let named = text.lines().any(|line| {
                let line = line.trim_start().trim_start_matches("# ");
                line.strip_prefix(&key).is_some_and(|rest| rest.starts_with(':'))
            });
            assert!(named, "config/sluicegate.yaml does not name {key}");
        }
    }

    #[test]
    fn the_schema_is_closed_and_offers_each_provider() {
        let schema = json_schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let choices =
            schema["properties"]["destinations"]["additionalProperties"]["oneOf"].as_array().expect("choices");
        let types: Vec<&str> =
            choices.iter().filter_map(|choice| choice["properties"]["type"]["const"].as_str()).collect();
        assert_eq!(types, ProviderConfig::TYPES);
        let blocks = schema["$defs"].as_object().expect("definitions").values().chain(choices).chain([&schema]);
        for block in blocks.filter(|block| block["type"] == "object") {
            assert_eq!(block["additionalProperties"], false, "{block}");
        }
    }

    /// Asserts that a value has the structure of a schema, and collects the keys that the schema knows.
    fn fit(root: &Value, schema: &Value, value: &Value, path: &str, keys: &mut BTreeSet<String>) {
        if let Some(name) = schema["$ref"].as_str() {
            let pointer = name.trim_start_matches('#');
            return fit(root, root.pointer(pointer).expect("a definition"), value, path, keys);
        }
        for choices in ["oneOf", "anyOf"] {
            let Some(choices) = schema[choices].as_array() else { continue };
            let of_type = |choice: &&Value| choice["properties"]["type"]["const"] == value["type"];
            return match choices.iter().find(of_type).filter(|_| value.is_object()) {
                Some(choice) => fit(root, choice, value, path, keys),
                None => {
                    let fits = |choice: &Value| choice["$ref"].is_string() || accepts(choice, value);
                    assert!(choices.iter().any(fits), "{path}: {value} fits none of {choices:?}");
                }
            };
        }
        assert!(accepts(schema, value), "{path}: {value} does not fit {schema}");
        if let Some(known) = schema["properties"].as_object() {
            keys.extend(known.keys().cloned());
        }
        for (key, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            let inner = schema["properties"].get(key).unwrap_or(&schema["additionalProperties"]);
            assert!(inner.is_object(), "{path} is not in the schema");
            fit(root, inner, value, &path, keys);
        }
    }

    /// Returns true if a value has the type, or is one of the constants, of a schema without references.
    fn accepts(schema: &Value, value: &Value) -> bool {
        if let Some(choices) = schema["enum"].as_array() {
            return choices.contains(value);
        }
        if let Some(constant) = schema.get("const") {
            return constant == value;
        }
        let is = |name: &str| match name {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("unknown type {other}"),
        };
        match &schema["type"] {
            Value::String(name) => is(name),
            Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
            _ => true,
        }
    }
}
