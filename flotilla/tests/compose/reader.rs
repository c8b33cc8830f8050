//! Reads a compose file as far as ours go: maps and lists by indentation, texts, anchors and merges.
//!
//! What it does not know it refuses, so a file that needs more shows here.

use std::collections::BTreeMap;

/// A part of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Text(String),
    List(Vec<String>),
    Map(BTreeMap<String, Node>),
}

impl Node {
    pub(crate) fn map(&self) -> &BTreeMap<String, Node> {
        let Self::Map(map) = self else { panic!("no map: {self:?}") };
        map
    }

    pub(crate) fn list(&self) -> Vec<String> {
        match self {
            Self::List(list) => list.clone(),
            Self::Text(text) => vec![text.clone()],
            Self::Map(_) => panic!("no list: {self:?}"),
        }
    }

    pub(crate) fn text(&self) -> &str {
        let Self::Text(text) = self else { panic!("no text: {self:?}") };
        text
    }
}

/// Reads a whole file.
pub(crate) fn read(text: &str) -> Node {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .map(|line| (line.len() - line.trim_start().len(), line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let mut reader = Reader { lines, at: 0, anchors: BTreeMap::new() };
    let node = reader.block(0);
    assert_eq!(reader.at, reader.lines.len(), "not read to its end");
    node
}

struct Reader<'a> {
    lines: Vec<(usize, &'a str)>,
    at: usize,
    anchors: BTreeMap<String, Node>,
}

impl Reader<'_> {
    /// What stands at this indentation.
    fn block(&mut self, indent: usize) -> Node {
        let (mut map, mut list) = (BTreeMap::new(), Vec::new());
        while let Some(&(found, line)) = self.lines.get(self.at).filter(|(at, _)| *at >= indent) {
            assert_eq!(found, indent, "{line}");
            self.at += 1;
            if let Some(item) = line.strip_prefix("- ") {
                list.push(unquoted(item));
                continue;
            }
            let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("no key: {line}"));
            let value = value.trim();
            if key == "<<" {
                let name = value.strip_prefix('*').unwrap();
                for (key, node) in self.anchors[name].map() {
                    map.entry(key.clone()).or_insert(node.clone());
                }
                continue;
            }
            let anchor = value.strip_prefix('&');
            let node = match value {
                _ if value.is_empty() || anchor.is_some() => self.below(indent),
                _ => inline(value),
            };
            self.anchors.extend(anchor.map(|name| (name.to_owned(), node.clone())));
            map.insert(key.to_owned(), node);
        }
        assert!(map.is_empty() || list.is_empty(), "a map and a list in one");
        if list.is_empty() { Node::Map(map) } else { Node::List(list) }
    }

    fn below(&mut self, indent: usize) -> Node {
        match self.lines.get(self.at) {
            Some(&(deeper, _)) if deeper > indent => self.block(deeper),
            Some(_) | None => Node::Map(BTreeMap::new()),
        }
    }
}

/// A text or a list on one line. A list in quotes is a text.
fn inline(value: &str) -> Node {
    match value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(items) => Node::List(items.split(',').map(|item| unquoted(item.trim())).collect()),
        None => Node::Text(unquoted(value)),
    }
}

fn unquoted(text: &str) -> String {
    let quoted = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    quoted('"').or_else(|| quoted('\'')).unwrap_or(text).to_owned()
}
