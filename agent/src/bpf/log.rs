//! The programs' log as `tracing` events with the target `culvert::bpf`.
//!
//! A program writes `COUNTER SOURCE > DESTINATION`, the counter as a number, since strings are dear in the kernel; here it gets its
//! words back.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use ebpf_common::Counter;
use log::{Log, Metadata, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reads the log until dropped.
pub(crate) struct LogReader(EbpfLogger<ToTracing>);

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogReader")
    }
}

impl LogReader {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, aya_log::Error> {
        EbpfLogger::init_with_logger(ebpf, ToTracing).map(Self)
    }

    /// Passes records on as they come; ends only with an error. Cancelling it loses none.
    ///
    /// # Errors
    /// The buffer cannot be waited for.
    pub(crate) async fn run(self) -> io::Result<()> {
        // SAFETY: the logger owns its buffer, so the descriptor stays open and the same until both are dropped together.
        let mut buffer = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        loop {
            let mut ready = buffer.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

#[derive(Debug)]
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        tracing::enabled!(target: "culvert::bpf", tracing::Level::DEBUG)
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        match in_words(&text) {
            Some((counter, flow)) => {
                tracing::debug!(target: "culvert::bpf", decision = counter.decision().label(), reason = counter.reason(), flow);
            }
            None => tracing::debug!(target: "culvert::bpf", "{text}"),
        }
    }

    fn flush(&self) {}
}

/// Splits a record into what was decided and about which flow.
fn in_words(text: &str) -> Option<(Counter, &str)> {
    let (number, flow) = text.split_once(' ')?;
    let counter = Counter::ALL.get(number.parse::<usize>().ok()?)?;
    Some((*counter, flow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_decision_it_carries_as_a_number() {
        let (counter, flow) = in_words("16 10.0.0.1:80 > 10.0.0.2:90").unwrap();
        assert_eq!((counter, flow), (Counter::DroppedNoOutboundListener, "10.0.0.1:80 > 10.0.0.2:90"));
    }

    #[test]
    fn a_record_of_another_form_is_not_misread() {
        assert_eq!(in_words("word 10.0.0.1"), None);
        assert_eq!(in_words("9999 flow"), None);
    }
}
