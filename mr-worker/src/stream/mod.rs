//! Programs of any language as mapper, combiner and reducer: what Hadoop Streaming does.
//!
//! A program is started for a task ([`child`]), in a directory of its own ([`workplace`]), with an
//! environment and limits that the job names ([`launch`]); records go to its standard input, what
//! it writes to standard output are pairs or results ([`framing`]), and lines on standard error may
//! count ([`words`]). The engine around it is that of every other app.
//!
//! A map starts its program anew for each input file, so that the file's name in the environment is
//! always right. A combiner reads the finished, sorted output of its map ([`combine`]) and what it
//! writes is sorted again, so that it may write whatever it likes, in any order.
//!
//! What is left out: a record that a program fails at cannot be named, since it reads ahead; so
//! records are never skipped.

mod child;
mod combine;
mod framing;
pub mod launch;
mod wire;
mod words;
mod workplace;

use std::{path::PathBuf, sync::Arc};

pub(crate) use self::wire::programs;
use self::{
    child::{Child, Order},
    framing::Sink,
    workplace::{Kind, Workplace},
};
pub use self::{
    framing::Framing,
    launch::{Launcher, Limits},
    workplace::SideFile,
};
use crate::{
    app::{App, Context, Emitter, Mapper, Output, Program, Reducer, Values},
    args::Arg,
    failure::{Failure, Place},
    fold::Keep,
    input::Piece,
    map::{self, MapTask},
    outcome::{Outcome, Progress},
    record::{Block, Record, Records, parted},
    reduce::{self, ReduceTask},
};

/// The programs of a job, each as its name and arguments, and what they share.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// Reads the input; without one the input's lines are pairs.
    pub mapper: Option<Vec<String>>,
    /// Reads the sorted pairs of a map.
    pub combiner: Option<Vec<String>>,
    /// Reads the sorted pairs of a partition; without one they are the results.
    pub reducer: Option<Vec<String>>,
    /// How records and pairs are told apart.
    pub framing: Framing,
    /// What each program may use.
    pub limits: Limits,
    /// Files that each program finds in its working directory.
    pub files: Vec<SideFile>,
}

/// What running programs takes.
#[derive(Debug, Clone)]
pub struct Allowed {
    /// What starts them.
    pub launcher: Launcher,
    /// Where side files lie by their digests.
    pub blobs: PathBuf,
}

/// An app made of the programs of one job.
#[derive(Debug, Clone)]
pub struct Streaming {
    /// The programs.
    pub programs: Programs,
    /// What running them takes.
    pub allowed: Allowed,
    /// The name of the attempt.
    pub attempt: String,
    /// The longest line that a program may write, in bytes.
    pub line_bytes_max: usize,
}

impl Program for Streaming {
    fn name(&self) -> &'static str {
        proto::STREAMING_APP
    }

    /// Any will do: programs find them in their environment.
    fn args(&self) -> &'static [Arg] {
        &[]
    }

    fn map(&self, mut task: MapTask, progress: &mut Progress) -> Result<Outcome, Failure> {
        if self.programs.framing == Framing::Lines
            && matches!(task.reading.records, Records::Files | Records::Fixed(_))
        {
            return Err(Failure::fatal(
                "records that are no lines need --framing lengths: they may hold line feeds",
            ));
        }
        let place = self.workplace(Kind::Map, &task.context, &task.dir, progress)?;
        let combining = self.programs.combiner.as_ref().filter(|_| task.context.partitions > 0);
        let combining = combining.map(|argv| combine::Combining::new(argv, &task));
        if combining.is_some() {
            // It reads groups.
            task.maps = 0;
        }
        let attempt = Arc::new(Attempt { streaming: self.clone(), place });
        let app = Task { attempt: Arc::clone(&attempt), pieces: task.pieces.clone().into() };
        let mut outcome = map::run(&app, task, progress)?;
        if let Some(combining) = combining {
            combining.run(&attempt, &mut outcome)?;
        }
        attempt.place.leave();
        Ok(outcome)
    }

    fn reduce(&self, task: &ReduceTask, progress: &mut Progress) -> Result<Outcome, Failure> {
        let place = self.workplace(Kind::Reduce, &task.context, &task.dir, progress)?;
        let attempt = Arc::new(Attempt { streaming: self.clone(), place });
        let app = Task { attempt: Arc::clone(&attempt), pieces: Arc::default() };
        let outcome = reduce::run(&app, task, progress)?;
        attempt.place.leave();
        Ok(outcome)
    }
}

impl Streaming {
    fn workplace(
        &self,
        kind: Kind,
        context: &Context,
        attempt_dir: &std::path::Path,
        progress: &Progress,
    ) -> Result<Workplace, Failure> {
        let environment = workplace::environment(kind, context, &self.attempt);
        let files = &self.programs.files;
        Workplace::set_up(attempt_dir, files, &self.allowed.blobs, environment, progress.pulse())
    }
}

/// One attempt at a task.
struct Attempt {
    streaming: Streaming,
    place: Workplace,
}

impl Attempt {
    /// Starts a program; `input` is the piece that a map begins with.
    fn start(&self, argv: &[String], input: Option<&Piece>) -> Result<Child, Failure> {
        Child::start(&Order {
            launcher: &self.streaming.allowed.launcher,
            argv,
            dir: &self.place.dir,
            environment: self.place.environment_of(input),
            limits: self.streaming.programs.limits,
            framing: self.streaming.programs.framing,
            line_bytes_max: self.streaming.line_bytes_max,
            pulse: self.place.pulse.clone(),
        })
    }
}

/// The attempt as the engine's app: what it makes are a mapper or a reducer that hold a program.
struct Task {
    attempt: Arc<Attempt>,
    /// What a map reads.
    pieces: Arc<[Piece]>,
}

impl App for Task {
    type Fold = Keep;
    type Mapper = StreamMapper;
    type Reducer = StreamReducer;

    fn name(&self) -> &'static str {
        proto::STREAMING_APP
    }

    fn mapper(&self, task: &Context) -> Result<StreamMapper, Failure> {
        Ok(StreamMapper {
            attempt: Arc::clone(&self.attempt),
            pieces: Arc::clone(&self.pieces),
            running: None,
            plain: matches!(task.records, Records::Lines { .. }),
            direct: task.partitions == 0,
        })
    }

    fn reducer(&self, _task: &Context) -> Result<StreamReducer, Failure> {
        let reducer = self.attempt.streaming.programs.reducer.as_ref();
        let child = reducer.map(|argv| self.attempt.start(argv, None)).transpose()?;
        Ok(StreamReducer { child })
    }
}

/// Hands records to a program, and takes pairs from it.
struct StreamMapper {
    attempt: Arc<Attempt>,
    pieces: Arc<[Piece]>,
    /// The program, and what it was given last.
    running: Option<(Place, Child)>,
    /// Whether records are lines without a key.
    plain: bool,
    /// Whether what it writes is the result.
    direct: bool,
}

impl StreamMapper {
    /// The program that reads this document: the one that runs, or a new one.
    fn child_at<'c>(
        &'c mut self,
        document: &str,
        offset: u64,
        out: &mut Emitter<'_, Keep>,
    ) -> Result<Option<&'c mut Child>, Failure> {
        let attempt = Arc::clone(&self.attempt);
        let Some(argv) = &attempt.streaming.programs.mapper else { return Ok(None) };
        if self.running.as_ref().is_some_and(|(at, _)| at.document != document) {
            self.end(out)?;
        }
        if self.running.is_none() {
            let piece = self.pieces.iter().find(|piece| piece.document == document);
            let child = attempt.start(argv, piece)?;
            let at = Place { document: document.to_owned(), offset, exact: false };
            self.running = Some((at, child));
        }
        Ok(self.running.as_mut().map(|(at, child)| {
            at.offset = offset;
            child
        }))
    }

    /// Lets the program that runs come to its end.
    fn end(&mut self, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        let Some((at, child)) = self.running.take() else { return Ok(()) };
        let ended = child.finish(&mut Pairs { out, direct: self.direct });
        ended.map_err(|failure| failure.at(|| at))
    }

    /// What an absent mapper makes of a record.
    fn pass_on(&self, record: Record<'_>, pairs: &mut Pairs<'_, '_>) -> Result<(), Failure> {
        match self.attempt.streaming.programs.framing {
            Framing::Lines if self.plain => pairs.line(record.value),
            Framing::Lines | Framing::Lengths => pairs.pair(record.key, record.value),
        }
    }
}

impl Mapper for StreamMapper {
    type Fold = Keep;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        let (direct, plain) = (self.direct, self.plain);
        match self.child_at(record.document, record.offset, out)? {
            Some(child) if plain => child.value(record.value, &mut Pairs { out, direct }),
            Some(child) => child.pair(record.key, record.value, &mut Pairs { out, direct }),
            None => self.pass_on(record, &mut Pairs { out, direct }),
        }
    }

    fn map_block(&mut self, block: Block<'_>, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        let (direct, framing) = (self.direct, self.attempt.streaming.programs.framing);
        // The bytes of plain lines are what the program is to read: nobody looks at each.
        if framing == Framing::Lines
            && block.records == Records::LINES
            && let Some(child) = self.child_at(block.document, block.offset, out)?
        {
            return child.lines(block.bytes, &mut Pairs { out, direct });
        }
        for record in block.records() {
            self.map(record, out)?;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        if self.running.is_none()
            && let Some((document, start)) =
                self.pieces.first().map(|piece| (piece.document.clone(), piece.start))
        {
            // It may have something to say of an empty input.
            self.child_at(&document, start, out)?;
        }
        self.end(out)
    }
}

/// Hands pairs to a program, and takes results from it.
struct StreamReducer {
    child: Option<Child>,
}

impl Reducer for StreamReducer {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        while let Some(value) = values.next()? {
            match &mut self.child {
                Some(child) => child.pair(key, value, &mut Results { out })?,
                None => out.write(key, value)?,
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Output<'_>) -> Result<(), Failure> {
        match self.child.take() {
            Some(child) => child.finish(&mut Results { out }),
            None => Ok(()),
        }
    }
}

/// Where what a mapping program writes goes.
struct Pairs<'a, 'e> {
    out: &'a mut Emitter<'e, Keep>,
    direct: bool,
}

impl Sink for Pairs<'_, '_> {
    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        if self.direct {
            self.out.write_raw(&[line, b"\n"]);
        } else {
            let (key, value) = parted(line);
            self.out.emit(key, value);
        }
        Ok(())
    }

    fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.out.emit(key, value);
        Ok(())
    }

    fn count(&mut self, counter: &str, count: u64) -> Result<(), Failure> {
        self.out.count(counter, count)
    }

    fn check(&mut self) -> Result<(), Failure> {
        self.out.collector.check()
    }
}

/// Where what a reducing program writes goes.
struct Results<'a, 'p> {
    out: &'a mut Output<'p>,
}

impl Sink for Results<'_, '_> {
    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        self.out.write_raw(&[line, b"\n"])
    }

    fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.out.write(key, value)
    }

    fn count(&mut self, counter: &str, count: u64) -> Result<(), Failure> {
        self.out.count(counter, count)
    }

    fn check(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}
