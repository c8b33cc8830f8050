//! Counts words the obvious way, one character after the other into one table, so that the result
//! of a MapReduce job can be checked against something that shares nothing with it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use unicode_general_category::{GeneralCategory, get_general_category};

/// How often each word occurs in these files. A word is as long a run of letters (Unicode's
/// category L) as there is; bytes that are not UTF-8 end one.
///
/// # Errors
/// When a file cannot be read.
pub fn words(paths: &[PathBuf]) -> io::Result<HashMap<String, u64>> {
    let mut counts = HashMap::new();
    for path in paths {
        let bytes = fs::read(path)?;
        count(&String::from_utf8_lossy(&bytes), &mut counts);
    }
    Ok(counts)
}

/// The counts in the result files of a word count: lines of key, `separator`, count. A word that
/// occurs in two lines is an error, since each has one partition.
///
/// # Errors
/// When a file cannot be read or has anything else in it.
pub fn results(paths: &[PathBuf], separator: char) -> io::Result<HashMap<String, u64>> {
    let mut counts = HashMap::new();
    for path in paths {
        for line in fs::read_to_string(path)?.lines() {
            let wrong = |what: &str| {
                io::Error::other(format!("{}: the line {line:?} {what}", path.display()))
            };
            let (word, number) =
                line.split_once(separator).ok_or_else(|| wrong("has no separator"))?;
            let number = number.parse().map_err(|_| wrong("has no count"))?;
            if counts.insert(word.to_owned(), number).is_some() {
                return Err(wrong("repeats a word"));
            }
        }
    }
    Ok(counts)
}

/// The regular files directly in a directory, by name, without hidden ones.
///
/// # Errors
/// When the directory cannot be read.
pub fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| {
            name.as_encoded_bytes().starts_with(b".") || name.as_encoded_bytes().starts_with(b"_")
        });
        if !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn count(text: &str, counts: &mut HashMap<String, u64>) {
    let mut word = String::new();
    for character in text.chars().chain(['\n']) {
        if is_letter(character) {
            word.push(character);
        } else if !word.is_empty() {
            match counts.get_mut(word.as_str()) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(word.clone(), 1);
                }
            }
            word.clear();
        }
    }
}

fn is_letter(character: char) -> bool {
    use GeneralCategory::{
        LowercaseLetter, ModifierLetter, OtherLetter, TitlecaseLetter, UppercaseLetter,
    };
    if character.is_ascii() {
        return character.is_ascii_alphabetic();
    }
    matches!(
        get_general_category(character),
        LowercaseLetter | ModifierLetter | OtherLetter | TitlecaseLetter | UppercaseLetter
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        fs::write(&path, b"Don't; na\xc3\xafve 2x x\xffx\n\xe2\x85\xa0 the the").unwrap();
        let mut found: Vec<_> = words(&[path]).unwrap().into_iter().collect();
        found.sort();
        let expected = [("Don", 1), ("naïve", 1), ("t", 1), ("the", 2), ("x", 3)];
        assert_eq!(found, expected.map(|(word, count)| (word.to_owned(), count)));
    }

    #[test]
    fn results_with_anything_unexpected_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        fs::write(&one, "a\t1\n").unwrap();
        for (text, right) in
            [("b\t2\n", true), ("b 2\n", false), ("b\tx\n", false), ("a\t1\n", false)]
        {
            fs::write(&other, text).unwrap();
            assert_eq!(results(&[one.clone(), other.clone()], '\t').is_ok(), right, "{text:?}");
        }
    }
}
