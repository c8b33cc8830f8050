//! Logging: where events go, in which format, and which of them.
//!
//! Logs go to stderr, since stdout belongs to what a program was asked for. Colours appear only
//! on a terminal. The environment variable `RUST_LOG` wins over the setting, as people expect it.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::Failure;

/// The filter of a daemon that was not told otherwise. A quiet cluster prints nothing at info.
pub const FILTER_DEFAULT: &str = "info";

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line of text per event, for people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

/// Starts logging for the whole process.
///
/// # Errors
/// Configuration, when the filter is malformed; machine, when the process logs already.
pub fn start(filter: &str, format: Format) -> Result<(), Failure> {
    let (origin, text) = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => ("RUST_LOG", text),
        Ok(_) | Err(_) => ("process.log_filter", filter.to_owned()),
    };
    let filter = EnvFilter::try_new(&text).map_err(|error| {
        Failure::configuration(format!("{origin} is {text:?}, which is no filter")).because(error)
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        Format::Text => builder.compact().finish().try_init(),
        Format::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(|error| Failure::machine("logging cannot start").because(error))
}
