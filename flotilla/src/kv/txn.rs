//! `flotilla kv txn`: a transaction in words.

use bytes::Bytes;
use client::{KvClient, Operand, OperationReply, Relation, Txn, TxnDone};
use daemon::{Code, Failure};
use serde_json::{Value, json};

use super::{GuardOption, describe};
use crate::output::{Output, refused, shown};

pub(super) const HELP: &str = "\
Compares (--if), all of which must hold:
  version KEY = NUMBER        also != < >; a key that does not exist has version 0
  rev KEY = NUMBER            when it was last written
  created KEY = NUMBER        when it came into being
  value KEY = TEXT
  exists KEY
  absent KEY
Operations (--then, --else), in order:
  get KEY
  put KEY TEXT
  append KEY TEXT
  delete KEY
Words with spaces stand in quotes: 'put key \"two words\"'. All keys must be in one shard: give them one
{tag}. Exit code 1 when the compares do not hold and there is no --else.";

/// The arguments of `flotilla kv txn`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// What must hold
    #[arg(long = "if", value_name = "COMPARE")]
    compares: Vec<String>,
    /// What is done if it does
    #[arg(long = "then", value_name = "OPERATION")]
    then: Vec<String>,
    /// What is done if it does not
    #[arg(long = "else", value_name = "OPERATION")]
    otherwise: Vec<String>,
    #[command(flatten)]
    guard: GuardOption,
}

/// Executes it.
pub(super) async fn run(
    client: &KvClient,
    arguments: Arguments,
    output: Output,
) -> Result<(), Failure> {
    let Arguments { compares, then, otherwise, guard } = arguments;
    let mut txn = Txn::new();
    if let Some(guard) = guard.read()? {
        txn = txn.guarded(&guard);
    }
    for text in &compares {
        txn = compare(txn, text)?;
    }
    for text in &then {
        txn = operation(txn, text)?;
    }
    let mut other = Txn::new();
    for text in &otherwise {
        other = operation(other, text)?;
    }
    let done = client.txn(txn.otherwise(|_| other)).await.map_err(refused)?;
    let texts = if done.succeeded { &then } else { &otherwise };
    tell(&done, texts, output)?;
    if !done.succeeded && otherwise.is_empty() {
        return Err(Failure::new(Code::Failed, "nothing was done: a compare does not hold"));
    }
    Ok(())
}

fn tell(done: &TxnDone, texts: &[String], output: Output) -> Result<(), Failure> {
    let replies = done.replies.as_deref().unwrap_or_default();
    let mut lines = vec![if done.succeeded { "then" } else { "else" }.to_owned()];
    let mut values = Vec::new();
    for (text, reply) in texts.iter().zip(replies) {
        let key = words(text)?.get(1).cloned().unwrap_or_default();
        let (said, value) = told(key.as_bytes(), reply);
        lines.push(format!("{text}: {said}"));
        values.push(value);
    }
    let value = json!({
        "succeeded": done.succeeded,
        "mod_revision": done.mod_revision,
        "replies": done.replies.is_some().then_some(values),
    });
    output.result(&lines.join("\n"), &value)
}

fn told(key: &[u8], reply: &OperationReply) -> (String, Value) {
    match reply {
        OperationReply::Got(None) => ("no such key".to_owned(), Value::Null),
        OperationReply::Got(Some(pair)) => (shown(&pair.value), describe(key, pair)),
        OperationReply::Written(written) => {
            let version = written.version;
            (format!("version {version}"), json!({ "version": version }))
        }
        OperationReply::Appended(written, _) => {
            let version = written.version;
            (format!("version {version}"), json!({ "version": version }))
        }
        OperationReply::Removed(None) => ("no such key".to_owned(), Value::Null),
        OperationReply::Removed(Some(pair)) => {
            (format!("it had version {}", pair.version), describe(key, pair))
        }
    }
}

fn compare(txn: Txn, text: &str) -> Result<Txn, Failure> {
    let words = words(text)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong("compare", &words.join(" ")));
    let (what, key, relation, operand) = match words[..] {
        ["exists", key] => return Ok(txn.when_exists(key.to_owned())),
        ["absent", key] => return Ok(txn.when_version(key.to_owned(), 0)),
        [what, key, relation, operand] => (what, key.to_owned(), relation, operand),
        _ => return Err(wrong("compare", text)),
    };
    let relation = match relation {
        "=" => Relation::Equal,
        "!=" => Relation::NotEqual,
        "<" => Relation::Less,
        ">" => Relation::Greater,
        _ => return Err(wrong("compare", text)),
    };
    let operand = match what {
        "version" => Operand::Version(number(operand)?),
        "rev" => Operand::ModRevision(number(operand)?),
        "created" => Operand::CreateRevision(number(operand)?),
        "value" => Operand::Value(Bytes::from(operand.to_owned())),
        _ => return Err(wrong("compare", text)),
    };
    Ok(txn.when(key, relation, operand))
}

fn operation(txn: Txn, text: &str) -> Result<Txn, Failure> {
    let words = words(text)?;
    let words: Vec<String> = words.into_iter().collect();
    Ok(match &words[..] {
        [what, key] if what == "get" => txn.get(key.clone()),
        [what, key] if what == "delete" => txn.delete(key.clone()),
        [what, key, value] if what == "put" => txn.put(key.clone(), value.clone()),
        [what, key, value] if what == "append" => txn.append(key.clone(), value.clone()),
        _ => return Err(wrong("operation", text)),
    })
}

fn wrong(what: &str, text: &str) -> Failure {
    let message = format!("\"{text}\" is no {what}: `flotilla kv txn --help` lists them");
    Failure::new(Code::WrongCall, message)
}

/// The words of a text: parted by spaces, in quotes where they hold some; a backslash takes the
/// next character as it is.
fn words(text: &str) -> Result<Vec<String>, Failure> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (end, Some(open)) if end == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (' ' | '\t', None) => words.extend(word.take()),
            ('\\', Some('"') | None) => match characters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err(wrong("text", text)),
            },
            (other, _) => word.get_or_insert_default().push(other),
        }
    }
    if quote.is_some() {
        return Err(wrong("text", text));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_a_shell_reads_them() {
        let read = |text: &str| words(text).ok();
        let some = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
        assert_eq!(read("put  key value"), some(&["put", "key", "value"]));
        assert_eq!(read("put key 'two words'"), some(&["put", "key", "two words"]));
        assert_eq!(read("put key \"it's\""), some(&["put", "key", "it's"]));
        assert_eq!(read("put key ''"), some(&["put", "key", ""]));
        assert_eq!(read("put a\\ b c"), some(&["put", "a b", "c"]));
        assert_eq!(read(""), some(&[]));
        for wrong in ["put 'key", "put \"key", "put key\\"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
