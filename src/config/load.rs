//! Merges the files and then the environment into one tree of values.
//!
//! The `config` crate merges the layers, and this file closes two gaps of that crate. An empty block in a later file does not
//! erase the block of an earlier file. The keys of `kafka.properties` hold dots and are not split at them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use config::builder::DefaultState;
use config::{ConfigBuilder, ConfigError, Environment, File, FileFormat, Map, Source, Value, ValueKind};

use super::{Problem, Problems};

/// The prefix of this worker's variables. It has two underscores, because Kubernetes sets variables such as `SLUICEGATE_PORT`
/// for a service named `sluicegate`, and these are not settings.
const PREFIX: &str = "SLUICEGATE__";

/// The prefix of variables that set librdkafka's properties. In the rest of the name, `_` means a dot.
const PROPERTIES: &str = "SLUICEGATE__KAFKA__PROPERTIES__";

pub(super) type Tree = serde_json::Map<String, serde_json::Value>;

/// Reads the files and returns their names and texts.
pub(super) fn read_files(files: &[PathBuf]) -> Result<Vec<(String, String)>, Problems> {
    let mut layers = Vec::new();
    let mut problems = Vec::new();
    for file in files {
        let name = file.display().to_string();
        match fs::read(file).map(text) {
            Ok(Ok(text)) => layers.push((name, text)),
            Ok(Err(remedy)) => problems.push(Problem::new(name, None, remedy)),
            Err(error) => {
                let remedy = format!("cannot be read: {error}; name an existing file with -c");
                problems.push(Problem::new(name, None, remedy));
            }
        }
    }
    if problems.is_empty() { Ok(layers) } else { Err(Problems(problems)) }
}

/// Returns the text of a file, without the byte order mark that editors on Windows put before it.
fn text(bytes: Vec<u8>) -> Result<String, &'static str> {
    let text = match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, text @ ..] => text,
        // UTF-16 text has a mark, or a zero byte next to each ASCII character. YAML settings begin with an ASCII character.
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] => {
            return Err("is UTF-16 text: save it as UTF-8");
        }
        text => text,
    };
    String::from_utf8(text.to_vec()).map_err(|_| "is not UTF-8 text: save it as UTF-8")
}

/// Merges the files, given by name and text, and then the environment. A later value replaces an earlier one.
pub(super) fn merged(
    files: Vec<(String, String)>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Tree, Problems> {
    let mut problems = Vec::new();
    let mut builder = config::Config::builder();
    let mut below = Value::new(None, ValueKind::Table(Map::new()));
    for (name, text) in files {
        match parse(&name, &text) {
            Ok(mut layer) => {
                drop_empty_blocks(&below, &mut layer);
                let layer = Layer(layer);
                if let Err(error) = layer.collect_to(&mut below) {
                    problems.push(Problem::new(name, None, error.to_string()));
                }
                builder = builder.add_source(layer);
            }
            Err(problem) => problems.push(problem),
        }
    }

    // Sorts the variables by name, so that the result does not depend on their order in the process.
    let variables: BTreeMap<String, String> = environment
        .into_iter()
        // An empty variable counts as not set, as in OpenTelemetry's environment variables.
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

/// Parses one YAML text, or returns the problem and its line.
fn parse(name: &str, text: &str) -> Result<Map<String, Value>, Problem> {
    let cause = match File::from_str(text, FileFormat::Yaml).collect() {
        Ok(settings) => return Ok(settings),
        Err(ConfigError::FileParse { cause, .. }) => cause.to_string(),
        Err(other) => other.to_string(),
    };
    // A document that holds nothing, such as a lone `---`, sets nothing.
    if cause.starts_with("invalid type: unit value") {
        return Ok(Map::new());
    }
    // That message repeats the text, which may be a token if the operator names the wrong file.
    let remedy = if cause.starts_with("invalid type") {
        "cannot be read as YAML settings: write blocks such as kafka: and destinations:".to_owned()
    } else {
        format!("cannot be read as YAML: {cause}")
    };
    Err(Problem::new(name, None, remedy))
}

/// Removes entries without a value if an earlier file gives a block there. Such an entry is a block with all its lines
/// commented out, which sets nothing.
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

/// The content of one file.
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

/// Adds one variable with its value as text. Parsing the value here would turn a token of digits into a number.
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
    // If `kafka` is not a block, `read::config` reports that.
    let Some(kafka) = kafka.as_object_mut() else { return };
    let known = kafka.entry("properties").or_insert(serde_json::Value::Null);
    if known.is_null() {
        *known = serde_json::Value::Object(Tree::new());
    }
    if let Some(known) = known.as_object_mut() {
        known.extend(properties.into_iter().map(|(key, value)| (key, value.into())));
    }
}
