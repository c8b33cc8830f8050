//! How commands talk, as every command line of ours does, and what the end of a request means for
//! them.

use client::{Error, InvalidEndpoint, Rejected};
pub(crate) use daemon::output::{Output, Table, line, put_bytes, raw, shown, unwritable, value};
use daemon::{Code, Failure};

/// What the end of a request without a reply means for the command.
pub(crate) fn refused(error: Error) -> Failure {
    match error {
        Error::Unknown(unknown) => Failure::new(Code::Unknown, unknown.to_string()),
        Error::Rejected(rejected) => {
            let code = match &rejected {
                Rejected::Invalid(_) => Code::WrongCall,
                Rejected::Limit(_) | Rejected::Refused(_) => Code::Failed,
                Rejected::Unavailable(_) => Code::Unreachable,
                Rejected::NotFound(_) | Rejected::OutOfRange { .. } => Code::NotFound,
                Rejected::Exists(_) => Code::Exists,
            };
            Failure::new(code, rejected.to_string())
        }
    }
}

/// What a malformed endpoint means for the command.
pub(crate) fn malformed(error: InvalidEndpoint) -> Failure {
    Failure::new(Code::WrongCall, "a wrong address").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncertainty_is_never_told_as_failure() {
        let unknown = client::Unknown { reason: "lost".to_owned() };
        assert_eq!(refused(unknown.into()).code(), Code::Unknown);
        let rejected = Rejected::Unavailable("gone".to_owned());
        assert_eq!(refused(rejected.into()).code(), Code::Unreachable);
    }
}
