//! A disk that loses its power: what must be on it, what may be, and images of it.
//!
//! Of a file everything is there that was written before a sync began that has ended. Of later
//! writes and changes of its length any subset is, each write whole or some of its sectors. Names
//! are kept by their directory in the same way: making, renaming and removing them lasts once the
//! directory was synced, and until then each may have reached the disk or not. That is less than
//! any file system promises.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;

use super::trace::{Call, What};
use crate::member::write_sparsely;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

type Number = usize;
const ROOT: Number = 0;

/// What is durable, and what may be; each change with the line at which it had ended.
#[derive(Debug)]
struct Kept<S, C> {
    durable: S,
    pending: Vec<(usize, C)>,
}

impl<S: Default, C: Apply<S>> Kept<S, C> {
    fn new(durable: S) -> Self {
        Self { durable, pending: Vec::new() }
    }

    /// A sync has ended that began at this line.
    fn sync(&mut self, begin: usize) {
        for (_, change) in self.pending.extract_if(.., |(end, _)| *end < begin) {
            change.apply(&mut self.durable);
        }
    }

    /// A sync that began at this line has ended, and was a lie: all that it was for is lost.
    fn forget(&mut self, begin: usize) {
        self.pending.retain(|(end, _)| *end >= begin);
    }
}

trait Apply<S> {
    fn apply(&self, to: &mut S);
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Bytes },
    Resize(usize),
}

impl Apply<Vec<u8>> for Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                to.resize(to.len().max(end), 0);
                to[*offset..end].copy_from_slice(bytes);
            }
            Self::Resize(len) => to.resize(*len, 0),
        }
    }
}

type Names = BTreeMap<String, Number>;

#[derive(Debug)]
enum NameChange {
    Add(String, Number),
    Rename { from: String, to: String, number: Number },
    Remove(String),
}

impl Apply<Names> for NameChange {
    fn apply(&self, to: &mut Names) {
        match self {
            Self::Add(name, number) => drop(to.insert(name.clone(), *number)),
            Self::Remove(name) => drop(to.remove(name)),
            Self::Rename { from, to: name, number } => {
                to.remove(from);
                to.insert(name.clone(), *number);
            }
        }
    }
}

#[derive(Debug)]
enum Node {
    File(Kept<Vec<u8>, Change>),
    Directory { kept: Kept<Names, NameChange>, names: Names },
}

fn directory() -> Node {
    Node::Directory { kept: Kept::new(Names::new()), names: Names::new() }
}

/// A disk that a trace is replayed on.
#[derive(Debug)]
pub(crate) struct Disk {
    nodes: Vec<Node>,
    /// Whether a database's renames may be lost though later writes to it are not.
    strict: bool,
    /// How many syncs inside the member's directory have ended.
    syncs: usize,
    /// The sync that is a lie: what it should have made durable is lost.
    pub(crate) lie: Option<usize>,
    /// The file whose sync was a lie.
    pub(crate) lied_about: Option<String>,
}

impl Disk {
    /// A disk on which everything in a directory is durable.
    pub(crate) fn load(path: &Path) -> Self {
        let strict = std::env::var_os("FLOTILLA_POWER_STRICT").is_some();
        let nodes = vec![directory()];
        let mut disk = Self { nodes, strict, syncs: 0, lie: None, lied_about: None };
        disk.load_into(ROOT, path);
        disk
    }

    fn load_into(&mut self, parent: Number, path: &Path) {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let node = if path.is_dir() {
                directory()
            } else {
                Node::File(Kept::new(fs::read(&path).unwrap()))
            };
            let number = self.add(node);
            self.rename(parent, 0, NameChange::Add(name.to_owned(), number));
            if path.is_dir() {
                self.load_into(number, &path);
            }
        }
        self.sync(parent, 1);
    }

    fn add(&mut self, node: Node) -> Number {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// A call begins.
    pub(crate) fn begin(&mut self, call: &Call) {
        let end = call.end.unwrap_or(usize::MAX);
        match &call.what {
            What::Create(path) => {
                if self.find(path).is_none() {
                    let number = self.add(Node::File(Kept::new(Vec::new())));
                    let (parent, name) = self.parent(path);
                    self.rename(parent, end, NameChange::Add(name, number));
                }
            }
            What::MakeDirectory(path) => {
                let number = self.add(directory());
                let (parent, name) = self.parent(path);
                self.rename(parent, end, NameChange::Add(name, number));
            }
            What::Rename { from, to } => {
                let number = self.find(from).expect("what is renamed is there");
                let ((parent, from), (to_parent, to)) = (self.parent(from), self.parent(to));
                assert_eq!(parent, to_parent, "moves to another directory are not understood");
                self.rename(parent, end, NameChange::Rename { from, to, number });
            }
            What::Remove(path) => {
                let (parent, name) = self.parent(path);
                self.rename(parent, end, NameChange::Remove(name));
            }
            What::Write { path, offset, bytes } => {
                if !self.strict && path.file_name().is_some_and(|name| name == "db") {
                    self.settle_renames(path);
                }
                let (offset, bytes) = (*offset as usize, bytes.clone());
                self.change(path, end, Change::Write { offset, bytes });
            }
            What::Resize { path, len } => self.change(path, end, Change::Resize(*len as usize)),
            What::Sync(_) | What::Tell(_) => {}
        }
    }

    /// A call has ended.
    pub(crate) fn end(&mut self, call: &Call) {
        let What::Sync(path) = &call.what else { return };
        // What has no name any more is lost, synced or not.
        let Some(number) = self.find(path) else { return };
        // Of a directory that never was only the other members know.
        if path.components().count() > 1 {
            self.syncs += 1;
            if self.lie == Some(self.syncs) {
                self.lied_about = Some(path.display().to_string());
                match &mut self.nodes[number] {
                    Node::File(file) => file.forget(call.begin),
                    Node::Directory { kept, .. } => kept.forget(call.begin),
                }
                return;
            }
        }
        self.sync(number, call.begin);
    }

    /// How many syncs inside the member's directory have ended.
    pub(crate) fn syncs(&self) -> usize {
        self.syncs
    }

    /// Renames beside a database, and what was done to names before them, are durable before what
    /// is written to it afterwards: sled relies on it, see docs/decisions.md.
    fn settle_renames(&mut self, database: &Path) {
        let (parent, _) = self.parent(database);
        let Node::Directory { kept, .. } = &mut self.nodes[parent] else { return };
        let rename = |(_, change): &(_, NameChange)| matches!(change, NameChange::Rename { .. });
        let settled = kept.pending.iter().rposition(rename).map_or(0, |last| last + 1);
        for (_, change) in kept.pending.drain(..settled) {
            change.apply(&mut kept.durable);
        }
    }

    fn sync(&mut self, number: Number, begin: usize) {
        match &mut self.nodes[number] {
            Node::File(file) => file.sync(begin),
            Node::Directory { kept, .. } => kept.sync(begin),
        }
    }

    fn change(&mut self, path: &Path, end: usize, change: Change) {
        let Some(number) = self.find(path) else { return };
        match &mut self.nodes[number] {
            Node::File(file) => file.pending.push((end, change)),
            Node::Directory { .. } => panic!("{} is a directory", path.display()),
        }
    }

    fn rename(&mut self, directory: Number, end: usize, change: NameChange) {
        match &mut self.nodes[directory] {
            Node::Directory { kept, names } => {
                change.apply(names);
                kept.pending.push((end, change));
            }
            Node::File(_) => panic!("{directory} is a file"),
        }
    }

    /// What now has this name.
    fn find(&self, path: &Path) -> Option<Number> {
        path.iter().try_fold(ROOT, |number, name| match &self.nodes[number] {
            Node::Directory { names, .. } => names.get(name.to_str().unwrap()).copied(),
            Node::File(_) => None,
        })
    }

    fn parent(&self, path: &Path) -> (Number, String) {
        let parent = self.find(path.parent().unwrap()).expect("the directory is there");
        (parent, path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    /// Writes what the disk may hold if the power fails now.
    pub(crate) fn image(&self, to: &Path, fate: &mut Fate<'_>) {
        self.image_of(ROOT, to, fate);
    }

    fn image_of(&self, number: Number, path: &Path, fate: &mut Fate<'_>) {
        match &self.nodes[number] {
            Node::File(file) => write_sparsely(path, &fate.contents(file)),
            Node::Directory { kept, names } => {
                let in_order = !self.strict && names.contains_key("db");
                if number != ROOT {
                    fs::create_dir(path).unwrap();
                }
                for (name, number) in fate.names(kept, in_order) {
                    self.image_of(number, &path.join(name), fate);
                }
            }
        }
    }
}

/// Which of the changes that may have reached the disk did. One for each image.
pub(crate) struct Fate<'a> {
    rng: &'a mut StdRng,
    kept: f64,
    torn: f64,
    names_kept: f64,
    /// Whether the disk writes in order: what is behind a change that it lost is lost too.
    ordered: bool,
    /// Whether a file may be as long as a lost write would have made it.
    length_first: bool,
}

impl<'a> Fate<'a> {
    /// Drawn: disks that keep nothing, everything, most, some; in order or not.
    pub(crate) fn draw(rng: &'a mut StdRng) -> Self {
        let mut one_of = |choices: &[f64]| choices[rng.random_range(0..choices.len())];
        let kept = one_of(&[0.0, 0.3, 0.7, 0.95, 1.0]);
        let torn = one_of(&[0.0, 0.1, 0.5, 1.0]);
        let names_kept = one_of(&[0.0, 0.5, 0.9, 1.0]);
        let (ordered, length_first) = (rng.random_bool(0.3), rng.random_bool(0.3));
        Self { rng, kept, torn, names_kept, ordered, length_first }
    }

    /// Everything has reached the disk.
    pub(crate) fn whole(rng: &'a mut StdRng) -> Self {
        let (kept, torn, names_kept) = (1.0, 0.0, 1.0);
        Self { rng, kept, torn, names_kept, ordered: false, length_first: false }
    }

    fn contents(&mut self, file: &Kept<Vec<u8>, Change>) -> Vec<u8> {
        let mut contents = file.durable.clone();
        let mut longest = contents.len();
        for (_, change) in &file.pending {
            let kept = self.rng.random_bool(self.kept);
            let torn = self.rng.random_bool(self.torn);
            match change {
                Change::Write { offset, bytes } => {
                    longest = longest.max(offset + bytes.len());
                    if kept && torn {
                        self.tear(*offset, bytes, &mut contents);
                    } else if kept {
                        change.apply(&mut contents);
                    }
                }
                Change::Resize(_) if kept => change.apply(&mut contents),
                Change::Resize(_) => {}
            }
            if self.ordered && (!kept || torn) {
                break;
            }
        }
        if self.length_first {
            contents.resize(longest.max(contents.len()), 0);
        }
        contents
    }

    /// Some sectors of a write: the first ones, the last ones, or any.
    fn tear(&mut self, offset: usize, bytes: &Bytes, contents: &mut Vec<u8>) {
        let (first, end) = (offset / SECTOR_BYTES, (offset + bytes.len()).div_ceil(SECTOR_BYTES));
        let cut = self.rng.random_range(first..=end);
        let shape = if self.ordered { 0 } else { self.rng.random_range(0..3) };
        for sector in first..end {
            let kept = match shape {
                0 => sector < cut,
                1 => sector >= cut,
                _ => self.rng.random_bool(0.5),
            };
            if kept {
                let begin = (sector * SECTOR_BYTES).max(offset);
                let end = ((sector + 1) * SECTOR_BYTES).min(offset + bytes.len());
                let bytes = bytes.slice(begin - offset..end - offset);
                Change::Write { offset: begin, bytes }.apply(contents);
            }
        }
    }

    fn names(&mut self, directory: &Kept<Names, NameChange>, in_order: bool) -> Names {
        let mut names = directory.durable.clone();
        for (_, change) in &directory.pending {
            if self.rng.random_bool(self.names_kept) {
                change.apply(&mut names);
            } else if self.ordered || in_order {
                break;
            }
        }
        names
    }
}
