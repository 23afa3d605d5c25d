//! What is told of errors of object stores. Their own texts hold the names of objects, and `partition_by` puts values of
//! records into those; answers of servers may repeat what was signed. So only the status, its code, or the last cause is.

use std::error::Error;
use std::io;

use object_store::Error as StoreError;

/// Longer ones are no codes.
const CODE_BYTES_MAX: usize = 64;

/// What stands before the status in a client's text.
const STATUS: &str = "status code: ";

pub fn as_io(error: &StoreError) -> io::Error {
    let kind = match error {
        StoreError::NotFound { .. } => io::ErrorKind::NotFound,
        StoreError::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            io::ErrorKind::PermissionDenied
        }
        StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => io::ErrorKind::Unsupported,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, text(error))
}

/// `the store answered 403 Forbidden (SignatureDoesNotMatch)`, or the last cause.
pub fn text(error: &StoreError) -> String {
    let whole = error.to_string();
    if let Some(status) = status(&whole) {
        return match code(&whole) {
            Some(code) => format!("the store answered {status} ({code})"),
            None => format!("the store answered {status}"),
        };
    }
    match error {
        StoreError::NotFound { .. } => return "there is no such object".to_owned(),
        StoreError::AlreadyExists { .. } => return "there is such an object".to_owned(),
        StoreError::InvalidPath { .. } => return "the store does not take such a name".to_owned(),
        _ => {}
    }
    let mut last: &dyn Error = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// Does the store not know what is asked of it? S3 says 501 for what it does not implement, others 400.
pub fn is_unsupported(error: &StoreError) -> bool {
    let is_refused = || {
        let whole = error.to_string();
        status(&whole).is_some_and(|status| status.starts_with("501") || status.starts_with("400"))
    };
    matches!(error, StoreError::NotSupported { .. } | StoreError::NotImplemented { .. }) || is_refused()
}

/// `403 Forbidden`.
fn status(whole: &str) -> Option<&str> {
    let (_, rest) = whole.split_once(STATUS)?;
    let status = rest.split(':').next()?.trim();
    (status.starts_with(|first: char| first.is_ascii_digit()) && status.len() <= CODE_BYTES_MAX)
        .then_some(status)
}

/// Of an error of S3 and those like it.
fn code(whole: &str) -> Option<&str> {
    let (_, rest) = whole.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word = |char: char| char.is_ascii_alphanumeric();
    (code.len() <= CODE_BYTES_MAX && code.chars().all(is_word)).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(text: &str) -> StoreError {
        StoreError::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn names_of_objects_are_never_told() {
        let error = answered(
            "Error performing PUT http://h/b/day=hunter2/x in 3ms - Server returned non-2xx status code: 403 Forbidden: \
             <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Resource>/b/day=hunter2</Resource></Error>",
        );
        assert_eq!(text(&error), "the store answered 403 Forbidden (SignatureDoesNotMatch)");
        let error = answered(
            "Error performing HEAD http://h/b/day=hunter2/x - Server returned non-2xx status code: 503 Slow: ",
        );
        assert_eq!(text(&error), "the store answered 503 Slow");
        let path = "day=hunter2/x".to_owned();
        let error = StoreError::NotFound { path: path.clone(), source: format!("no {path}").into() };
        assert_eq!(text(&error), "there is no such object");
        assert_eq!(as_io(&error).kind(), io::ErrorKind::NotFound);
        let error = StoreError::PermissionDenied { path, source: io::Error::other("no login").into() };
        let told = as_io(&error);
        assert_eq!((told.kind(), told.to_string()), (io::ErrorKind::PermissionDenied, "no login".to_owned()));
    }

    #[test]
    fn what_a_store_does_not_know_is_no_outage() {
        let status =
            |status: &str| answered(&format!("Server returned non-2xx status code: {status}: <Error/>"));
        assert!(is_unsupported(&status("501 Not Implemented")));
        assert!(!is_unsupported(&status("503 Service Unavailable")));
        let operation = "put".to_owned();
        assert!(is_unsupported(&StoreError::NotImplemented { operation, implementer: "x".to_owned() }));
    }
}
