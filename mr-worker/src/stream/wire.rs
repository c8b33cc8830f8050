//! What a job's spec says of its programs.

use proto::mapreduce as wire;

use super::{Framing, Limits, Programs, SideFile};
use crate::failure::Failure;

/// The programs of a job, if it brings its own.
///
/// # Errors
/// Permanent, when they make no sense to this worker.
pub(crate) fn programs(spec: &wire::JobSpec) -> Result<Option<Programs>, Failure> {
    let Some(streaming) = &spec.streaming else { return Ok(None) };
    let senseless = |what: &str| Failure::Internal(format!("a job that makes no sense: {what}"));
    let argv = |command: &Option<wire::Command>| match command {
        Some(command) if command.argv.is_empty() => Err(senseless("a program has no name")),
        command => Ok(command.as_ref().map(|command| command.argv.clone())),
    };
    let framing = match wire::Framing::try_from(streaming.framing) {
        Ok(wire::Framing::Unspecified | wire::Framing::Lines) => Framing::Lines,
        Ok(wire::Framing::Lengths) => Framing::Lengths,
        Err(_) => return Err(senseless("its framing is not known")),
    };
    let limits = streaming.limits.unwrap_or_default();
    let file = |file: &wire::SideFile| {
        let sha256 = file.sha256[..].try_into().map_err(|_| senseless("a digest has 32 bytes"))?;
        Ok(SideFile { name: file.name.clone(), sha256, executable: file.executable })
    };
    Ok(Some(Programs {
        mapper: argv(&streaming.mapper)?,
        combiner: argv(&streaming.combiner)?,
        reducer: argv(&streaming.reducer)?,
        framing,
        limits: Limits {
            memory_bytes: limits.memory_bytes,
            cpu_seconds: limits.cpu_seconds,
            open_files: limits.open_files,
            file_bytes: limits.file_bytes,
            stderr_bytes: limits.stderr_bytes,
        },
        files: spec.files.iter().map(file).collect::<Result<_, Failure>>()?,
    }))
}
