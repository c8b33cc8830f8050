//! How a job's data flows: how inputs are read beyond their format, how keys are spread over the
//! reduces, how what is written is compressed, and what the app is told.
//!
//! The coordinator only checks it, plans by it and hands it on; workers do it.

#![deny(clippy::disallowed_types)]

use std::collections::BTreeMap;

use crate::{
    codec::{BadBytes, Decoder, Encoder},
    limits::*,
    spec::{BadSpec, check_range},
};

/// How a job's data flows. Every number has its final value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What the app is told, by name.
    pub args: BTreeMap<String, String>,
    /// What to call the files of each input pattern; empty, or as many as patterns.
    pub tags: Vec<String>,
    /// Lines: whether a carriage return before the line feed is left out.
    pub strip_cr: bool,
    /// Lines: the longest, in bytes.
    pub line_bytes_max: u32,
    /// Lines: what becomes of longer ones.
    pub long_lines: LongLines,
    /// How many times its size a compressed input may unpack to.
    pub expansion_max: u32,
    /// Which reduce gets a key.
    pub partitioner: Partitioner,
    /// How what maps write for reduces is compressed.
    pub compression: Compression,
    /// Whether parts of the output are compressed.
    pub compress_output: bool,
}

/// What becomes of lines beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongLines {
    /// The job fails.
    Fail,
    /// They are left out.
    Skip,
    /// They are cut.
    Cut,
}

/// Which reduce gets a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitioner {
    /// The app's own, or by the labs' hash.
    Hash,
    /// By the labs' hash of so many of its first bytes.
    Prefix(u32),
    /// By cut points from a sample of the inputs.
    Range {
        /// How many keys are looked at.
        samples: u32,
        /// A key is so many of a record's first bytes; 0: its key, or all of it.
        key_bytes: u32,
    },
}

/// How what maps write for reduces is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As the worker finds best for the shared root.
    Auto,
    /// Not.
    None,
    /// With LZ4.
    Lz4,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            args: BTreeMap::new(),
            tags: Vec::new(),
            strip_cr: false,
            line_bytes_max: LINE_BYTES_DEFAULT,
            long_lines: LongLines::Fail,
            expansion_max: EXPANSION_DEFAULT,
            partitioner: Partitioner::Hash,
            compression: Compression::Auto,
            compress_output: false,
        }
    }
}

impl Flow {
    /// Checks what can be checked by itself; `patterns` is how many input patterns there are.
    ///
    /// # Errors
    /// [`BadSpec`] naming the first field that is wrong.
    pub fn check(&self, patterns: usize) -> Result<(), BadSpec> {
        if self.args.len() > ARGS_MAX {
            let problem = format!("{} arguments; at most {ARGS_MAX}", self.args.len());
            return Err(BadSpec::new("args", problem));
        }
        let bytes: usize = self.args.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > ARG_BYTES_MAX {
            let problem = format!("{bytes} bytes of arguments; at most {ARG_BYTES_MAX}");
            return Err(BadSpec::new("args", problem));
        }
        if self.args.keys().any(String::is_empty) {
            return Err(BadSpec::new("args", "an argument has no name"));
        }
        if !self.tags.is_empty() && self.tags.len() != patterns {
            let problem = format!("{} tags for {patterns} inputs", self.tags.len());
            return Err(BadSpec::new("input_tags", problem));
        }
        if let Some(tag) = self.tags.iter().find(|tag| tag.len() > NAME_BYTES_MAX) {
            let problem = format!("a tag of {} bytes; at most {NAME_BYTES_MAX}", tag.len());
            return Err(BadSpec::new("input_tags", problem));
        }
        let line = self.line_bytes_max.into();
        check_range("line_bytes_max", line, 1, LINE_BYTES_MAX.into())?;
        match self.partitioner {
            Partitioner::Hash => Ok(()),
            Partitioner::Prefix(bytes) => {
                check_range("prefix_bytes", bytes.into(), 1, KEY_BYTES_MAX.into())
            }
            Partitioner::Range { samples, key_bytes } => {
                check_range("samples", samples.into(), 1, SAMPLES_MAX.into())?;
                check_range("sample_key_bytes", key_bytes.into(), 0, KEY_BYTES_MAX.into())
            }
        }
    }
}

pub(crate) fn put_flow(out: &mut Encoder, flow: &Flow) {
    out.count(flow.args.len());
    for (name, value) in &flow.args {
        out.text(name);
        out.text(value);
    }
    out.count(flow.tags.len());
    for tag in &flow.tags {
        out.text(tag);
    }
    out.u8(u8::from(flow.strip_cr));
    out.u32(flow.line_bytes_max);
    out.u8(match flow.long_lines {
        LongLines::Fail => 1,
        LongLines::Skip => 2,
        LongLines::Cut => 3,
    });
    out.u32(flow.expansion_max);
    match flow.partitioner {
        Partitioner::Hash => out.u8(1),
        Partitioner::Prefix(bytes) => {
            out.u8(2);
            out.u32(bytes);
        }
        Partitioner::Range { samples, key_bytes } => {
            out.u8(3);
            out.u32(samples);
            out.u32(key_bytes);
        }
    }
    out.u8(match flow.compression {
        Compression::Auto => 1,
        Compression::None => 2,
        Compression::Lz4 => 3,
    });
    out.u8(u8::from(flow.compress_output));
}

pub(crate) fn take_flow(from: &mut Decoder<'_>) -> Result<Flow, BadBytes> {
    Ok(Flow {
        args: (0..from.count()?)
            .map(|_| Ok((from.text()?, from.text()?)))
            .collect::<Result<_, BadBytes>>()?,
        tags: (0..from.count()?).map(|_| from.text()).collect::<Result<_, _>>()?,
        strip_cr: from.u8()? != 0,
        line_bytes_max: from.u32()?,
        long_lines: match from.u8()? {
            1 => LongLines::Fail,
            2 => LongLines::Skip,
            3 => LongLines::Cut,
            other => return Err(BadBytes::tag("long lines", other)),
        },
        expansion_max: from.u32()?,
        partitioner: match from.u8()? {
            1 => Partitioner::Hash,
            2 => Partitioner::Prefix(from.u32()?),
            3 => Partitioner::Range { samples: from.u32()?, key_bytes: from.u32()? },
            other => return Err(BadBytes::tag("partitioner", other)),
        },
        compression: match from.u8()? {
            1 => Compression::Auto,
            2 => Compression::None,
            3 => Compression::Lz4,
            other => return Err(BadBytes::tag("compression", other)),
        },
        compress_output: from.u8()? != 0,
    })
}
