//! Layered, typed settings: defaults, then a TOML file, then the environment, then flags.
//!
//! Each layer is laid over those before it and checked at once against the daemon's own type, so
//! an error names the layer (and, of the environment, the variable) that brought it. Unknown keys
//! are refused by that type, which must carry `#[serde(deny_unknown_fields)]` on every level.
//!
//! The environment speaks for a daemon only under `FLOTILLA_<DAEMON>__`; other names that begin
//! alike belong to somebody else (Kubernetes injects `FLOTILLA_KVD_PORT`). Further `__` nest.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

use config::{Config, File, FileFormat};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::exit::Failure;

/// The longest settings file that is read: far beyond any honest one, far below memory.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The deepest nesting that a variable's name may ask for.
pub const NESTING_MAX: usize = 8;

/// The settings in force for `daemon`, of type `T`.
///
/// `environment` is the process environment ([`std::env::vars_os`]), `flags` the settings that the
/// command line gave ([`crate::flags::given`]). A variable's text becomes what `T` asks for: text
/// where it takes text (so that the id `007` stays as it is), else a bool, a number, or a list or
/// table in TOML's notation. An empty variable counts as absent, as compose files produce them.
///
/// # Errors
/// Configuration, when a layer names an unknown key, has a value of the wrong type, or is no TOML;
/// usage, when a flag does; machine, when the file cannot be read.
pub fn load<T: DeserializeOwned + Serialize>(
    daemon: &str,
    defaults: &T,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &Table,
) -> Result<T, Failure> {
    let base = Table::try_from(defaults).map_err(|error| {
        Failure::configuration("the default settings cannot be written as TOML").because(error)
    })?;
    let mut layers = Layers { table: base };
    let mut settings = layers.check::<T>("the default settings")?;
    if let Some(path) = file {
        let origin = format!("the settings file {}", path.display());
        settings = layers.lay(&read(path)?, &origin)?;
    }
    for variable in variables(daemon, environment)? {
        settings = layers.lay_variable(&variable)?;
    }
    if !flags.is_empty() {
        settings = layers
            .lay(flags, "the command line")
            .map_err(|failure| Failure::usage("a flag is refused").because(failure))?;
    }
    Ok(settings)
}

/// The settings as one line of JSON, for the log at start. No setting is a secret.
pub fn line(settings: &impl Serialize) -> String {
    serde_json::to_string(settings).unwrap_or_else(|error| format!("not printable: {error}"))
}

/// The name that `key` (dots between levels) has in the environment of `daemon`.
pub fn variable_name(daemon: &str, key: &str) -> String {
    format!("{}{}", prefix(daemon), key.to_uppercase().replace('.', "__"))
}

fn prefix(daemon: &str) -> String {
    format!("FLOTILLA_{}__", daemon.to_uppercase().replace('-', "_"))
}

/// The layers so far, merged. Invariant: deserializes as the daemon's settings.
struct Layers {
    table: Table,
}

impl Layers {
    /// Lays `over` on top. On error nothing has changed.
    fn lay<T: DeserializeOwned>(&mut self, over: &Table, origin: &str) -> Result<T, Failure> {
        let merged = Self { table: merge(&self.table, over, origin)? };
        let settings = merged.check(origin)?;
        *self = merged;
        Ok(settings)
    }

    /// Lays a variable on top in the first of its possible types that fits. If none does, the last
    /// error is the most telling one: it comes from the narrowest reading of the text.
    fn lay_variable<T: DeserializeOwned>(&mut self, variable: &Variable) -> Result<T, Failure> {
        let origin = format!("the environment variable {}", variable.name);
        let mut refused = None;
        for value in readings(&variable.text) {
            match self.lay(&variable.table(value), &origin) {
                Ok(settings) => return Ok(settings),
                Err(failure) => refused = Some(failure),
            }
        }
        Err(refused.unwrap_or_else(|| Failure::configuration(format!("{origin} is refused"))))
    }

    /// Strict about types: the merged table is handed to TOML's own deserializer, because that of
    /// `config` turns 2.6 into 3 where a whole number is asked for.
    fn check<T: DeserializeOwned>(&self, origin: &str) -> Result<T, Failure> {
        self.table.clone().try_into().map_err(|error: toml::de::Error| {
            let text = error.to_string().trim().replace('\n', " ");
            Failure::configuration(format!("{origin} is refused")).because(text)
        })
    }
}

fn merge(base: &Table, over: &Table, origin: &str) -> Result<Table, Failure> {
    // A key at the top is a path to `config`, so `"a[1000000000]"` would be an allocation.
    if let Some(key) = over.keys().find(|key| !is_plain(key)) {
        let message = format!("{origin} is refused: unknown field `{}`", key.escape_debug());
        return Err(Failure::configuration(message));
    }
    let layer = |table: &Table| File::from_str(&table.to_string(), FileFormat::Toml);
    Config::builder()
        .add_source(layer(base))
        .add_source(layer(over))
        .build()
        .and_then(Config::try_deserialize)
        .map_err(|error| Failure::configuration(format!("{origin} is refused")).because(error))
}

fn is_plain(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn read(path: &Path) -> Result<Table, Failure> {
    let name = path.display();
    let refuse = |error| Failure::machine(format!("cannot read the file {name}")).because(error);
    let file = std::fs::File::open(path).map_err(refuse)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(refuse)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("the settings file {name} is longer than {FILE_BYTES_MAX} bytes");
        return Err(Failure::configuration(message));
    }
    let refuse = |message: String| {
        Failure::configuration(format!("the settings file {name} is not TOML")).because(message)
    };
    let text = String::from_utf8(bytes).map_err(|error| refuse(error.to_string()))?;
    text.parse().map_err(|error: toml::de::Error| refuse(error.to_string().trim().to_owned()))
}

/// One setting of the environment.
struct Variable {
    name: String,
    /// The path into the settings, outermost first.
    path: Vec<String>,
    text: String,
}

impl Variable {
    fn table(&self, value: Value) -> Table {
        let nested = self
            .path
            .iter()
            .rev()
            .fold(value, |inner, key| Value::Table(Table::from_iter([(key.clone(), inner)])));
        match nested {
            Value::Table(table) => table,
            _ => Table::new(),
        }
    }
}

/// The variables meant for `daemon`, by name, so that the result depends on no order.
fn variables(
    daemon: &str,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Variable>, Failure> {
    let prefix = prefix(daemon);
    let mut found = Vec::new();
    for (name, text) in environment {
        let name = name.to_string_lossy().into_owned();
        let Some(key) = name.strip_prefix(&prefix) else { continue };
        let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
        let refuse = |why: &str| {
            Failure::configuration(format!("the environment variable {name} is refused: {why}"))
        };
        let legal = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        if !key.bytes().all(legal) || path.iter().any(String::is_empty) {
            return Err(refuse("its name is no setting's (upper case, `__` between levels)"));
        }
        if path.len() > NESTING_MAX {
            return Err(refuse("its name has too many levels"));
        }
        let text = text.into_string().map_err(|_| refuse("its value is not UTF-8"))?;
        if !text.is_empty() {
            found.push(Variable { name, path, text });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// What a variable's text may mean, the most literal reading first.
fn readings(text: &str) -> Vec<Value> {
    let mut values = vec![Value::String(text.to_owned())];
    values.extend(text.parse().ok().map(Value::Boolean));
    values.extend(text.parse().ok().map(Value::Integer));
    values.extend(text.parse().ok().map(Value::Float));
    if text.starts_with(['[', '{']) {
        let document: Option<Table> = format!("value = {text}").parse().ok();
        values.extend(document.and_then(|mut table| table.remove("value")));
    }
    values
}

/// Refuses a number that is out of range.
///
/// # Errors
/// Configuration, naming the setting.
pub fn check_range(
    setting: &str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<(), Failure> {
    if range.contains(&value) {
        return Ok(());
    }
    let (min, max) = (range.start(), range.end());
    Err(Failure::configuration(format!("{setting} is {value}, but must be {min} to {max}")))
}
