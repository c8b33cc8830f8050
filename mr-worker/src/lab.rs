//! The labs' shape of an app: two functions of texts. For learning, and for programs that were
//! written for the labs; it holds all values of a key in memory at once.

use crate::{
    app::{App, Context, Emitter, Mapper, Output, Reducer, Values},
    failure::Failure,
    fold::Keep,
    record::Record,
};

/// A pair, as the labs have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

impl KeyValue {
    /// A pair.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

/// What maps a document: its name, and its contents. Bytes that are not UTF-8 come as U+FFFD.
pub type MapFunction = fn(name: &str, contents: &str) -> Vec<KeyValue>;

/// What reduces a key's values to one.
pub type ReduceFunction = fn(key: &str, values: Vec<String>) -> String;

/// An app of two functions. Its jobs take whole files for records.
#[derive(Debug, Clone, Copy)]
pub struct Lab {
    /// The name by which jobs ask for it.
    pub name: &'static str,
    /// Turns a document into pairs.
    pub map: MapFunction,
    /// Turns the values of a key into one.
    pub reduce: ReduceFunction,
}

impl App for Lab {
    type Fold = Keep;
    type Mapper = LabMapper;
    type Reducer = LabReducer;

    fn name(&self) -> &'static str {
        self.name
    }

    fn mapper(&self, _: &Context) -> Result<LabMapper, Failure> {
        Ok(LabMapper(self.map))
    }

    fn reducer(&self, _: &Context) -> Result<LabReducer, Failure> {
        Ok(LabReducer(self.reduce))
    }
}

/// Calls the function that maps.
#[derive(Debug)]
pub struct LabMapper(MapFunction);

impl Mapper for LabMapper {
    type Fold = Keep;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        for KeyValue { key, value } in
            (self.0)(record.document, &String::from_utf8_lossy(record.value))
        {
            out.emit(key.as_bytes(), value.as_bytes());
        }
        Ok(())
    }
}

/// Calls the function that reduces.
#[derive(Debug)]
pub struct LabReducer(ReduceFunction);

impl Reducer for LabReducer {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        let mut all = Vec::new();
        while let Some(value) = values.next()? {
            all.push(String::from_utf8_lossy(value).into_owned());
        }
        let result = (self.0)(&String::from_utf8_lossy(key), all);
        out.write(key, result.as_bytes())
    }
}
