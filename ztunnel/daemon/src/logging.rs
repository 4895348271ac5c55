//! Logging: one line an event, as text or JSON, through a bounded buffer that never stalls the caller.

/// The form of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// Tab-separated, for people.
    #[default]
    Text,
    /// One flat JSON object a line: `level`, `time`, `scope`, `message`, then the event's fields.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is neither text nor json")),
        }
    }
}

/// Logging could not be set up, or the filter changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not of `RUST_LOG`'s form.
    #[error("log filter `{filter}`: {reason}")]
    Filter {
        /// The filter.
        filter: String,
        /// Why.
        reason: String,
    },
    /// Something else in the process has set logging up.
    #[error("logging is set up already")]
    Twice,
}

/// Changes the filter of a running process and counts lost lines. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {}

/// Writes out what is buffered when dropped: keep it until the end of `main`.
#[must_use = "dropped at once, later lines are lost at exit"]
pub struct LogGuard {}

/// Sets logging up for the process, to standard output. `filter` is of `RUST_LOG`'s form, such as `info,access=off`.
pub fn init(filter: &str, format: Format) -> Result<(LogHandle, LogGuard), LoggingError> {
    todo!()
}

impl LogHandle {
    /// The filter in force.
    pub fn filter(&self) -> String {
        todo!()
    }

    /// Sets another filter.
    pub fn set_filter(&self, filter: &str) -> Result<(), LoggingError> {
        todo!()
    }

    /// Lines that were dropped because the output did not take them.
    pub fn dropped_lines(&self) -> u64 {
        todo!()
    }
}
