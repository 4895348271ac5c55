//! The programs' log as `tracing` events with the target `culvert::bpf`.
//!
//! A program writes `COUNTER ADDRESS PORT ADDRESS PORT`, the counter as a number and the addresses as IPv6, since choices and strings
//! are dear in the kernel; here they become words again.

use std::io;
use std::net::{IpAddr, SocketAddr};

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
            Some((counter, source, destination)) => {
                let (decision, reason) = (counter.decision().label(), counter.reason());
                tracing::debug!(target: "culvert::bpf", decision, reason, %source, %destination);
            }
            None => tracing::debug!(target: "culvert::bpf", "{text}"),
        }
    }

    fn flush(&self) {}
}

/// Splits a record into what was decided and the two ends of the flow.
fn in_words(text: &str) -> Option<(Counter, SocketAddr, SocketAddr)> {
    let mut fields = text.split(' ');
    let counter = Counter::ALL.get(fields.next()?.parse::<usize>().ok()?)?;
    let mut end = || {
        let address: IpAddr = fields.next()?.parse().ok()?;
        Some(SocketAddr::new(address.to_canonical(), fields.next()?.parse().ok()?))
    };
    Some((*counter, end()?, end()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_decision_it_carries_as_a_number() {
        let (counter, source, destination) = in_words("16 ::ffff:10.0.0.1 80 fd00::2 90").unwrap();
        assert_eq!(counter, Counter::DroppedNoOutboundListener);
        assert_eq!(
            (source.to_string(), destination.to_string()),
            ("10.0.0.1:80".into(), "[fd00::2]:90".into())
        );
    }

    #[test]
    fn a_record_of_another_form_is_not_misread() {
        for text in ["word 10.0.0.1 80 10.0.0.2 90", "9999 10.0.0.1 80 10.0.0.2 90", "16 10.0.0.1 80", ""] {
            assert_eq!(in_words(text), None, "{text:?}");
        }
    }
}
