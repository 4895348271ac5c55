//! The W3C `traceparent` of a connection: made by the outbound side, carried in the CONNECT request,
//! read by the inbound side, so that both access-log lines of one connection bear the same id.
//!
//! <https://www.w3.org/TR/trace-context/#traceparent-header>; only version 00's form is made, any
//! version is read as far as that form goes.

use std::fmt;
use std::str::FromStr;

/// What ties the log lines of one connection together, on whichever node they are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceParent {
    trace: u128,
    span: u64,
}

/// A text that is no `traceparent`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct InvalidTraceParent;

impl TraceParent {
    /// From fresh randomness; both ids must be other than zero (trace-context 3.2.2.3), which the
    /// lowest bit sees to.
    pub fn new(trace: u128, span: u64) -> Self {
        Self { trace: trace | 1, span: span | 1 }
    }

    /// With the process's random source.
    pub fn random() -> Self {
        Self::new(rand::random(), rand::random())
    }

    /// The id that both sides log: 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Flag 01: sampled. The log line is always written.
        write!(f, "00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut field = |width: usize| {
            parts.next().filter(|part| part.len() == width && is_lower_hex(part)).ok_or(InvalidTraceParent)
        };
        let (version, trace, span, _flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        let exact = version != "00" || text.len() == 55;
        let trace = u128::from_str_radix(trace, 16).map_err(|_| InvalidTraceParent)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| InvalidTraceParent)?;
        if version == "ff" || !exact || trace == 0 || span == 0 {
            return Err(InvalidTraceParent);
        }
        Ok(Self { trace, span })
    }
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_with_the_same_trace_id() {
        for (trace, span) in [(0, 0), (1, 1), (u128::MAX, u64::MAX), (0xabc << 64, 7)] {
            let sent = TraceParent::new(trace, span);
            let received: TraceParent = sent.to_string().parse().unwrap();
            assert_eq!(sent, received);
            assert_eq!(sent.trace_id().len(), 32);
        }
    }

    #[test]
    fn malformed_texts_are_refused() {
        let zero_trace = format!("00-{:032x}-{:016x}-01", 0, 1);
        let upper = "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01";
        let longer = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x";
        let version_ff = "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let multibyte = "00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01";
        for text in ["", "00", "00-12-34-56", &zero_trace, upper, longer, version_ff, multibyte] {
            assert_eq!(text.parse::<TraceParent>(), Err(InvalidTraceParent), "{text}");
        }
    }

    #[test]
    fn later_versions_may_carry_more_fields() {
        let text = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        assert_eq!(text.parse::<TraceParent>().unwrap().trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }
}
