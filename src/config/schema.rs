//! The JSON Schema (2020-12) of the configuration file, for editors and for the chart's values.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::{Config, DestinationSettings};
use crate::providers::ProviderConfig;

/// The schema of the whole file. The environment's forms (numbers as text, lists with commas) are not part of it.
pub fn json_schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Config>();
    schema.insert("title".to_owned(), "Sluicegate".into());
    schema.insert("description".to_owned(), "The configuration of sluicegate.".into());
    // The defaults of the whole are the defaults of its parts.
    schema.to_value()
}

/// One flat block per destination: what every destination has beside the keys of its type.
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

/// Adds the shared keys to a type's own.
fn flat(mut choice: Value, shared: &Value) -> Value {
    if let (Some(own), Some(shared)) = (choice["properties"].as_object_mut(), shared["properties"].as_object()) {
        own.extend(shared.clone());
    }
    choice["type"] = "object".into();
    choice["required"] = json!(["type"]);
    choice["additionalProperties"] = false.into();
    choice
}
