//! Cut points of a total order, from a sample of the inputs.
//!
//! Windows of the inputs are read at places that lie evenly over all their bytes, as TeraSort's
//! sampler does, and each gives its records' keys. The cuts are the quantiles of these. Where they
//! lie decides only how even the parts are; that the parts are in order follows from any cuts. Keys
//! that are equal are never cut apart, so some parts stay empty where a key has more than its share.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use flate2::bufread::MultiGzDecoder;

use crate::{
    limits::CUTS_BYTES_MAX,
    plan::Input,
    root::PathError,
    spec::{InputFormat, Packing, Spec},
};

/// How much is read at a place.
const WINDOW_BYTES: usize = 64 << 10;
/// How many places are looked at, at least and at most.
const WINDOWS: (u64, u64) = (10, 4_096);
/// As much of a key as a cut may need.
const KEY_BYTES_MAX: usize = 256;

/// The cuts between a job's reduces, in order: one less than there are reduces, or fewer where the
/// inputs have fewer keys.
///
/// # Errors
/// When an input cannot be read.
pub fn cuts(
    spec: &Spec,
    files: &[Input],
    samples: u32,
    key_bytes: u32,
) -> Result<Vec<Vec<u8>>, PathError> {
    let mut sample = Sample { spec, key_bytes: key_bytes as usize, keys: Vec::new(), most: 0 };
    let total: u64 = files.iter().map(|file| file.bytes).sum();
    let windows = total.div_ceil(WINDOW_BYTES as u64).clamp(WINDOWS.0, WINDOWS.1);
    sample.most = (u64::from(samples)).div_ceil(windows) as usize;
    let mut before = 0;
    let mut next = 0;
    for file in files {
        let behind = before + file.bytes;
        let mut is_read = false;
        while next < windows && place(next, windows, total) < behind {
            let at = place(next, windows, total) - before;
            next += 1;
            // What is compressed can be read from its beginning only: once is enough.
            if file.packing == Packing::None || !is_read {
                sample.read(file, at).map_err(|error| PathError::io(&file.path, error))?;
                is_read = true;
            }
        }
        before = behind;
    }
    Ok(quantiles(sample.keys, spec.reduces))
}

/// Where the window of a number lies among all bytes.
fn place(number: u64, windows: u64, total: u64) -> u64 {
    (u128::from(total) * u128::from(number) / u128::from(windows)) as u64
}

/// What a file of cuts holds: each cut's length as u32, little-endian, and its bytes.
#[must_use]
pub fn encode(cuts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cut in cuts {
        bytes.extend_from_slice(&(cut.len() as u32).to_le_bytes());
        bytes.extend_from_slice(cut);
    }
    bytes
}

fn quantiles(mut keys: Vec<Vec<u8>>, reduces: u32) -> Vec<Vec<u8>> {
    keys.sort_unstable();
    let parts = reduces.max(1) as usize;
    let key_bytes = (CUTS_BYTES_MAX / parts - size_of::<u32>()).min(KEY_BYTES_MAX);
    let mut cuts: Vec<Vec<u8>> = Vec::new();
    for part in 1..parts {
        let Some(key) = keys.get(part * keys.len() / parts) else { break };
        let cut = key[..key.len().min(key_bytes)].to_vec();
        if cuts.last() != Some(&cut) {
            cuts.push(cut);
        }
    }
    cuts
}

struct Sample<'a> {
    spec: &'a Spec,
    key_bytes: usize,
    keys: Vec<Vec<u8>>,
    /// How many keys are taken of a window, at most.
    most: usize,
}

impl Sample<'_> {
    fn read(&mut self, input: &Input, at: u64) -> io::Result<()> {
        let file = File::open(&input.real)?;
        let mut window = vec![0; WINDOW_BYTES];
        let (window, starts_whole) = match input.packing {
            Packing::None => {
                let at = match self.spec.input_format {
                    InputFormat::Fixed(width) => at - at % u64::from(width.max(1)),
                    InputFormat::Text | InputFormat::KeyValue | InputFormat::Whole => at,
                };
                let read = read_at(&file, &mut window, at)?;
                (&window[..read], at == 0)
            }
            // A damaged file is the worker's to tell; what unpacks before that is a sample too.
            Packing::Gzip => {
                let read = read_some(MultiGzDecoder::new(io::BufReader::new(file)), &mut window);
                (&window[..read], true)
            }
            Packing::Zstd => {
                let read = read_some(zstd::stream::read::Decoder::new(file)?, &mut window);
                (&window[..read], true)
            }
        };
        self.take(window, starts_whole);
        Ok(())
    }

    /// Takes the keys of the records that are whole in a window.
    fn take(&mut self, window: &[u8], starts_whole: bool) {
        let records: Vec<&[u8]> = match self.spec.input_format {
            InputFormat::Fixed(width) => window.chunks_exact(width.max(1) as usize).collect(),
            InputFormat::Text | InputFormat::KeyValue => {
                let skip = usize::from(!starts_whole);
                let lines = window.split_inclusive(|byte| *byte == b'\n').skip(skip);
                lines.filter_map(|line| line.strip_suffix(b"\n")).collect()
            }
            InputFormat::Whole => vec![window],
        };
        let step = records.len().div_ceil(self.most.max(1)).max(1);
        for record in records.into_iter().step_by(step) {
            let key = match self.spec.input_format {
                InputFormat::KeyValue if self.key_bytes == 0 => {
                    record.split(|byte| *byte == b'\t').next().unwrap_or(record)
                }
                InputFormat::KeyValue
                | InputFormat::Text
                | InputFormat::Whole
                | InputFormat::Fixed(_) => match self.key_bytes {
                    0 => record,
                    bytes => &record[..record.len().min(bytes)],
                },
            };
            self.keys.push(key[..key.len().min(KEY_BYTES_MAX)].to_vec());
        }
    }
}

fn read_at(file: &File, window: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < window.len() {
        match file.read_at(&mut window[read..], at + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

/// Reads until the window is full, or no more can be had.
fn read_some(mut from: impl Read, window: &mut [u8]) -> usize {
    let mut read = 0;
    while read < window.len() {
        match from.read(&mut window[read..]) {
            Ok(0) | Err(_) => break,
            Ok(more) => read += more,
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Vec<u8> {
        format!("{number:05}").into_bytes()
    }

    #[test]
    fn cuts_part_the_keys_evenly() {
        let keys: Vec<_> = (0..1_000).rev().map(key).collect();
        assert_eq!(quantiles(keys, 4), [key(250), key(500), key(750)]);
        assert_eq!(quantiles(vec![], 4), Vec::<Vec<u8>>::new());
        assert_eq!(quantiles(vec![key(1)], 1), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_key_with_more_than_its_share_is_cut_once() {
        let mut keys = vec![key(5); 90];
        keys.extend((0..10).map(key));
        assert_eq!(quantiles(keys, 10), [key(5)]);
    }

    #[test]
    fn cuts_stay_within_their_limit_however_many_they_are() {
        let keys: Vec<_> =
            (0..9_000).map(|number| [&key(number)[..], &[b'x'; 300]].concat()).collect();
        let cuts = quantiles(keys, 4_096);
        assert!(cuts.len() > 4_000 && cuts.is_sorted());
        assert!(encode(&cuts).len() <= CUTS_BYTES_MAX);
    }
}
