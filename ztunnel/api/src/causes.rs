//! An error with everything that led to it, for a line of text.

use std::error::Error;
use std::fmt;

/// Shows an error and its causes, outermost first, joined by `: `. A cause that the text before it ends with
/// already is not said twice.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot connect")]
        Silent(#[source] Inner),
        #[error("cannot connect: {0}")]
        Telling(#[source] Inner),
    }

    #[derive(Debug, thiserror::Error)]
    #[error("transport")]
    struct Inner(#[source] io::Error);

    #[test]
    fn every_cause_is_told_once() {
        let inner = || Inner(io::Error::other("no such file"));
        for error in [Outer::Silent(inner()), Outer::Telling(inner())] {
            assert_eq!(Causes(&error).to_string(), "cannot connect: transport: no such file");
        }
    }
}
