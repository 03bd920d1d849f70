//! Lays files over each other and the environment over them, into one tree of values.
//!
//! The `config` crate does the layering; the traps that it leaves are closed here: an empty block in a later file does
//! not wipe the earlier one's, and `kafka.properties`, whose keys hold dots, is not split by them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use config::builder::DefaultState;
use config::{ConfigBuilder, ConfigError, Environment, File, FileFormat, Map, Source, Value, ValueKind};

use super::{Problem, Problems};

/// What our variables start with. Two underscores, so that what Kubernetes sets for a service named `sluicegate`
/// (`SLUICEGATE_PORT`) is not taken for a setting.
const PREFIX: &str = "SLUICEGATE__";

/// Where variables set librdkafka's properties; `_` in the rest of the name stands for a dot.
const PROPERTIES: &str = "SLUICEGATE__KAFKA__PROPERTIES__";

pub(super) type Tree = serde_json::Map<String, serde_json::Value>;

/// The merged tree of files and environment; later wins.
pub(super) fn merged(
    files: &[PathBuf],
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Tree, Problems> {
    let mut problems = Vec::new();
    let mut builder = config::Config::builder();
    let mut below = Value::new(None, ValueKind::Table(Map::new()));
    for file in files {
        match read_file(file) {
            Ok(mut layer) => {
                drop_empty_blocks(&below, &mut layer);
                let layer = Layer(layer);
                if let Err(error) = layer.collect_to(&mut below) {
                    problems.push(Problem::new(file.display().to_string(), None, error.to_string()));
                }
                builder = builder.add_source(layer);
            }
            Err(problem) => problems.push(problem),
        }
    }

    // In the order of their names, so that the result does not depend on the order the process got them in.
    let variables: BTreeMap<String, String> = environment
        .into_iter()
        // An empty variable is one that is not set, as in OpenTelemetry's environment variables.
        .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
        .collect();
    let mut properties = Vec::new();
    for (name, value) in variables {
        if let Some(property) = name.strip_prefix(PROPERTIES) {
            properties.push((property.to_ascii_lowercase().replace('_', "."), value));
        } else if name[PREFIX.len()..].split("__").all(is_segment) {
            builder = add_variable(builder, name, value);
        } else {
            problems.push(Problem::new(
                name,
                None,
                "not the name of a setting: write its path in upper case with two underscores between the parts, such as \
                 SLUICEGATE__KAFKA__BROKERS",
            ));
        }
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }

    let fault = |error: ConfigError| Problems(vec![Problem::new("configuration", None, error.to_string())]);
    let mut tree: Tree = builder.build().map_err(fault)?.try_deserialize().map_err(fault)?;
    if !properties.is_empty() {
        insert_properties(&mut tree, properties);
    }
    Ok(tree)
}

/// Parses one YAML file, or says what is wrong in which line.
fn read_file(file: &Path) -> Result<Map<String, Value>, Problem> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).map_err(|error| {
        Problem::new(&name, None, format!("cannot be read: {error}; name an existing file with -c"))
    })?;
    File::from_str(&text, FileFormat::Yaml).collect().map_err(|error| {
        let remedy = match error {
            ConfigError::FileParse { cause, .. } => format!("is not YAML: {cause}"),
            _ => "is not a map of settings: start with a block such as kafka: or destinations:".to_owned(),
        };
        Problem::new(name, None, remedy)
    })
}

/// Removes entries without a value where a block stands below: all lines of a block commented out say nothing.
fn drop_empty_blocks(below: &Value, layer: &mut Map<String, Value>) {
    let ValueKind::Table(below) = &below.kind else { return };
    layer.retain(|key, value| {
        let covers = |below: &Value| matches!(below.kind, ValueKind::Table(_));
        !(matches!(value.kind, ValueKind::Nil) && below.get(key).is_some_and(covers))
    });
    for (key, value) in layer {
        if let (Some(below), ValueKind::Table(table)) = (below.get(key), &mut value.kind) {
            drop_empty_blocks(below, table);
        }
    }
}

/// One file's content.
#[derive(Clone, Debug)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn is_segment(segment: &str) -> bool {
    !segment.is_empty() && segment.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Values stay text here: parsing them would turn a token of digits into a number.
fn add_variable(builder: ConfigBuilder<DefaultState>, name: String, value: String) -> ConfigBuilder<DefaultState> {
    let variable = Environment::with_prefix("SLUICEGATE")
        .prefix_separator("__")
        .separator("__")
        .source(Some(Map::from_iter([(name, value)])));
    builder.add_source(variable)
}

fn insert_properties(tree: &mut Tree, properties: Vec<(String, String)>) {
    let kafka = tree.entry("kafka").or_insert(serde_json::Value::Null);
    if kafka.is_null() {
        *kafka = serde_json::Value::Object(Tree::new());
    }
    // Where a block is no block, reading it says so.
    let Some(kafka) = kafka.as_object_mut() else { return };
    let known = kafka.entry("properties").or_insert(serde_json::Value::Null);
    if known.is_null() {
        *known = serde_json::Value::Object(Tree::new());
    }
    if let Some(known) = known.as_object_mut() {
        known.extend(properties.into_iter().map(|(key, value)| (key, value.into())));
    }
}
