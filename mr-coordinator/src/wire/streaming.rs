//! The programs of a job, as messages.

use proto::{STREAMING_APP, mapreduce as pb};

use crate::{
    spec::BadSpec,
    streaming::{SideFile, Streaming},
};

/// The app of a job, and its programs if it brings some.
pub(super) fn from_wire(wire: &pb::JobSpec) -> Result<(String, Option<Box<Streaming>>), BadSpec> {
    let Some(streaming) = &wire.streaming else {
        if wire.app == STREAMING_APP {
            let problem = "it stands for programs, and the job names none (streaming)";
            return Err(BadSpec::new("app", problem));
        }
        if !wire.files.is_empty() {
            let problem = "they are for programs, and the job names none (streaming)";
            return Err(BadSpec::new("files", problem));
        }
        return Ok((wire.app.clone(), None));
    };
    if !["", STREAMING_APP].contains(&wire.app.as_str()) {
        let problem = format!("`{}` and programs: a job has one of them", wire.app);
        return Err(BadSpec::new("app", problem));
    }
    let lengths = match pb::Framing::try_from(streaming.framing) {
        Ok(pb::Framing::Unspecified | pb::Framing::Lines) => false,
        Ok(pb::Framing::Lengths) => true,
        Err(_) => return Err(BadSpec::new("streaming.framing", "the value is not known")),
    };
    let argv = |command: &Option<pb::Command>| match command {
        Some(command) if command.argv.is_empty() => {
            Err(BadSpec::new("streaming", "a program has no name"))
        }
        command => Ok(command.clone().unwrap_or_default().argv),
    };
    let programs =
        [argv(&streaming.mapper)?, argv(&streaming.combiner)?, argv(&streaming.reducer)?];
    let limits = streaming.limits.unwrap_or_default();
    let file = |file: &pb::SideFile| {
        let bad = |_| BadSpec::new("files", "a SHA-256 has 32 bytes");
        let sha256 = <[u8; 32]>::try_from(&file.sha256[..]).map_err(bad)?;
        let (name, bytes, executable) = (file.name.clone(), file.bytes, file.executable);
        Ok(SideFile { name, sha256, bytes, executable })
    };
    let streaming = Streaming {
        programs,
        lengths,
        limits: [
            limits.memory_bytes,
            limits.cpu_seconds,
            limits.open_files,
            limits.file_bytes,
            limits.stderr_bytes,
        ],
        files: wire.files.iter().map(file).collect::<Result<_, BadSpec>>()?,
    };
    Ok((STREAMING_APP.to_owned(), Some(Box::new(streaming))))
}

/// The spec with the programs of a job.
pub(super) fn to_wire(streaming: Option<&Streaming>, spec: pb::JobSpec) -> pb::JobSpec {
    let Some(streaming) = streaming else { return spec };
    let command =
        |argv: &Vec<String>| (!argv.is_empty()).then(|| pb::Command { argv: argv.clone() });
    let [mapper, combiner, reducer] = streaming.programs.each_ref().map(command);
    let [memory_bytes, cpu_seconds, open_files, file_bytes, stderr_bytes] = streaming.limits;
    let limits =
        pb::ProgramLimits { memory_bytes, cpu_seconds, open_files, file_bytes, stderr_bytes };
    let framing = if streaming.lengths { pb::Framing::Lengths } else { pb::Framing::Lines };
    let framing = framing.into();
    let limits = Some(limits);
    let file = |file: &SideFile| pb::SideFile {
        name: file.name.clone(),
        sha256: file.sha256.to_vec().into(),
        bytes: file.bytes,
        executable: file.executable,
    };
    let files = streaming.files.iter().map(file).collect();
    let streaming = pb::Streaming { mapper, combiner, reducer, framing, limits };
    pb::JobSpec { streaming: Some(streaming), files, ..spec }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    fn wire() -> pb::JobSpec {
        let command = |name: &str| Some(pb::Command { argv: vec![name.to_owned()] });
        let (mapper, reducer) = (command("./m.py"), command("./r.py"));
        let file = |name: &str| pb::SideFile {
            name: name.to_owned(),
            sha256: vec![7; 32].into(),
            bytes: 1,
            executable: true,
        };
        pb::JobSpec {
            inputs: vec!["in".into()],
            output: "out".into(),
            reduces: 1,
            streaming: Some(pb::Streaming { mapper, reducer, ..pb::Streaming::default() }),
            files: vec![file("m.py"), file("r.py")],
            ..pb::JobSpec::default()
        }
    }

    #[test]
    fn programs_of_a_job_come_back_from_the_wire() {
        let spec = super::super::spec(wire()).unwrap();
        assert_eq!(spec.app, STREAMING_APP);
        assert_eq!(super::super::spec(spec_to_wire(&spec)), Ok(spec));
    }

    #[test]
    fn programs_that_make_no_sense_are_refused_by_field() {
        type Change = fn(&mut pb::JobSpec, &mut pb::Streaming);
        let wrong: [(&str, Change); 13] = [
            ("app", |spec, _| spec.app = "wc".into()),
            ("streaming", |spec, _| spec.reduces = 0),
            ("streaming", |spec, _| spec.input_format = pb::InputFormat::Whole.into()),
            ("streaming", |_, is| is.mapper = Some(pb::Command::default())),
            ("streaming", |_, is| is.mapper = Some(pb::Command { argv: vec!["".into()] })),
            ("streaming", |_, is| is.mapper = Some(pb::Command { argv: vec!["a\0".into()] })),
            ("streaming", |_, is| {
                is.mapper = Some(pb::Command { argv: vec!["x".repeat(1 << 20)] });
            }),
            ("streaming.framing", |_, is| is.framing = 9),
            ("max_skip", |spec, _| spec.max_skip = 1),
            ("files", |spec, _| spec.files[0].name = "../m.py".into()),
            ("files", |spec, _| spec.files[0].name = "r.py".into()),
            ("files", |spec, _| spec.files[0].sha256 = vec![1].into()),
            ("streaming.limits.memory_bytes", |_, is| {
                is.limits = Some(pb::ProgramLimits { memory_bytes: 1, ..Default::default() });
            }),
        ];
        for (field, change) in wrong {
            let mut wire = wire();
            let mut streaming = wire.streaming.take().unwrap_or_default();
            change(&mut wire, &mut streaming);
            wire.streaming = Some(streaming);
            assert_eq!(super::super::spec(wire).unwrap_err().field, field);
        }
        let without = pb::JobSpec { streaming: None, ..wire() };
        let named = pb::JobSpec { app: STREAMING_APP.into(), ..without.clone() };
        assert_eq!(super::super::spec(named).unwrap_err().field, "app");
        let files = pb::JobSpec { app: "wc".into(), ..without };
        assert_eq!(super::super::spec(files).unwrap_err().field, "files");
    }
}
