//! Pieces of inputs: whatever the cut, the same records; whatever is wrong, a word about it.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A file to read.
struct Input {
    _dir: TempDir,
    path: PathBuf,
}

impl Input {
    fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        fs::write(&path, bytes).unwrap();
        Self { _dir: dir, path }
    }

    fn piece(&self, start: u64, bytes: u64) -> Piece {
        let metadata = fs::metadata(&self.path).unwrap();
        Piece {
            document: "doc".to_owned(),
            tag: String::new(),
            path: self.path.clone(),
            start,
            bytes,
            file_bytes: metadata.len(),
            modified_ns: modified_ns(&metadata),
            packing: Packing::None,
        }
    }

    fn whole(&self, packing: Packing) -> Piece {
        let bytes = fs::metadata(&self.path).unwrap().len();
        Piece { packing, ..self.piece(0, bytes) }
    }

    /// The records, read in pieces between these cuts, with their offsets; and all bytes.
    fn cut(&self, reading: &Reading, cuts: &[u64]) -> (Vec<(u64, Vec<u8>)>, u64) {
        let size = fs::metadata(&self.path).unwrap().len();
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut ends: Vec<u64> = cuts.iter().copied().filter(|cut| *cut < size).collect();
        ends.push(size);
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            let piece = self.piece(start, end - start);
            let mut keep = |block: Block<'_>| {
                for record in block.records() {
                    assert!((start..end).contains(&record.offset), "{record:?}");
                    records.push((record.offset, record.value.to_vec()));
                }
                Ok(())
            };
            bytes += piece.blocks(reading, &mut keep).unwrap().bytes;
            start = end;
        }
        (records, bytes)
    }

    /// The records, read in pieces of `split` bytes.
    fn split(&self, reading: &Reading, split: u64) -> (Vec<(u64, Vec<u8>)>, u64) {
        let size = fs::metadata(&self.path).unwrap().len();
        let cuts: Vec<u64> = (1..size.div_ceil(split)).map(|number| number * split).collect();
        self.cut(reading, &cuts)
    }
}

fn lines_of(text: &str) -> Vec<(u64, Vec<u8>)> {
    let mut offset = 0;
    text.split_inclusive('\n')
        .map(|line| {
            let at = offset;
            offset += line.len() as u64;
            (at, line.strip_suffix('\n').unwrap_or(line).as_bytes().to_vec())
        })
        .collect()
}

/// All values of a piece, and how many lines were too long.
fn read(piece: &Piece, reading: &Reading) -> Result<(Vec<Vec<u8>>, u64), Failure> {
    let mut values = Vec::new();
    let taken = piece.blocks(reading, &mut |block| {
        values.extend(block.records().map(|record| record.value.to_vec()));
        Ok(())
    })?;
    Ok((values, taken.long_lines))
}

fn refused(piece: &Piece, reading: &Reading) -> String {
    match read(piece, reading) {
        Err(Failure::Input { permanent: true, path, message }) if path == "doc" => message,
        other => panic!("{other:?}"),
    }
}

fn lines() -> Reading {
    Reading::of(Records::LINES)
}

#[test]
fn every_split_yields_the_same_lines() {
    let long = "x".repeat(300);
    let texts = [
        "",
        "\n",
        "\n\n\n",
        "one",
        "one\n",
        "one\ntwo\r\n\r\n\nfour, no end",
        &format!("short\n{long}\nshort\n\n{long}"),
        &"0123456789\n".repeat(30),
    ];
    for text in texts {
        let input = Input::new(text.as_bytes());
        for split in 1..=200 {
            let (found, bytes) = input.split(&lines(), split);
            assert_eq!(found, lines_of(text), "split {split} of {text:?}");
            assert_eq!(bytes, text.len() as u64, "split {split} of {text:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_cut_of_a_text_yields_its_lines(
        text in "[a\n\r\t]{0,300}",
        cuts in proptest::collection::vec(0_u64..300, 0..8),
    ) {
        let input = Input::new(text.as_bytes());
        let (found, bytes) = input.cut(&lines(), &cuts);
        prop_assert_eq!(found, lines_of(&text));
        prop_assert_eq!(bytes, text.len() as u64);
    }

    #[test]
    fn any_cut_of_records_of_one_width_yields_them(
        width in 1_u32..20,
        count in 0_usize..40,
        cuts in proptest::collection::vec(0_u64..300, 0..8),
    ) {
        let bytes: Vec<u8> = (0..width as usize * count).map(|byte| byte as u8).collect();
        let input = Input::new(&bytes);
        let (found, taken) = input.cut(&Reading::of(Records::Fixed(width)), &cuts);
        let expected: Vec<(u64, Vec<u8>)> = bytes
            .chunks(width as usize)
            .enumerate()
            .map(|(number, record)| (number as u64 * u64::from(width), record.to_vec()))
            .collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(taken, bytes.len() as u64);
    }

    #[test]
    fn long_lines_are_left_out_or_cut_wherever_they_lie(
        lengths in proptest::collection::vec(0_usize..40, 0..30),
        limit in 1_usize..30,
        ends in any::<bool>(),
    ) {
        let texts: Vec<String> = lengths.iter().map(|length| "z".repeat(*length)).collect();
        let mut text = texts.join("\n");
        if ends {
            text.push('\n');
        }
        let input = Input::new(text.as_bytes());
        let all: Vec<Vec<u8>> = lines_of(&text).into_iter().map(|(_, line)| line).collect();
        let long = all.iter().filter(|line| line.len() > limit).count() as u64;
        let whole = input.whole(Packing::None);
        let reading = |long_lines| Reading { line_bytes_max: limit, long_lines, ..lines() };
        let kept: Vec<Vec<u8>> = all.iter().filter(|line| line.len() <= limit).cloned().collect();
        prop_assert_eq!(read(&whole, &reading(LongLines::Skip)).unwrap(), (kept, long));
        let cut: Vec<Vec<u8>> =
            all.iter().map(|line| line[..line.len().min(limit)].to_vec()).collect();
        prop_assert_eq!(read(&whole, &reading(LongLines::Cut)).unwrap(), (cut, long));
        prop_assert_eq!(read(&whole, &reading(LongLines::Fail)).is_err(), long > 0);
    }
}

#[test]
fn lines_around_the_read_size_stay_whole() {
    let lengths = [READ_BYTES - 1, READ_BYTES, 3 * READ_BYTES + 1, 0, 5, READ_BYTES / 2];
    let text: Vec<String> = lengths.iter().map(|length| "y".repeat(*length)).collect();
    let input = Input::new(text.join("\n").as_bytes());
    let (found, bytes) = input.split(&lines(), 10 * READ_BYTES as u64);
    let found: Vec<usize> = found.iter().map(|(_, line)| line.len()).collect();
    assert_eq!(found, lengths);
    assert_eq!(bytes, fs::metadata(&input.path).unwrap().len());
}

#[test]
fn a_line_beyond_the_limit_is_named_or_passed_over_in_little_memory() {
    let input = Input::new(b"");
    let file = File::options().write(true).open(&input.path).unwrap();
    file.set_len(200 << 20).unwrap();
    let whole = input.whole(Packing::None);
    let message = refused(&whole, &lines());
    assert!(message.contains("line at byte 0") && message.contains("line_bytes_max"), "{message}");
    let behind = Piece { start: 1, bytes: 1, ..whole.clone() };
    assert!(refused(&behind, &lines()).contains("line_bytes_max"));
    let skipping = Reading { long_lines: LongLines::Skip, ..lines() };
    assert_eq!(read(&whole, &skipping).unwrap(), (vec![], 1));
    let cutting = Reading { long_lines: LongLines::Cut, ..lines() };
    let (cut, long) = read(&whole, &cutting).unwrap();
    assert_eq!((cut.len(), cut[0].len(), long), (1, LINE_BYTES_DEFAULT, 1));
}

#[test]
fn a_changed_missing_or_strange_file_is_refused_for_good() {
    let input = Input::new(b"one\n");
    let planned = input.piece(0, 4);
    refused(&Piece { modified_ns: planned.modified_ns + 1, ..planned.clone() }, &lines());
    refused(&Piece { file_bytes: 5, ..planned.clone() }, &lines());
    let directory = input.path.parent().unwrap().to_owned();
    refused(&Piece { path: directory, ..planned.clone() }, &lines());
    fs::remove_file(&input.path).unwrap();
    refused(&planned, &lines());
}

#[test]
fn a_file_that_shrinks_under_the_reader_is_refused() {
    let input = Input::new("a\n".repeat(2 * READ_BYTES).as_bytes());
    let mut cut = |_: Block<'_>| {
        File::options().write(true).open(&input.path).unwrap().set_len(10).unwrap();
        Ok(())
    };
    let whole = input.whole(Packing::None);
    let read = whole.blocks(&lines(), &mut cut);
    assert!(matches!(read, Err(Failure::Input { permanent: true, .. })), "{read:?}");
}

#[test]
fn a_file_that_is_no_multiple_of_the_width_is_refused() {
    let reading = Reading::of(Records::Fixed(100));
    let input = Input::new(&[7; 250]);
    let message = refused(&input.whole(Packing::None), &reading);
    assert!(message.contains("multiple") && message.contains("50 are left over"), "{message}");
    let packed = Input::new(&gzip(&[7; 250]));
    assert!(refused(&packed.whole(Packing::Gzip), &reading).contains("50 are left over"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

#[test]
fn compressed_files_of_many_members_are_read_whole_in_every_format() {
    let text = "one\ntwo, which goes on in the next member\n\nend";
    let (head, tail) = text.as_bytes().split_at(12);
    let texts: Vec<Vec<u8>> = lines_of(text).into_iter().map(|(_, line)| line).collect();
    for (packing, bytes) in [
        (Packing::Gzip, [gzip(head), gzip(b""), gzip(tail)].concat()),
        (Packing::Zstd, [zstandard(head), zstandard(b""), zstandard(tail)].concat()),
    ] {
        let input = Input::new(&bytes);
        let piece = input.whole(packing);
        assert_eq!(read(&piece, &lines()).unwrap().0, texts);
        let whole = Reading::of(Records::Files);
        assert_eq!(read(&piece, &whole).unwrap().0, [text.as_bytes()]);
        let part = Piece { bytes: 3, ..piece };
        assert!(matches!(read(&part, &lines()), Err(Failure::Internal(_))));
    }
    // A large one, of which a read is a part.
    let large = "0123456789abcde\n".repeat(300_000);
    let input = Input::new(&gzip(large.as_bytes()));
    assert_eq!(read(&input.whole(Packing::Gzip), &lines()).unwrap().0.len(), 300_000);
}

#[test]
fn compressed_files_that_are_empty_have_no_lines() {
    for (packing, bytes) in [
        (Packing::Gzip, gzip(b"")),
        (Packing::Gzip, vec![]),
        (Packing::Zstd, zstandard(b"")),
        (Packing::Zstd, vec![]),
    ] {
        let input = Input::new(&bytes);
        assert_eq!(read(&input.whole(packing), &lines()).unwrap().0.len(), 0);
    }
}

#[test]
fn damaged_compressed_files_are_refused_and_never_cut_short() {
    let text = "a line of some length\n".repeat(1_000);
    for (packing, whole) in
        [(Packing::Gzip, gzip(text.as_bytes())), (Packing::Zstd, zstandard(text.as_bytes()))]
    {
        for cut in [1, 4, 9, whole.len() / 2, whole.len() - 5, whole.len() - 1] {
            let input = Input::new(&whole[..cut]);
            let message = refused(&input.whole(packing), &lines());
            assert!(message.contains("does not unpack"), "{packing:?} {cut}: {message}");
        }
        let garbage = Input::new(&[&whole[..], b"garbage"].concat());
        assert!(refused(&garbage.whole(packing), &lines()).contains("does not unpack"));
        let text = Input::new(text.as_bytes());
        assert!(refused(&text.whole(packing), &lines()).contains("does not unpack"));
    }
}

#[test]
fn a_file_that_unpacks_to_too_much_is_refused() {
    let input = Input::new(&zstandard(&vec![b'\n'; 64 << 20]));
    let message = refused(&input.whole(Packing::Zstd), &lines());
    assert!(message.contains("expansion_max"), "{message}");
    let generous = Reading { expansion_max: 1_000_000, ..lines() };
    assert_eq!(read(&input.whole(Packing::Zstd), &generous).unwrap().0.len(), 64 << 20);
}
