//! What a job tells its app: names and values, as `-D name=value` gives them.
//!
//! An app says which it takes ([`crate::app::App::args`]); any other is refused before a record is
//! read, and so is a value that cannot be what it should. Neither is tried again.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use crate::failure::Failure;

/// An argument that an app takes: its name and what it means.
pub type Arg = (&'static str, &'static str);

/// A job's arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    values: BTreeMap<String, String>,
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Args {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(pairs: T) -> Self {
        Self { values: pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
    }
}

impl Args {
    /// The value of an argument, if it is given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of an argument that has to be given.
    ///
    /// # Errors
    /// Permanent, when it is not.
    pub fn required(&self, name: &str) -> Result<&str, Failure> {
        self.get(name).ok_or_else(|| {
            Failure::fatal(format!("the argument {name} is missing: give it as -D {name}=..."))
        })
    }

    /// The value of an argument as a type of its own; `default` if it is not given.
    ///
    /// # Errors
    /// Permanent, when it is none of the type.
    pub fn parsed<T: FromStr>(&self, name: &str, default: T) -> Result<T, Failure>
    where
        T::Err: Display,
    {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.parse().map_err(|error| {
            Failure::fatal(format!("the argument {name} is {value:?}, which will not do: {error}"))
        })
    }

    /// Refuses arguments that are not among these.
    ///
    /// # Errors
    /// Permanent, naming the first and what there is.
    pub(crate) fn check(&self, app: &str, known: &[Arg]) -> Result<(), Failure> {
        let unknown = self.values.keys().find(|name| known.iter().all(|(arg, _)| arg != name));
        let Some(unknown) = unknown else { return Ok(()) };
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let taken = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(Failure::fatal(format!("{app} has no argument {unknown:?}; it takes: {taken}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_not_do_is_refused_for_good_and_by_name() {
        let args: Args = [("k", "10"), ("bad", "x")].into_iter().collect();
        assert_eq!(args.parsed("k", 1_u32).unwrap(), 10);
        assert_eq!(args.parsed("absent", 7_u32).unwrap(), 7);
        let permanent = |failure: Failure, named: &str| match failure {
            Failure::User { message, permanent, .. } => permanent && message.contains(named),
            other => panic!("{other}"),
        };
        assert!(permanent(args.parsed("bad", 1_u32).unwrap_err(), "bad"));
        assert!(permanent(args.required("absent").unwrap_err(), "absent"));
        assert!(permanent(args.check("app", &[("k", "")]).unwrap_err(), "takes: k"));
        args.check("app", &[("k", ""), ("bad", "")]).unwrap();
    }
}
