//! P for streaming: all lines through the program `cat`, once for each of two slots.
//!
//! A program that is fed while nobody reads what it says would stop, so each has a thread for either
//! side.

use std::{
    io::{self, Read, Write},
    path::Path,
    process::{ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use rustix::pipe::fcntl_setpipe_size;

use crate::{
    input::{Buffer, Input},
    output::{Output, Part},
    threads,
};

/// How much is read, and written to a program, at a time.
const BLOCK_BYTES: u64 = 256 << 10;

/// What a pipe holds: the most that the kernel gives to everybody, for the fewest changes from one
/// process to the other.
const PIPE_BYTES: usize = 1 << 20;

/// Passes the files of `input` through `cat`, to a file for each thread.
///
/// # Errors
/// What the file system says, or that the program failed.
pub fn run(input: &Path, output: Output) -> Result<()> {
    let input = Input::open(input, BLOCK_BYTES)?;
    threads::run(|thread| {
        let mut part = output.part(thread)?;
        let mut program = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cat cannot be started")?;
        let to = program.stdin.take().expect("it is piped");
        let from = program.stdout.take().expect("it is piped");
        fcntl_setpipe_size(&to, PIPE_BYTES)?;
        fcntl_setpipe_size(&from, PIPE_BYTES)?;
        thread::scope(|scope| {
            let feeding = scope.spawn(|| feed(&input, to));
            drain(from, &mut part).context("cat cannot be heard")?;
            feeding.join().expect("no thread panics")
        })?;
        ensure!(program.wait()?.success(), "cat failed");
        Ok(part.finish()?)
    })?;
    output.finish()
}

fn feed(input: &Input, mut to: ChildStdin) -> Result<()> {
    let mut buffer = Buffer::default();
    while let Some(block) = input.next(&mut buffer)? {
        to.write_all(block.lines()).context("cat cannot be fed")?;
    }
    Ok(())
}

fn drain(mut from: ChildStdout, part: &mut Part) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    loop {
        match from.read(&mut block)? {
            0 => return Ok(()),
            length => part.write(&block[..length])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{output::Durability, text::Vocabulary};

    #[test]
    fn every_line_comes_through() {
        let scratch = tempfile::tempdir().unwrap();
        let (input, results) = (scratch.path().join("input"), scratch.path().join("output"));
        fs::create_dir(&input).unwrap();
        let mut text = Vec::new();
        Vocabulary::new(1_000, 1).write(1, 0, 3 << 20, &mut text).unwrap();
        fs::write(input.join("text"), &text).unwrap();
        run(&input, Output::create(&results, Durability::Cached).unwrap()).unwrap();
        let all: Vec<u8> = (0..crate::THREADS)
            .flat_map(|part| fs::read(results.join(format!("part-{part:05}"))).unwrap())
            .collect();
        let sorted = |text: &[u8]| {
            let mut lines: Vec<Vec<u8>> =
                text.split(|&it| it == b'\n').map(<[u8]>::to_vec).collect();
            lines.sort_unstable();
            lines
        };
        assert!(sorted(&all) == sorted(&text));
    }
}
